"""A ControlNet in PyTorch: diffusers' `FluxControlNetModel` under InfuseNet's forward."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from backends.base import Text
from backends.pytorch import dit, infusenet
from backends.pytorch.resident import Resident
from infu.controlnet import ControlNetRunner
from infu.hooks import Run
from infu.noise import pack_latents
from infu.plugins import ControlNet

if TYPE_CHECKING:
    from backends.pytorch.backend import PytorchBackend


class PytorchControlNet(ControlNetRunner):
    def __init__(self, plugin: ControlNet, backend: "PytorchBackend", run: Run):
        self.backend = backend
        super().__init__(plugin, backend, run)

    def load(self, path: Path) -> Resident:
        return self.backend.make_resident("controlnet", path, self.backend.files.base / "transformer")

    def embed(self, hint: np.ndarray) -> Tensor:
        network = self.network.arrive()
        pixels = torch.from_numpy(hint).to(self.backend.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = network.input_hint_block(pixels.to(network.dtype))  # (1, 16, H / 8, W / 8)
        return self.backend.array(pack_latents(self.backend.numpy(latents)))

    def make_constants(self, text: Text, control: Tensor) -> infusenet.InfuseConstants:
        network, run = self.network.arrive(), self.run
        first = None
        if self.mode is not None:
            mode = torch.tensor([[self.mode]], device=control.device)
            first = network.controlnet_mode_embedder(mode)  # (1, 1, D)
        of_text = (text.states, text.pooled, run.guidance_scale, first)
        constants = dit.make_constants(network, run.sigmas, run.width, run.height, *of_text)
        return infusenet.InfuseConstants(constants, control.to(network.dtype), self.plugin.scale)

    def residuals(self, constants: infusenet.InfuseConstants, step: int, latents: Tensor) -> dit.Residuals:
        network = self.network.arrive()
        return infusenet.infuse_all(network, constants, step, latents.to(network.dtype))
