"""The world's renders and their edges -> a canny ControlNet's samples, in the shards that `python -m infu
train` reads.

Edges and captions pass the networks of the base that a request will have; the picture's latents are the exact
ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backends.pytorch.backend import PytorchBackend
from infu.hints import make_hint
from infu.noise import pack_latents
from infu.training.minibase.identities import tell, view, write_all
from infu.training.minibase.latents import load_latents
from infu.training.shards import Encoded, write_black, write_dataset
from infu.training.world.dataset import Shards

HINT = "canny"


def write_hints(run: Path, backend: PytorchBackend, shards: Shards, out: Path) -> None:
    """`backend`: of the base that `export` wrote of `run`."""
    exact = load_latents(run / "latents.npz")
    height, width = shards.pictures.shape[1:3]
    about = {"base": backend.model_name, "faces": None, "embedding_size": 0, "text_tokens": None}
    write_dataset(out, about | {"hint": HINT, "settings": {"world": True}})

    def encode(n: int) -> Encoded:
        picture, _, _ = view(shards, n)
        caption = tell(shards.labels[n])
        text = backend.encode_prompt(caption)
        tensors = {
            "latents": torch.from_numpy(pack_latents(exact.encode(picture[None]))[0]),
            "control": backend.encode_image(make_hint(HINT, picture, width, height))[0],
            "states": text.states[0],
            "pooled": text.pooled[0],
        }
        halves = {name: halve(tensor) for name, tensor in tensors.items()}
        return Encoded((width, height), halves, {"name": str(n), "caption": caption})

    nothing = np.zeros((height, width, 3), np.uint8)
    write_black(out, (width, height), halve(backend.encode_image(nothing)[0]))
    write_all(out, len(shards.pictures), encode)


def halve(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float16)
