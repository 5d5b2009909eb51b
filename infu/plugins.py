"""The plug-ins of a request: values that say which file, how strongly and in which steps. Checked here.

A picture among them is a photograph in any form that `id_image` takes. Each has `counts` (False: it is as if
absent, its file is not even read) and `settings()`, itself as JSON values without pictures, faces or folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from infu.checks import (
    check_array,
    check_integer,
    check_list,
    check_number,
    check_person,
    check_window,
    shown,
)
from infu.errors import InvalidRequest, UnknownName
from infu.regions import REGIONS, is_box

HINTS = ("canny", "depth", "pose")  # that can be made of a photograph
MAX_DELTA = 4096  # tokens of 16 pixels that an object's picture may be moved by


def picture() -> Any:
    """A field for a picture or an array: it is neither printed nor compared."""
    return field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Lora:
    """A LoRA on the base model. `path`: a safetensors file, or the name of a known one (hyper-8, hyper-16,
    turbo-alpha; `python -m infu download --lora NAME`); `scale` may be 0 (as if absent) or negative, None
    for what the file was made for: 1, or of some that need few steps another (infu/few_steps.py).
    `image`: what a control LoRA follows (its edges or depth, as the LoRA was made for), cut to the output's
    shape about its middle.

    Raises `InvalidRequest` when `path` is no path, or `scale` not a number from -10 to 10.
    """

    path: str | Path
    scale: float | None = None
    image: Any = field(default=None, repr=False, hash=False)
    unset: bool = field(default=False, init=False, repr=False, compare=False)  # whether `scale` was left open

    def __post_init__(self):
        check_path("A LoRA", self.path)
        if self.scale is None:
            object.__setattr__(self, "unset", True)
            object.__setattr__(self, "scale", 1.0)
        check_number("LoRA scale", self.scale, -10.0, 10.0)

    @property
    def counts(self) -> bool:
        return self.scale != 0

    def settings(self) -> dict[str, Any]:
        photo = {} if self.image is None else {"control_photo": True}
        return {"lora": Path(self.path).name, "scale": self.scale} | photo


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet beside InfuseNet. `path`: a diffusers folder, a file, a hub id, or one of
    `models.CONTROLNETS`; `image`: the hint, as the network was made for (edges, depth, a drawn pose), cut to
    the output's shape about its middle. It runs in step i of N when i / N >= start and (i + 1) / N <= end.
    `mode`: which kind of hint it is, by name or number, for a network that knows several (Union). `hint`:
    what is to be made of `image` first, one of `HINTS`, and `hint_model` by which network (infu/hints.py).

    Raises `InvalidRequest` for values out of range.
    """

    path: str | Path
    image: Any = picture()
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str | int | None = None
    hint: str | None = None
    hint_model: str | Path | None = None

    def __post_init__(self):
        check_path("A ControlNet", self.path)
        if self.hint not in (None, *HINTS):
            raise UnknownName("hint", shown(self.hint), HINTS)
        check_number("ControlNet scale", self.scale, -10.0, 10.0)
        check_window("ControlNet ", "start", "end", self)
        if self.image is None:
            raise InvalidRequest("A ControlNet follows a picture: give it as image.")

    @property
    def counts(self) -> bool:
        return self.scale != 0

    def settings(self) -> dict[str, Any]:
        return told(self, controlnet=self.path) | {"mode": self.mode, "hint": self.hint}


