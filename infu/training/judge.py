"""A second face recogniser, never used to make a picture and never seen in training: who is in it, really?

dlib's network in the layout of face-api's ResNet: `image` (N, 3, 150, 150) RGB 0..255 -> (N, 128), not of
unit length; two pictures of a person are nearer than .6 (dlib, `dnn_face_recognition_ex.cpp`). The file is
the user's to bring: its 6.6 MB measure, they make no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from infu.align import fit_similarity
from infu.detectors import open_session
from infu.errors import MissingFile
from infu.face import FaceStack

SIZE = 150
X = (0.225492, 0.754760, 0.490127, 0.254149, 0.726104)  # dlib's five points, in a face of size 1
Y = (0.215990, 0.215990, 0.515625, 0.780233, 0.780233)
TEMPLATE = (np.stack([X, Y], axis=1) + 0.25) / 1.5 * SIZE  # a quarter of a face beside it, on each side


class Judge:
    def __init__(self, file: Path):
        """Raises `MissingFile`, `BrokenFile`."""
        if not file.is_file():
            raise MissingFile(f"The judge {file.name} is not there. docs/training.md says where it is from.")
        self._session = open_session(file, file.name)
        self._input = self._session.get_inputs()[0].name
        self._faces = FaceStack(None, None, 0)

    def __call__(self, picture: np.ndarray) -> np.ndarray | None:
        """uint8 RGB (H, W, 3) -> float32 (128,) of its first face; None where none is found."""
        keypoints = self.find(picture)
        return None if keypoints is None else self.see(picture, keypoints)

    def find(self, picture: np.ndarray) -> np.ndarray | None:
        """The five points (5, 2) of its first face; None where none is found."""
        faces = self._faces.find(picture)
        return faces[0].keypoints if faces else None

    def see(self, picture: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        crop = cv2.warpAffine(picture, fit_similarity(keypoints, TEMPLATE), (SIZE, SIZE))
        pixels = crop.astype(np.float32).transpose(2, 0, 1)[None]
        return self._session.run(None, {self._input: pixels})[0][0]


def rank(seen: np.ndarray, known: Sequence[np.ndarray]) -> list[int]:
    """Those known, by number, from the one nearest to a face to the farthest."""
    return np.argsort(np.linalg.norm(np.stack(known) - seen, axis=1), kind="stable").tolist()
