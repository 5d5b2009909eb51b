"""The request inside its picture: settings -> PNG text -> settings. Never a photo, a face or its EXIF."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from infu.errors import PhotoError
from infu.few_steps import choose_recipe
from infu.request import GenerationRequest
from infu.weights.lora import LoraFile

if TYPE_CHECKING:
    from backends.base import Backend

KEY = "infu"  # the PNG text chunk
VERSION = 1
MAX_TEXT = 1 << 20  # characters of a text chunk that are looked at


def describe(request: GenerationRequest, backend: Backend, loras: Sequence[LoraFile]) -> dict[str, Any]:
    """The settings of a run as plain JSON values: the request's, which model made the picture, and what was
    used of each LoRA."""
    made_by = {
        "infu": VERSION,
        "model": backend.model_name,
        "model_version": backend.model_version,
        "backend": backend.name,
        "dtype": backend.dtype,
        "loras": [lora.report for lora in loras],
    }
    if (recipe := choose_recipe(request, backend)) is not None:
        made_by["few_steps"] = recipe.report
    return made_by | request.settings() | describe_person(request)


def describe_person(request: GenerationRequest) -> dict[str, Any]:
    """Of the metadata, what reading a request's photographs changes in it (`pipeline.read_photographs`)."""
    settings = request.settings()
    points = {name: settings[name] for name in ("control_keypoints", "pose", "plugins")}
    return points | {
        "identity": request.has_identity,
        "control_photo": request.control_image is not None,
    }


def picture_metadata(metadata: dict[str, Any], k: int) -> dict[str, Any]:
    """The metadata of picture `k` of a run alone: its own seed, one picture."""
    return metadata | {"seed": (metadata["seed"] + k) % 2**32, "num_images": 1}


def save_picture(image: Image.Image, path: Path | str, metadata: dict[str, Any] | None) -> None:
    """Write a PNG with `metadata` inside, None leaves it out. Compressed for speed: .1 s, not .4."""
    info = PngImagePlugin.PngInfo()
    if metadata is not None:
        info.add_itxt(KEY, json.dumps(metadata, ensure_ascii=True), zip=False)
    image.save(path, format="PNG", pnginfo=info, compress_level=1)


def read_picture(source: Any) -> dict[str, Any]:
    """The settings inside a PNG that InfU made; `source` is a path or an open file.

    Raises `PhotoError` when the file is no picture, or holds no settings.
    """
    try:
        with Image.open(source, formats=["PNG"]) as image:
            image.load()  # text may stand after the pixels
            text = str(image.info.get(KEY, ""))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise PhotoError(
            "This is no PNG, so it holds no settings. Take the PNG as it was downloaded."
        ) from None
    try:
        settings = json.loads(text[:MAX_TEXT])
        usable = settings["infu"] == VERSION and isinstance(settings["prompt"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        usable = False
    if not usable:
        raise PhotoError(
            "There are no InfU settings in this picture. Converting or sharing a picture removes them: "
            "take the PNG as it was downloaded."
        )
    return settings
