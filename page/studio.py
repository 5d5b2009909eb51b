"""The one loaded model, and what the page and the API ask of it."""

import html
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gradio as gr

from backends import load_backend
from infu.cli import find_lora
from infu.errors import InfuError
from infu.face import FaceStack
from infu.few_steps import read_base_recipe
from infu.models import MINI, VERSIONS, ModelFiles, locate, read_defaults
from infu.options import PATHS
from infu.pipeline import Result, Step
from infu.plugins import Plugin
from infu.request import GenerationRequest
from infu.space import is_public, on_space, on_zero, wants_compiled
from page.device import Device
from page.layout import DEFAULTS
from page.texts import label
from page.turns import Turns

if TYPE_CHECKING:
    from backends.base import Backend

LOG = logging.getLogger("infu")
COMMAND = "python app.py --base_model_path black-forest-labs/FLUX.1-dev --model_dir ByteDance/InfiniteYou"
REAL = f"<code><span>{COMMAND.replace(' ', '</span> <span>')}</span></code>"
PLACES = (*PATHS, "model_version")  # what `locate` takes
NOT_LOADED = "The model could not be loaded; the server's log says why. The next request tries again."


class Studio:
    """The one loaded model, and what the page and the API ask of it. Lives as long as the server.

    `public`: visitors are strangers. Nothing that one of them types or sends may then be a path of this
    machine, a hub id, or another visitor's file: what asks for those is not drawn, and not obeyed.
    """

    def __init__(self, public: bool | None = None, **options: Any):
        self.public = is_public() if public is None else public
        self.options = options  # load_backend's
        self.device = Device()
        self.trouble = ""  # why the last load failed
        self.loading = threading.Lock()
        self.turns = Turns()  # runs share the model; a switch has it alone
        self.switching = threading.Lock()  # one switch at a time
        self.switched = False  # whether this is no longer the model that the page was drawn for

    @property
    def backend(self) -> "Backend | None":
        return self.device.backend

    @property
    def defaults(self) -> GenerationRequest:
        """What a request is until it is changed: the size, steps and guidance are those the model was made
        for, as its files say before it is loaded."""
        recipe = None if self.backend is None else self.backend.recipe
        if self.backend is None:
            with suppress(InfuError):  # to be fetched first, or wrong: loading says so
                recipe = read_base_recipe(self.locate())
        return DEFAULTS.replace(**(recipe.settings if recipe else {}) | read_defaults(self.options))

    def locate(self) -> ModelFiles:
        """The files of the model, without fetching any. Raises `InfuError`."""
        return locate(**{name: value for name, value in self.options.items() if name in PLACES}, fetch=False)

    @property
    def is_mini(self) -> bool:
        """Whether the model that is loaded, or will be, is the one that ships."""
        if self.backend is not None:
            return self.backend.model_name == MINI.name
        return self.options.get("base_model_path") is None and self.options.get("model_dir") is None

    def load(self) -> "Backend":
        """The backend, loaded at the first call. A failed load raises, and is tried again at the next; but
        on a Space the mini model takes the place of one that cannot be had there."""
        with self.loading:
            if self.device.backend is None:
                self.trouble = ""
                try:
                    self.device.backend = load_backend(**self.options)
                except Exception as error:
                    self.trouble = str(error) if isinstance(error, InfuError) else NOT_LOADED
                    if not on_space() or not isinstance(error, InfuError):
                        raise
                    LOG.error("The mini model takes the place of the model asked for. %s", error)
                    self.options = {"name": self.options["name"], "model_version": VERSIONS[0]}
                    self.device.backend = load_backend(**self.options)
                if on_zero():
                    self.device.look_ahead()
                if wants_compiled():
                    self.device.compile_ahead()
            return self.device.backend

    def take(self, backend: "Backend | None", options: dict[str, Any]) -> None:
        """This backend, loaded with these options, in place of the one there is; None: that is put away."""
        with self.loading:
            self.device.backend, self.options = backend, options
            self.trouble, self.switched = "", True

    def load_early(self) -> None:
        """Load before the first request asks for it. What goes wrong is shown by `notice`."""
        try:
            self.load()
        except InfuError as error:
            LOG.error("The model could not be loaded. %s", error)
        except Exception:
            LOG.exception("The model could not be loaded.")

    def faces(self) -> FaceStack:
        """The face models. Before the networks are loaded, by themselves, where their files are here; else
        this waits for all. What they find in a photograph then is not searched again by a run."""
        if self.backend is None:
            with suppress(InfuError):  # to be fetched first, or wrong: loading says so
                files = self.locate()
                return FaceStack(files.detector, files.recogniser, 0)
        return self.load().faces

    def notice(self) -> str:
        """What a visitor should know of the model, as HTML; empty when there is nothing to say."""
        if self.trouble:
            instead = f"{label('mini_instead')} " if self.backend else ""
            return f"<p>{instead}{html.escape(self.trouble)}</p>"
        if self.backend is None:
            return f"<p>{label('loading')}</p>"
        return f"<p>{label('mini_notice')} {REAL}</p>" if self.is_mini else ""

    def events(
        self,
        model_version: str | None,
        enable_realism: bool,
        enable_anti_blur: bool,
        loras: tuple[Plugin, ...],
        enough: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> Iterator[Step | Result]:
        """One request, from the values of the controls to its pictures. `enough`: `stream`'s."""
        settings["seed"] = settings["seed"] or None  # 0 is random, as released
        request = GenerationRequest(**settings)  # a wrong setting is told before a model is loaded
        with self.turns.shared():
            backend = self.load()
            chosen = {"realism": enable_realism, "anti_blur": enable_anti_blur}
            loras += tuple(find_lora(backend, name) for name, on in chosen.items() if on)
            yield from self.device.stream(request.replace(plugins=loras), model_version, enough)

    def look(self) -> tuple[str, Any]:
        """The notice of now, and whether the page should go on asking."""
        return self.notice(), gr.update(active=self.backend is None and not self.trouble)
