"""One photograph -> what training needs of it: measured, cut to its bucket, captioned, encoded once.

The networks are a backend's, called as the pipeline calls them, so training sees what inference will show.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backends import load_backend
from infu.errors import NoFaceError, PhotoError
from infu.face import FaceStack
from infu.images import read_photo
from infu.keypoints import draw_keypoints
from infu.models import (
    MINI,
    find_appearance,
    find_infinite_you,
    find_recogniser,
    has_embedded_faces,
    local_path,
)
from infu.recognisers import load_recogniser
from infu.training.buckets import choose_bucket, cut_to, make_buckets
from infu.training.config import DataSettings, Filters
from infu.training.measure import (
    Refused,
    check_limits,
    load_hook,
    measure_crowd,
    measure_sharpness,
)
from infu.training.shards import BLACK, Encoded, write_black
from infu.training.sources import RawPhoto

EMBEDDED = "embedded"


@dataclass(frozen=True, eq=False)
class Portrait:
    """A photograph that passed: `photo` as it was read, `picture` uint8 RGB of a bucket's size, the five
    points in it, the face's embedding (E,), and all that was measured."""

    name: str
    photo: np.ndarray
    picture: np.ndarray
    keypoints: np.ndarray
    embedding: np.ndarray
    scores: dict[str, float]


def load_faces(name: str) -> FaceStack:
    """ "embedded", or a folder or hub id in InfiniteYou's layout -> detector and recogniser."""
    if name == EMBEDDED:
        return FaceStack(None, None, 192)
    folder = find_infinite_you(local_path(name, "faces") or name, "aes_stage2", False, True)
    if has_embedded_faces(folder):
        appearance = find_appearance(folder)
        return FaceStack(None, appearance, load_recogniser(appearance).size)
    detector = folder / "supports" / "insightface" / "models" / "antelopev2"
    return FaceStack(detector, find_recogniser(folder), 512)


class Examiner:
    """The filters: a file's bytes -> a `Portrait`, or `Refused`."""

    def __init__(self, settings: DataSettings, faces: FaceStack):
        self._filters, self._faces = settings.filters, faces
        self.buckets = settings.sizes or make_buckets(
            settings.pixels, settings.bucket_step, settings.max_ratio
        )
        names = {"watermark": self._filters.watermark, "unsafe": self._filters.unsafe}
        self._hooks = {name: load_hook(hook) for name, hook in names.items() if hook}

    def __call__(self, raw: RawPhoto) -> Portrait:
        try:
            photo = read_photo(raw.data)
            face, others = self._faces.find_one(photo), self._faces.find(photo)
        except NoFaceError:
            raise Refused("no face") from None
        except PhotoError as error:
            raise Refused("cannot be read", str(error)) from None
        size = choose_bucket(photo.shape[1], photo.shape[0], self.buckets)
        picture, keypoints, enlarged = cut_to(photo, face.box, face.keypoints, size)
        scores = {
            "crowd": measure_crowd(others),
            "face": float(min(face.box[2:] - face.box[:2])) * enlarged,
            "enlarged": enlarged,
            "sharpness": measure_sharpness(self._faces.crop(photo, face)),
        }
        scores |= {name: float(hook(picture)) for name, hook in self._hooks.items()}
        check_photo(scores, self._filters)
        embedding = self._faces.embed([photo])
        return Portrait(raw.name, photo, picture, keypoints, embedding, scores)


def check_photo(scores: dict[str, float], filters: Filters) -> None:
    """Raises `Refused`."""
    least = {"face": filters.min_face, "sharpness": filters.min_sharpness}
    most = {
        "crowd": filters.max_crowd,
        "enlarged": filters.max_enlarged,
        "watermark": filters.max_watermark,
        "unsafe": filters.max_unsafe,
    }
    check_limits(scores, least, most)


class Encoder:
    """Pictures and captions -> latents and text states, by a backend. With `settings.pictures` the backend is
    the stage-1 model, which makes them too."""

    def __init__(self, settings: DataSettings):
        self._settings = settings
        asked = settings.pictures
        self.backend = load_backend(
            "pytorch",
            settings.base_model_path or MINI / "base",
            model_dir=asked and asked.model_dir,
            model_version=asked.model_version if asked else "aes_stage2",
            dtype=settings.dtype,
            offload=settings.offload,
        )
        self._dtype = getattr(torch, self.backend.dtype)

    def __call__(
        self,
        name: str,
        picture: np.ndarray,
        keypoints: np.ndarray,
        embedding: np.ndarray,
        caption: str,
        row: dict,
    ) -> Encoded:
        """A picture uint8 RGB (H, W, 3) to learn, its own five points, the embedding to learn it from. `row`:
        what else to keep of it."""
        height, width = picture.shape[:2]
        black = self._settings.out / BLACK.format(width, height)
        if not black.is_file():
            write_black(self._settings.out, (width, height), self._latents(np.zeros_like(picture)))
        tensors = {
            "latents": self._latents(picture),
            "control": self._latents(draw_keypoints(keypoints, width, height)),
            "embedding": torch.from_numpy(embedding),
        }
        if self._settings.store_text:
            text = self.backend.encode_prompt(caption, self._settings.max_sequence_length)
            tensors |= {"states": text.states[0].cpu(), "pooled": text.pooled[0].cpu()}
        return Encoded((width, height), tensors, {"name": name, "caption": caption} | row)

    def _latents(self, picture: np.ndarray) -> Tensor:
        return self.backend.encode_image(picture)[0].to("cpu", self._dtype)
