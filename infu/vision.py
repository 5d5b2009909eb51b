"""A picture as CLIP's and SigLIP's image encoders take it: resized by Pillow on bytes, then normalised.

Follows transformers' `CLIPImageProcessor` and `SiglipImageProcessor`, on bytes to the bit.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Preparation:
    """`size`: pixels of a side; `crop`: the shorter side becomes `size` and the middle is cut out (CLIP),
    else both sides do, whatever the shape (SigLIP); `mean` and `std` of each channel, in 0..1."""

    size: int
    crop: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def prepare(picture: np.ndarray, how: Preparation) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (1, 3, size, size)."""
    image = Image.fromarray(picture)
    if how.crop:
        width, height = image.size
        short = min(width, height)
        width, height = (int(how.size * side / short) for side in (width, height))
        left, top = (width - how.size) // 2, (height - how.size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + how.size, top + how.size))
    else:
        # An axis at a time, the longer one first: Pillow's own order differs between its versions by a level.
        middle = (image.width, how.size) if image.height > image.width else (how.size, image.height)
        for size in (middle, (how.size, how.size)):
            image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = (np.asarray(image) / 255 - how.mean) / how.std
    return pixels.astype(np.float32).transpose(2, 0, 1)[None]
