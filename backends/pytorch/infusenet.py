"""InfuseNet, and a ControlNet: noisy latents, control latents and tokens -> residuals for the DiT's blocks.

The released InfuseNet is diffusers' `FluxControlNetModel`, fed identity tokens where a ControlNet has text
(arXiv 2503.16418, 3.2; `pipeline_flux_infusenet.py`). Its blocks are the DiT's. Regions of several people are
those of bytedance/ComfyUI_InfiniteYou (`infuse_net.py`). P people, B samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backends.pytorch.dit import Constants, Residuals, double_block, run, single_block


@dataclass(frozen=True, eq=False)
class Regions:
    """Where each of P people may be: `latents` (P, L, 1) is what of the noisy latents they see, `residuals`
    (P, L, 1, 4), times their scale, is for every fourth channel of what they add."""

    latents: Tensor
    residuals: Tensor


@dataclass(frozen=True, eq=False)
class InfuseConstants:
    """The blocks' constants of a picture, and the control latents in the network's dtype (B, L, 64).
    `scale` is unused where `regions` hold those of several people."""

    blocks: Constants
    control: Tensor
    scale: float
    regions: Regions | None = None


def make_regions(masks: Tensor, scales: Tensor) -> Regions:
    """masks (P, L, 4), 0 to 1 at a token's four latent pixels, and scales (P,) -> the released rule: the
    first of the pixels for the latents, each for every fourth channel of a residual."""
    return Regions(masks[..., :1], (masks * scales[:, None, None])[:, :, None])


def infuse_all(network: nn.Module, side: InfuseConstants, step: int, latents: Tensor) -> Residuals:
    """`infuse` with all of `side`."""
    return infuse(network, side.blocks, step, latents, side.control, side.scale, side.regions)


def infuse(
    network: nn.Module,
    constants: Constants,
    step: int,
    latents: Tensor,
    control: Tensor,
    scale: float,
    regions: Regions | None = None,
) -> Residuals:
    """latents and `control` (B, L, 64) in the network's dtype -> one residual (B, L, D) per block. With
    `regions`, which hold the scales, latents are (1, L, 64), control and text those of P people, and what is
    returned is the sum over the people (1, L, D)."""
    if regions is not None:
        latents = latents * regions.latents
    img = network.x_embedder(latents) + network.controlnet_x_embedder(control)
    txt, doubles, singles = constants.text, [], []
    for i, block in enumerate(network.transformer_blocks):
        img, txt = run(network, double_block, block, img, txt, constants.doubles[i], step, constants.rope)
        doubles.append(scaled(network.controlnet_blocks[i](img), scale, regions))
    x, T = torch.cat([txt, img], dim=1), txt.shape[1]
    for i, block in enumerate(network.single_transformer_blocks):
        x = run(network, single_block, block, x, constants.singles[i], step, constants.rope)
        singles.append(scaled(network.controlnet_single_blocks[i](x[:, T:]), scale, regions))
    return Residuals(doubles, singles)


def scaled(residual: Tensor, scale: float, regions: Regions | None) -> Tensor:
    if regions is None:
        return residual * scale
    weighted = residual.unflatten(-1, (-1, 4)) * regions.residuals  # (P, L, D / 4, 4)
    return weighted.flatten(-2).sum(dim=0, keepdim=True)  # (1, L, D)
