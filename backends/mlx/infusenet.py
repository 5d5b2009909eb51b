"""InfuseNet, and a ControlNet: noisy latents, control latents and tokens -> residuals for the DiT's blocks.

The released InfuseNet is diffusers' `FluxControlNetModel`, fed identity tokens where a ControlNet has text
(arXiv 2503.16418, 3.2; `pipeline_flux_infusenet.py`). Its blocks are the DiT's. Regions of several people are
those of bytedance/ComfyUI_InfiniteYou (`infuse_net.py`). P people, B samples.
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


class Regions(NamedTuple):
    """Where each of P people may be: `latents` (P, L, 1) is what of the noisy latents they see, `residuals`
    (P, L, 1, 4), times their scale, is for every fourth channel of what they add."""

    latents: mx.array
    residuals: mx.array


def make_regions(masks: mx.array, scales: mx.array) -> Regions:
    """masks (P, L, 4), 0 to 1 at a token's four latent pixels, and scales (P,) -> the released rule: the
    first of the pixels for the latents, each for every fourth channel of a residual."""
    return Regions(masks[..., :1], (masks * scales[:, None, None])[:, :, None])


class InfuseConstants(NamedTuple):
    """The blocks' constants, and the control latents embedded (B, L, D)."""

    blocks: Constants
    control: mx.array
    regions: Regions | None = None
    scale: float = 1.0  # unused where `regions` hold those of several people

    def at(self, step: int) -> "InfuseConstants":
        return self._replace(blocks=self.blocks.at(step))


class InfuseNet(nn.Module):
    """A ControlNet has besides an embedding of `num_modes` kinds of hints (a union), or convolutions to
    `hint_channels` in the VAE's place (XLabs'); 0: it has not."""

    def __init__(self, config: FluxConfig, num_modes: int = 0, hint_channels: int = 0):
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
        if num_modes:
            self.controlnet_mode_embedder = nn.Embedding(num_modes, D)
        if hint_channels:
            self.input_hint_block = HintBlock(hint_channels)

    def __call__(self, latents: mx.array, constants: InfuseConstants, scale: float) -> Residuals:
        """latents (B, L, 64) in the weights' dtype, `constants` of this step -> a residual (B, L, D) per
        block. With regions, which hold the scales, latents are (1, L, 64), control and text those of P
        people, and what is returned is the sum over the people (1, L, D)."""
        (txt, rope, double_mods, single_mods, *_), control, regions, _ = constants
        if regions is not None:
            latents = latents * regions.latents
        img = self.x_embedder(latents) + control
        doubles, singles = [], []
        for block, modulation, out in zip(
            self.transformer_blocks, double_mods, self.controlnet_blocks, strict=True
        ):
            img, txt = block(img, txt, *modulation, rope)
            doubles.append(scaled(out(img), scale, regions))
        x, T = mx.concatenate([txt, img], axis=1), txt.shape[1]  # (B, T + L, D)
        for block, modulation, out in zip(
            self.single_transformer_blocks, single_mods, self.controlnet_single_blocks, strict=True
        ):
            x = block(x, modulation, rope)
            singles.append(scaled(out(x[:, T:]), scale, regions))
        return Residuals(doubles, singles)


def scaled(residual: mx.array, scale: float, regions: Regions | None) -> mx.array:
    if regions is None:
        return residual * scale
    weighted = residual.reshape(*residual.shape[:-1], -1, 4) * regions.residuals  # (P, L, D / 4, 4)
    return weighted.flatten(-2).sum(axis=0, keepdims=True)  # (1, L, D)


class HintBlock(nn.Module):
    """A hint's pixels (1, H, W, 3), -1 to 1 -> (1, H / 8, W / 8, channels): x-flux `controlnet.py`, with
    diffusers' names."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        strides = (1, 2) * 3
        self.blocks = [nn.Conv2d(channels, channels, 3, stride=s, padding=1) for s in strides]
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in (self.conv_in, *self.blocks):
            x = nn.silu(layer(x))
        return self.conv_out(x)


def make_infuse_constants(
    network: InfuseNet,
    sigmas: Sequence[float],
    width: int,
    height: int,
    states: mx.array,
    pooled: mx.array,
    control: mx.array,
    guidance_scale: float = GUIDANCE_SCALE,
    mode: int | None = None,
    regions: Regions | None = None,
) -> InfuseConstants:
    """As the DiT's `make_constants`, `states` being identity tokens (B, 8, joint width) or a ControlNet's
    text, with the control latents (B, L, 64). `mode`: which row of a union's embedding goes before them."""
    first = None if mode is None else network.controlnet_mode_embedder(mx.array([[mode]]))  # (1, 1, D)
    blocks = make_constants(network, sigmas, width, height, states, pooled, guidance_scale, first)
    return InfuseConstants(blocks, network.controlnet_x_embedder(control), regions)
