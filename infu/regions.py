"""Where in a picture a person may be: masks from names, pictures and arrays, brought to the latents' grid.

A mask is float32 (h, w), 0 to 1, of any size: it is laid over the whole picture.
"""

from typing import Any

import numpy as np

from infu.checks import check_number
from infu.errors import InvalidRequest, UnknownName
from infu.images import read_photo

REGIONS = {  # name -> left and right end, as shares of the picture's width
    "whole": (0.0, 1.0),
    "left": (0.0, 1 / 2),
    "right": (1 / 2, 1.0),
    "left_third": (0.0, 1 / 3),
    "middle_third": (1 / 3, 2 / 3),
    "right_third": (2 / 3, 1.0),
}
SIDES = {1: ("whole",), 2: ("left", "right"), 3: ("left_third", "middle_third", "right_third")}
CELLS = 8  # pixels of a latent's side
LEVELS = 255  # of an 8-bit mask


def split_regions(count: int) -> tuple[str, ...]:
    """The regions of 1 to 3 people side by side, from left to right."""
    if count not in SIDES:
        raise InvalidRequest(f"There are regions for 1 to {max(SIDES)} people side by side, not for {count}.")
    return SIDES[count]


def read_mask(mask: Any, width: int, height: int) -> np.ndarray:
    """A region's name, a box (see `check_box`), an array (h, w) of numbers 0 to 1 or of booleans or of whole
    numbers 0 to 255, or a picture in any form a photograph has, whose brightness counts -> float32 (h, w),
    0 to 1.

    `width`, `height`: the size that the mask of a name or a box gets. Raises `InvalidRequest`, `PhotoError`.
    """
    if isinstance(mask, str) and mask in REGIONS:
        return draw_region(mask, width, height)
    if is_box(mask):
        return draw_box(check_box(mask), width, height)
    if isinstance(mask, str) and "." not in mask and "/" not in mask:  # no file's name
        raise UnknownName("region", mask, REGIONS)
    if isinstance(mask, list | tuple | np.ndarray):
        return check_mask(mask)
    return read_photo(mask).mean(axis=-1, dtype=np.float32) / LEVELS


def check_mask(mask: Any) -> np.ndarray:
    try:
        values = np.asarray(mask)
        wide = values.dtype.kind in "iu"  # 0 to 255, as a picture's
        values = values.astype(np.float32) / (LEVELS if wide and values.max() > 1 else 1)
    except (ValueError, TypeError):
        values = np.empty(0)
    if values.ndim != 2 or not values.size or not (values.min() >= 0 and values.max() <= 1):  # NaN fails too
        raise InvalidRequest(
            f"A mask is an array (height, width) of numbers from 0 to 1, a picture, or one of "
            f"{', '.join(REGIONS)}."
        )
    return values


def draw_region(name: str, width: int, height: int) -> np.ndarray:
    """A region of `REGIONS` as a mask of width x height pixels."""
    start, end = REGIONS[name]
    return draw_box((start, 0.0, end, 1.0), width, height)


def is_box(mask: Any) -> bool:
    return isinstance(mask, list | tuple) and len(mask) == 4 and not any(map(np.ndim, mask))


def check_box(box: Any) -> tuple[float, ...]:
    """(left, top, right, bottom) as shares of the picture's width and height. Raises `InvalidRequest`."""
    if is_box(box):
        left, top, right, bottom = (check_number("A region's box", side, 0.0, 1.0) for side in box)
        if left < right and top < bottom:
            return left, top, right, bottom
    raise InvalidRequest("A region's box is left, top, right and bottom, each a share of the picture.")


def draw_box(box: tuple[float, ...], width: int, height: int) -> np.ndarray:
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (width, height, width, height), strict=True)
    )
    mask = np.zeros((height, width), np.float32)
    mask[top:bottom, left:right] = 1
    return mask


def to_latent_grid(mask: np.ndarray, size: tuple[int, int], run_size: tuple[int, int]) -> np.ndarray:
    """A mask that lies over a picture of `size` (width, height), which the run makes as a part, from the top
    left, of `run_size` -> its values at the latent pixels of the run's tokens, float32 (1, L, 4): bilinear
    between pixels' centres, not averaged, edges repeated (`torch.nn.functional.interpolate`'s rule)."""
    width, height = size
    columns = sample_places(run_size[0], mask.shape[1] / width)
    rows = sample_places(run_size[1], mask.shape[0] / height)
    values = interpolate(interpolate(mask, rows).T, columns).T  # (run height / 8, run width / 8)
    h, w = values.shape
    tokens = values.reshape(h // 2, 2, w // 2, 2).transpose(0, 2, 1, 3)  # packed as latents are
    return np.ascontiguousarray(tokens.reshape(1, -1, 4), np.float32)


def sample_places(length: int, scale: float) -> np.ndarray:
    """The places in a mask's pixels, counted from the first one's centre, of latent pixels' centres."""
    return (np.arange(length // CELLS) + 0.5) * CELLS * scale - 0.5


def interpolate(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows of `values` at broken `places`, (len(places), …)."""
    places = np.clip(places, 0, len(values) - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    share = (places - below).astype(np.float32)[:, None]
    return values[below] * (1 - share) + values[above] * share
