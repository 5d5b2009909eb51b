"""The one interface between the pipeline and what does the work; `pytorch/` and `mlx/` implement it. What
a network beside the DiT adds to it is in infu/hooks.py.

Arrays are the backend's own and opaque here. Shapes: B batch, L image tokens, T text tokens, D width.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from infu.cache import Cache, identify
from infu.face import FaceStack
from infu.few_steps import Recipe, read_base_recipe
from infu.flow import Scheduler, read_flow
from infu.hooks import NOTHING, Additions, Infused, Run, Runner, total
from infu.memory import has_room
from infu.models import ModelFiles, find_lora_file
from infu.plugins import Lora, Plugin
from infu.preview import LatentColours, read_latent_colours
from infu.prompt import Tokenizers
from infu.weights.changes import ControlPicture
from infu.weights.lora import LoraFile, Shapes, read_lora

Array = Any
T = TypeVar("T")
NETWORKS = 4  # plug-ins' of a kind that are kept, each up to 6.6 GB
CACHED = 8  # of each kind: a face, a prompt, a negative prompt, a control image, in a few variants


@dataclass(frozen=True, eq=False)
class Text:
    """A prompt, encoded: T5 states (1, T, 4096), CLIP's pooled vector (1, 768)."""

    states: Array
    pooled: Array


