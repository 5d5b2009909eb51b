"""A picture's tokens and their way through the DiT's blocks (infu/ominicontrol.py says what they are for)."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from backends.pytorch import dit
from backends.pytorch.lora import Branches, exchanged
from infu import ominicontrol
from infu.hooks import Run
from infu.ominicontrol import GUIDANCE_SCALE, OminiControlRunner, Tokens
from infu.plugins import OminiControl
from infu.weights.ominicontrol import read_adapter

if TYPE_CHECKING:
    from backends.pytorch.backend import PytorchBackend


def make_tokens(
    network: nn.Module,
    adapter: Branches,
    loras: Branches,
    latents: Tensor,
    positions: Tensor,
    pooled: Tensor,
    scale: float,
) -> Tokens:
    """`latents` (1, n, 64) of the picture, `positions` (n, 3) of its tokens, `pooled` (1, P) of the text. Of
    the branches on the network these tokens wear `adapter`, text and image wear `loras`."""
    with exchanged(adapter, loras):
        temb = dit.embed_time(network, (0.0,), pooled, GUIDANCE_SCALE)  # (1, D)
        doubles = [dit.modulate_twice(block.norm1.linear(temb)) for block in network.transformer_blocks]
        singles = [dit.modulate(block.norm.linear(temb)) for block in network.single_transformer_blocks]
        img = network.x_embedder(latents)
    rope = dit.make_rope(network, positions)
    depth, last = len(doubles), len(doubles) + len(singles) - 1

    def pass_block(i: int, img: Tensor, *others: tuple) -> tuple[Tensor, Tensor, Tensor]:
        with exchanged(adapter, loras):
            if i < depth:
                block, modulation = network.transformer_blocks[i], doubles[i][0]
            else:
                block, modulation = network.single_transformer_blocks[i - depth], singles[i - depth]
            h = dit.norm(img, modulation, 0)
            q, k, v = dit.project(block.attn, h)
            q, k = dit.rotate(q, rope), dit.rotate(k, rope)
            if i == last:  # nobody asks for these tokens after it
                return k, v, img
            y = dit.attend(q, *others, (k, v, 0.0))
            if i < depth:
                return k, v, dit.finish_double(block, img, y, doubles[i], 0)
            return k, v, dit.finish_single(block, img, h, y, modulation, 0)

    return Tokens(img, pass_block, last + 1, math.log(scale))


def make_runner(backend: "PytorchBackend", plugin: OminiControl, run: Run) -> OminiControlRunner:
    """Raises `InfuError` for a file that is no adapter, and for a picture that is none."""
    file = backend.read_lora(plugin.path)
    network, adapter, loras = backend.adapt(read_adapter(file))

    def make(latents: Tensor, positions: np.ndarray, pooled: Tensor) -> Tokens:
        places = torch.from_numpy(positions).to(latents.device, torch.float32)
        return make_tokens(network, adapter, loras, latents.to(pooled.dtype), places, pooled, plugin.scale)

    runner = ominicontrol.make_runner(plugin, run, backend.encode_image, make)
    runner.notes = tuple(file.notes)
    return runner
