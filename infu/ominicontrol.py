"""OminiControl (arXiv 2411.15098): a picture as further tokens of the DiT, with positions, a time (0) and a
LoRA of their own. Text and image read them; they read text, image and themselves, or only themselves.

What both backends share: how large the picture is looked at, where its tokens lie, and the hook that follows
them from block to block. Arrays are the backend's own. n tokens of the picture, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from infu.hooks import Additions, Run, Runner
from infu.images import read_photo
from infu.plugins import OminiControl

if TYPE_CHECKING:
    from backends.base import Text

Array = Any
GUIDANCE_SCALE = 1.0  # of the tokens' embedding of time, whatever the image is given
MAX_AREA = 512 * 512  # pixels of a picture beside the one that is made: what the adapters were trained with


def read_condition(plugin: OminiControl, width: int, height: int) -> np.ndarray:
    """The picture as it is encoded, uint8 RGB (h, w, 3), sides multiples of 16. One that lies on the picture
    of width x height (`position_delta` (0, 0)) takes its shape, and its size over `position_scale`; one that
    lies beside it keeps its own shape, and its size if that is no larger than 512 x 512."""
    picture = Image.fromarray(read_photo(plugin.image))
    if plugin.position_delta == (0, 0):
        size = (in_tokens(width / plugin.position_scale), in_tokens(height / plugin.position_scale))
        return np.array(ImageOps.fit(picture, size, Image.Resampling.LANCZOS))
    shrunk = min(1.0, math.sqrt(MAX_AREA / (picture.width * picture.height)))
    size = (in_tokens(picture.width * shrunk), in_tokens(picture.height * shrunk))
    return np.array(picture.resize(size, Image.Resampling.LANCZOS))


def in_tokens(pixels: float) -> int:
    """The nearest side that is a whole number of tokens, at least one."""
    return max(1, round(pixels / 16)) * 16


def place_tokens(plugin: OminiControl, width: int, height: int) -> np.ndarray:
    """Positions (n, 3) of the tokens of a picture of width x height, row by row: its own grid (0, row,
    column), moved by `position_delta`, then spread by `position_scale` (in this order, as released)."""
    rows, columns = np.mgrid[: height // 16, : width // 16].reshape(2, -1)
    grid = np.stack([rows, columns], axis=1) + np.array(plugin.position_delta)
    spread = grid * plugin.position_scale + (plugin.position_scale - 1) / 2
    return np.concatenate([np.zeros((len(grid), 1)), spread], axis=1)


@dataclass(frozen=True, eq=False)
class Tokens:
    """One picture's in one pass. `img`: (1, n, D), as they enter the first block. `pass_block(i, img,
    *others)`: through block `i`, where they see `others` (keys and values of text and image, and what is
    added to their scores) and themselves -> their keys, in their positions, and values, and the tokens after.
    `bias`: what is added to the scores between them and text or image; `kept`: keys and values of each block,
    of tokens that see only themselves, which never change."""

    img: Array
    pass_block: Callable[..., tuple[Array, Array, Array]]
    num_blocks: int
    bias: float
    kept: list[tuple[Array, Array]] | None = None

    def alone(self) -> Tokens:
        """The same, seeing only themselves: computed here, once."""
        img, kept = self.img, []
        for i in range(self.num_blocks):
            k, v, img = self.pass_block(i, img)
            kept.append((k, v))
        return replace(self, kept=kept)

    def follow(self) -> dict[int, Callable[[Array, Array], tuple[Array, Array, float]]]:
        """The hook of one step: it is asked for all blocks, in their order."""
        img = self.img

        def at(i: int, k: Array, v: Array) -> tuple[Array, Array, float]:
            nonlocal img
            if self.kept is not None:
                return *self.kept[i], self.bias
            own_k, own_v, img = self.pass_block(i, img, (k, v, self.bias))
            return own_k, own_v, self.bias

        return {i: partial(at, i) for i in range(self.num_blocks)}


class OminiControlRunner(Runner):
    """The tokens of the positive pass and, where there is one, of the negative."""

    def __init__(self, positive: Tokens, negative: Tokens | None):
        self._passes = {False: positive, True: negative}

    def add(self, step: int, latents: Array, negative: bool) -> Additions:
        return Additions(conditions=(self._passes[negative].follow(),))


def make_runner(
    plugin: OminiControl,
    run: Run,
    encode_image: Callable[[np.ndarray], Array],
    make_tokens: Callable[[Array, np.ndarray, Array], Tokens],
) -> OminiControlRunner:
    """`make_tokens(latents, positions, pooled)`: of the picture's latents (1, n, 64), its tokens' positions
    (n, 3) and the prompt's pooled vector. The negative pass sees the picture too, with its own prompt's."""
    picture = read_condition(plugin, run.width, run.height)
    height, width, _ = picture.shape

    def look(picture: np.ndarray, text: Text | None) -> Tokens | None:
        if text is None:
            return None
        tokens = make_tokens(encode_image(picture), place_tokens(plugin, width, height), text.pooled)
        return tokens.alone() if plugin.independent else tokens

    runner = OminiControlRunner(look(picture, run.text), look(picture, run.negative))
    if plugin.image_guidance != 1.0:
        runner.image_guidance = plugin.image_guidance
        runner.blind = OminiControlRunner(look(np.zeros_like(picture), run.text), None)
    return runner
