"""The folds of the plug-ins that look at one picture: for its style, an object in it, or its face (PuLID)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gradio as gr

from infu.checks import check_number
from infu.models import IP_ADAPTERS, NAMED_LORAS, PULID, Published
from infu.plugins import IPAdapter, OminiControl, Plugin, PuLID
from page.events import QUICK, RAW
from page.person import wire_photo
from page.studio import Studio
from page.texts import label, say
from page.uploads import read_upload
from page.weights import (
    BLACK,
    Weights,
    check_runs,
    draw_weights,
    find_source,
    list_choices,
    wire_weights,
)

MOST = 2.0  # strength
SUBJECTS = {name: own for name, own in NAMED_LORAS.items() if own.files[0].startswith("omini/")}


class Kind(NamedTuple):
    """A fold's plug-in. `given`: the text that says which picture is wanted; `key`: what settings call its
    file; `make`: weights, picture and strength -> it; `scale`: the usual strength."""

    given: str
    key: str
    known: Mapping[str, Published]
    make: Callable[[str, Any, float], Plugin]
    scale: float


class Fold(NamedTuple):
    fold: gr.Accordion
    picture: gr.Image
    scale: gr.Slider
    weights: Weights


KINDS = {  # by the fold's name, which its elements and texts begin with
    "style_picture": Kind("style_given", "ip_adapter", IP_ADAPTERS, IPAdapter, 0.7),
    "object_picture": Kind("object_given", "ominicontrol", SUBJECTS, OminiControl, 1.0),
    "pulid_picture": Kind("pulid_given", "pulid", PULID, PuLID, 1.0),
}


def draw_fold(studio: Studio, part: str) -> Fold:
    kind = KINDS[part]
    with gr.Accordion(label(part), open=False, elem_id=part) as fold, gr.Row():
        with gr.Column(scale=2, min_width=260):
            picture = draw_picture(part, kind.given)
        with gr.Column(scale=3, min_width=260):
            scale = draw_strength(part, kind.scale)
            weights = draw_weights(studio, part, kind.known)
    return Fold(fold, picture, scale, weights)


def draw_picture(part: str, given: str) -> gr.Image:
    return gr.Image(label=label(given), height=240, buttons=[], elem_id=f"{part}_image")


def draw_strength(part: str, scale: float) -> gr.Slider:
    return gr.Slider(
        0.0,
        MOST,
        scale,
        step=0.05,
        label=label("strength"),
        info=label("strength_none"),
        elem_id=f"{part}_scale",
    )


def wire_fold(studio: Studio, part: str, fold: Fold) -> Callable[[gr.events.Dependency], None]:
    """Returns what has the verdict given once more after another event."""
    wire_photo(fold.picture)
    wire_strength(fold.picture, fold.scale, KINDS[part].scale)
    make = KINDS[part].make
    return wire_weights(
        studio, fold.fold, fold.weights, KINDS[part].known, lambda source: make(source, BLACK, 1.0)
    )


def wire_strength(picture: gr.Image, scale: gr.Slider, usual: float) -> None:
    """A new picture is to count: a strength of 0, which settings without one leave, is the usual again."""
    picture.upload(lambda value: gr.skip() if value else usual, scale, scale, **RAW, **QUICK)


def list_controls(part: str, fold: Fold) -> dict[str, gr.components.Component]:
    which, own, _ = fold.weights
    values = {"image": fold.picture, "scale": fold.scale, "weights": which, "own": own}
    return {f"{part}_{name}": component for name, component in values.items()}


def ask_pictures(studio: Studio, asked: dict[str, Any]) -> tuple[Plugin, ...]:
    """The values of the page's controls, by name -> the plug-ins of a run. What cannot run is told here,
    before it begins. Raises `InfuError`."""
    made = []
    for part, kind in KINDS.items():
        image = read_upload(asked[f"{part}_image"])
        if image is not None and asked[f"{part}_scale"]:
            source = find_source(studio, asked[f"{part}_weights"], asked[f"{part}_own"], kind.known)
            made.append(kind.make(source, image, asked[f"{part}_scale"]))
            check_runs(studio, made[-1])
    return tuple(made)


def restore_picture(used: dict[str, Any] | None, kind: Kind, visitor: gr.Request) -> tuple[Any, Any]:
    return restore_weights(used, kind.key, kind.known, visitor)


def restore_weights(
    used: dict[str, Any] | None, key: str, known: Mapping[str, Published], visitor: gr.Request
) -> tuple[float, Any]:
    """A plug-in's settings, None where it was not used -> strength and, where they have a name, weights.
    Those of another model are shown too: whether they run is judged in the fold."""
    name = used[key] if used else None
    if not isinstance(name, str) or name not in known:
        return restore_scale(used), gr.skip()
    choices = list_choices(known, known, say(visitor, "weights_own"))
    return restore_scale(used), gr.update(choices=choices, value=name)


def restore_scale(used: dict[str, Any] | None) -> float:
    """A file is not to be trusted: raises `InvalidRequest`, as for any request."""
    return 0.0 if used is None else check_number("scale", read_strength(used), 0.0, MOST)


def read_strength(used: dict[str, Any]) -> Any:
    """PuLID's has a name of its own."""
    return used.get("scale", used.get("id_weight"))
