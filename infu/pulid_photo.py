"""A photograph of a face -> what PuLID-FLUX's networks take of it, to the pixel as released.

Follows ToTheBeginning/PuLID `pulid/pipeline_flux.py` (`get_id_embedding`): antelopev2 says whose face it is,
facexlib's RetinaFace aligns a crop, its BiSeNet tells the face from what is round it.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from infu.cache import Cache, digest, identify
from infu.detectors import ANTELOPE, load_detector, open_session
from infu.errors import MissingFile, NoFaceError
from infu.face import order_faces
from infu.models import PULID_FACEXLIB, list_pulid_places
from infu.parsing import parse_face
from infu.recognisers import Recogniser
from infu.retinaface import find_by_retinaface
from infu.weights.pulid import EVA

LONGEST = 1024  # pixels of a photograph's longer side
DETECTOR_SIZE, THRESHOLD = 640, 0.97  # antelopev2's canvas; the score that RetinaFace's faces need
CROP = 512
TEMPLATE = np.array(  # where the five points lie in the crop (facexlib `utils/face_restoration_helper.py`)
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043],
     [313.08905, 371.15118]]
)  # fmt: skip
BEYOND = (132, 133, 135)  # RGB of the crop outside the photograph
NOT_FACE = (0, 7, 8, 9, 14, 15, 16, 18)  # labels: all but skin, features, glasses and hair
LUMA = np.float32((0.299, 0.587, 0.114))
MEAN = np.float32((0.48145466, 0.4578275, 0.40821073))  # CLIP's
DEVIATION = np.float32((0.26862954, 0.26130258, 0.27577711))
RECOGNISER = "glintr100.onnx"
ALIGNER, PARSER = PULID_FACEXLIB


@dataclass(frozen=True)
class Encoders:
    """The files that look at a photograph: EVA02-CLIP, antelopev2's detector and recogniser, facexlib's
    RetinaFace (which aligns) and BiSeNet (which parses)."""

    eva: Path
    detector: Path
    recogniser: Path
    aligner: Path
    parser: Path


looked = Cache(16)  # photographs, for the whole process: what is kept of one is 1.4 MB
ENCODER_FILES = Encoders(EVA, ANTELOPE, RECOGNISER, ALIGNER, PARSER)  # their usual names


def find_encoders(folder: str | Path | None) -> Encoders:
    """The files in a folder or in folders inside it; None: where the download puts them. Raises `MissingFile`
    naming all that lack."""
    places = list_pulid_places() if folder is None else [Path(folder).expanduser()]
    found = {}
    for role, name in vars(ENCODER_FILES).items():
        found[role] = next((path for place in places for path in sorted(place.rglob(name))), None)
    missing = [getattr(ENCODER_FILES, role) for role, path in found.items() if path is None]
    if missing:
        raise MissingFile(
            f"PuLID needs {', '.join(missing)} to look at a photograph. Put them into one folder and give it "
            "as encoders, or run `python -m infu download --pulid 0.9.1`."
        )
    return Encoders(**found)


def look_once(photo: np.ndarray, encoders: Encoders, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`look_at`, unless this photograph was looked at a while ago: three networks run in it."""
    files = (encoders.detector, encoders.recogniser, encoders.aligner, encoders.parser)
    key = (digest(photo), size, *map(identify, files))
    return looked("pulid", key, lambda: look_at(photo, encoders, size))


def look_at(photo: np.ndarray, encoders: Encoders, size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB (H, W, 3) -> the recogniser's raw vector (512,), and the picture that EVA02-CLIP takes,
    float32 (3, size, size). Raises `NoFaceError`."""
    photo = bounded(photo)
    crop = align(photo, find_central(photo, encoders.aligner))
    return embed(photo, crop, encoders), make_input(crop, parse_face(crop, encoders.parser), size)


def bounded(photo: np.ndarray) -> np.ndarray:
    height, width = photo.shape[:2]
    factor = LONGEST / max(height, width)
    if factor >= 1:
        return photo
    return cv2.resize(photo, (int(width * factor), int(height * factor)), interpolation=cv2.INTER_LANCZOS4)


def find_central(photo: np.ndarray, aligner: Path) -> np.ndarray:
    """The five points (5, 2) of the face nearest to the middle of the photograph."""
    faces = find_by_retinaface(photo, aligner, THRESHOLD)
    if not faces:
        raise NoFaceError(
            "PuLID found no face in the photograph. Use one that shows a single face, well lit and seen from "
            "the front."
        )
    middle = np.array(photo.shape[1::-1]) / 2
    distances = [np.linalg.norm((face.box[:2] + face.box[2:]) / 2 - middle) for face in faces]
    return faces[int(np.argmin(distances))].keypoints


def align(photo: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """The face upright in the middle, uint8 RGB (512, 512, 3)."""
    return cv2.warpAffine(photo, fit(keypoints), (CROP, CROP), borderValue=BEYOND)


def fit(keypoints: np.ndarray) -> np.ndarray:
    """Rotation, scale and translation (2, 3) that bring the points to the template, outliers left out."""
    affine, _ = cv2.estimateAffinePartial2D(keypoints, TEMPLATE, method=cv2.LMEDS)
    if affine is None:
        raise NoFaceError("The face's points lie on one another. Use another photograph.")
    return affine


def embed(photo: np.ndarray, crop: np.ndarray, encoders: Encoders) -> np.ndarray:
    """antelopev2's vector of the largest face, of any length; where it finds none, that of the crop."""
    recogniser = Recogniser(
        open_session(encoders.recogniser, encoders.recogniser.name),
        size=512,
        bgr=False,
        channels_first=True,
        scale=127.5,
    )
    faces = order_faces(load_detector(encoders.detector)(photo, DETECTOR_SIZE), photo)
    if faces:
        return recogniser.embed(photo, faces[0].keypoints)
    return recogniser.embed_crop(cv2.resize(crop, (112, 112)))


def make_input(crop: np.ndarray, labels: np.ndarray, size: int) -> np.ndarray:
    """The crop and its labels (512, 512) -> float32 (3, size, size), normalised: the face, grey on white."""
    grey = crop.astype(np.float32) / 255 @ LUMA
    face = Image.fromarray(np.where(np.isin(labels, NOT_FACE), np.float32(1), grey))
    # With antialiasing, as torchvision 0.17 and later do; not clamped: what overshoots white stays.
    pixels = np.asarray(face.resize((size, size), Image.Resampling.BICUBIC))
    return (pixels - MEAN[:, None, None]) / DEVIATION[:, None, None]
