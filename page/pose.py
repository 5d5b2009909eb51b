"""The head's angle: a picker of presets, the pose of a photograph, and an editor of the five points.

The widget's value is `choice` (a name of POSES, or one of the three below), the `points` in the pixels of a
picture of `size`, the `base` that Reset goes back to, and what it shows as `html`; `pose.js` moves points.
"""

import html
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from infu.errors import PhotoError
from infu.images import read_photo
from infu.keypoints import COLOURS, DIMMED, LIMBS, NOSE, fit_control_photo
from infu.pose import POSES, measure, move_points, place_pose
from infu.request import MAX_SIZE, MIN_SIZE, GenerationRequest
from page.events import QUICK, QUIET, RAW
from page.person import show_photo
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import read_upload

FREE, PHOTO, OWN = "free", "photo", "own"
POINTS = ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")
THUMBNAIL = 60, 80
HERE = Path(__file__).parent
SCRIPT = "".join((HERE / name).read_text(encoding="utf-8") for name in ("drag.js", "pose.js"))
NOTHING = {"choice": FREE, "points": None, "size": None, "base": FREE, "html": ""}


class Posing(NamedTuple):
    fold: gr.Accordion
    widget: gr.HTML
    control: gr.Image


def draw_pose() -> Posing:
    with gr.Accordion(label("pose"), open=False, elem_id="pose") as fold, gr.Row():
        with gr.Column(scale=3, min_width=300):
            widget = gr.HTML(NOTHING, html_template="${value.html}", js_on_load=SCRIPT, elem_id="poses")
        with gr.Column(scale=2, min_width=260):
            control = gr.Image(label=label("pose_image"), elem_id="control", height=240, buttons=[])
    return Posing(fold, widget, control)


def wire_pose(
    blocks: gr.Blocks, studio: Studio, posing: Posing, settings: dict[str, gr.components.Component]
) -> None:
    """The widget follows what is chosen in it, the photograph, and the picture's width and height."""
    fold, widget, control = posing

    @told
    def show(
        value: dict | None, sent: dict | None, width: Any, height: Any, visitor: gr.Request
    ) -> Iterator[dict]:
        yield make_value(studio, value, sent, clamp(width), clamp(height), visitor)

    asked = [widget, control, settings["width"], settings["height"]]
    events = [widget.select, fold.expand, settings["width"].change, settings["height"].change]
    gr.on([blocks.load, *events], show, asked, widget, trigger_mode="always_last", **RAW, **QUICK)
    # The choice follows the photograph in the browser, so that a run which is asked for at once has it.
    taken, lost = (
        {"fn": None, "inputs": widget, "outputs": widget, "js": f"(v) => ({{...v, choice: '{choice}'}})"}
        for choice in (PHOTO, FREE)
    )
    looked = control.upload(**taken, **RAW, **QUICK).then(show_photo, control, control, **RAW, **QUIET)
    seen = looked.success(show, asked, widget, **RAW, **QUIET)
    cleared = control.clear(**lost, **RAW, **QUICK, cancels=[looked, seen])
    failed = [
        step.failure(lambda: None, None, control, **QUICK).then(**lost, **RAW, **QUICK)
        for step in (looked, seen)
    ]
    for step in (cleared, *failed):
        step.then(show, asked, widget, **RAW, **QUICK)


def ask_pose(asked: dict[str, Any]) -> dict[str, Any]:
    """The values of the page's controls, by name -> what a request takes of them. Raises `PhotoError`."""
    value = asked["pose"] or NOTHING
    choice, size = value["choice"], (clamp(asked["width"]), clamp(asked["height"]))
    if choice in POSES:
        return {"pose": choice}
    if choice == PHOTO:
        if asked["control_image"] is None:
            raise PhotoError("Give the photograph whose pose is to be used, or choose another head angle.")
        return {"control_image": read_upload(asked["control_image"])}
    if choice == OWN and value["points"]:
        return {"control_keypoints": move_points(value["points"], value["size"], size)}
    return {}


def restore_pose(settings: dict[str, Any], visitor: gr.Request) -> Any:
    """The settings inside a picture -> the widget's value; as it is where the pose was a photograph's. A file
    is not to be trusted: raises `InvalidRequest`, as for any request."""
    if settings.get("control_photo"):
        return gr.skip()
    names = ("pose", "control_keypoints", "width", "height")
    known = {name: settings[name] for name in names if settings.get(name) is not None}
    request = GenerationRequest("", **known)
    size = request.width, request.height
    if request.pose is not None:
        return draw_value(request.pose, place_pose(request.pose, *size), size, request.pose, visitor)
    if request.control_keypoints is not None:
        return draw_value(OWN, request.control_keypoints, size, "front", visitor)
    return draw_value(FREE, None, size, FREE, visitor)


