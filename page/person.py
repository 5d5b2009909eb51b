"""Who: the photograph of the person, and what is seen in it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from page.events import QUICK, QUIET, RAW
from page.texts import label
from page.told import told
from page.uploads import make_showable, read_upload


def draw_person() -> gr.Image:
    """The photograph."""
    return gr.Image(label=label("photo"), elem_id="photo", height=420, buttons=[], alt_text="Your photograph")


def wire_photo(photo: gr.Image) -> None:
    """A photograph's drop zone: what is no photograph is told, and taken out again, at once."""
    uploaded = photo.upload(show, photo, photo, **RAW, **QUIET)
    uploaded.failure(lambda: None, None, photo, **QUICK)


@told
def show(photo: dict | None) -> Iterator[Any]:
    """A photograph just uploaded -> what the page shows of it."""
    source = read_upload(photo)
    yield (source and make_showable(source)) or gr.skip()
