"""An aligned face -> numbers that say whose it is: ArcFace IR-SE50 (released), MobileFaceNet (embedded)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infu.align import align, crop_head, unit
from infu.cache import stamp
from infu.detectors import EMBEDDED, open_session
from infu.errors import MissingFile

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

    def embed(self, picture: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) and a face's five points -> float32 (E,), of any length."""
        return self.embed_crop(align(picture, keypoints))

    def embed_crop(self, crop: np.ndarray) -> np.ndarray:
        """A face aligned elsewhere, uint8 RGB (112, 112, 3) -> float32 (E,), of any length."""
        pixels = (crop[:, :, ::-1] if self.bgr else crop).astype(np.float32)
        pixels = (pixels - 127.5) / self.scale
        pixels = pixels.transpose(2, 0, 1) if self.channels_first else pixels
        name = self.session.get_inputs()[0].name
        return self.session.run(None, {name: np.ascontiguousarray(pixels[None])})[0][0]


@dataclass(eq=False)
class Described:
    """A recogniser and, beside it, what is seen of the head: skin, hair, beard, glasses, age. What the
    recogniser says of photographs and of renders is far apart; this is alike
    (infu/training/minibase/faces.py).

    `session`: of `head` (N, 64, 64, 3) RGB 0..255 and `face` (N, E'), of unit length -> (N, E)."""

    recogniser: Recogniser
    session: onnxruntime.InferenceSession

    @property
    def size(self) -> int:
        return self.session.get_outputs()[0].shape[1]

    def embed(self, picture: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) and a face's five points -> float32 (E,), of any length."""
        face = unit(self.recogniser.embed(picture, keypoints))
        head = crop_head(picture, keypoints).astype(np.float32)
        return self.session.run(None, {"head": head[None], "face": face[None]})[0][0]


def load_recogniser(path: Path | None) -> Recogniser | Described:
    """ArcFace's `recognition_arcface_ir_se50.pth`; an ONNX file: the embedded recogniser with this appearance
    part; None: the embedded one alone. The same file is loaded once. Raises `MissingFile`, `BrokenFile`."""
    if path is None:
        return load_mobilefacenet(EMBEDDED / "mobilefacenet.onnx")
    if path.suffix == ".onnx":
        if not path.is_file():
            raise MissingFile(f"There is no {path.name}, which this model's face encoder needs.")
        return load_described(path, *stamp(path))
    from infu.arcface import find_arcface  # imports onnx, which the embedded recogniser does not need

    path = find_arcface(Path(path))
    return load_released(path, *stamp(path))


@lru_cache(maxsize=1)
def load_mobilefacenet(file: Path) -> Recogniser:
    return Recogniser(open_session(file, file.name), size=192, bgr=False, channels_first=False, scale=128.0)


@lru_cache(maxsize=1)
def load_described(file: Path, size: int, changed: int) -> Described:
    return Described(load_recogniser(None), open_session(file, file.name))


@lru_cache(maxsize=1)
def load_released(file: Path, size: int, changed: int) -> Recogniser:
    from infu.arcface import load_arcface

    return Recogniser(load_arcface(file), size=512, bgr=True, channels_first=True, scale=127.5)