@dataclass(frozen=True)
class IPAdapter:
    """A picture as a prompt: an IP-Adapter of XLabs (style) or InstantX, by its file or as "xlabs",
    "xlabs-v1", "instantx", "mini-style". `image`: a picture, or a list of several, whose tokens share one
    attention;
    `image_encoder`: the folder of the CLIP or SigLIP that the adapter was trained with (None: the folder
    `image_encoder` beside its file, or where `python -m infu download --ip_adapter` puts it). Instead of
    pictures `image_embeds`: that encoder's vectors, (E,) or (k, E).
    It works in step i of N when start <= i / N <= end, in a negative pass at `negative_scale` and with the
    vector that the adapter was trained for there (XLabs: a black picture's; `negative_image_embeds` gives it
    where there is no encoder).

    Raises `InvalidRequest` for values out of range, or without a picture.
    """

    path: str | Path
    image: Any = picture()
    scale: float = 1.0
    negative_scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    image_encoder: str | Path | None = None
    image_embeds: np.ndarray | None = picture()
    negative_image_embeds: np.ndarray | None = picture()

    def __post_init__(self):
        check_path("An IP-Adapter", self.path)
        check_number("IPAdapter scale", self.scale, -10.0, 10.0)
        check_number("IPAdapter negative_scale", self.negative_scale, -10.0, 10.0)
        check_window("IPAdapter ", "start", "end", self)
        if (len(self.images) > 0) == (self.image_embeds is not None):
            raise InvalidRequest("An IP-Adapter takes a picture: give either image or image_embeds.")
        for name in ("image_embeds", "negative_image_embeds"):
            if (vectors := getattr(self, name)) is not None:
                width = np.shape(vectors)[-1] if np.ndim(vectors) in (1, 2) else -1
                object.__setattr__(self, name, check_array(name, vectors, (-1, width)))

    @property
    def images(self) -> tuple[Any, ...]:
        return pictures_in(self.image)

    @property
    def counts(self) -> bool:
        return self.scale != 0

    def settings(self) -> dict[str, Any]:
        return told(self, ip_adapter=self.path) | {"negative_scale": self.negative_scale}


@dataclass(frozen=True)
class PuLID:
    """PuLID-FLUX: identity by cross-attention, to compare with InfU or beside it. `path`: its file, or its
    version ("0.9.1", "0.9.0") once that is downloaded. `image`: a photograph of a
    face, or a list of several of one person; `encoders`: the folder of the networks that look at it (None:
    where `python -m infu download --pulid` puts them). Instead of both `id_tokens` (Q, W), and with a
    negative prompt `uncond_id_tokens` (Q, W). It works from step `start_step` on, counted from 0.

    Raises `InvalidRequest` for values out of range, or without a face.
    """

    path: str | Path
    image: Any = picture()
    id_weight: float = 1.0
    start_step: int = 0
    encoders: str | Path | None = None
    id_tokens: np.ndarray | None = picture()
    uncond_id_tokens: np.ndarray | None = picture()

    def __post_init__(self):
        check_path("PuLID", self.path)
        check_number("PuLID id_weight", self.id_weight, 0.0, 10.0)
        check_integer("PuLID start_step", self.start_step, 0, 200)
        if (len(self.photos) > 0) == (self.id_tokens is not None):
            raise InvalidRequest("PuLID takes a face: give either image or id_tokens.")
        for name in ("id_tokens", "uncond_id_tokens"):
            if (tokens := getattr(self, name)) is not None:
                if np.ndim(tokens) not in (2, 3) or np.size(tokens) == 0:
                    raise InvalidRequest(f"{name} must be rows of numbers, one row for each token.")
                object.__setattr__(self, name, check_array(name, tokens, (-1, np.shape(tokens)[-1])))

    @property
    def photos(self) -> tuple[Any, ...]:
        return pictures_in(self.image)

    @property
    def counts(self) -> bool:
        return self.id_weight != 0

    def settings(self) -> dict[str, Any]:
        return {"pulid": Path(self.path).name, "id_weight": self.id_weight, "start_step": self.start_step}


