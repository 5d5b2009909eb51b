"""A ControlNet's file or folder -> its tensors under diffusers' names, and its config.

XLabs' originals (BFL's names, no config), InstantX' and Shakker's, single ones and unions, any other of
diffusers' `FluxControlNetModel`. All sizes are the tensors'; only the rotary axes are a config's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infu.errors import BrokenFile, InvalidRequest, UnknownName
from infu.weights.checkpoint import Checkpoint, open_part
from infu.weights.config import make_config

MODES = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "low_quality": 6}  # of a union

SHARED = ("x_embedder", "context_embedder", "time_text_embed.text_embedder.linear_1")  # as the base's
HINT_CHANNELS = 16  # of XLabs' convolutions; packed two by two they are the latents' 64


@dataclass(frozen=True, eq=False)
class ControlNetFile:
    """What a ControlNet is; `name` may be shown to a user. `num_modes` of a union, 0 of any other.
    `reads_pixels`: the hint goes through convolutions of its own, XLabs', and base block i gets residual i
    mod their number; else it is encoded by the VAE, and block i gets residual i // ceil(blocks / number)."""

    name: str
    num_modes: int
    reads_pixels: bool
    shapes: dict[str, tuple[int, ...]]  # of the weights that a base has to fit: SHARED

    def find_mode(self, mode: str | int | None) -> int | None:
        """The row of the mode embedding that a mode's name or number stands for; None: it has none.

        Raises `InvalidRequest` where a union is given no mode, or one that it does not have.
        """
        if not self.num_modes:
            return None
        if mode is None:
            raise InvalidRequest(
                f"{self.name} is a union of several ControlNets: say by `mode` which of them is meant "
                f"({', '.join(MODES)})."
            )
        number = MODES.get(mode, -1) if isinstance(mode, str) else mode
        if not 0 <= number < self.num_modes:
            raise UnknownName(f"mode of {self.name}", str(mode), list(MODES)[: self.num_modes])
        return number


def read_controlnet(path: Path) -> ControlNetFile:
    """Look at a ControlNet's names and shapes. Raises `MissingFile`, or `BrokenFile` for what is damaged, or
    no ControlNet for FLUX.1."""
    weights = open_part(path, "controlnet")
    if "_infu_flux_version" in own_config(path) or path.name.lower().startswith("infusenet"):  # same tensors
        raise BrokenFile(
            f"{path.name} is InfiniteYou's InfuseNet, which reads a face and no hint. Load it with model_dir."
        )
    shapes = {name: tuple(weights[f"{name}.weight"].shape) for name in SHARED if f"{name}.weight" in weights}
    return ControlNetFile(path.name, *find_extras(weights), shapes)


def make_controlnet_config(base: Mapping[str, Any], path: Path, weights: Checkpoint) -> dict[str, Any]:
    """The config of diffusers' `FluxControlNetModel`: the rotary axes of its own `config.json`, or without
    one of the `base` transformer's; the sizes are its tensors'."""
    modes, pixels = find_extras(weights)
    own = {
        "num_mode": modes or None,
        "conditioning_embedding_channels": HINT_CHANNELS if pixels else None,
        "patch_size": 2 if pixels else 1,
    }
    return make_config({**base, **own_config(path)}, weights) | own


def find_extras(weights: Checkpoint) -> tuple[int, bool]:
    """How many modes a union has, else 0; and whether the hint goes through convolutions."""
    modes = weights.get("controlnet_mode_embedder.weight")
    count = 0 if modes is None or not modes.shape else modes.shape[0]
    return count, "input_hint_block.conv_in.weight" in weights


def own_config(path: Path) -> dict[str, Any]:
    config = path / "config.json"
    if not config.is_file():
        return {}
    try:
        return dict(json.loads(config.read_bytes()))
    except (ValueError, TypeError):
        raise BrokenFile(f"{path.name}/config.json is damaged. Download it again.") from None
