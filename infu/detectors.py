"""A picture -> the faces in it: by antelopev2's SCRFD (the released detector) or CenterFace (the embedded).

A detector is called with a uint8 RGB picture (H, W, 3) and the long side of the canvas that the picture is
scaled to; it returns faces in the picture's own pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from infu.cache import stamp
from infu.errors import BrokenFile, MissingFile
from infu.weights.intruder import LFS_POINTER

if TYPE_CHECKING:
    import onnxruntime  # loaded when the first session is

EMBEDDED = Path(__file__).parent / "mini" / "faces"
ANTELOPE = "scrfd_10g_bnkps.onnx"


@dataclass(frozen=True, eq=False)
class Face:
    """`box` (4,): x1 y1 x2 y2, may reach beyond the picture; `keypoints` (5, 2): eye, eye, nose, mouth
    corner, mouth corner, left before right as seen; both float32, in pixels. `detector_size`: the long side
    of the canvas it was found on."""

    box: np.ndarray
    keypoints: np.ndarray
    score: float
    detector_size: int

    @property
    def area(self) -> float:
        """Of the unclipped box, as the released choice has it."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


Detector = Callable[[np.ndarray, int], list[Face]]


def load_detector(path: Path | None) -> Detector:
    """antelopev2's folder (nested as its zip unpacks, or not) or its detector file; None: the embedded one.
    Raises `MissingFile`, `BrokenFile`. The same file is loaded once."""
    if path is None:
        return load_centerface(EMBEDDED / "centerface.onnx")
    file = find_antelope(Path(path))
    return load_scrfd(file, *stamp(file))


def find_antelope(path: Path) -> Path:
    for file in (path, path / ANTELOPE, path / "antelopev2" / ANTELOPE):
        if file.is_file():
            return file
    raise MissingFile(
        f"The face detector {ANTELOPE} is missing. Run `python -m infu download`, "
        "or give the antelopev2 folder that holds it."
    )


@lru_cache(maxsize=4)
def load_scrfd(file: Path, size: int, changed: int) -> Scrfd:
    """`size` and `changed` of the file: one that was replaced is loaded again."""
    return Scrfd(file)


@lru_cache(maxsize=1)
def load_centerface(file: Path) -> CenterFace:
    return CenterFace(file)


class Scrfd:
    """antelopev2's detector in insightface's own code, which the released program uses."""

    def __init__(self, file: Path):
        from insightface.model_zoo.scrfd import SCRFD

        session = open_session(file, file.name)
        if len(session.get_outputs()) != 9:
            raise BrokenFile(f"{file.name} is not antelopev2's face detector. Run `python -m infu download`.")
        self.network = SCRFD(str(file), session, static_shape_sessions=False)

    def __call__(self, picture: np.ndarray, size: int) -> list[Face]:
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        boxes, keypoints = self.network.detect(bgr, (size, size), det_thresh=0.5)
        return [Face(b[:4], k, float(b[4]), size) for b, k in zip(boxes, keypoints, strict=True)]


