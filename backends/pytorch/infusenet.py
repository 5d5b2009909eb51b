"""InfuseNet: noisy latents, control latents and identity tokens -> residuals for the DiT's blocks.

The released network is diffusers' `FluxControlNetModel`, fed identity tokens where a ControlNet has text
(arXiv 2503.16418, 3.2; `pipeline_flux_infusenet.py`). Its blocks are the DiT's.
"""

import torch
from torch import Tensor, nn

from backends.pytorch.dit import Constants, Residuals, double_block, run, single_block


def infuse(
    network: nn.Module, constants: Constants, step: int, latents: Tensor, control: Tensor, scale: float
) -> Residuals:
    """latents and `control` (1, L, 64) in the network's dtype -> one residual (1, L, D) per block."""
    img = network.x_embedder(latents) + network.controlnet_x_embedder(control)
    txt, doubles, singles = constants.text, [], []
    for i, block in enumerate(network.transformer_blocks):
        img, txt = run(network, double_block, block, img, txt, constants.doubles[i], step, constants.rope)
        doubles.append(network.controlnet_blocks[i](img) * scale)
    x, T = torch.cat([txt, img], dim=1), txt.shape[1]
    for i, block in enumerate(network.single_transformer_blocks):
        x = run(network, single_block, block, x, constants.singles[i], step, constants.rope)
        singles.append(network.controlnet_single_blocks[i](x[:, T:]) * scale)
    return Residuals(doubles, singles)
