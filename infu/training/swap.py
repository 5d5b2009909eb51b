"""A face swap in insightface's layout: `inswapper_128.onnx`, and the recogniser whose vectors it takes."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
from insightface.app.common import Face
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from insightface.model_zoo.inswapper import INSwapper

from infu.errors import BrokenFile, MissingFile


class FaceSwap:
    """Put the face of one picture in the place of another's."""

    def __init__(self, model: Path, recogniser: Path):
        """Raises `MissingFile`, `BrokenFile`."""
        for path in (model, recogniser):
            if not path.is_file():
                raise MissingFile(
                    f"There is no {path.name} for the face swap. Bring it, or leave `swap` out."
                )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # insightface prints
                self._swapper = INSwapper(str(model))
                self._recogniser = ArcFaceONNX(str(recogniser))
                self._recogniser.prepare(-1)
        except Exception as error:  # onnx and onnxruntime raise kinds of their own
            raise BrokenFile(f"{model.name} or {recogniser.name} is not what the face swap needs.") from error

    def __call__(
        self, picture: np.ndarray, keypoints: np.ndarray, photo: np.ndarray, own: np.ndarray
    ) -> np.ndarray:
        """uint8 RGB `picture`, its face's five points; uint8 RGB `photo` of the person, and the points there
        -> uint8 RGB, the picture with that person's face."""
        source, target = (Face(kps=np.asarray(points, np.float32)) for points in (own, keypoints))
        with warnings.catch_warnings():  # insightface calls what scikit-image will drop
            warnings.simplefilter("ignore", FutureWarning)
            self._recogniser.get(np.ascontiguousarray(photo[:, :, ::-1]), source)  # sets its embedding
            swapped = self._swapper.get(np.ascontiguousarray(picture[:, :, ::-1]), target, source)
        return np.ascontiguousarray(swapped[:, :, ::-1])