class CenterFace:
    """CenterFace (arXiv 1911.03599): heat, box size, offset and five points per cell of 4 x 4 pixels. Every
    face is looked at twice, the second time upright and at one size: else the points of one face move with
    the size of its picture. Seen again, true faces score .6 and more, false ones .3: those are dropped."""

    STRIDE, THRESHOLD, MAX_OVERLAP = 4, 0.5, 0.3
    LOOK_SIZE, LOOK_MARGIN, LOOK_THRESHOLD, MAX_LOOKS = 256, 1.6, 0.45, 16

    def __init__(self, file: Path):
        self.session = open_session(file, file.name)

    def __call__(self, picture: np.ndarray, size: int) -> list[Face]:
        faces = sorted(self.look(picture, size, self.THRESHOLD), key=lambda face: -face.area)
        nearest = faces[: self.MAX_LOOKS]  # of a crowd
        looks = (self.look_again(picture, face) for face in nearest)
        return sorted((face for face in looks if face), key=lambda face: -face.score)

    def look(self, picture: np.ndarray, size: int, threshold: float) -> list[Face]:
        """The network once, the picture's long side scaled to `size`; best first, overlaps removed."""
        height, width = picture.shape[:2]
        scale = size / max(height, width)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas = np.zeros((-(-inner[1] // 32) * 32, -(-inner[0] // 32) * 32, 3), np.float32)
        canvas[: inner[1], : inner[0]] = cv2.resize(picture, inner, interpolation=shrink)
        heat, scales, offsets, points = self.session.run(None, {"input.1": canvas.transpose(2, 0, 1)[None]})
        rows, columns = np.nonzero(heat[0, 0] > threshold)
        sizes = np.exp(scales[0][:, rows, columns].T)[:, ::-1] * self.STRIDE  # (n, 2), width and height
        centres = np.stack([columns, rows], axis=1) + offsets[0][:, rows, columns].T[:, ::-1] + 0.5
        corners = centres * self.STRIDE - sizes / 2
        points = points[0][:, rows, columns].T.reshape(-1, 5, 2)[..., ::-1]  # of the box, y before x
        points = points * sizes[:, None] + corners[:, None]
        ratio = np.array([width, height], np.float32) / inner
        boxes = np.concatenate([corners * ratio, (corners + sizes) * ratio], axis=1)
        found = zip(boxes, points * ratio, heat[0, 0, rows, columns], strict=True)
        faces = [Face(b.astype(np.float32), p.astype(np.float32), float(s), size) for b, p, s in found]
        return without_overlaps(faces, self.MAX_OVERLAP)

    def look_again(self, picture: np.ndarray, face: Face) -> Face | None:
        """The face with the points of a second look: cut out, turned upright by quarters, at one size. None:
        no face is seen there then."""
        side = max(8, round(float(max(face.box[2:] - face.box[:2])) * self.LOOK_MARGIN))
        corner = np.rint((face.box[:2] + face.box[2:]) / 2 - side / 2).astype(int)
        dx, dy = face.keypoints[1] - face.keypoints[0]
        quarters = round(np.degrees(np.arctan2(dy, dx)) / 90) % 4
        cut = np.ascontiguousarray(np.rot90(cut_square(picture, corner, side), quarters))
        seen = self.look(cut, self.LOOK_SIZE, self.LOOK_THRESHOLD)
        if not seen:
            return None
        same = min(
            seen, key=lambda other: np.linalg.norm(other.box[:2] + other.box[2:] - side)
        )  # no neighbour
        points = turn_back(same.keypoints, quarters, side, side)
        return replace(face, keypoints=(points + corner).astype(np.float32))


def without_overlaps(faces: list[Face], most: float) -> list[Face]:
    """The faces, best score first, without those whose box meets a better one's by more than `most`
    (intersection over union)."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(overlap(face, better) <= most for better in kept):
            kept.append(face)
    return kept


def overlap(a: Face, b: Face) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a.box[2:], b.box[2:]) - np.maximum(a.box[:2], b.box[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / (a.area + b.area - shared)


def cut_square(picture: np.ndarray, corner: np.ndarray, side: int) -> np.ndarray:
    """side x side pixels of the picture from `corner` (x, y) on; black where they lie outside."""
    square = np.zeros((side, side, 3), np.uint8)
    (left, top), (right, bottom) = np.maximum(corner, 0), np.minimum(corner + side, picture.shape[1::-1])
    if left < right and top < bottom:
        x, y = corner
        square[top - y : bottom - y, left - x : right - x] = picture[top:bottom, left:right]
    return square


def turn_back(points: np.ndarray, quarters: int, width: int, height: int) -> np.ndarray:
    """Points (n, 2) found in `np.rot90(picture, quarters)` -> in the picture of width x height itself."""
    x, y = points[:, 0], points[:, 1]
    turned = ((x, y), (width - 1 - y, x), (width - 1 - x, height - 1 - y), (y, height - 1 - x))
    return np.stack(turned[quarters % 4], axis=1)


def open_session(model: Path | bytes, name: str) -> onnxruntime.InferenceSession:
    """An ONNX file, or its bytes -> a session on the CPU. `name` is what errors call it."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as faults

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(4, os.cpu_count() or 1)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the backend needs the cores
    options.log_severity_level = 4  # antelopev2's file declares row counts that only hold at 640
    broken = (
        faults.Fail,
        faults.InvalidArgument,
        faults.InvalidGraph,
        faults.InvalidProtobuf,
        faults.NotImplemented,
    )
    try:
        model = model if isinstance(model, bytes) else str(model)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except broken:
        raise BrokenFile(
            f"{name} {looks_like(model)}. Run `python -m infu download`, or copy it again."
        ) from None


def looks_like(model: str | bytes) -> str:
    if not isinstance(model, bytes):
        with open(model, "rb") as stream:
            model = stream.read(64)
    if not model:
        return "is empty"
    return (
        "is a Git-LFS pointer, not the file itself"
        if model.startswith(LFS_POINTER)
        else "is damaged or cut short"
    )
