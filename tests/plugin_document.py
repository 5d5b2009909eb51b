"""What docs/plugins.md says of pairs, refusals and memory, drawn of what the tests find and of the published
shapes. `INFU_WRITE_DOCS=1 python -m pytest tests/test_pairs.py` writes it anew."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from golden import GOLDEN
from plugin_cases import RELEASED_OMINICONTROL
from plugin_pairs import NAMES

DOCUMENT = Path(__file__).parents[1] / "docs/plugins.md"
MANIFESTS = Path(__file__).parent / "manifests"
Outcome = np.ndarray | str  # the latents, or the sentence with which it was refused


def draw_pairs(outcomes: Mapping[tuple[str, str], Outcome]) -> str:
    """Half of the square of all kinds, and below it the reasons of what is refused."""
    reasons = list(dict.fromkeys(found for found in outcomes.values() if isinstance(found, str)))

    def draw(found: Outcome | None) -> str:
        if found is None:
            return ""
        return f"refused ({reasons.index(found) + 1})" if isinstance(found, str) else "works"

    rows = [[row, *(draw(outcomes.get((column, row))) for column in NAMES)] for row in NAMES]
    told = "".join(f"\n\n({number}) {reason}" for number, reason in enumerate(reasons, 1))
    return draw_table([["", *NAMES], *rows]) + told


def draw_refused(sentences: dict[str, str]) -> str:
    return draw_table([["asked for", "said"], *map(list, sentences.items())])


def draw_sizes() -> str:
    rows = [
        [name, f"{numbers / 1e6:,.0f} million", f"{size} bytes", f"{numbers * size / 1e9:.2f} GB"]
        for name, numbers, size in (*list_networks(), *list_kept())
    ]
    return draw_table([["in memory", "numbers", "each", "together"], *rows])


def draw_table(lines: list[list[str]]) -> str:
    head, *rows = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def put(text: str, name: str, table: str) -> str:
    """The document with `table` between the two markers of that name."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    head, rest = text.split(start)
    return head + start + table + end + rest.split(end)[1]


# Sizes at FLUX.1-dev's.


def list_networks() -> list[tuple[str, int, int]]:
    """Network -> how many numbers it has, from its published shapes, and the bytes of one in memory: in
    bfloat16, the encoders of IP-Adapters in float32."""
    pulid = read_shapes("pulid_flux_v0.9.1")
    adapter = {name: shape for name, shape in pulid.items() if name.startswith("pulid_ca.")}
    identity = {name: shape for name, shape in pulid.items() if name not in adapter}
    return [
        ("InfuseNet", count(read_shapes("infusenet")), 2),
        ("ControlNet union or union-pro", count_controlnet(5, 10, num_mode=10), 2),
        ("ControlNet union-pro-2", count_controlnet(6, 0), 2),
        ("XLabs ControlNet", count_controlnet(2, 0, conditioning_embedding_channels=16), 2),
        ("CLIP ViT-L/14, which sees XLabs IP-Adapter's picture", count_clip(), 4),
        ("SigLIP, which sees InstantX IP-Adapter's picture",
         count(read_shapes("siglip_so400m_patch14_384_vision")), 4),
        ("PuLID's cross-attentions", count(adapter), 2),
        ("PuLID's IDFormer, for its photograph", count(identity), 2),
        ("EVA02-CLIP, for PuLID's photograph", count(read_shapes("eva02_clip_l_336_visual")), 2),
    ]  # fmt: skip


def list_kept() -> list[tuple[str, int, int]]:
    """What is kept of plug-ins whose files do not stay in memory."""
    base = read_shapes("flux1_dev_transformer")
    modules = {name.removesuffix(".weight"): shape for name, shape in base.items()}
    of_rank_1 = sum(sum(shape) for name, shape in modules.items() if RELEASED_OMINICONTROL.fullmatch(name))
    width = base["x_embedder.weight"][0]
    return [
        ("XLabs IP-Adapter, per picture (16 tokens' keys and values in 19 blocks)", 2 * 19 * 16 * width, 4),
        ("InstantX IP-Adapter, per picture (128 tokens', 57 blocks)", 2 * 57 * 128 * width, 4),
        ("OminiControl's adapter, for each of its rank", of_rank_1, 2),
        ("OminiControl with `independent`, a 512 x 512 picture (1,024 tokens', 57 blocks)",
         2 * 57 * 1024 * width, 2),
    ]  # fmt: skip


def read_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((MANIFESTS / f"{name}.json").read_text()).items()}


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def count_controlnet(double: int, single: int, **extra: int) -> int:
    """The numbers of diffusers' network of that depth at FLUX.1-dev's width."""
    from backends.pytorch.load import build_empty, build_infusenet

    config = json.loads((GOLDEN / "base/transformer/config.json").read_text()) | {
        "num_layers": double, "num_single_layers": single, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
        "axes_dims_rope": [16, 56, 56], "guidance_embeds": True,
    }  # fmt: skip
    network = build_empty(build_infusenet, config | extra)
    return count({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})


def count_clip() -> int:
    """CLIP ViT-L/14's image half: width 1024, 24 layers, 257 places, 768 numbers out."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from backends.pytorch.load import build_empty

    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}
    config = CLIPVisionConfig(**sizes, num_attention_heads=16, image_size=224, projection_dim=768)
    network = build_empty(CLIPVisionModelWithProjection, config)
    return sum(parameter.numel() for parameter in network.parameters())
