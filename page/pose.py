"""The head's angle: where the five points of the face lie in the picture."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from page.events import QUICK, QUIET, RAW
from page.texts import label
from page.told import told
from page.uploads import make_showable, read_upload


def draw_pose() -> gr.Image:
    """A photograph whose pose is copied."""
    return gr.Image(label=label("pose_photo"), elem_id="control", height=240, buttons=[])


def wire_pose(control: gr.Image) -> None:
    uploaded = control.upload(show, control, control, **RAW, **QUIET)
    uploaded.failure(lambda: None, None, control, **QUICK)


@told
def show(photo: dict | None) -> Iterator[Any]:
    """A photograph just uploaded -> what the page shows of it."""
    source = read_upload(photo)
    yield (source and make_showable(source)) or gr.skip()
