"""The run and what it makes: Generate, Stop, progress, the picture, its seed and its file."""

import html
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from infu.errors import PhotoError
from infu.pipeline import Step
from page.events import ON_DEVICE, QUICK, QUIET, RAW
from page.settings import SETTINGS
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import read_loras, read_upload, save_picture_file, with_previews
from page.wishes import make_prompt

Asked = dict[str, Any]  # the values of the page's controls, by name


class Answer(NamedTuple):
    progress: gr.HTML
    picture: gr.Image
    seed: gr.Textbox
    download: gr.DownloadButton


def draw_buttons() -> tuple[gr.Button, gr.Button]:
    """Generate and Stop."""
    with gr.Row():
        generate = gr.Button(label("generate"), variant="primary", scale=3, min_width=120, elem_id="generate")
        stop = gr.Button(label("stop"), interactive=False, scale=1, min_width=80, elem_id="stop")
    return generate, stop


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
    with gr.Row(equal_height=True):
        seed = gr.Textbox(label=label("seed_used"), interactive=False, buttons=["copy"], elem_id="seed_used")
        download = gr.DownloadButton(label("download"), interactive=False, elem_id="download")
    return Answer(progress, picture, seed, download)


def wire_answer(
    studio: Studio,
    controls: dict[str, gr.components.Component],
    generate: gr.Button,
    stop: gr.Button,
    answer: Answer,
) -> gr.events.Dependency:
    """`controls`: what a run reads, by the names in `ask`. Returns the run, to chain on."""
    drawing: set[str] = set()  # sessions whose page has a run under way

    def run(visitor: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Pictures into the page, and Generate and Stop as between two runs when it has ended by itself."""
        drawing.add(visitor.session_hash)
        try:
            for outputs in make_picture(studio, dict(zip(controls, values, strict=True)), visitor):
                yield *outputs, gr.skip(), gr.skip()
            yield *[gr.skip()] * len(answer), *ready()
        except gr.Error as error:
            sentence = draw_progress(html.unescape(error.message))
            yield sentence, *[gr.skip()] * (len(answer) - 1), *ready()
            raise
        finally:
            drawing.discard(visitor.session_hash)

    def stopped(visitor: gr.Request) -> tuple[Any, ...]:
        """After Stop, when the run has really ended: until then its last step may still be shown."""
        while visitor.session_hash in drawing:
            time.sleep(0.05)
        return draw_progress(str(label("stopped"))), *ready()

    waiting = [answer.progress, answer.download, generate, stop]
    begun = gr.on([generate.click, controls["prompt"].submit], busy, None, waiting, **QUICK)
    queued = QUIET | {"show_progress": "minimal", "show_progress_on": answer.progress}  # place in the queue
    running = begun.then(
        run, list(controls.values()), [*answer, generate, stop], **RAW, **ON_DEVICE, **queued
    )
    stop.click(stopping, None, [answer.progress, stop], cancels=running, **QUICK)
    stop.click(stopped, None, [answer.progress, generate, stop], concurrency_limit=None, **QUIET)
    return running


@told
def make_picture(studio: Studio, asked: Asked, visitor: gr.Request) -> Iterator[tuple[Any, ...]]:
    """What the page asks for -> values for an `Answer`, step by step."""
    if asked["input_image"] is None:
        raise PhotoError("Give a photograph of a face.")
    begun = time.monotonic()
    doing = label("reading") if studio.backend else label("loading")
    yield draw_progress(str(doing)), gr.skip(), gr.skip(), gr.skip()
    for event, preview in with_previews(ask(studio, asked)):
        if isinstance(event, Step):
            text = say(visitor, "step", step=event.step, num_steps=event.num_steps)
            picture = gr.update(value=preview) if preview else gr.skip()
            yield draw_progress(text, event.step / event.num_steps), picture, gr.skip(), gr.skip()
        else:
            file = save_picture_file(event)
            text = say(visitor, "done", seconds=f"{time.monotonic() - begun:.0f}")
            done = draw_progress(text, 1.0, event.notes)
            yield done, gr.update(value=file), str(event.seed), gr.update(value=file, interactive=True)


def ask(studio: Studio, asked: Asked) -> Iterator[Any]:
    """The values of the page's controls, by name -> the events of the run."""
    settings = {name: asked[name] for name in SETTINGS}
    return studio.events(
        loras=read_loras(asked["loras"], asked["lora_scale"]),
        id_image=read_upload(asked["input_image"]),
        control_image=read_upload(asked["control_image"]),
        prompt=make_prompt(asked["prompt"], asked["style"]),
        **settings,
    )


def ready() -> tuple[Any, Any]:
    """Generate and Stop between two runs."""
    return gr.update(interactive=True), gr.update(interactive=False)


def busy() -> tuple[Any, ...]:
    """Progress, file, Generate and Stop from the click on: no file to download yet."""
    off = gr.update(interactive=False)
    return draw_progress(str(label("waiting"))), off, off, gr.update(interactive=True)


def stopping() -> tuple[Any, Any]:
    """Progress and Stop from the click on Stop until the step is done, within which a run cannot end."""
    return draw_progress(str(label("stopping"))), gr.update(interactive=False)


def draw_progress(text: str, share: float = 0.0, notes: tuple[str, ...] = ()) -> str:
    """The lines above the picture, as HTML: a bar filled to `share`, a sentence, and notes for the user."""
    return (
        "<div role='progressbar' aria-label='Progress' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{100 * share:.0f}'><div style='width: {100 * share:.1f}%'></div></div>"
        f"<p role='status'>{html.escape(text, quote=False)}</p>"
        + "".join(f"<p class='note'>{html.escape(note)}</p>" for note in notes)
    )
