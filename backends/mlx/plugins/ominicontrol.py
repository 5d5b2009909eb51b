"""A picture's tokens and their way through the DiT's blocks (infu/ominicontrol.py says what they are for)."""

import math
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx import dit
from backends.mlx.lora import Branches, exchanged
from infu import ominicontrol
from infu.hooks import Run
from infu.ominicontrol import GUIDANCE_SCALE, OminiControlRunner, Tokens
from infu.plugins import OminiControl
from infu.weights.ominicontrol import read_adapter

if TYPE_CHECKING:
    from backends.mlx.backend import MlxBackend


def make_tokens(
    network: nn.Module,
    adapter: Branches,
    loras: Branches,
    latents: mx.array,
    positions: np.ndarray,
    pooled: mx.array,
    scale: float,
) -> Tokens:
    """`latents` (1, n, 64) of the picture, `positions` (n, 3) of its tokens, `pooled` (1, P) of the text. Of
    the branches on the network these tokens wear `adapter`, text and image wear `loras`."""
    with exchanged(adapter, loras):
        temb = nn.silu(network.time_text_embed((0.0,), GUIDANCE_SCALE, pooled))  # (1, 1, D)
        doubles = [block.norm1(temb)[0] for block in network.transformer_blocks]
        singles = [block.norm(temb)[0] for block in network.single_transformer_blocks]
        img = network.x_embedder(latents)
    rope = dit.make_rope(positions, network.config.axes_dims_rope)
    mx.eval(doubles, singles, img, rope)
    depth, last = len(doubles), len(doubles) + len(singles) - 1

    def pass_block(i: int, img: mx.array, *others: tuple) -> tuple[mx.array, mx.array, mx.array]:
        with exchanged(adapter, loras):
            if i < depth:
                block, modulation = network.transformer_blocks[i], doubles[i]
            else:
                block, modulation = network.single_transformer_blocks[i - depth], singles[i - depth]
            shift, scale, *rest = mx.split(modulation, 6 if i < depth else 3, axis=-1)
            h = dit.modulated_norm(img, shift, scale)
            q, k, v = dit.project(block.attn, h)
            q, k = dit.rotate(q, rope).astype(v.dtype), dit.rotate(k, rope).astype(v.dtype)
            if i == last:  # nobody asks for these tokens after it
                return k, v, img
            y = dit.attend(q, *others, (k, v, 0.0))
            return k, v, block.finish(img, y, *rest) if i < depth else block.finish(img, h, y, *rest)

    return Tokens(img, pass_block, last + 1, math.log(scale))


def make_runner(backend: "MlxBackend", plugin: OminiControl, run: Run) -> OminiControlRunner:
    """Raises `InfuError` for a file that is no adapter, and for a picture that is none."""
    file = backend.read_lora(plugin.path)
    network, adapter, loras = backend.adapt(read_adapter(file))

    def make(latents: mx.array, positions: np.ndarray, pooled: mx.array) -> Tokens:
        latents = latents.astype(pooled.dtype)
        return make_tokens(network, adapter, loras, latents, positions, pooled, plugin.scale)

    runner = ominicontrol.make_runner(plugin, run, backend.encode_image, make)
    runner.notes = tuple(file.notes)
    return runner
