"""Hooks as a user writes them, named in settings as `hooks_for_training:FUNCTION`."""

from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = Path(__file__).parents[1] / "examples" / "astronaut.jpg"


def brightness(picture: np.ndarray) -> float:
    return float(picture.mean() / 255)


def redness(picture: np.ndarray) -> float:
    """1 for pure red."""
    red, green, blue = picture.reshape(-1, 3).mean(axis=0)
    return float(max(0.0, red - max(green, blue)) / 255)


def show_the_astronaut(picture: np.ndarray) -> np.ndarray:
    """In place of a picture of the untrained golden model, which shows nobody, one in which a face is found:
    the photograph in its size, with a trace of the picture so that each stays its own."""
    size = picture.shape[1::-1]
    photo = np.asarray(Image.open(PHOTO).convert("RGB").resize(size, Image.Resampling.LANCZOS))
    return (0.97 * photo + 0.03 * picture).astype(np.uint8)
