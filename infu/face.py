"""Photograph -> faces; face -> aligned crop; crop -> embedding of unit length.

Two stacks behind one interface: the released one (antelopev2's detector, ArcFace IR-SE50) and the embedded
one of the mini model. Order of detection and choice are the released InfiniteYou's, with more tries after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from infu.align import align, unit
from infu.cache import Cache, digest
from infu.detectors import Detector, Face, load_detector, turn_back, without_overlaps
from infu.errors import InvalidRequest, ModelError, NoFaceError
from infu.images import Photo, read_photo
from infu.recognisers import Described, Recogniser, load_recogniser

LADDER = (640, 320, 160)  # canvas sizes; 640 finds the small, 160 the very near
PAD = 0.5  # of each side, black, on every side: for a face that fills the picture
TILE, TILE_OVERLAP = 1280, 192  # a face wider than that was found before, in the whole picture at 1280
SMALLEST = 32  # pixels; below that a face in a large picture is a guess, and no likeness comes of it
EQUAL_AREAS = 1e-3  # relative; the difference that float arithmetic and a cell's rounding make
RECOGNISERS = {
    192: "the embedded recogniser",
    512: "ArcFace IR-SE50 (recognition_arcface_ir_se50.pth, which `python -m infu download` fetches)",
}

KEPT = 32  # photographs: what is found in one is a few kilobytes
# Faces by detector and content of the picture, for the whole process: what was found while a photograph was
# looked at is not searched again when a model, loaded later or another version, uses it.
found = Cache(KEPT)


def find_faces(photo: Photo, detector: str | Path | None = None) -> list[Face]:
    """Every face of a photograph (what `read_photo` takes): the one that `generate` uses first, the others by
    area. `detector`: antelopev2's folder; None: the embedded one. Pixels of the photograph as it is seen."""
    return search_once(read_photo(photo), None if detector is None else Path(detector))


class FaceStack:
    """A detector and a recogniser, loaded when first used. What was found in a picture is kept by the
    picture's content: a second request with the same photograph runs neither.

    `detector`: antelopev2's folder; `recogniser`: ArcFace's `.pth` or an appearance part; None: the embedded
    ones.
    `embedding_size`: how many numbers the model's projection takes.
    """

    def __init__(self, detector: Path | None, recogniser: Path | None, embedding_size: int):
        self.detector, self.recogniser, self.embedding_size = detector, recogniser, embedding_size
        self._cache = Cache(KEPT)

    def find(self, picture: np.ndarray) -> list[Face]:
        """uint8 RGB (H, W, 3) -> its faces: the chosen one first, the others by area; none: an empty list."""
        return search_once(picture, self.detector)

    def find_one(self, picture: np.ndarray, what: str = "photograph", chosen: int = 0) -> Face:
        """The face to use, number `chosen` of `find`. Raises `NoFaceError`, in which `what` names the
        picture, and `InvalidRequest` where there are fewer."""
        faces = self.find(picture)
        if not faces:
            raise NoFaceError(
                f"No face was found in the {what}. Use one that shows a single face, "
                "well lit, seen from the front, and at least 60 pixels wide."
            )
        if chosen >= len(faces):
            raise InvalidRequest(
                f"There is no face {chosen} in the {what}: the faces found there are 0 to {len(faces) - 1}."
            )
        return faces[chosen]

    def embed(self, pictures: Sequence[np.ndarray], chosen: Sequence[int] = ()) -> np.ndarray:
        """Photographs of one person, uint8 RGB -> float32 (E,), unit length: the mean of their embeddings.
        `chosen`: which face of each, as `find_one` counts; the first where there is no number."""
        recogniser = load_recogniser(self.recogniser)
        if recogniser.size != self.embedding_size:
            needed = RECOGNISERS.get(self.embedding_size, "the recogniser that the model was trained with")
            raise ModelError(
                f"The model takes face embeddings of {self.embedding_size} numbers and the face recogniser "
                f"makes {recogniser.size}. Use {needed}."
            )
        count = len(pictures)
        names = ["photograph"] if count == 1 else [f"photograph {i + 1} of {count}" for i in range(count)]
        numbers = [*chosen, *[0] * (count - len(chosen))]
        faces = [self.find_one(*asked) for asked in zip(pictures, names, numbers, strict=True)]
        return unit(
            np.mean(
                [self._embed_one(p, face, recogniser) for p, face in zip(pictures, faces, strict=True)],
                axis=0,
            )
        )

    def crop(self, picture: np.ndarray, face: Face) -> np.ndarray:
        """The face, aligned: uint8 RGB (112, 112, 3)."""
        return align(picture, face.keypoints)

    def _embed_one(self, picture: np.ndarray, face: Face, recogniser: Recogniser | Described) -> np.ndarray:
        key = digest(picture), face.keypoints.tobytes()
        return self._cache("embedding", key, lambda: unit(recogniser.embed(picture, face.keypoints)))


