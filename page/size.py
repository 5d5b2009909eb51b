"""The picture's shape: presets with the area that the loaded model was made for, and the photograph's own."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import gradio as gr

from infu.images import read_photo
from infu.request import MAX_SIZE, MIN_SIZE
from page.events import QUICK, QUIET, RAW
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
PHOTO = "photo"  # and then the size
MOST = 3.0  # a panorama is met this far: what FLUX makes beyond repeats itself
# Width and height, set by whomever -> the shape of that size, if any. In the browser: two answers of the
# server, to the change of one and of the other, could come in the wrong order.
SHOW = """(shape, width, height) => {
    if (!width || !height) return [shape, ""];
    const size = width + "x" + height;
    return [shape === "photo" + size ? shape : size, "<p>" + width + " × " + height + "</p>"];
}"""


def draw_size(width: int, height: int) -> tuple[gr.Radio, gr.HTML, gr.Button]:
    """The shapes, whose values are their sizes; the size in numbers; a button that turns it on its side."""
    with gr.Column(elem_id="size"):
        shape = gr.Radio(
            list_shapes(width, height), value=f"{width}x{height}", label=label("shape"), elem_id="shape"
        )
        numbers = gr.HTML(f"<p>{width} × {height}</p>", elem_id="numbers")
        swap = gr.Button(label("swap"), size="sm", elem_id="swap")
    return shape, numbers, swap


def list_shapes(width: int, height: int, photo: str = PHOTO) -> list[tuple[Any, str]]:
    """The choices for a model that was made for this size."""
    sizes = {key: make_size(ratio, width, height) for key, ratio in SHAPES.items()}
    return [(label(key), f"{w}x{h}") for key, (w, h) in sizes.items()] + [(label("like_photo"), photo)]


def wire_size(
    studio: Studio, drawn: tuple[gr.Radio, gr.HTML, gr.Button], photo: gr.Image, size: list[gr.Number]
) -> None:
    """`size`: the fields of width and height."""
    shape, numbers, swap = drawn
    unchanged = (gr.skip(),) * 3

    @told
    def choose(visitor: gr.Request, chosen: str, sent: dict | None) -> Iterator[tuple[Any, ...]]:
        """The shape that was clicked -> width, height and the shapes."""
        if not chosen.startswith(PHOTO):
            yield *map(int, chosen.split("x")), gr.skip()
        elif sent is None:
            gr.Info(say(visitor, "no_photo_yet"))
            yield unchanged
        else:
            yield from follow(chosen, sent)

    @told
    def follow(chosen: str | None, sent: dict | None) -> Iterator[tuple[Any, ...]]:
        """Another photograph -> its shape, where that is what was asked for."""
        if sent is None or not (chosen or "").startswith(PHOTO):
            yield unchanged
            return
        default = studio.defaults.width, studio.defaults.height
        height, width = read_photo(read_upload(sent)).shape[:2]
        width, height = make_size(width / height, *default)
        value = f"{PHOTO}{width}x{height}"
        yield width, height, gr.update(choices=list_shapes(*default, value), value=value)

    shape.input(choose, [shape, photo], [*size, shape], **RAW, **QUIET)
    photo.change(follow, [shape, photo], [*size, shape], **RAW, **QUIET)
    swap.click(None, size, size, js="(width, height) => [height, width]", **QUICK)
    gr.on([part.change for part in size], None, [shape, *size], [shape, numbers], js=SHOW, **QUICK)


def make_size(ratio: float, width: int, height: int) -> tuple[int, int]:
    """`ratio`, a third to 3, is width / height of a picture with about the area width x height -> its sides,
    multiples of 16 within the allowed range."""
    root, side = sqrt(min(max(ratio, 1 / MOST), MOST)), sqrt(width * height)
    wide, high = (min(max(16 * round(s / 16), MIN_SIZE), MAX_SIZE) for s in (side * root, side / root))
    return wide, high
