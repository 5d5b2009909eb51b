"""A head angle by name -> five face points in the picture, for a control image without a photograph.

A mean face of five points in space is turned and projected in parallel. Its unit is the distance of the
eyes; x to the picture's right, y down, z towards the viewer. Left and right are the picture's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import radians

import numpy as np

from infu.errors import UnknownName

# x and y: insightface's template (face.py) made symmetric. z: the mean of MakeHuman's twelve heads (CC0,
# three origins, two sexes, two ages): how far nose tip and mouth corners stand before the eyes.
MEAN_FACE = np.array(
    [[-0.5, 0, 0], [0.5, 0, 0], [0, 0.571, 0.455], [-0.414, 1.155, -0.01], [0.414, 1.155, -0.01]]
)
PIVOT = np.array([0, 0.6, -1.2])  # the middle of the head, about which it turns; likewise from MakeHuman
RATIO = 3 / 4  # the portrait for which the sizes are meant; a wider picture has room at the sides


@dataclass(frozen=True)
class Pose:
    """`yaw`: degrees to the picture's right; `pitch`: degrees up; `size`: distance of the eyes of a face from
    the front, as a share of the portrait's width; `middle`: of the head, as a share of the height."""

    yaw: float = 0
    pitch: float = 0
    size: float = 0.16
    middle: float = 0.4


# A detector sees no second eye beyond some 75 degrees, and InfuseNet was trained on what detectors see.
POSES = {
    "front": Pose(),
    "three_quarter_left": Pose(yaw=-40),
    "three_quarter_right": Pose(yaw=40),
    "profile_left": Pose(yaw=-75),
    "profile_right": Pose(yaw=75),
    "up": Pose(pitch=25),
    "down": Pose(pitch=-25),
    "far": Pose(size=0.07, middle=0.34),
    "close": Pose(size=0.3, middle=0.47),
}


def check_pose(name: str) -> None:
    """Raises `UnknownName` with the nearest name."""
    if name not in POSES:
        raise UnknownName("head angle", name, POSES)


def place_pose(name: str, width: int, height: int) -> np.ndarray:
    """A name of POSES -> float32 (5, 2), x and y in pixels of a picture of width x height, in the order of
    `control_keypoints`. Raises `UnknownName`."""
    check_pose(name)
    pose = POSES[name]
    turned = (MEAN_FACE - PIVOT) @ turn(pose.yaw, pose.pitch).T
    middle = np.array([width / 2, height * pose.middle])
    return (turned[:, :2] * pose.size * measure(width, height) + middle).astype(np.float32)


def turn(yaw: float, pitch: float) -> np.ndarray:
    """Degrees -> rotation (3, 3) of column vectors: first the nod, then the turn of the neck."""
    (cy, cp), (sy, sp) = np.cos([radians(yaw), radians(pitch)]), np.sin([radians(yaw), radians(pitch)])
    nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ nod


def move_points(points: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Points (5, 2) of a picture of one width and height -> the same face in a picture of another, float32:
    neither stretched nor cut off where the picture becomes narrower."""
    scale = measure(*new) / measure(*old)
    return ((np.asarray(points) - np.array(old) / 2) * scale + np.array(new) / 2).astype(np.float32)


def measure(width: int, height: int) -> float:
    """The width of the largest upright portrait that the picture holds."""
    return min(width, height * RATIO)
