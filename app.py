"""The Gradio page and its API: a photograph and a sentence in, a new picture of that person out.

`build_page` makes the page, `main` serves it. Importing this module loads no model and no framework.
"""

import spaces  # noqa: F401, I001  first: on ZeroGPU it must come before anything that imports torch

import functools
import html
import io
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import gradio as gr
import typer

from backends import load_backend
from infu.cli import find_lora
from infu.errors import InfuError, PhotoError
from infu.metadata import picture_metadata, read_picture
from infu.models import MINI, VERSIONS, read_defaults
from infu.options import ModelOptions, spread
from infu.pipeline import Result, Step, stream
from infu.request import GenerationRequest
from page import layout as page
from page.layout import DEFAULTS, PROMPT
from page.uploads import KEPT_SECONDS, SWEEP_SECONDS, make_showable, read_upload, save_pictures, with_previews

if TYPE_CHECKING:
    from backends.base import Backend

LOG = logging.getLogger("infu")
FAILED = "The server could not make this picture; its log says why. Try again, or with other settings."
NOT_LOADED = "The model could not be loaded; the server's log says why. The next request tries again."


def told(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The one place where our errors become Gradio's. Any other exception stays on the server."""

    @functools.wraps(handler)
    def tell(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from handler(*args, **kwargs)
        except InfuError as error:  # gr.Error renders HTML, and the sentence may quote the user
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
        except Exception:
            LOG.exception("A request failed.")
            raise gr.Error(FAILED, print_exception=False) from None

    return tell


def picture_only(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same handler with its first output alone: the public endpoint has one, the page more."""

    @functools.wraps(handler)
    def yield_picture(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for picture, *_ in handler(*args, **kwargs):
            yield picture

    return yield_picture


class Studio:
    """The one loaded model, and what the page and the API ask of it. Lives as long as the server."""

    def __init__(self, **options: Any):
        self.options = options  # load_backend's
        self.backend: Backend | None = None
        self.trouble = ""  # why the last load failed
        self.loading = threading.Lock()
        self.drawing: set[str] = set()  # sessions whose page has a run under way

    def load(self) -> "Backend":
        """The backend, loaded at the first call. A failed load raises, and is tried again at the next."""
        with self.loading:
            if self.backend is None:
                self.trouble = ""
                try:
                    self.backend = load_backend(**self.options)
                except Exception as error:
                    self.trouble = str(error) if isinstance(error, InfuError) else NOT_LOADED
                    raise
            return self.backend

    def load_early(self) -> None:
        """Load before the first request asks for it. What goes wrong is shown by `notice`."""
        try:
            self.load()
        except InfuError as error:
            LOG.error("The model could not be loaded. %s", error)
        except Exception:
            LOG.exception("The model could not be loaded.")

    def notice(self) -> str:
        """What a visitor should know of the model, as HTML; empty when there is nothing to say."""
        if self.trouble:
            return f"<p>{html.escape(self.trouble)}</p>"
        if self.backend is None:
            return "<p>The model is being loaded …</p>"
        return f"<p>{page.MINI_NOTICE}</p>" if self.backend.model_name == MINI.name else ""

    def events(
        self, model_version: str | None, enable_realism: bool, enable_anti_blur: bool, **settings: Any
    ) -> Iterator[Step | Result]:
        """One request, from the values of the controls to its pictures."""
        settings["seed"] = settings["seed"] or None  # 0 is random, as released
        request = GenerationRequest(**settings)  # a wrong setting is told before a model is loaded
        backend = self.load()
        if model_version and backend.model_version not in (None, model_version):
            backend.use_version(model_version)
        chosen = {"realism": enable_realism, "anti_blur": enable_anti_blur}
        loras = tuple(find_lora(backend, name) for name, on in chosen.items() if on)
        yield from stream(request.replace(plugins=loras), backend)

    @told
    def generate_image(
        self,
        input_image: dict | None = None,
        control_image: dict | None = None,
        prompt: str = PROMPT,
        seed: int = 0,
        width: int = DEFAULTS.width,
        height: int = DEFAULTS.height,
        guidance_scale: float = DEFAULTS.guidance_scale,
        num_steps: int = DEFAULTS.num_steps,
        infusenet_conditioning_scale: float = DEFAULTS.infusenet_conditioning_scale,
        infusenet_guidance_start: float = DEFAULTS.infusenet_guidance_start,
        infusenet_guidance_end: float = DEFAULTS.infusenet_guidance_end,
        enable_realism: bool = False,
        enable_anti_blur: bool = False,
        model_version: str = VERSIONS[0],
    ) -> Iterator[tuple[Any, ...]]:
        """A new picture of the person in a photograph. Seed 0 is random. Previews come while it is made;
        the last answer is the finished PNG."""
        if input_image is None:
            raise PhotoError("Give a photograph of a face.")
        begun = time.monotonic()
        doing = "Reading the photograph and the prompt" if self.backend else "Loading the model"
        yield gr.skip(), page.draw_progress(f"{doing} …"), gr.skip(), gr.skip()
        events = self.events(
            model_version,
            enable_realism,
            enable_anti_blur,
            id_image=read_upload(input_image),
            control_image=read_upload(control_image),
            prompt=prompt,
            seed=seed,
            width=width,
            height=height,
            guidance_scale=guidance_scale,
            num_steps=num_steps,
            infusenet_conditioning_scale=infusenet_conditioning_scale,
            infusenet_guidance_start=infusenet_guidance_start,
            infusenet_guidance_end=infusenet_guidance_end,
        )
        for event, preview in with_previews(events):
            if isinstance(event, Step):
                text = f"Step {event.step} of {event.num_steps}"
                picture = gr.update(label=text, value=preview) if preview else gr.update(label=text)
                yield picture, page.draw_progress(text, event.step / event.num_steps), gr.skip(), gr.skip()
            else:
                [file] = save_pictures(event)
                picture = gr.update(value=file, label=f"Generated Image, seed = {event.seed}")
                done = page.draw_progress(f"Done in {time.monotonic() - begun:.0f} s", 1.0, event.notes)
                yield picture, done, str(event.seed), gr.update(value=file, interactive=True)

    def generate_on_page(self, visitor: gr.Request, *controls: Any) -> Iterator[tuple[Any, ...]]:
        """`generate_image`, and Generate and Stop as between two runs when it has ended by itself."""
        self.drawing.add(visitor.session_hash)
        try:
            for outputs in self.generate_image(*controls):
                yield *outputs, gr.skip(), gr.skip()
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), *page.ready()
        except gr.Error as error:
            sentence = page.draw_progress(html.unescape(error.message))
            yield gr.skip(), sentence, gr.skip(), gr.skip(), *page.ready()
            raise
        finally:
            self.drawing.discard(visitor.session_hash)

    def stop(self, visitor: gr.Request) -> tuple[Any, ...]:
        """The page after Stop, when the run has really ended: until then its last step may still be shown."""
        while visitor.session_hash in self.drawing:
            time.sleep(0.05)
        return page.draw_progress(page.STOPPED), *page.ready()

    @told
    def generate(
        self,
        id_image: dict | None = None,
        id_images: list[dict] | None = None,
        control_image: dict | None = None,
        prompt: str = PROMPT,
        negative_prompt: str | None = None,
        true_cfg_scale: float = DEFAULTS.true_cfg_scale,
        num_images: int = DEFAULTS.num_images,
        seed: int = 0,
        width: int = DEFAULTS.width,
        height: int = DEFAULTS.height,
        guidance_scale: float = DEFAULTS.guidance_scale,
        num_steps: int = DEFAULTS.num_steps,
        infusenet_conditioning_scale: float = DEFAULTS.infusenet_conditioning_scale,
        infusenet_guidance_start: float = DEFAULTS.infusenet_guidance_start,
        infusenet_guidance_end: float = DEFAULTS.infusenet_guidance_end,
        enable_realism: bool = False,
        enable_anti_blur: bool = False,
        model_version: str = VERSIONS[0],
    ) -> Iterator[tuple[Any, Any]]:
        """Several pictures, from one or several photographs of a person, or from none. Answers with the
        pictures and the settings of each; while they are being made, with the step."""
        events = self.events(
            model_version,
            enable_realism,
            enable_anti_blur,
            id_image=read_upload(id_image),
            id_images=tuple(map(read_upload, id_images or ())),
            control_image=read_upload(control_image),
            prompt=prompt,
            negative_prompt=negative_prompt,
            true_cfg_scale=true_cfg_scale,
            num_images=num_images,
            seed=seed,
            width=width,
            height=height,
            guidance_scale=guidance_scale,
            num_steps=num_steps,
            infusenet_conditioning_scale=infusenet_conditioning_scale,
            infusenet_guidance_start=infusenet_guidance_start,
            infusenet_guidance_end=infusenet_guidance_end,
        )
        for event in events:
            if isinstance(event, Step):
                yield gr.skip(), {"step": event.step, "num_steps": event.num_steps}
            else:
                made = [picture_metadata(event.metadata, k) for k in range(len(event.seeds))]
                yield [{"image": file, "caption": None} for file in save_pictures(event)], made

    @told
    def show(self, photo: dict | None) -> Iterator[Any]:
        """A photograph just uploaded -> what the page shows of it. A file that is none is told at once."""
        source = read_upload(photo)
        yield (source and make_showable(source)) or gr.skip()

    @told
    def restore(self, file: dict | None) -> Iterator[tuple[Any, ...]]:
        """The settings inside a picture -> the drop zone emptied, and the controls from the prompt on."""
        source = read_upload(file)
        if source is None:
            return
        settings = read_picture(io.BytesIO(source) if isinstance(source, bytes) else source)
        values = page.control_values(settings)
        gr.Info(html.escape(page.restored(settings)))
        yield None, *values

    def look(self) -> tuple[str, Any]:
        """The notice of now, and whether the page should go on asking."""
        return self.notice(), gr.update(active=self.backend is None and not self.trouble)


def build_page(studio: Studio) -> gr.Blocks:
    """The page, top to bottom as a visitor reads it; all events at the end."""
    with gr.Blocks(
        title=page.TITLE, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)
    ) as blocks:
        notice = page.draw_head(studio.notice())
        with gr.Row(elem_id="work"):
            with gr.Column(min_width=320):
                photo, prompt, generate, stop = page.draw_question()
            with gr.Column(min_width=320):
                progress, picture, seed_used, download = page.draw_answer()
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            defaults = page.DEFAULTS.replace(**read_defaults(studio.options))
            control, source, settings = page.draw_advanced(studio.options["model_version"], defaults)
        photos, negative, true_cfg, count, gallery, made = page.draw_api_only()
        timer = gr.Timer(1.0)

        # All events, here. The order of `controls` is the public API; tests/test_api.py holds it.
        controls = [photo, control, prompt, *settings]
        asked = [photo, photos, control, prompt, negative, true_cfg, count, *settings]
        shown = [picture, progress, seed_used, download, generate, stop]
        raw = {"preprocess": False, "postprocess": False}  # Gradio's own values: `page/uploads.py` says why
        run = raw | {"concurrency_id": "gpu", "concurrency_limit": 1}  # one device: others queue
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        quick = quiet | {"queue": False}

        gr.on([], picture_only(studio.generate_image), controls, picture, api_name="generate_image", **run)
        gr.on([], studio.generate, asked, [gallery, made], api_name="generate", **run)
        waiting = [progress, download, generate, stop]
        begun = gr.on([generate.click, prompt.submit], page.busy, None, waiting, **quick)
        queued = {"show_progress": "minimal", "show_progress_on": progress}  # the place in the queue
        running = begun.then(studio.generate_on_page, controls, shown, **run, **(quiet | queued))
        running.then(studio.look, None, [notice, timer], **quick)
        stop.click(page.stopping, None, [progress, stop], cancels=running, **quick)
        stop.click(studio.stop, None, [progress, generate, stop], concurrency_limit=None, **quiet)
        for upload in (photo, control):
            uploaded = upload.upload(studio.show, upload, upload, **raw, **quiet)
            uploaded.failure(lambda: None, None, upload, **quick)
        source.upload(studio.restore, source, [source, prompt, *settings], **raw, **quiet)
        gr.on([blocks.load, timer.tick], studio.look, None, [notice, timer], **quick)
    return blocks


@spread
def serve(
    model: ModelOptions,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen; 0.0.0.0: to all.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Default: the first free one from 7860.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Make a public link.")] = False,
) -> None:
    """Serve the page until it is interrupted or ended; its files go with it."""
    try:
        studio = Studio(**model.loading())
    except InfuError as error:
        raise SystemExit(str(error)) from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="infu-", dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = build_page(studio)
        blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            theme=page.make_theme(),
            css_paths=page.CSS,
            footer_links=["api", "settings"],
            run_history=False,  # it would keep the visitors' photographs in their browsers
            max_file_size="100mb",
            prevent_thread_lock=True,
        )
        threading.Thread(target=studio.load_early, daemon=True).start()
        blocks.block_thread()


def main() -> None:
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    cli.command()(serve)
    cli()


if __name__ == "__main__":
    main()
