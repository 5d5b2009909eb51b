"""The mini base's networks, in diffusers' and transformers' classes as FLUX.1-dev has them, untrained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from backends.pytorch.dit import EACH, make_constants, velocity
from backends.pytorch.load import build_clip, build_t5, build_transformer, build_vae
from infu.training.minibase.vocabulary import CLIP_LENGTH, END

TRANSFORMER = dict(
    attention_head_dim=32,
    num_attention_heads=4,
    num_layers=3,
    num_single_layers=6,
    in_channels=64,
    out_channels=None,
    patch_size=1,
    joint_attention_dim=128,
    pooled_projection_dim=64,
    guidance_embeds=True,
    axes_dims_rope=[8, 12, 12],
)
CLIP = dict(
    hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, projection_dim=64
)
T5 = dict(
    d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2, feed_forward_proj="gated-gelu",
    dropout_rate=0.0, is_encoder_decoder=False, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
)  # fmt: skip
VAE = dict(
    block_out_channels=[16, 32, 64, 64],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=4,
    use_quant_conv=False,
    use_post_quant_conv=False,
    scaling_factor=1.0,  # the latents' scale is inside the encoder: the config has one number for 16 channels
    shift_factor=0.0,
    sample_size=128,
)
BLOCKS = ("transformer_blocks.", "layers.", "block.")  # of a DiT, CLIP, T5: the matrices that Muon turns


class Base(nn.Module):
    """The three networks that learn together: text encoders and DiT."""

    def __init__(self, clip_vocabulary: dict[str, int], t5_size: int):
        super().__init__()
        end = clip_vocabulary[END]
        self.clip = build_clip(
            CLIP
            | dict(vocab_size=len(clip_vocabulary), max_position_embeddings=CLIP_LENGTH, eos_token_id=end)
            | dict(bos_token_id=end - 1, pad_token_id=end)
        )
        self.t5 = build_t5(T5 | dict(vocab_size=t5_size))
        self.dit = build_transformer(TRANSFORMER)
        for (
            module
        ) in self.dit.modules():  # DiT's adaLN-Zero (arXiv 2212.09748): every block begins as nothing
            if type(module).__name__.startswith("AdaLayerNorm"):
                nn.init.zeros_(module.linear.weight)
                nn.init.zeros_(module.linear.bias)
        nn.init.zeros_(self.dit.proj_out.weight)
        nn.init.zeros_(self.dit.proj_out.bias)

    def read(self, t5_ids: Tensor, clip_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T), (B, 77) -> states (B, T, 128), no mask, as FLUX was trained; pooled (B, 64)."""
        return self.t5(t5_ids).last_hidden_state, self.clip(clip_ids).pooler_output

    def forward(self, latents, times, size, states, pooled, guidance: float = 1.0) -> Tensor:
        """The velocity (B, L, 64) at a time for each sample, through the forward that the product runs."""
        constants = make_constants(self.dit, [*times, 0.0], *size, states, pooled, guidance)
        return velocity(self.dit, constants, EACH, latents)


def make_base(run: Path) -> Base:
    """For the tokenizers of a run; the same weights every time."""
    clip = json.loads((run / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    t5 = json.loads((run / "tokenizer_2" / "tokenizer.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    return Base(clip, len(t5["model"]["vocab"]))


def make_vae() -> nn.Module:
    torch.manual_seed(0)
    return build_vae(VAE)


def make_optimizers(network: nn.Module, muon: float, adam: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, its update's rms matched to AdamW's; AdamW for all else."""
    inside, rest = [], []
    for name, parameter in network.named_parameters():
        is_matrix = parameter.ndim == 2 and any(block in name for block in BLOCKS)
        (inside if is_matrix else rest).append(parameter)
    turned = torch.optim.Muon(inside, lr=muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [turned, torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.99), weight_decay=0.01)]
