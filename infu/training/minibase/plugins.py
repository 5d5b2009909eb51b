"""The world's renders -> a canny ControlNet's samples, or a style IP-Adapter's, in the shards that `python -m
infu train` reads.

Captions and edges pass the networks of the base that a request will have, pictures those of the image
encoder; the picture's latents are the exact ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.pytorch.backend import PytorchBackend
from backends.pytorch.plugins.vision import encode_picture
from infu.cache import digest
from infu.hints import make_hint
from infu.noise import pack_latents
from infu.training.minibase.identities import tell, view, write_all
from infu.training.minibase.latents import load_latents
from infu.training.shards import Encoded, write_black, write_dataset
from infu.training.world.dataset import Shards
from infu.weights.vision import read_vision

HINT = "canny"
SILENT = 0.5  # how often a style picture's caption says nothing of it: then only the picture does
Encode = Callable[[np.ndarray], Mapping[str, Tensor]]  # a picture, uint8 RGB -> tensors of its sample
Caption = Callable[[int], str]


def write_hints(run: Path, backend: PytorchBackend, shards: Shards, out: Path) -> None:
    """`backend`: of the base that `export` wrote of `run`."""
    height, width = shards.pictures.shape[1:3]

    def encode(picture: np.ndarray) -> dict[str, Tensor]:
        return {"control": halve(backend.encode_image(make_hint(HINT, picture, width, height))[0])}

    about = {"hint": HINT, "embedding_size": 0}
    write_samples(run, backend, shards, out, about, lambda n: tell(shards.labels[n]), encode)
    nothing = np.zeros((height, width, 3), np.uint8)
    write_black(out, (width, height), halve(backend.encode_image(nothing)[0]))


def write_styles(run: Path, backend: PytorchBackend, shards: Shards, encoder: Path, out: Path) -> None:
    """`encoder`: the folder of the SigLIP tower whose vectors the adapter will read."""

    def encode(picture: np.ndarray) -> dict[str, Tensor]:
        return {"embedding": torch.from_numpy(encode_picture(backend, encoder, picture)[0])}

    file = read_vision(encoder)
    each = "".join(digest(array) for _, array in sorted(file.tensors.items()))
    # Whose vectors they are: samples of another tower do not go with these.
    about = {"encoder": hashlib.sha256(each.encode()).hexdigest(), "embedding_size": file.embedding_size}
    write_samples(run, backend, shards, out, about, lambda n: tell_little(shards.labels[n], n), encode)


def tell_little(label: dict, n: int) -> str:
    if np.random.default_rng((n, 13)).random() < SILENT:
        return "a man" if label["person"]["male"] else "a woman"
    return tell(label)


def write_samples(
    run: Path,
    backend: PytorchBackend,
    shards: Shards,
    out: Path,
    about: Mapping[str, Any],
    caption_of: Caption,
    encode_own: Encode,
) -> None:
    """Latents, text, and what `encode_own` makes of each picture. `about`: what `dataset.json` says of it."""
    exact = load_latents(run / "latents.npz")
    height, width = shards.pictures.shape[1:3]
    common = {"base": backend.model_name, "faces": None, "text_tokens": None, "settings": {"world": True}}
    write_dataset(out, common | dict(about))

    def encode(n: int) -> Encoded:
        picture, _, _ = view(shards, n)
        caption = caption_of(n)
        text = backend.encode_prompt(caption)
        tensors = {
            "latents": halve(torch.from_numpy(pack_latents(exact.encode(picture[None]))[0])),
            "states": halve(text.states[0]),
            "pooled": halve(text.pooled[0]),
            **encode_own(picture),
        }
        return Encoded((width, height), tensors, {"name": str(n), "caption": caption})

    write_all(out, len(shards.pictures), encode)


def halve(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float16)