def make_value(
    studio: Studio, value: dict | None, sent: dict | None, width: int, height: int, visitor: gr.Request
) -> dict[str, Any]:
    """What is chosen, in a picture of this size -> the widget's value. Raises `PhotoError`."""
    value = value or NOTHING
    choice, base, size, points = value["choice"], value["base"], (width, height), None
    if choice in POSES:
        points = place_pose(choice, *size)
    elif choice == OWN and value["points"]:
        points = move_points(value["points"], value["size"], size)
    elif choice == OWN:
        points, base = place_pose("front", *size), "front"
    elif choice == PHOTO and sent is not None:
        fitted = fit_control_photo(read_photo(read_upload(sent)), *size)
        points = studio.faces().find_one(np.asarray(fitted), "photograph of the pose").keypoints
    return draw_value(choice, points, size, base if choice == OWN else choice, visitor)


def draw_value(
    choice: str, points: np.ndarray | None, size: tuple[int, int], base: str, visitor: gr.Request
) -> dict[str, Any]:
    tiles = "".join(draw_tile(name, name == choice, visitor) for name in (FREE, *POSES, PHOTO, OWN))
    shown = f"<fieldset><legend>{say(visitor, 'pose_choose')}</legend>{tiles}</fieldset>"
    if points is not None:
        shown += (
            f"{draw_frame(points, *size, visitor)}<p id='pose_hint'>{say(visitor, 'pose_hint')}</p>"
            f"<button type='button'>{say(visitor, 'pose_reset')}</button>"
        )
    elif choice == PHOTO:
        shown += f"<p role='status'>{say(visitor, 'pose_give')}</p>"
    flat = None if points is None else np.asarray(points, float).round(1).tolist()
    return {"choice": choice, "points": flat, "size": list(size), "base": base, "html": shown}


def draw_tile(name: str, checked: bool, visitor: gr.Request) -> str:
    return (
        f"<label><input type='radio' name='pose' value='{name}'{' checked' if checked else ''}>"
        f"<span>{draw_thumbnail(name) if name in POSES else ''}"
        f"{html.escape(say(visitor, f'pose_{name}'))}</span></label>"
    )


@lru_cache(maxsize=len(POSES))
def draw_thumbnail(name: str) -> str:
    """A preset's points as SVG, in the outline of a head."""
    width, height = THUMBNAIL
    eyes = POSES[name].size * width
    head = f"cx='{width / 2}' cy='{height * POSES[name].middle - 0.4 * eyes:.1f}'"
    outline = f"<ellipse {head} rx='{1.4 * eyes:.1f}' ry='{1.9 * eyes:.1f}' fill='#444'/>"
    shapes = draw_shapes(place_pose(name, width, height), 0.6 + 0.13 * eyes)
    return f"<svg viewBox='4 0 {width - 8} {height - 12}' aria-hidden='true'>{outline}{shapes}</svg>"


def draw_frame(points: np.ndarray, width: int, height: int, visitor: gr.Request) -> str:
    """The picture's frame as SVG, in it the points, which `pose.js` moves."""
    names = [html.escape(say(visitor, name), quote=True) for name in POINTS]
    movable = [
        f"tabindex='0' role='button' aria-label='{name}' aria-describedby='pose_hint'" for name in names
    ]
    shapes = draw_shapes(points, 0.03 * measure(width, height), movable)
    name = html.escape(say(visitor, "pose_frame"), quote=True)
    return f"<svg viewBox='0 0 {width} {height}' role='group' aria-label='{name}'>{shapes}</svg>"


def draw_shapes(points: np.ndarray, radius: float, attributes: Sequence[str] = ("",) * len(POINTS)) -> str:
    """What `keypoints.draw_keypoints` draws, as SVG and thicker: `attributes` are those of each point."""
    nose = points[NOSE]
    lines = "".join(
        f"<line data-point='{i}' x1='{points[i][0]:.1f}' y1='{points[i][1]:.1f}' x2='{nose[0]:.1f}' "
        f"y2='{nose[1]:.1f}' stroke='{draw_colour(i, DIMMED)}' stroke-width='{0.7 * radius:.1f}'/>"
        for i in LIMBS
    )
    dots = "".join(
        f"<circle data-point='{i}' cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}' "
        f"fill='{draw_colour(i)}' {more}/>"
        for i, ((x, y), more) in enumerate(zip(points, attributes, strict=True))
    )
    return lines + dots


def draw_colour(i: int, brightness: float = 1.0) -> str:
    return "rgb({:.0f},{:.0f},{:.0f})".format(*(brightness * channel for channel in COLOURS[i]))


def clamp(side: Any) -> int:
    """A width or height from a field that may be empty, or not yet in its range."""
    return int(min(max(side or MIN_SIZE, MIN_SIZE), MAX_SIZE))
