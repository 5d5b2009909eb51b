"""The fold of a ControlNet: a picture whose edges, depth or poses are followed, and the hint that is made of
it, shown before a run."""

import base64
import html
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import cv2
import gradio as gr
import numpy as np

from infu.errors import InfuError
from infu.hints import check_hint, read_hint
from infu.models import CONTROLNETS
from infu.plugins import HINTS, ControlNet
from infu.weights.controlnet import MODES
from page.events import QUICK, QUIET, RAW
from page.person import wire_photo
from page.pictures import draw_picture, draw_strength, restore_weights, wire_strength
from page.pose import clamp
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import read_upload
from page.weights import BLACK, Weights, check_runs, draw_line, draw_weights, find_source, wire_weights

PART = "hint_picture"
READY = "ready"  # the picture is a hint already
KINDS = {"canny": "hint_canny", "depth": "hint_depth", "pose": "hint_pose", READY: "hint_ready"}
USUAL = 0.7  # strength; Shakker's card says .7 to .9


class HintFold(NamedTuple):
    fold: gr.Accordion
    picture: gr.Image
    kind: gr.Radio
    mode: gr.Dropdown  # of a finished hint, for a union
    made: gr.HTML
    scale: gr.Slider
    weights: Weights


def draw_hint(studio: Studio) -> HintFold:
    with gr.Accordion(label(PART), open=False, elem_id=PART) as fold, gr.Row():
        with gr.Column(scale=2, min_width=260):
            picture = draw_picture(PART, "hint_given")
            made = gr.HTML("", elem_id="hint_made")
        with gr.Column(scale=3, min_width=260):
            choices = [(label(text), kind) for kind, text in KINDS.items()]
            kind = gr.Radio(choices, value=HINTS[0], label=label("hint_kind"), elem_id="hint_kind")
            mode = gr.Dropdown(
                [*MODES], value=HINTS[0], label=label("hint_mode"), visible=False, elem_id="hint_mode"
            )
            scale = draw_strength(PART, USUAL)
            weights = draw_weights(studio, PART, CONTROLNETS)
    return HintFold(fold, picture, kind, mode, made, scale, weights)


def wire_hint(
    studio: Studio, fold: HintFold, settings: dict[str, gr.components.Component]
) -> Callable[[gr.events.Dependency], None]:
    """The hint follows the picture, what is wanted of it, and the width and height. Returns what has the
    verdict given once more after another event."""
    sides = [settings["width"], settings["height"]]

    @told
    def show(sent: dict | None, kind: str, width: Any, height: Any, visitor: gr.Request) -> Iterator[Any]:
        shown = gr.update(visible=kind == READY)
        yield shown, draw_line(say(visitor, "hint_making")) if sent else ""
        try:
            check_hint(kind)
            yield (
                shown,
                draw_made(read_upload(sent), kind, (clamp(width), clamp(height)), visitor) if sent else "",
            )
        except InfuError as error:
            yield shown, draw_line(html.escape(str(error), quote=False))

    wire_photo(fold.picture)
    wire_strength(fold.picture, fold.scale, USUAL)
    changed = [fold.picture.upload, fold.picture.clear, fold.kind.change, *(side.change for side in sides)]
    options = RAW | QUIET | {"trigger_mode": "always_last", "concurrency_limit": 2}
    gr.on(changed, show, [fold.picture, fold.kind, *sides], [fold.mode, fold.made], **options)
    # A ControlNet for one kind of hint says by its name which: `input` is the visitor's choice alone.
    fold.weights.which.input(choose_kind, fold.weights.which, fold.kind, **RAW, **QUICK)
    make = partial(ControlNet, image=BLACK, mode=HINTS[0])
    return wire_weights(studio, fold.fold, fold.weights, CONTROLNETS, make)


def choose_kind(name: str) -> Any:
    last = name.rpartition("-")[2]
    return last if last in HINTS else READY if last == "hed" else gr.skip()


def draw_made(photo: str | bytes, kind: str, size: tuple[int, int], visitor: gr.Request) -> str:
    """The hint as a run will make it, as HTML. Raises `InfuError`."""
    hint = read_hint(photo, None if kind == READY else kind, size, size)
    shown = html.escape(say(visitor, "hint_shown"))
    return f"<figure><img src='{as_address(hint)}' alt='{shown}'><figcaption>{shown}</figcaption></figure>"


def as_address(picture: np.ndarray) -> str:
    """uint8 RGB (H, W, 3) -> a data: URL."""
    _, png = cv2.imencode(".png", picture[:, :, ::-1])
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def list_hint(fold: HintFold) -> dict[str, gr.components.Component]:
    """What a run reads, by the names in `ask_hint`."""
    which, own, _ = fold.weights
    return {
        "hint_image": fold.picture,
        "hint_kind": fold.kind,
        "hint_mode": fold.mode,
        "hint_scale": fold.scale,
        "hint_weights": which,
        "hint_own": own,
    }


def ask_hint(studio: Studio, asked: dict[str, Any]) -> tuple[ControlNet, ...]:
    """The values of the page's controls, by name -> the ControlNet of a run. What cannot run is told here,
    before it begins. Raises `InfuError`."""
    image = read_upload(asked["hint_image"])
    if image is None or not asked["hint_scale"]:
        return ()
    source = find_source(studio, asked["hint_weights"], asked["hint_own"], CONTROLNETS)
    kind = asked["hint_kind"]
    which = {"mode": asked["hint_mode"]} if kind == READY else {"hint": kind}
    controlnet = ControlNet(source, image, asked["hint_scale"], **which)
    check_runs(studio, controlnet)
    return (controlnet,)


def restore_hint(used: dict[str, Any] | None, visitor: gr.Request) -> tuple[Any, ...]:
    """A ControlNet's settings -> strength, weights, kind of hint and its mode."""
    values = restore_weights(used, "controlnet", CONTROLNETS, visitor)
    if used is None:
        return *values, gr.skip(), gr.skip()
    kind, mode = used.get("hint"), used.get("mode")
    return *values, kind if kind in HINTS else READY, mode if mode in [*MODES] else gr.skip()
