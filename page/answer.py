"""The run and what it makes: Generate, Stop, progress, and the pictures one by one."""

import html
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from infu.errors import PhotoError
from infu.pipeline import Step
from page.events import ON_DEVICE, QUICK, QUIET, RAW
from page.history import History, draw_history, make_entry
from page.loras import ask_loras
from page.person import ask_person
from page.plugins import ask_plugins
from page.pose import ask_pose
from page.progress import Pace, draw_progress
from page.settings import SETTINGS
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import with_previews
from page.wishes import make_prompt

Asked = dict[str, Any]  # the values of the page's controls, by name
MAX_PICTURES = 16  # of one click
GENERATE = "() => document.querySelector('#generate').click()"


class Buttons(NamedTuple):
    generate: gr.Button
    stop: gr.Button
    keep: gr.Button


class Answer(NamedTuple):
    progress: gr.HTML
    picture: gr.Image
    history: History


def draw_buttons() -> tuple[gr.Number, Buttons]:
    """The number of pictures and Generate; below, while there is something to stop, the two ways to do so."""
    with gr.Row(elem_id="start"):
        num_images = gr.Number(
            1,
            label=label("num_images"),
            minimum=1,
            maximum=MAX_PICTURES,
            precision=0,
            scale=0,
            min_width=84,
            elem_id="num_images",
        )
        generate = gr.Button(label("generate"), variant="primary", min_width=120, elem_id="generate")
    with gr.Row(elem_id="end"):
        stop, keep = (
            gr.Button(label(name), interactive=False, min_width=120, elem_id=name)
            for name in ("stop", "keep")
        )
    return num_images, Buttons(generate, stop, keep)


def draw_answer() -> Answer:
    progress = gr.HTML(draw_progress(str(label("ready"))), elem_id="progress")
    picture = gr.Image(
        label=label("picture"),
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        alt_text="The picture that was made",
        elem_id="picture",
    )
    return Answer(progress, picture, draw_history())


def wire_answer(
    studio: Studio,
    controls: dict[str, gr.components.Component],
    buttons: Buttons,
    answer: Answer,
) -> gr.events.Dependency:
    """`controls`: what a run reads, by the names in `ask`. Returns the run, to chain on."""
    runs: dict[str, threading.Event] = {}  # sessions whose page has a run under way -> it is to end and keep

    def run(visitor: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Pictures into the page, and the buttons as between two runs when it has ended by itself.

        Each answer says the whole state: Gradio's page writes an answer into the one before it, which it may
        not have shown yet.
        """
        enough = runs[visitor.session_hash] = threading.Event()
        asked = dict(zip(controls, values, strict=True))
        try:
            for outputs in make_pictures(studio, asked, enough.is_set, visitor):
                yield *outputs, gr.skip(), gr.skip(), gr.update(interactive=True)
            yield *outputs, *ready()
        except gr.Error as error:
            yield draw_progress(html.unescape(error.message)), gr.skip(), gr.skip(), *ready()
            raise
        finally:
            del runs[visitor.session_hash]

    def stopped(visitor: gr.Request) -> tuple[Any, ...]:
        """After Stop, when the run has really ended: until then its last step may still be shown."""
        while visitor.session_hash in runs:
            time.sleep(0.05)
        return draw_progress(str(label("stopped"))), *ready()

    def keep(visitor: gr.Request) -> tuple[Any, ...]:
        """The run ends by itself after this step, unless it just has."""
        enough = runs.get(visitor.session_hash)
        if enough is None:
            return gr.skip(), gr.skip(), gr.skip()
        enough.set()
        return stopping()

    clicked = gr.on(
        [buttons.generate.click, controls["prompt"].submit], busy, None, [answer.progress, *buttons], **QUICK
    )
    queued = QUIET | {"show_progress": "minimal", "show_progress_on": answer.progress}  # place in the queue
    shown = [answer.progress, answer.picture, answer.history.strip, *buttons]
    running = clicked.then(run, list(controls.values()), shown, **RAW, **ON_DEVICE, **queued)
    ending = [answer.progress, buttons.stop, buttons.keep]
    buttons.keep.click(keep, None, ending, **QUICK)
    buttons.stop.click(stopping, None, ending, cancels=running, **QUICK)
    ended = buttons.stop.click(stopped, None, [answer.progress, *buttons], concurrency_limit=None, **QUIET)
    ended.then(None, js="() => { window.pictures.back(); }", **QUICK)
    return running


@told
def make_pictures(
    studio: Studio, asked: Asked, enough: Callable[[], bool], visitor: gr.Request
) -> Iterator[tuple[Any, ...]]:
    """What the page asks for -> values for progress, picture and strip, step by step. `enough`: see
    `stream`."""
    if asked["input_image"] is None:
        raise PhotoError("Give a photograph of a face.")
    pace = Pace()
    if studio.backend is None:
        yield draw_progress(str(label("loading"))), gr.skip(), gr.skip()
        studio.load()
    switched = studio.backend.model_version not in (None, asked["model_version"])
    doing = label("switching") if switched else label("reading")
    yield draw_progress(str(doing)), gr.skip(), gr.skip()
    made: list[dict[str, Any]] = []
    strip = gr.skip()  # the pictures of runs before stay
    for event, preview in with_previews(ask(studio, asked, enough)):
        if isinstance(event, Step):
            text = pace.describe(event, asked["num_images"], visitor)
            picture = gr.update(value=preview) if preview else gr.skip()
            yield draw_progress(text, event.step / event.num_steps), picture, strip
        else:
            made.append(make_entry(event, asked["bare"], visitor))
            strip = gr.update(value=[*made])
            yield gr.skip(), gr.skip(), strip
    steps = event.metadata.get("partial")
    if steps:
        text = say(visitor, "kept", step=steps, num_steps=event.metadata["num_steps"])
    else:
        text = say(visitor, "done", seconds=f"{pace.seconds():.0f}")
    yield draw_progress(text, 1.0, event.notes), gr.skip(), strip


def ask(studio: Studio, asked: Asked, enough: Callable[[], bool]) -> Iterator[Any]:
    """The values of the page's controls, by name -> the events of the run."""
    settings = {name: asked[name] for name in SETTINGS}
    plugins, besides = ask_plugins(studio, asked)
    return studio.events(
        loras=(*ask_loras(asked), *plugins),
        **besides,
        **ask_person(asked),
        **ask_pose(asked),
        prompt=make_prompt(asked["prompt"], asked["style"]),
        num_images=asked["num_images"],
        enough=enough,
        **settings,
    )


def ready() -> tuple[Any, Any, Any]:
    """Generate, Stop and the stop that keeps, between two runs."""
    return gr.update(interactive=True), gr.update(interactive=False), gr.update(interactive=False)


def busy() -> tuple[Any, ...]:
    """Progress and the three from the click on."""
    off, on = gr.update(interactive=False), gr.update(interactive=True)
    return draw_progress(str(label("waiting"))), off, on, off


def stopping() -> tuple[Any, Any, Any]:
    """Progress and the two ways to stop, from a click on one until the step is done."""
    off = gr.update(interactive=False)
    return draw_progress(str(label("stopping"))), off, off
