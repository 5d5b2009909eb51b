"""InfuseNet: noisy latents, control latents and identity tokens -> residuals for the DiT's blocks.

The released network is diffusers' `FluxControlNetModel`, fed identity tokens where a ControlNet has text
(arXiv 2503.16418, 3.2; `pipeline_flux_infusenet.py`). Its blocks are the DiT's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from backends.mlx.dit import (
    Constants,
    DoubleBlock,
    FluxConfig,
    Residuals,
    SingleBlock,
    TimeTextEmbed,
    make_constants,
)

GUIDANCE_SCALE = 1.0  # InfuseNet's own, whatever the DiT is given


class InfuseConstants(NamedTuple):
    """The blocks' constants, and the control latents embedded (B, L, D)."""

    blocks: Constants
    control: mx.array

    def at(self, step: int) -> "InfuseConstants":
        return self._replace(blocks=self.blocks.at(step))


class InfuseNet(nn.Module):
    def __init__(self, config: FluxConfig):
        super().__init__()
        self.config = config
        D = config.width
        self.time_text_embed = TimeTextEmbed(config)
        self.context_embedder = nn.Linear(config.joint_attention_dim, D)
        self.x_embedder = nn.Linear(config.in_channels, D)
        self.controlnet_x_embedder = nn.Linear(config.in_channels, D)
        self.transformer_blocks = [DoubleBlock(config) for _ in range(config.num_layers)]
        self.single_transformer_blocks = [SingleBlock(config) for _ in range(config.num_single_layers)]
        self.controlnet_blocks = [nn.Linear(D, D) for _ in range(config.num_layers)]
        self.controlnet_single_blocks = [nn.Linear(D, D) for _ in range(config.num_single_layers)]

    def __call__(self, latents: mx.array, constants: InfuseConstants, scale: float) -> Residuals:
        """latents (B, L, 64) in the weights' dtype, `constants` of this step -> a residual per block."""
        (txt, rope, double_mods, single_mods, *_), control = constants
        img = self.x_embedder(latents) + control
        doubles, singles = [], []
        for block, modulation, out in zip(
            self.transformer_blocks, double_mods, self.controlnet_blocks, strict=True
        ):
            img, txt = block(img, txt, *modulation, rope)
            doubles.append(out(img) * scale)
        x, T = mx.concatenate([txt, img], axis=1), txt.shape[1]  # (B, T + L, D)
        for block, modulation, out in zip(
            self.single_transformer_blocks, single_mods, self.controlnet_single_blocks, strict=True
        ):
            x = block(x, modulation, rope)
            singles.append(out(x[:, T:]) * scale)
        return Residuals(doubles, singles)


def make_infuse_constants(
    network: InfuseNet,
    sigmas: Sequence[float],
    width: int,
    height: int,
    identity: mx.array,
    pooled: mx.array,
    control: mx.array,
) -> InfuseConstants:
    """As the DiT's `make_constants`, with identity tokens (B, 8, joint width) in place of the text, and the
    control latents (B, L, 64)."""
    blocks = make_constants(network, sigmas, width, height, identity, pooled, GUIDANCE_SCALE)
    return InfuseConstants(blocks, network.controlnet_x_embedder(control))
