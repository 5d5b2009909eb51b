"""The fold of a second person: whose face, and where in the picture; the first one has the rest of it.

The widget's value is the `box` of a drawn region, (left, top, right, bottom) as shares of the picture,
whether it is `given` by a picture's settings, and what is shown as `html`; `another.js` moves the corners.
"""

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from infu.errors import InfuError
from infu.plugins import Person
from infu.regions import REGIONS, check_box, read_mask
from page.events import QUICK, QUIET, RAW
from page.person import CHOOSE, LOOKING, NOTHING, look_at
from page.pictures import draw_picture, draw_strength, restore_scale, wire_strength
from page.pose import clamp
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import read_upload
from page.weights import BLACK, check_runs, draw_line, draw_verdict

PART = "another_person"
DRAWN = "drawn"
PLACES = {
    "right": "place_right",
    "left": "place_left",
    "right_third": "place_right_third",
    "middle_third": "place_middle_third",
    "left_third": "place_left_third",
    DRAWN: "place_drawn",
}
BOX = [0.5, 0.1, 0.95, 0.95]
CORNERS = ("corner_first", "corner_second")
HERE = Path(__file__).parent
SCRIPT = "".join((HERE / name).read_text(encoding="utf-8") for name in ("drag.js", "another.js"))


class AnotherFold(NamedTuple):
    fold: gr.Accordion
    picture: gr.Image
    faces: gr.HTML  # as person.Person's
    place: gr.Radio
    frame: gr.HTML
    scale: gr.Slider
    verdict: gr.HTML


def draw_another(studio: Studio) -> AnotherFold:
    with gr.Accordion(label(PART), open=False, elem_id=PART) as fold, gr.Row():
        with gr.Column(scale=2, min_width=260):
            picture = draw_picture(PART, "another_given")
            faces = gr.HTML(
                NOTHING, html_template="${value.html}", js_on_load=CHOOSE, elem_id="another_faces"
            )
            verdict = draw_verdict(PART)
        with gr.Column(scale=3, min_width=260):
            choices = [(label(text), place) for place, text in PLACES.items()]
            place = gr.Radio(choices, value="right", label=label("place"), elem_id="place")
            frame = gr.HTML(
                {"box": BOX, "html": ""},
                html_template="${value.html}",
                js_on_load=SCRIPT,
                elem_id="place_frame",
            )
            scale = draw_strength(PART, 1.0)
    return AnotherFold(fold, picture, faces, place, frame, scale, verdict)


def wire_another(
    studio: Studio, another: AnotherFold, settings: dict[str, gr.components.Component]
) -> Callable[[gr.events.Dependency], None]:
    """Returns what has the verdict given once more after another event."""
    fold, picture, faces, place, frame, scale, verdict = another
    sides = [settings["width"], settings["height"]]

    @told
    def look(sent: dict | None, visitor: gr.Request) -> Iterator[tuple[Any, Any]]:
        yield from look_at(studio, sent, visitor, "another_face")

    @told
    def judge() -> Iterator[str]:
        try:
            check_runs(studio, Person("right", BLACK))
            yield ""
        except InfuError as error:
            yield draw_line(html.escape(str(error), quote=False))

    @told
    def show(value: dict | None, chosen: str, width: Any, height: Any, visitor: gr.Request) -> Iterator[Any]:
        box = (value or {"box": BOX})["box"]
        yield {"box": box, "html": draw_frame(chosen, box, (clamp(width), clamp(height)), visitor)}

    looked = picture.upload(look, picture, [picture, faces], **LOOKING)
    looked.failure(lambda: (None, NOTHING), None, [picture, faces], **QUICK)
    picture.clear(lambda: NOTHING, None, faces, **QUICK)
    wire_strength(picture, scale, 1.0)
    changed = [fold.expand, place.change, *(side.change for side in sides)]
    gr.on(changed, show, [frame, place, *sides], frame, trigger_mode="always_last", **RAW, **QUICK)
    options = {"fn": judge, "inputs": None, "outputs": verdict, "concurrency_limit": None}
    fold.expand(**options, **RAW, **QUIET)
    return lambda event: event.then(**options, **RAW, **QUIET)


def draw_frame(place: str, box: list[float], size: tuple[int, int], visitor: gr.Request) -> str:
    """The picture's frame as SVG, in it where the second person may be; a drawn region with its corners."""
    width, height = size
    drawn = place == DRAWN
    left, top, right, bottom = box if drawn else box_of(place)
    x, y, unit = left * width, top * height, (width + height) / 100
    shapes = (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{(right - left) * width:.1f}' "
        f"height='{(bottom - top) * height:.1f}'/>"
    )
    if drawn:
        points = zip(CORNERS, ((x, y), (right * width, bottom * height)), strict=True)
        shapes += "".join(
            f"<circle cx='{cx:.1f}' cy='{cy:.1f}' r='{2 * unit:.1f}' data-point='{i}' tabindex='0' "
            f"role='button' aria-describedby='place_hint' aria-label='{html.escape(say(visitor, name))}'/>"
            for i, (name, (cx, cy)) in enumerate(points)
        )
    role, name = "group" if drawn else "img", html.escape(say(visitor, "place_frame"))
    hint = say(visitor, "place_hint" if drawn else "place_rest")
    return (
        f"<svg viewBox='0 0 {width} {height}' role='{role}' aria-label='{name}'>{shapes}</svg>"
        f"<p id='place_hint'>{hint}</p>"
    )


def box_of(place: str) -> tuple[float, float, float, float]:
    start, end = REGIONS[place]
    return start, 0.0, end, 1.0


def list_another(fold: AnotherFold) -> dict[str, gr.components.Component]:
    """What a run reads, by the names in `ask_another`."""
    return {
        "another_image": fold.picture,
        "another_faces": fold.faces,
        "another_place": fold.place,
        "another_frame": fold.frame,
        "another_scale": fold.scale,
    }


def ask_another(studio: Studio, asked: dict[str, Any]) -> tuple[Person, ...]:
    """The values of the page's controls, by name -> the second person of a run. Raises `InfuError`."""
    image = read_upload(asked["another_image"])
    if image is None or not asked["another_scale"]:
        return ()
    place = asked["another_place"]
    mask = asked["another_frame"]["box"] if place == DRAWN else place
    faces = [(asked["another_faces"] or NOTHING)["chosen"]]
    person = Person(mask, image, id_faces=faces, scale=asked["another_scale"])
    check_runs(studio, person)
    return (person,)


def give_rest(people: tuple[Person, ...], asked: dict[str, Any]) -> dict[str, Any]:
    """Where the first person is beside these: what a request takes of it. Raises `InvalidRequest`."""
    if not people:
        return {}
    mask = read_mask(people[0].mask, clamp(asked["width"]), clamp(asked["height"]))
    return {"id_mask": 1 - mask}


def restore_another(
    used: dict[str, Any] | None, settings: dict[str, Any], visitor: gr.Request
) -> tuple[Any, ...]:
    """A person's settings, and the picture's -> strength, place and frame. Raises `InvalidRequest`."""
    scale = restore_scale(used)
    if used is None:
        return scale, gr.skip(), gr.skip()
    region = used.get("region")
    if isinstance(region, list):
        box, size = [*check_box(region)], (clamp(settings.get("width")), clamp(settings.get("height")))
        return scale, DRAWN, {"box": box, "given": True, "html": draw_frame(DRAWN, box, size, visitor)}
    return scale, region if region in PLACES else gr.skip(), gr.skip()
