"""An aligned face -> numbers that say whose it is: ArcFace IR-SE50 (released), MobileFaceNet (embedded)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infu.detectors import EMBEDDED, open_session

if TYPE_CHECKING:
    import onnxruntime


@dataclass(eq=False)
class Recogniser:
    """`session`: an onnxruntime session; `size`: how many numbers it makes of a face; the rest: how it wants
    its input."""

    session: onnxruntime.InferenceSession
    size: int
    bgr: bool
    channels_first: bool
    scale: float

    def embed(self, crop: np.ndarray) -> np.ndarray:
        """uint8 RGB (112, 112, 3) -> float32 (E,), of any length."""
        pixels = (crop[:, :, ::-1] if self.bgr else crop).astype(np.float32)
        pixels = (pixels - 127.5) / self.scale
        pixels = pixels.transpose(2, 0, 1) if self.channels_first else pixels
        name = self.session.get_inputs()[0].name
        return self.session.run(None, {name: np.ascontiguousarray(pixels[None])})[0][0]


def load_recogniser(path: Path | None) -> Recogniser:
    """ArcFace's `recognition_arcface_ir_se50.pth`; None: the embedded one. The same file is loaded once.
    Raises `MissingFile`, `BrokenFile`."""
    if path is None:
        return load_mobilefacenet(EMBEDDED / "mobilefacenet.onnx")
    from infu.arcface import find_arcface  # imports onnx, which the embedded recogniser does not need

    path = find_arcface(Path(path))
    stat = path.stat()
    return load_released(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def load_mobilefacenet(file: Path) -> Recogniser:
    return Recogniser(open_session(file, file.name), size=192, bgr=False, channels_first=False, scale=128.0)


@lru_cache(maxsize=1)
def load_released(file: Path, size: int, changed: int) -> Recogniser:
    """`size` and `changed` of the file: one that was replaced is loaded again."""
    from infu.arcface import load_arcface

    return Recogniser(load_arcface(file), size=512, bgr=True, channels_first=True, scale=127.5)
