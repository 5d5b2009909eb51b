"""What the page and the API ask of the one loaded model: the handlers of every event.

Each is a generator over Gradio's raw values (`uploads.py` says why raw); `told` is the one place where our
errors become Gradio's.
"""

import functools
import html
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from backends import load_backend
from infu.cli import find_lora
from infu.errors import InfuError, PhotoError
from infu.inspect import describe_file, draw_file
from infu.metadata import picture_metadata, read_picture
from infu.models import MINI, VERSIONS
from infu.pipeline import Result, Step, stream
from infu.request import GenerationRequest, Lora
from page import layout as page
from page.layout import DEFAULTS, PROMPT
from page.uploads import make_showable, read_loras, read_upload, save_pictures, with_previews

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
        self,
        model_version: str | None,
        enable_realism: bool,
        enable_anti_blur: bool,
        loras: tuple[Lora, ...],
        **settings: Any,
    ) -> Iterator[Step | Result]:
        """One request, from the values of the controls to its pictures."""
        settings["seed"] = settings["seed"] or None  # 0 is random, as released
        request = GenerationRequest(**settings)  # a wrong setting is told before a model is loaded
        backend = self.load()
        if model_version and backend.model_version not in (None, model_version):
            backend.use_version(model_version)
        chosen = {"realism": enable_realism, "anti_blur": enable_anti_blur}
        loras += tuple(find_lora(backend, name) for name, on in chosen.items() if on)
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
        loras: list[dict] | None = None,  # the page's own, as the next: the public endpoint has the 14 above
        lora_scale: float = 1.0,
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
            read_loras(loras, lora_scale),
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
        loras: list[dict] | None = None,
        lora_scale: float = 1.0,
    ) -> Iterator[tuple[Any, Any]]:
        """Several pictures, from one or several photographs of a person, or from none. Answers with the
        pictures and the settings of each; while they are being made, with the step."""
        events = self.events(
            model_version,
            enable_realism,
            enable_anti_blur,
            read_loras(loras, lora_scale),
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
    def inspect(self, files: list[dict] | None) -> Iterator[str]:
        """LoRA files just uploaded -> what they are and how much of them the model uses, as HTML."""
        reports = []
        for lora in read_loras(files, 1.0):
            values = describe_file(lora.path, self.load().module_shapes)
            if values["what"] != "LoRA":
                raise PhotoError(f"{values['file']} is no LoRA but this: {values['what']}.")
            reports.append(draw_file(values))
        yield page.draw_report("\n".join(reports))

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
