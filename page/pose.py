"""The head's angle: where the five points of the face lie in the picture."""

import gradio as gr

from page.person import wire_photo
from page.texts import label


def draw_pose() -> gr.Image:
    """A photograph whose pose is copied."""
    return gr.Image(label=label("pose_photo"), elem_id="control", height=240, buttons=[])


def wire_pose(control: gr.Image) -> None:
    wire_photo(control)
