"""Whether a plug-in's weights can run on the model that is loaded, found out before a run: whether they are
here, are what they are given as, and were made for this model.

Each `check_` takes the backend and a plug-in's `path`, and returns about how many bytes the plug-in keeps in
memory while it runs. They raise `InfuError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from infu.memory import BYTES
from infu.models import find_image_encoder, find_ip_adapter, find_lora_file
from infu.weights.ip_adapter import read_adapter
from infu.weights.lora import TRANSFORMER, Shapes
from infu.weights.names import block_numbers
from infu.weights.ominicontrol import read_adapter as read_ominicontrol
from infu.weights.vision import read_vision

if TYPE_CHECKING:
    import numpy as np

    from backends.base import Backend


def check_ip_adapter(backend: Backend, source: str | Path, image_encoder: str | Path | None = None) -> int:
    """An adapter never stands in memory itself; what looks at the picture does."""
    path = find_ip_adapter(source)
    file = backend.network("ip_adapter", path, lambda: read_adapter(path))
    base = backend.module_shapes[TRANSFORMER]
    file.check_base(*count_blocks(base), base["x_embedder"][0])
    encoder = read_vision(find_image_encoder(image_encoder, file.instantx))
    return in_memory(encoder.tensors.values(), backend)


def check_ominicontrol(backend: Backend, source: str | Path) -> int:
    read_ominicontrol(backend.read_lora(source))
    return find_lora_file(source).stat().st_size


def count_blocks(base: Shapes) -> tuple[int, int]:
    """The double and the single blocks of the base."""
    return tuple(
        len(block_numbers(base, kind)) for kind in ("transformer_blocks", "single_transformer_blocks")
    )


def in_memory(arrays: Iterable[np.ndarray], backend: Backend) -> int:
    """Bytes of these arrays in the backend's precision."""
    return sum(math.prod(array.shape) for array in arrays) * BYTES[backend.dtype]
