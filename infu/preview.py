"""Latents -> a small RGB picture by a linear map: what is shown while a picture is being made."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from infu.noise import unpack_latents


@dataclass(frozen=True, eq=False)
class LatentColours:
    """RGB in -1..1 = latent pixel (16) @ factors (16, 3) + bias (3). Valid for scaled latents."""

    factors: np.ndarray
    bias: np.ndarray


def read_latent_colours(vae_folder: Path) -> LatentColours:
    """The map kept beside a VAE (`latent_colours.json`), else FLUX's."""
    path = vae_folder / "latent_colours.json"
    values = json.loads(path.read_text()) if path.is_file() else FLUX
    return LatentColours(np.array(values["factors"], np.float32), np.array(values["bias"], np.float32))


def draw_preview(packed: np.ndarray, size: tuple[int, int], colours: LatentColours) -> Image.Image:
    """Packed clean latents float32 (1, L, 64) of a width x height picture -> PIL RGB, 1/8 of its size.
    Numbers that are not finite are drawn grey: a preview never fails."""
    latents = unpack_latents(packed, *size)[0]  # (16, h, w)
    rgb = np.tensordot(latents, colours.factors, axes=(0, 0)) + colours.bias  # (h, w, 3)
    levels = np.nan_to_num((rgb + 1) * 127.5, nan=127.5, posinf=255, neginf=0)
    return Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))


# fmt: off
FLUX = {  # ComfyUI `latent_formats.Flux`
    "factors": [
        [-0.0346, 0.0244, 0.0681], [0.0034, 0.0210, 0.0687], [0.0275, -0.0668, -0.0433],
        [-0.0174, 0.0160, 0.0617], [0.0859, 0.0721, 0.0329], [0.0004, 0.0383, 0.0115],
        [0.0405, 0.0861, 0.0915], [-0.0236, -0.0185, -0.0259], [-0.0245, 0.0250, 0.1180],
        [0.1008, 0.0755, -0.0421], [-0.0515, 0.0201, 0.0011], [0.0428, -0.0012, -0.0036],
        [0.0817, 0.0765, 0.0749], [-0.1264, -0.0522, -0.1103], [-0.0280, -0.0881, -0.0499],
        [-0.1262, -0.0982, -0.0778],
    ],
    "bias": [-0.0329, -0.0718, -0.0851],
}
# fmt: on
