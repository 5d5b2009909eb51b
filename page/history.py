"""The pictures made in this browser: the strip under the picture, and what can be done with one of them.

`history.js` keeps them, in the browser alone; the server forgets a picture within an hour.
"""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from infu.pipeline import Result
from page.events import QUICK, QUIET, RAW
from page.plugins import describe_plugin
from page.settings import give_back, restored
from page.texts import label, say
from page.told import told
from page.uploads import save_picture_file

HERE = Path(__file__).parent
SCRIPT = "".join((HERE / name).read_text(encoding="utf-8") for name in ("zip.js", "history.js"))
STRIP = """<div class="past">
  <figure class="pair" hidden>
    <img alt=""><img alt=""><i></i><input type="range" step="any" aria-labelledby="compare">
    <figcaption></figcaption>
  </figure>
  <div role="listbox" aria-labelledby="past_title" aria-orientation="horizontal"></div>
  <dl></dl>
</div>"""

FACTS = {  # what is told of a picture: a text, and the settings that it shows
    "fact_prompt": "{prompt}",
    "seed_used": "{seed}",
    "fact_size": "{width} × {height}",
    "num_steps": "{num_steps}",
    "partial": "{partial}",
    "guidance_scale": "{guidance_scale:g}",
    "fact_infusenet": "{infusenet_conditioning_scale:g}, {infusenet_guidance_start:g} – "
    "{infusenet_guidance_end:g}",
    "model_version": "{model_version}",
    "pose": "{pose}",
}
OPTIONAL = ("partial", "model_version", "pose")


class History(NamedTuple):
    strip: gr.HTML  # its value: the pictures of the run, as `make_entry` makes them
    seed: gr.Textbox
    download: gr.Button
    again: gr.Button
    use: gr.Button
    compare: gr.Button
    download_all: gr.Button
    clear: gr.Button


def draw_history() -> History:
    """Strip, seed and buttons, shown as soon as there is a picture; the seed and its file always."""
    with gr.Row(equal_height=True):
        seed = gr.Textbox(label=label("seed_used"), interactive=False, buttons=["copy"], elem_id="seed_used")
        download = gr.Button(label("download"), interactive=False, elem_id="download")
    with gr.Column(elem_id="past"):
        with gr.Row():
            again, use = draw_button("again"), draw_button("use")
        gr.HTML(f"<p id='past_title'>{label('history')}</p>")
        gr.HTML(str(label("clear_question")), elem_id="clear_question")
        strip = gr.HTML(html_template=STRIP, js_on_load=SCRIPT, elem_id="history")
        with gr.Row():
            buttons = [draw_button(name) for name in ("compare", "download_all", "clear_history")]
    return History(strip, seed, download, again, use, *buttons)


def draw_button(name: str) -> gr.Button:
    return gr.Button(label(name), size="sm", min_width=120, elem_id=name)


def draw_bare() -> gr.Checkbox:
    """The switch that leaves the settings out of a picture's file, and of the history."""
    return gr.Checkbox(False, label=label("bare"), elem_id="bare")


def wire_history(
    history: History, picture: gr.Image, controls: list[gr.components.Component]
) -> tuple[gr.events.Dependency, gr.events.Dependency]:
    """`controls`: those that `settings.give_back` fills. Returns the events after
    which they are back: to be used, and to be used with another seed."""
    shown = [picture, history.seed, history.download, history.again, history.use, history.compare]
    history.strip.select(None, None, shown, js="() => window.pictures.shown()", **QUICK)
    for button, call in {
        history.download: "download()",
        history.download_all: "downloadAll()",
        history.compare: "compare()",
        history.clear: "clear(document.querySelector('#clear_question').textContent)",
    }.items():
        button.click(None, js=f"() => {{ window.pictures.{call}; }}", **QUICK)
    js = "() => window.pictures.settings()"
    used, again = (
        button.click(handler, history.strip, controls, js=js, **RAW, **QUIET)
        for button, handler in ((history.use, use), (history.again, vary))
    )
    return used, again


@told
def use(settings: dict[str, Any], visitor: gr.Request) -> Iterator[tuple[Any, ...]]:
    """The settings of a picture, from the browser -> the controls."""
    yield give_back(settings, visitor)
    gr.Info(html.escape(restored(settings, visitor)))


@told
def vary(settings: dict[str, Any], visitor: gr.Request) -> Iterator[tuple[Any, ...]]:
    """The same, with a random seed."""
    yield give_back(settings | {"seed": 0}, visitor)


def make_entry(result: Result, bare: bool, visitor: gr.Request) -> dict[str, Any]:
    """A picture just made -> what the strip shows and keeps of it. `bare`: nothing but its pixels."""
    file = save_picture_file(result, settings=not bare)
    title = say(visitor, "picture") if bare else f"{say(visitor, 'seed_used')} {result.seed}"
    entry = {"id": Path(file["path"]).parent.name, "file": file, "title": title}
    if bare:
        return entry
    return entry | {
        "seed": result.seed,
        "settings": result.metadata,
        "facts": list_facts(result.metadata, visitor),
    }


def list_facts(metadata: dict[str, Any], visitor: gr.Request | str) -> list[tuple[str, str]]:
    """Name and value, in the visitor's language, of what a picture was made with."""
    known = {name: value for name, value in metadata.items() if value is not None}
    facts = [
        (say(visitor, key), form.format(**known))
        for key, form in FACTS.items()
        if key in known or key not in OPTIONAL
    ]
    return facts + [describe_plugin(plugin, visitor) for plugin in metadata["plugins"]]
