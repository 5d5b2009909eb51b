"""The one interface between the pipeline and what does the work; `pytorch/` and `mlx/` implement it.

Arrays are the backend's own and opaque here. Shapes: B batch, L image tokens, T text tokens, D width.
"""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from infu.face import FaceStack
from infu.flow import Scheduler
from infu.preview import LatentColours
from infu.prompt import Tokenizers
from infu.request import Lora

Array = Any


@dataclass(frozen=True, eq=False)
class Text:
    """A prompt, encoded: T5 states (1, T, 4096), CLIP's pooled vector (1, 768)."""

    states: Array
    pooled: Array


class Backend(ABC):
    """Networks of one model, ready to run. Lives across requests; one request at a time holds `lock`.

    A step is `velocity(base, step, latents, residuals)`, `residuals` from `infuse(side, step, latents)`.
    `base` and `side` are the constants of one picture (modulation of all steps, context embedding, RoPE):
    made once by `make_base_constants` and `make_infuse_constants`, never per step.
    """

    name: str  # "pytorch" or "mlx"
    device: str  # "cuda", "cpu", "gpu"
    dtype: str  # "float32", "bfloat16", "float16"
    model_name: str  # what a user calls it; no path
    model_version: str | None  # "aes_stage2", "sim_stage1"; None: plain FLUX, no identity
    model_versions: tuple[str, ...]  # the versions whose files are here
    scheduler: Scheduler
    tokenizers: Tokenizers
    faces: FaceStack
    latent_colours: LatentColours
    optional_loras: dict[str, str]  # "realism", "anti_blur" -> path; absent where the model has none

    def __init__(self):
        self.lock = threading.Lock()
        self.cache = Cache()

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
        self, sigmas: Sequence[float], width: int, height: int, text: Text, guidance_scale: float
    ) -> Any:
        """What the DiT needs at every step of one picture of width x height pixels."""

    @abstractmethod
    def make_infuse_constants(
        self, sigmas: Sequence[float], width: int, height: int, identity: Array, text: Text, control: Array
    ) -> Any:
        """What InfuseNet needs at every step: identity tokens in place of text, its own guidance of 1."""

    @abstractmethod
    def infuse(self, side: Any, step: int, latents: Array, scale: float) -> Any:
        """latents (1, L, 64) -> InfuseNet's residuals, times `scale`."""

    @abstractmethod
    def velocity(self, base: Any, step: int, latents: Array, residuals: Any = None) -> Array:
        """latents (1, L, 64) -> velocity (1, L, 64), float32."""

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
    def plugged(self, plugins: Sequence[Lora]) -> AbstractContextManager[list[str]]:
        """Weight deltas in, and out again on leaving, bit for bit. Yields notes for the user."""

    @abstractmethod
    def use_version(self, model_version: str) -> None:
        """Switch InfuseNet and projection; the DiT stays. A failed switch leaves the old one in place."""


class Cache:
    """The last few results of each kind, by what they depend on."""

    SIZE = 8  # a face, a prompt, a negative prompt and a control image in a few variants; 4 MB each at most

    def __init__(self):
        self._kinds: dict[str, OrderedDict[Hashable, Any]] = {}

    def __call__(self, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """The kept result of this kind for `key`, else `make()`, kept."""
        kept = self._kinds.setdefault(kind, OrderedDict())
        if key not in kept:
            kept[key] = make()
        kept.move_to_end(key)
        while len(kept) > self.SIZE:
            kept.popitem(last=False)
        return kept[key]

    def clear(self, *kinds: str) -> None:
        """Forget these kinds, or everything."""
        for kind in kinds or list(self._kinds):
            self._kinds.pop(kind, None)


def digest(array: np.ndarray) -> str:
    """A key for a cache: the same numbers in the same shape give the same key."""
    return hashlib.sha256(repr((array.shape, array.dtype.str)).encode() + array.tobytes()).hexdigest()