class Backend(ABC):
    """Networks of one model, ready to run. Lives across requests; one request at a time holds `lock`.

    A step is `velocity(base, step, latents, additions)`, `additions` from a `Runner` per network beside the
    DiT: InfuseNet, over `infuse(side, step, latents)`, and one per plug-in that is a network of its own.
    `base` and `side` are the constants of one picture (modulation of all steps, context embedding, RoPE):
    made once by `make_base_constants` and `make_infuse_constants`, never per step.
    """

    name: str  # "pytorch" or "mlx"
    files: ModelFiles
    device: str  # "cuda", "cpu", "gpu"
    dtype: str  # "float32", "bfloat16", "float16"
    bits: int | None  # of quantised weights
    offload: str | None  # None, "model", "sequential"
    model_name: str  # what a user calls it; no path
    model_version: str | None  # "aes_stage2", "sim_stage1"; None: plain FLUX, no identity
    model_versions: tuple[str, ...]  # the versions whose files are here
    scheduler: Scheduler
    recipe: Recipe | None  # of a base that is made for few steps
    tokenizers: Tokenizers
    faces: FaceStack
    latent_colours: LatentColours
    optional_loras: dict[str, str]  # "realism", "anti_blur" -> path; absent where the model has none

    def __init__(self, files: ModelFiles):
        """What needs no network: names, schedule, tokenizers. No identity yet."""
        self.lock = threading.Lock()
        self.cache, self._networks = Cache(CACHED), Cache(NETWORKS)
        self.files, self.model_name = files, files.name
        self.scheduler, guidance = read_flow(files)
        self.recipe = read_base_recipe(files)
        t5_length = 512 if guidance else 256  # dev and schnell
        self.tokenizers = Tokenizers(files.tokenizer, files.tokenizer_2, t5_length)
        self.latent_colours = read_latent_colours(files.vae)
        self.faces = FaceStack(None, None, 0)
        self.model_version, self.model_versions, self.optional_loras = None, (), {}

    def take_identity(self, files: ModelFiles, embedding_size: int) -> None:
        """The version of InfiniteYou that has just been loaded is the one in use."""
        self.files = files
        self.faces = FaceStack(files.detector, files.recogniser, embedding_size)
        self.model_version, self.model_versions = files.model_version, files.model_versions
        self.optional_loras = {name: str(path) for name, path in files.optional_loras.items()}
        self.cache.clear("identity")

    # Encoders. Each result is kept by what it depends on: the same face or prompt is not encoded twice.

    @abstractmethod
    def encode_prompt(self, prompt: str, max_length: int | None = None) -> Text:
        """Text -> T5 states and pooled vector. `max_length`: T5 tokens, None for the model's own."""

    @abstractmethod
    def encode_image(self, picture: np.ndarray) -> Array:
        """uint8 RGB (H, W, 3), sides multiples of 16 -> scaled, packed VAE latents (1, L, 64): the mean."""

    @abstractmethod
    def project_identity(self, embedding: np.ndarray) -> Array:
        """Face embedding (E,) -> identity tokens (1, 8, 4096), InfuseNet's "text"."""

    # The denoiser.

    @abstractmethod
    def make_base_constants(
        self,
        sigmas: Sequence[float],
        width: int,
        height: int,
        text: Text,
        guidance_scale: float,
        controls: Sequence[ControlPicture] = (),
    ) -> Any:
        """What the DiT needs at every step of one picture of width x height pixels."""

    @abstractmethod
    def make_infuse_constants(
        self, sigmas: Sequence[float], width: int, height: int, people: Sequence[Infused], text: Text
    ) -> Any:
        """What InfuseNet needs at every step, run once for all `people`: identity tokens in place of text,
        its own guidance of 1. All of several have a mask."""

    @abstractmethod
    def infuse(self, side: Any, step: int, latents: Array) -> Any:
        """latents (1, L, 64) -> InfuseNet's residuals, times each person's scale and mask, summed."""

    @abstractmethod
    def velocity(self, base: Any, step: int, latents: Array, additions: Additions = NOTHING) -> Array:
        """latents (1, L, 64) -> velocity (1, L, 64), float32."""

    @abstractmethod
    def make_runner(self, plugin: Plugin, run: Run) -> Runner:
        """A plug-in that is no LoRA, for one request. Raises `InfuError` for what its file is not."""

    def gather(self, runners: Iterable[Runner], step: int, latents: Array, negative: bool) -> Additions:
        """What all `runners` add to one pass of one step."""
        return total(runner.add(step, latents, negative) for runner in runners)

    @abstractmethod
    def decode(self, latents: Array, width: int, height: int) -> np.ndarray:
        """Packed latents (1, L, 64) -> float32 RGB (height, width, 3), clipped to 0..1; NaN stays NaN."""

    # Arrays.

    @abstractmethod
    def array(self, values: np.ndarray) -> Array:
        """float32 numpy -> the backend's float32 array on its device."""

    @abstractmethod
    def numpy(self, array: Array) -> np.ndarray:
        """The backend's array -> float32 numpy."""

    @abstractmethod
    def evaluate(self, latents: Array) -> None:
        """Compute `latents` now. A lazy backend would otherwise grow its graph over the steps."""

    # What changes between requests.

    @abstractmethod
    def plugged(self, plugins: Sequence[Lora]) -> AbstractContextManager[list[LoraFile]]:
        """Weight deltas in, and out again on leaving, bit for bit. Yields the files of those in use."""

    @property
    @abstractmethod
    def module_shapes(self) -> Mapping[str, Shapes]:
        """The networks that a LoRA may change, and the shape of each of their modules' weights."""

    def read_loras(self, plugins: Sequence[Lora]) -> list[tuple[LoraFile, float]]:
        """The files and scales of those LoRAs that count: one of scale 0 is as if absent."""
        return [(self.read_lora(plugin.path), plugin.scale) for plugin in plugins if plugin.scale != 0]

    def read_lora(self, path: str | Path) -> LoraFile:
        """A LoRA by its path, size and time, or by a name: known ones are not read again."""
        file = find_lora_file(path)
        return self.cache("lora", identify(file), lambda: read_lora(file, self.module_shapes))

    def network(self, kind: str, path: str | Path, load: Callable[[], T]) -> T:
        """The network of a plug-in, or one that looks at its picture, by the file or folder it is in: loaded
        once and shared by the requests, until memory is short: those that lie unused go first."""
        key = identify(path)
        if not self._networks.holds(kind, key) and not has_room(Path(path)):
            self.drop_networks()
        return self._networks(kind, key, load)

    def drop_networks(self) -> None:
        """Forget the plug-ins' networks; they are loaded again when they are next wanted."""
        self._networks.clear()

    @abstractmethod
    def use_version(self, model_version: str) -> None:
        """Switch InfuseNet and projection; the DiT stays. A failed switch leaves the old one in place."""
