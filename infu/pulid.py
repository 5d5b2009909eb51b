"""PuLID-FLUX beside the DiT: which blocks its cross-attentions follow, in which steps, and with whose tokens.

Follows ToTheBeginning/PuLID `flux/{model,sampling}.py`. The networks are each backend's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infu.cache import digest, identify
from infu.errors import InvalidRequest
from infu.hooks import NOTHING, Additions, Run, Runner
from infu.images import read_photo
from infu.models import find_pulid
from infu.plugins import PuLID
from infu.pulid_photo import Encoders, find_encoders, look_once
from infu.weights.lora import TRANSFORMER
from infu.weights.pulid import EvaFile, PulidFile, read_eva, read_pulid

if TYPE_CHECKING:
    from backends.base import Array, Backend


def open_pulid(plugin: PuLID, backend: Backend) -> tuple[Path, PulidFile, list[int]]:
    """Where its checkpoint is and what it holds, read once for all requests, and the blocks that its
    cross-attentions follow. Raises `MissingFile`, `BrokenFile`, also for one that does not fit the base."""
    path = find_pulid(plugin.path)
    file = backend.network("pulid", path, lambda: read_pulid(path))
    return path, file, file.find_blocks(backend.module_shapes[TRANSFORMER])


class PulidRunner(Runner):
    """The cross-attentions on one face, `id_weight` times, from `start_step` on; in a negative pass on the
    tokens that IDFormer makes of nothing."""

    def __init__(self, plugin: PuLID, backend: Backend, run: Run):
        """Raises `InfuError` for files and photographs that cannot be used."""
        self.plugin, self.backend = plugin, backend
        self.path, self.file, self._blocks = open_pulid(plugin, backend)
        face, nobody = self._read_tokens() if plugin.photos == () else self._look()
        if run.negative is not None and nobody is None:
            raise InvalidRequest(
                "A negative prompt needs PuLID's tokens of nobody beside those of the face: give "
                "uncond_id_tokens with id_tokens."
            )
        attentions = backend.network("pulid attentions", self.path, self.load_attentions)
        self._towards = self._make_functions(attentions, face)
        self._away = None if run.negative is None else self._make_functions(attentions, nobody)

    def add(self, step: int, latents: Array, negative: bool) -> Additions:
        if step < self.plugin.start_step:
            return NOTHING
        return Additions(functions=(self._away if negative else self._towards,))

    def _make_functions(self, attentions: Sequence[Any], tokens: Array) -> dict[int, Callable]:
        functions = (self.make_function(attention, tokens) for attention in attentions)
        return dict(zip(self._blocks, functions, strict=True))

    def _read_tokens(self) -> tuple[Array, Array | None]:
        """The request's own tokens (1, Q, W): of the face, and of nobody where they are given."""
        given = (self.plugin.id_tokens, self.plugin.uncond_id_tokens)
        for name, tokens in zip(("id_tokens", "uncond_id_tokens"), given, strict=True):
            if tokens is not None and tokens.shape[1] != self.file.token_width:
                raise InvalidRequest(
                    f"{name} are rows of {tokens.shape[1]} numbers; {self.file.name} reads rows of "
                    f"{self.file.token_width}."
                )
        return tuple(tokens if tokens is None else self.backend.array(tokens[None]) for tokens in given)

    def _look(self) -> tuple[Array, Array]:
        """The tokens of the photographs' person, and of nobody, kept by what they depend on."""
        encoders = find_encoders(self.plugin.encoders)
        photos = [read_photo(photo) for photo in self.plugin.photos]
        files = (self.path, *vars(encoders).values())
        key = (*map(identify, files), *map(digest, photos))
        return self.backend.cache("pulid", key, lambda: self._encode(photos, encoders))

    def _encode(self, photos: Sequence[np.ndarray], encoders: Encoders) -> tuple[Array, Array]:
        backend = self.backend
        eva_file = backend.network("eva", encoders.eva, lambda: read_eva(encoders.eva))
        vectors, pixels = zip(*(look_once(p, encoders, eva_file.image_size) for p in photos), strict=True)
        eva = backend.network("eva tower", encoders.eva, lambda: self.load_eva(eva_file))
        encoder = backend.network("pulid encoder", self.path, self.load_encoder)
        return self.encode(encoder, eva, backend.array(np.stack(vectors)), backend.array(np.stack(pixels)))

    # What each backend does.

    @abstractmethod
    def load_attentions(self) -> Sequence[Any]:
        """The cross-attentions of `self.file`, in the order of use."""

    @abstractmethod
    def load_encoder(self) -> Any:
        """IDFormer of `self.file`."""

    @abstractmethod
    def load_eva(self, file: EvaFile) -> Any:
        """EVA02-CLIP's visual tower."""

    @abstractmethod
    def encode(self, encoder: Any, eva: Any, vectors: Array, pixels: Array) -> tuple[Array, Array]:
        """K photographs of one person, vectors (K, 512) and pixels (K, 3, S, S), float32 -> the tokens
        (1, Q, W) of that person, and of nobody: of zeros in as many rows."""

    @abstractmethod
    def make_function(self, attention: Any, tokens: Array) -> Callable[[Array], Array]:
        """Image tokens (B, L, D) -> what one cross-attention on identity tokens (1, Q, W) adds to them."""