def search_once(picture: np.ndarray, detector: Path | None) -> list[Face]:
    """`search`, unless this picture was searched by this detector a while ago."""
    loaded = load_detector(detector)
    return list(found("faces", (loaded, digest(picture)), lambda: search(picture, loaded)))


def search(picture: np.ndarray, detector: Detector) -> list[Face]:
    """The faces that the first successful try finds, the chosen one first."""
    return order_faces(next((faces for faces in tries(picture, detector) if faces), []), picture)


def tries(picture: np.ndarray, detector: Detector) -> Iterator[list[Face]]:
    """As released first; then with a border; lying on either side and upside down; then ever smaller faces.
    The cheap tries come first, and none of the later ones is made once a face is found."""
    for size in LADDER:
        yield detector(picture, size)
    yield from (find_padded(picture, detector, size) for size in LADDER)
    yield from (find_turned(picture, detector, size, quarters) for quarters in (1, 3, 2) for size in LADDER)
    if max(picture.shape) > LADDER[0]:
        yield large_enough(detector(picture, TILE))
    if max(picture.shape) > 2 * TILE:
        yield find_in_tiles(picture, detector)


def find_padded(picture: np.ndarray, detector: Detector, size: int) -> list[Face]:
    height, width = picture.shape[:2]
    x, y = round(width * PAD), round(height * PAD)
    padded = cv2.copyMakeBorder(picture, y, y, x, x, cv2.BORDER_CONSTANT)
    return [moved(face, -x, -y) for face in detector(padded, size)]


def find_turned(picture: np.ndarray, detector: Detector, size: int, quarters: int) -> list[Face]:
    """Faces of a photograph that lies on its side, in its own pixels: their points lie on their side too."""
    height, width = picture.shape[:2]
    faces = []
    for face in detector(np.ascontiguousarray(np.rot90(picture, quarters)), size):
        corners = turn_back(face.box.reshape(2, 2), quarters, width, height)
        box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        keypoints = turn_back(face.keypoints, quarters, width, height)
        faces.append(replace(face, box=box, keypoints=keypoints))
    return faces


def find_in_tiles(picture: np.ndarray, detector: Detector) -> list[Face]:
    """Small faces of a large picture, at its full resolution, in overlapping tiles of bounded memory."""
    height, width = picture.shape[:2]
    step = TILE - TILE_OVERLAP
    faces = []
    for y in range(0, max(1, height - TILE_OVERLAP), step):
        for x in range(0, max(1, width - TILE_OVERLAP), step):
            tile = np.ascontiguousarray(picture[y : y + TILE, x : x + TILE])
            canvas = max(tile.shape[:2])  # no larger than it is: a narrow last tile is not blown up
            faces += [moved(face, x, y) for face in detector(tile, -(-canvas // 32) * 32)]
    return without_overlaps(large_enough(faces), 0.4)


def moved(face: Face, x: float, y: float) -> Face:
    by = np.array([x, y], np.float32)
    return replace(face, box=face.box + np.tile(by, 2), keypoints=face.keypoints + by)


def large_enough(faces: list[Face]) -> list[Face]:
    return [face for face in faces if max(face.box[2:] - face.box[:2]) >= SMALLEST]


def order_faces(faces: list[Face], picture: np.ndarray) -> list[Face]:
    """The largest first; of several as large as one another the most central, then the leftmost."""
    if not faces:
        return []
    middle = np.array(picture.shape[1::-1]) / 2
    faces = sorted(faces, key=lambda face: -face.area)
    equals = [face for face in faces if face.area >= faces[0].area * (1 - EQUAL_AREAS)]

    def distance(face: Face) -> tuple[float, float]:
        return round(float(np.linalg.norm((face.box[:2] + face.box[2:]) / 2 - middle)), 1), float(face.box[0])

    chosen = min(equals, key=distance)
    return [chosen] + [face for face in faces if face is not chosen]
