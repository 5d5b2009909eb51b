"""What is measured of a picture before it may be trained on, and the reasons for leaving it out."""

import importlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from infu.detectors import Face
from infu.errors import InvalidRequest
from infu.pose import MEAN_FACE

Scorer = Callable[[np.ndarray], float]  # uint8 RGB (H, W, 3) -> a score


class Refused(Exception):
    """A picture that is left out. `reason`: one of a few words to count by; `scores`: all that was
    measured."""

    def __init__(self, reason: str, detail: str = "", scores: dict[str, float] | None = None):
        super().__init__(reason)
        self.reason, self.detail, self.scores = reason, detail, scores or {}


def load_hook(name: str) -> Callable[..., Any]:
    """`package.module:function` -> the function. Raises `InvalidRequest`."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRequest(
            f"{name!r} names no function that can be imported ({error}). Write it as package.module:function."
        ) from None


def measure_sharpness(crop: np.ndarray) -> float:
    """The variance of the Laplacian of an aligned face (112, 112, 3): some 10 for a blurred one, 100 and more
    for a sharp one (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy")."""
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def measure_crowd(faces: list[Face]) -> float:
    """The largest other face's area, as a share of the chosen one's; 0 where there is none."""
    return max((face.area / faces[0].area for face in faces[1:]), default=0.0)


def measure_angles(keypoints: np.ndarray) -> tuple[float, float, float]:
    """Five points (5, 2) -> yaw, pitch, roll of the head in degrees, signs as in `infu.pose`.

    The mean face is fitted to the points under scaled parallel projection (DeMenthon and Davis 1995,
    "Model-based object pose in 25 lines of code", POS), without its iterations.
    """
    model = MEAN_FACE - MEAN_FACE.mean(axis=0)
    points = np.asarray(keypoints, np.float64)
    rows = np.linalg.lstsq(model, points - points.mean(axis=0), rcond=None)[0].T  # (2, 3): scaled rotation
    u, _, vt = np.linalg.svd(rows, full_matrices=False)
    right, down = u @ vt  # the nearest two orthonormal rows
    near = np.cross(right, down)
    roll = np.arctan2(down[0], right[0])
    level = np.cos(roll) * down - np.sin(roll) * right
    yaw = np.arctan2(-near[0], np.hypot(right[0], down[0]))
    pitch = np.arctan2(-level[2], level[1])
    return tuple(float(angle) for angle in np.degrees([yaw, pitch, roll]))


def check_limits(scores: dict[str, float], least: dict[str, float], most: dict[str, float]) -> None:
    """Raises `Refused` for the first score below its least or above its most."""
    for name, limit in least.items():
        if name in scores and scores[name] < limit:
            raise Refused(f"{name} too low", f"{scores[name]:.3g} below {limit:g}", scores)
    for name, limit in most.items():
        if name in scores and abs(scores[name]) > limit:
            raise Refused(f"{name} too high", f"{scores[name]:.3g} above {limit:g}", scores)
