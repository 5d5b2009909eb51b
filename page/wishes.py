"""What: the sentence, and what helps to write it."""

import gradio as gr

from page.layout import PROMPT
from page.texts import label


def draw_wishes() -> gr.Textbox:
    """The prompt."""
    return gr.Textbox(PROMPT, label=label("prompt"), lines=3, max_lines=8, elem_id="prompt")
