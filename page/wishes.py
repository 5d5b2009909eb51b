"""What: the sentence, and the style that is written around it. `styles.json`: a style's key -> its template,
in which the words about the face keep it recognisable."""

import html
import json
from pathlib import Path

import gradio as gr

from page.events import QUICK
from page.texts import label

STYLES: dict[str, str] = json.loads(Path(__file__).with_name("styles.json").read_text(encoding="utf-8"))
PLAIN = "style_plain"


def draw_wishes(sentence: str) -> tuple[gr.Textbox, gr.Dropdown, gr.HTML]:
    """The prompt, at first `sentence`, its style, and the line that shows both together."""
    prompt = gr.Textbox(sentence, label=label("prompt"), lines=3, max_lines=8, elem_id="prompt")
    final = gr.HTML("", elem_id="final_prompt")
    choices = [(label(key), key) for key in (PLAIN, *STYLES)]
    return prompt, gr.Dropdown(choices, value=PLAIN, label=label("style"), elem_id="style"), final


def wire_wishes(prompt: gr.Textbox, style: gr.Dropdown, final: gr.HTML) -> None:
    last = QUICK | {"trigger_mode": "always_last"}  # of what is typed meanwhile
    gr.on([prompt.change, style.change], draw_final, [prompt, style], final, **last)


def take_apart(
    restored: gr.events.Dependency, prompt: gr.Textbox, style: gr.Dropdown
) -> gr.events.Dependency:
    """After an event that has filled in a picture's final prompt: its sentence and its style, each in its
    own field, so that no style is written around another. Returns the event after which they are there."""
    return restored.success(split_prompt, prompt, [prompt, style], **QUICK)


def draw_final(prompt: str | None, style: str | None) -> str:
    """What the model will read, as HTML; empty where that is just what the field holds."""
    if style not in STYLES:
        return ""
    return f"<p>{label('final_prompt')} <q>{html.escape(make_prompt(prompt, style))}</q></p>"


def make_prompt(prompt: str | None, style: str | None) -> str:
    """A sentence in a style. Without one, and where the sentence has it already, the sentence itself."""
    if style not in STYLES or split_prompt(prompt)[1] == style:
        return prompt
    return STYLES[style].replace("{prompt}", (prompt or "").strip().rstrip(".") or "Portrait")


def split_prompt(final: str) -> tuple[str, str]:
    """`make_prompt` backwards: a final prompt -> its sentence and style."""
    for style, template in STYLES.items():
        before, after = template.split("{prompt}")
        if final.startswith(before) and final.endswith(after):
            return final.removeprefix(before).removesuffix(after), style
    return final, PLAIN
