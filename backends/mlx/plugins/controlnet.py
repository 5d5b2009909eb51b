"""A ControlNet in MLX: InfuseNet's network, with a union's modes or XLabs' convolutions."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from backends.base import Text
from backends.mlx import dit, infusenet
from infu.controlnet import ControlNetRunner
from infu.hooks import Run
from infu.noise import pack_latents
from infu.plugins import ControlNet

if TYPE_CHECKING:
    from backends.mlx.backend import MlxBackend


class MlxControlNet(ControlNetRunner):
    def __init__(self, plugin: ControlNet, backend: "MlxBackend", run: Run):
        self.backend = backend
        super().__init__(plugin, backend, run)

    def load(self, path: Path) -> tuple[infusenet.InfuseNet, Callable]:
        return self.backend.load_controlnet(path)

    def embed(self, hint: np.ndarray) -> mx.array:
        network, _ = self.network
        pixels = mx.array(hint.astype(np.float32) / 127.5 - 1)[None].astype(network.x_embedder.weight.dtype)
        latents = self.backend.numpy(network.input_hint_block(pixels))  # (1, H / 8, W / 8, 16)
        return self.backend.array(pack_latents(latents.transpose(0, 3, 1, 2)))

    def make_constants(self, text: Text, control: mx.array) -> infusenet.InfuseConstants:
        (network, _), run = self.network, self.run
        given = (text.states, text.pooled, control.astype(text.states.dtype), run.guidance_scale, self.mode)
        constants = infusenet.make_infuse_constants(network, run.sigmas, run.width, run.height, *given)
        mx.eval(constants)
        return constants

    def residuals(self, constants: infusenet.InfuseConstants, step: int, latents: mx.array) -> dit.Residuals:
        _, forward = self.network
        return forward(latents, constants.at(step), self.plugin.scale)
