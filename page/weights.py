"""Which weights a plug-in has: some known by name or a visitor's own, and whether they can run here.

Whether they can is said in the plug-in's fold as soon as it is opened, and once more asked before a run.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio.i18n import I18nData

from infu.errors import InfuError, MissingFile, UnknownName
from infu.fitting import check_plugin
from infu.models import Published
from infu.plugins import Plugin
from page.events import QUICK, QUIET, RAW
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import read_file

OWN = "own"
BLACK = np.zeros((64, 64, 3), np.uint8)  # stands for a picture that is not given yet


class Weights(NamedTuple):
    which: gr.Dropdown  # a name of the known ones, or OWN
    own: gr.Textbox | gr.File  # its path; of strangers an upload
    verdict: gr.HTML


def draw_weights(studio: Studio, part: str, known: Mapping[str, Published]) -> Weights:
    names = list_offered(studio, known)
    which = gr.Dropdown(
        list_choices(names, known, label("weights_own")),
        value=names[0],
        label=label("weights"),
        min_width=220,
        elem_id=f"{part}_weights",
    )
    options = {"label": label("weights_path"), "visible": False, "elem_id": f"{part}_own"}
    own = gr.File(height=110, **options) if studio.public else gr.Textbox(max_lines=1, **options)
    return Weights(which, own, draw_verdict(part))


def list_offered(studio: Studio, known: Mapping[str, Published]) -> list[str]:
    """What of the known ones is for the loaded model: for the mini those that ship, where there are such."""
    fitting = [name for name, published in known.items() if bool(published.ships) == studio.is_mini]
    return fitting or list(known)


def list_choices(
    names: Iterable[str], known: Mapping[str, Published], own: str | I18nData
) -> list[tuple[str | I18nData, str]]:
    """Titles and values of a dropdown; `own`: what it calls the visitor's own file."""
    return [*((f"{name}: {known[name].repo}", name) for name in names), (own, OWN)]


def draw_verdict(part: str) -> gr.HTML:
    return gr.HTML("", elem_id=f"{part}_verdict", elem_classes="verdict")


def wire_weights(
    studio: Studio,
    fold: gr.Accordion,
    weights: Weights,
    known: Mapping[str, Published],
    make: Callable[[str], Plugin],
) -> Callable[[gr.events.Dependency], None]:
    """`make`: a plug-in of these weights, whatever its picture. Returns what has the verdict given once more
    after another event."""
    which, own, verdict = weights

    @told
    def judge(name: str, given: Any, visitor: gr.Request) -> Iterator[tuple[Any, str]]:
        shown = gr.update(visible=name == OWN)
        yield shown, draw_line(say(visitor, "weights_looking"))
        if name == OWN and not given:
            yield shown, ""
            return
        try:
            check_runs(studio, make(find_source(studio, name, given, known)))
            said = say(visitor, "weights_here")
            if name in known:
                said += f" {say(visitor, 'weights_licence', licence=html.escape(known[name].licence))}"
        except InfuError as error:
            said = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(str(error), quote=False))
        yield shown, draw_line(said)

    def offer(chosen: str, visitor: gr.Request) -> Any:
        """The choices for the model that is loaded now: it may be another than when the page was drawn."""
        names = list_offered(studio, known)
        value = chosen if chosen in (*names, OWN) else names[0]
        return gr.update(choices=list_choices(names, known, say(visitor, "weights_own")), value=value)

    options = {"trigger_mode": "always_last", "concurrency_limit": None} | RAW | QUIET
    named = [own.upload, own.clear] if studio.public else [own.submit, own.blur]
    asked = {"fn": judge, "inputs": [which, own], "outputs": [own, verdict]} | options
    offered = {"fn": offer, "inputs": which, "outputs": which} | RAW | QUICK
    gr.on([which.change, *named], **asked)
    fold.expand(**offered).then(**asked)
    return lambda event: event.then(**offered).then(**asked)


def find_source(studio: Studio, name: Any, given: Any, known: Iterable[str]) -> str:
    """The values of the two fields -> what a plug-in takes as its `path`. Raises `InfuError`."""
    if name != OWN:
        if name not in known:
            raise UnknownName("choice of weights", name, (*known, OWN))
        return name
    path = read_file(given, "plug-in's file") if studio.public else str(given or "").strip()
    if not path:
        raise MissingFile("Name the file of the plug-in's weights, or choose others.")
    return path


def check_runs(studio: Studio, plugin: Plugin) -> None:
    """Raise `InfuError` for a plug-in whose weights are not here, do not fit the loaded model, or have no
    room beside it."""
    check_plugin(plugin, studio.load(), studio.defaults)


def draw_line(text: str) -> str:
    return f"<p role='status'>{text}</p>"