@dataclass(frozen=True)
class OminiControl:
    """A subject or a spatial condition as more image tokens. `path`: the adapter's LoRA, or its name
    (subject_512, subject_1024_beta, canny, depth, coloring, deblurring, fill); `image`: the picture
    they are of. `scale`: strength of their attention, 1 as released, 0 as if absent. `position_delta`: rows
    and columns, in tokens of 16 pixels, by which the picture lies beside the one that is made, (0, 0) on it;
    None for what a released file of this name was trained with, else (0, 0). `position_scale`: how many of
    the output's pixels one of its pixels stands for. `independent`: the tokens see only themselves, so their
    keys and values are computed once: for adapters trained so. `image_guidance` beyond 1: what the picture
    changes is multiplied so, at the cost of a second pass.

    Raises `InvalidRequest` for values out of range, or without a picture.
    """

    path: str | Path
    image: Any = picture()
    scale: float = 1.0
    position_delta: tuple[int, int] | None = None
    position_scale: float = 1.0
    independent: bool = False
    image_guidance: float = 1.0

    def __post_init__(self):
        check_path("OminiControl", self.path)
        check_number("OminiControl scale", self.scale, 0.0, 10.0)
        check_number("OminiControl position_scale", self.position_scale, 0.125, 8.0)
        check_number("OminiControl image_guidance", self.image_guidance, 0.0, 10.0)
        if self.image is None:
            raise InvalidRequest("OminiControl looks at a picture: give it as image.")
        delta = find_delta(Path(self.path).name) if self.position_delta is None else self.position_delta
        delta = check_list("position_delta", delta)
        if len(delta) != 2:
            raise InvalidRequest(f"position_delta is rows and columns, not {shown(self.position_delta)}.")
        delta = tuple(check_integer("position_delta", tokens, -MAX_DELTA, MAX_DELTA) for tokens in delta)
        object.__setattr__(self, "position_delta", delta)

    @property
    def counts(self) -> bool:
        return self.scale != 0

    def settings(self) -> dict[str, Any]:
        names = ("scale", "position_scale", "independent", "image_guidance")
        values = {name: getattr(self, name) for name in names}
        named = {"ominicontrol": Path(self.path).name, "position_delta": list(self.position_delta)}
        return named | values


DELTAS = {  # how the names of OminiControl's released files begin -> rows and columns as they were trained
    "subject_512": (0, 32),
    "subject_1024": (0, -32),
}


def find_delta(name: str) -> tuple[int, int]:
    return next((delta for start, delta in DELTAS.items() if name.startswith(start)), (0, 0))


@dataclass(frozen=True)
class Person:
    """One more person in the picture: a face as the request's own, and where it may be. `mask`: 1 where this
    person's InfuseNet works, 0 where it does not: a name of `regions.REGIONS` ("left", "right_third", …), a
    box (left, top, right, bottom) in shares of the picture, numbers 0 to 1 (H, W) of any size, or a picture
    whose brightness counts. InfuseNet runs once for each person, in the request's window; masks may overlap
    and need not fill the picture.

    Raises `InvalidRequest` for values out of range, without a mask or a face.
    """

    mask: Any = picture()
    id_image: Any = picture()
    id_images: Sequence[Any] = field(default=(), repr=False, compare=False)
    id_faces: Sequence[int] = ()
    id_embedding: np.ndarray | None = picture()
    control_image: Any = picture()
    control_keypoints: np.ndarray | None = picture()
    pose: str | None = None
    scale: float = 1.0

    def __post_init__(self):
        check_number("Person scale", self.scale, 0.0, 10.0)
        check_person(self)
        if self.mask is None:
            raise InvalidRequest("A Person needs a mask: where in the picture that person may be.")
        if not self.photos and self.id_embedding is None:
            raise InvalidRequest("A Person needs a face: give id_image, id_images or id_embedding.")

    @property
    def photos(self) -> tuple[Any, ...]:
        return tuple(self.id_images) if self.id_image is None else (self.id_image,)

    @property
    def counts(self) -> bool:
        return self.scale != 0

    def settings(self) -> dict[str, Any]:
        named = isinstance(self.mask, str) and self.mask in REGIONS
        region = self.mask if named else [*self.mask] if is_box(self.mask) else None
        return {"person": True, "scale": self.scale, "pose": self.pose, "region": region}


Plugin: TypeAlias = Lora | ControlNet | IPAdapter | PuLID | OminiControl | Person


def check_path(what: str, path: Any) -> None:
    if not isinstance(path, str | Path):
        raise InvalidRequest(f"{what} is the path of a file, not {shown(path)}.")


def pictures_in(image: Any) -> tuple[Any, ...]:
    """None, a picture or a list of several -> these."""
    if image is None:
        return ()
    return check_list("image", image) if isinstance(image, list | tuple) else (image,)


def told(plugin: ControlNet | IPAdapter, **file: str | Path) -> dict[str, Any]:
    """The file under its kind, without its folder, and the strength and window of a plug-in that has them."""
    named = {kind: Path(path).name for kind, path in file.items()}
    return named | {name: getattr(plugin, name) for name in ("scale", "start", "end")}
