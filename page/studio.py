"""The one loaded model, and what the page and the API ask of it.

The endpoints are generators over Gradio's raw values (`uploads.py` says why raw).
"""

import html
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from backends import load_backend
from infu.cli import find_lora
from infu.errors import InfuError, PhotoError
from infu.models import MINI, VERSIONS
from infu.pipeline import Result, Step, stream
from infu.request import GenerationRequest, Lora
from page.layout import DEFAULTS, PROMPT
from page.texts import label
from page.told import told
from page.uploads import read_loras, read_upload, save_picture_file, with_previews

if TYPE_CHECKING:
    from backends.base import Backend

LOG = logging.getLogger("infu")
COMMAND = "python app.py --base_model_path black-forest-labs/FLUX.1-dev --model_dir ByteDance/InfiniteYou"
REAL = f"<code><span>{COMMAND.replace(' ', '</span> <span>')}</span></code>"
NOT_LOADED = "The model could not be loaded; the server's log says why. The next request tries again."


class Studio:
    """The one loaded model, and what the page and the API ask of it. Lives as long as the server."""

    def __init__(self, **options: Any):
        self.options = options  # load_backend's
        self.backend: Backend | None = None
        self.trouble = ""  # why the last load failed
        self.loading = threading.Lock()

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
            return f"<p>{label('loading')}</p>"
        return f"<p>{label('mini_notice')} {REAL}</p>" if self.backend.model_name == MINI.name else ""

    def events(
        self,
        model_version: str | None,
        enable_realism: bool,
        enable_anti_blur: bool,
        loras: tuple[Lora, ...],
        enough: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> Iterator[Step | Result]:
        """One request, from the values of the controls to its pictures. `enough`: `stream`'s."""
        settings["seed"] = settings["seed"] or None  # 0 is random, as released
        request = GenerationRequest(**settings)  # a wrong setting is told before a model is loaded
        backend = self.load()
        if model_version and backend.model_version not in (None, model_version):
            backend.use_version(model_version)
        chosen = {"realism": enable_realism, "anti_blur": enable_anti_blur}
        loras += tuple(find_lora(backend, name) for name, on in chosen.items() if on)
        yield from stream(request.replace(plugins=loras), backend, enough=enough)

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
    ) -> Iterator[Any]:
        """A new picture of the person in a photograph. Seed 0 is random. Previews come while it is made;
        the last answer is the finished PNG."""
        if input_image is None:
            raise PhotoError("Give a photograph of a face.")
        events = self.events(
            model_version,
            enable_realism,
            enable_anti_blur,
            (),
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
                yield gr.update(label=text, value=preview) if preview else gr.update(label=text)
            else:
                file = save_picture_file(event)
                yield gr.update(value=file, label=f"Generated Image, seed = {event.seed}")

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
        pictures, made = [], []
        for event in events:
            if isinstance(event, Step):
                yield gr.skip(), {"step": event.step, "num_steps": event.num_steps}
            else:
                pictures.append({"image": save_picture_file(event), "caption": None})
                made.append(event.metadata)
        yield pictures, made

    def look(self) -> tuple[str, Any]:
        """The notice of now, and whether the page should go on asking."""
        return self.notice(), gr.update(active=self.backend is None and not self.trouble)
