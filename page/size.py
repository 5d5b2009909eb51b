"""The picture's shape: presets with the area that the loaded model was made for, and the photograph's own."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import gradio as gr

from infu.errors import PhotoError
from infu.images import read_photo
from infu.models import read_defaults
from infu.request import MAX_SIZE, MIN_SIZE
from page.events import QUICK, QUIET, RAW
from page.layout import DEFAULTS
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import read_upload

SHAPES = {  # width / height
    "portrait": 3 / 4,
    "square": 1.0,
    "landscape": 4 / 3,
    "tall": 9 / 16,
    "wide": 16 / 9,
}
LIKE_PHOTO = "like_photo"
MOST = 3.0  # a panorama is met this far: what FLUX makes beyond repeats itself


def draw_size(width: int, height: int) -> tuple[gr.Radio, gr.Button]:
    """The shapes, and the button that turns a picture on its side."""
    with gr.Row(elem_id="size"):
        shape = gr.Radio(
            [(label(key), key) for key in (*SHAPES, LIKE_PHOTO)],
            value=find_shape(width, height, width, height),
            label=label("shape"),
            info=draw_numbers(width, height),
            elem_id="shape",
        )
        swap = gr.Button(label("swap"), size="sm", elem_id="swap")
    return shape, swap


def wire_size(
    studio: Studio, shape: gr.Radio, swap: gr.Button, photo: gr.Image, width: gr.Number, height: gr.Number
) -> None:
    @told
    def choose(name: str | None, sent: dict | None, visitor: gr.Request) -> Iterator[tuple[Any, Any]]:
        """The shape that was clicked -> width and height."""
        if name == LIKE_PHOTO and sent is None:
            gr.Info(say(visitor, "no_photo_yet"))
        ratio = read_ratio(name, sent)
        yield make_size(ratio, *default_size(studio)) if ratio else (gr.skip(), gr.skip())

    @told
    def follow(name: str | None, sent: dict | None) -> Iterator[tuple[Any, Any]]:
        """Another photograph -> its shape, where that is what was asked for."""
        ratio = read_ratio(name, sent) if name == LIKE_PHOTO else None
        yield make_size(ratio, *default_size(studio)) if ratio else (gr.skip(), gr.skip())

    @told
    def show(name: str | None, sent: dict | None, wide: int | None, high: int | None) -> Iterator[Any]:
        """Width and height, set by whomever -> the shape that they are."""
        if not wide or not high:
            return
        ratio = read_ratio(name, sent) if name == LIKE_PHOTO else None
        default = default_size(studio)
        same = ratio and make_size(ratio, *default) == (wide, high)
        yield gr.update(
            value=name if same else find_shape(wide, high, *default), info=draw_numbers(wide, high)
        )

    size = [width, height]
    shape.input(choose, [shape, photo], size, **RAW, **QUIET)
    photo.change(follow, [shape, photo], size, **RAW, **QUIET)
    swap.click(lambda wide, high: (high, wide), size, size, **QUICK)
    shown = QUICK | {"trigger_mode": "always_last"}
    gr.on([width.change, height.change], show, [shape, photo, *size], shape, **RAW, **shown)


def default_size(studio: Studio) -> tuple[int, int]:
    defaults = DEFAULTS.replace(**read_defaults(studio.options))
    return defaults.width, defaults.height


def read_ratio(name: str | None, photo: dict[str, Any] | None) -> float | None:
    """Width / height of a shape; None for the photograph's where there is none."""
    if name != LIKE_PHOTO:
        return SHAPES.get(name)
    try:
        source = read_upload(photo)
        high, wide = read_photo(source).shape[:2] if source else (0, 0)
    except PhotoError:  # it is told where it was uploaded
        return None
    return wide / high if high else None


def make_size(ratio: float, width: int, height: int) -> tuple[int, int]:
    """`ratio`, a third to 3, is width / height of a picture with about the area width x height -> its sides,
    multiples of 16 within the allowed range."""
    root, side = sqrt(min(max(ratio, 1 / MOST), MOST)), sqrt(width * height)
    wide, high = (min(max(16 * round(s / 16), MIN_SIZE), MAX_SIZE) for s in (side * root, side / root))
    return wide, high


def find_shape(width: int, height: int, *default: int) -> str | None:
    """The preset that makes this size of the model's default size."""
    return next((name for name, r in SHAPES.items() if make_size(r, *default) == (width, height)), None)


def draw_numbers(width: int, height: int) -> str:
    return f"{width} × {height}"
