"""The config of a transformer or InfuseNet that comes as a file alone: its tensors' shapes tell the sizes."""

from collections.abc import Mapping
from typing import Any

from infu.errors import BrokenFile
from infu.weights.names import count_blocks


def make_config(base: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A FLUX config of what the tensors' shapes say; only the rotary axes are the `base` config's."""

    def width(name: str, axis: int) -> int:
        return checkpoint[name].shape[axis]

    try:
        doubles, singles = count_blocks(checkpoint)
        kind = "transformer" if doubles or not singles else "single_transformer"  # a ControlNet may lack one
        head = width(f"{kind}_blocks.0.attn.norm_q.weight", 0)
        config = {
            "num_layers": doubles,
            "num_single_layers": singles,
            "attention_head_dim": head,
            "num_attention_heads": width("x_embedder.weight", 0) // head,
            "in_channels": width("x_embedder.weight", 1),
            "joint_attention_dim": width("context_embedder.weight", 1),
            "pooled_projection_dim": width("time_text_embed.text_embedder.linear_1.weight", 1),
            "guidance_embeds": any("guidance_embedder" in name for name in checkpoint),
        }
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise BrokenFile(f"This is no whole FLUX.1: it has no {error}. Download it again.") from None
    return {**base, **config}
