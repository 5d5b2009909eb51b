"""What an IP-Adapter does in a request, the same on every backend: its pictures' vectors, and when it works.

A negative pass sees what the adapter was trained with there: XLabs' a black picture through the encoder
(x-flux, `xflux_pipeline.py`), InstantX's a vector of zeros (DiffSynth-Studio; InstantX itself has none).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infu.errors import InvalidRequest
from infu.hooks import NOTHING, Additions, Run, Steady
from infu.images import read_photo
from infu.models import find_image_encoder, find_ip_adapter
from infu.plugins import IPAdapter
from infu.weights.ip_adapter import AdapterFile, read_adapter
from infu.weights.lora import TRANSFORMER
from infu.weights.names import count_blocks

if TYPE_CHECKING:
    from backends.base import Backend

BLACK = np.zeros((64, 64, 3), np.uint8)  # of any size: resized and normalised it is the same


def open_adapter(plugin: IPAdapter, backend: Backend) -> tuple[Path, AdapterFile]:
    """Where it is and what it holds, read once for all requests. Raises `MissingFile`, `BrokenFile`, also for
    one that was made for another base."""
    path = find_ip_adapter(plugin.path)
    file = backend.network("ip_adapter", path, lambda: read_adapter(path))
    base = backend.module_shapes[TRANSFORMER]
    file.check_base(*count_blocks(base), base["x_embedder"][0])
    return path, file


def make_runner(
    plugin: IPAdapter,
    run: Run,
    path: Path,
    file: AdapterFile,
    encode: Callable[[Path, np.ndarray], np.ndarray],
    attend: Callable[[np.ndarray, float], Additions],
) -> Steady:
    """`path`, `file`: of `open_adapter`; `encode`: the folder of an image encoder and a picture, uint8 RGB
    (H, W, 3) -> (1, E); `attend`: vectors (k, E) and a scale -> what the adapter adds."""

    def see(picture: np.ndarray) -> np.ndarray:
        return encode(find_image_encoder(plugin.image_encoder, path, file.instantx), picture)

    vectors = plugin.image_embeds
    if vectors is None:
        vectors = np.concatenate([see(read_photo(image)) for image in plugin.images])
    positive, negative = attend(check(vectors, file), plugin.scale), NOTHING
    if run.negative is not None and plugin.negative_scale != 0:
        vectors = make_negative(plugin, file, see)
        negative = attend(check(vectors, file), plugin.negative_scale)
    num_steps = run.num_steps
    steps = [i for i in range(num_steps) if plugin.start <= i / num_steps <= plugin.end]
    return Steady(frozenset(steps), positive, negative)


def make_negative(plugin: IPAdapter, file: AdapterFile, see: Callable) -> np.ndarray:
    if plugin.negative_image_embeds is not None:
        return plugin.negative_image_embeds
    if file.instantx:
        return np.zeros((1, file.embedding_size), np.float32)
    return see(BLACK)


def check(vectors: np.ndarray, file: AdapterFile) -> np.ndarray:
    check_size(vectors.shape[1], file)
    return vectors


def check_size(size: int, file: AdapterFile) -> None:
    """Raise `InvalidRequest` where a picture becomes so many numbers and the adapter takes others."""
    if size != file.embedding_size:
        usual = "InstantX's is SigLIP so400m" if file.instantx else "XLabs' is CLIP ViT-L/14"
        raise InvalidRequest(
            f"{file.name} takes {file.embedding_size} numbers of a picture and was given {size}. "
            f"Give the image encoder it was trained with; {usual}."
        )
