"""The world's renders -> stage 1's samples, in the shards that `python -m infu train` reads.

What `make-data` finds in photographs (face, points, caption) a render knows, so nothing is searched for. The
source is the target made worse: another camera, another light, points a little beside their place; its
caption tells hair and beard half of the time, so that the face has to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from infu.align import unit
from infu.keypoints import draw_keypoints
from infu.noise import pack_latents
from infu.prompt import Tokenizers
from infu.recognisers import Described, Recogniser
from infu.training.minibase.data import load_tokenizers, save_array
from infu.training.minibase.latents import load_latents
from infu.training.minibase.networks import Base
from infu.training.shards import Encoded, write_black, write_dataset, write_shard
from infu.training.world.captions import make_caption
from infu.training.world.dataset import Shards
from infu.training.world.people import Look, Person
from infu.training.world.reader import nudge, worsen
from infu.whole import write_whole

PER_SHARD = 500
OTHER_LEFT = [1, 0, 2, 4, 3]  # of the five points, in a mirror
OWN = 0.5  # how often a caption tells hair and beard
WORSE = 0.6  # strength of what the source suffers
WORDING = 100  # beyond those of the base's captions


def view(shards: Shards, n: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Picture and points of sample `n`, every other one mirrored; and what draws the rest of it."""
    rng = np.random.default_rng((n, 7))
    picture, points = shards.pictures[n], shards.keypoints[n]
    if rng.random() < 0.5:
        picture = np.ascontiguousarray(picture[:, ::-1])
        points = points[OTHER_LEFT] * (-1, 1) + (picture.shape[1] - 1, 0)
    return picture, points, rng


def embed(recogniser: Recogniser | Described, picture: np.ndarray, points: np.ndarray, rng) -> np.ndarray:
    """Of the picture made worse: float32 (E,), of unit length."""
    nudged = nudge(points, rng)
    return unit(recogniser.embed(worsen(picture, rng, WORSE), nudged))


def embed_all(recogniser: Recogniser | Described, shards: Shards, path: Path) -> None:
    """-> float32 (n, E); the base need not be there yet."""
    vectors = [embed(recogniser, *view(shards, n)) for n in range(len(shards.pictures))]
    write_whole(path, lambda part: save_array(part, np.stack(vectors)))


def write_identities(
    run: Path, base: Base, base_name: str, shards: Shards, embeddings: np.ndarray, out: Path
):
    """`embeddings` (n, E): of `embed_all`. Latents are the exact ones, not the VAE's."""
    tokenizers, latents = load_tokenizers(run), load_latents(run / "latents.npz")
    height, width = shards.pictures.shape[1:3]
    black = latents.encode(np.zeros((1, height, width, 3), np.uint8))
    about = {"base": base_name, "faces": "embedded", "embedding_size": embeddings.shape[1]}
    write_dataset(out, about | {"text_tokens": None, "settings": {"world": True}})
    write_black(out, (width, height), torch.from_numpy(pack_latents(black)[0]))

    def encode(n: int) -> Encoded:
        picture, points, _ = view(shards, n)
        both = np.stack([picture, draw_keypoints(points, width, height)])
        packed = torch.from_numpy(pack_latents(latents.encode(both))).half()
        caption = tell(shards.labels[n])
        states, pooled = read(base, tokenizers, caption)
        tensors = {
            "latents": packed[0],
            "control": packed[1],
            "embedding": torch.from_numpy(embeddings[n]),
            "states": states.half(),
            "pooled": pooled.half(),
        }
        return Encoded((width, height), tensors, {"name": str(n), "caption": caption})

    write_all(out, len(shards.pictures), encode)


def write_all(out: Path, count: int, encode: Callable[[int], Encoded]) -> None:
    """Samples 0 to `count`, shard by shard."""
    for start in range(0, count, PER_SHARD):
        numbers = range(start, min(start + PER_SHARD, count))
        write_shard(out, f"world-{start:06d}", [encode(n) for n in numbers])


@torch.no_grad()
def read(base: Base, tokenizers: Tokenizers, caption: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = (torch.from_numpy(of(caption).astype(np.int64)) for of in (tokenizers.t5, tokenizers.clip))
    states, pooled = base.read(*ids)
    return states[0], pooled[0]


def tell(label: dict) -> str:
    person, look = Person(weights=np.empty(0), **label["person"]), Look(**label["look"])
    return make_caption(person, look, WORDING, OWN)


def write_photos(shards: Shards, out: Path, people: int) -> None:
    """The first photograph without a hat of some people, a folder for each sex; and, of other pictures,
    prompts that tell hair and beard as often as not."""
    for word, male in (("men", True), ("women", False)):
        (out / word).mkdir(parents=True, exist_ok=True)
        taken, prompts = set(), []
        for picture, label in zip(shards.pictures, shards.labels, strict=True):
            person, look = label["person"], label["look"]
            if person["male"] != male:
                continue
            if (
                person["seed"] not in taken
                and look["style"] == "photo"
                and not look["hat"]
                and len(taken) < people
            ):
                taken.add(person["seed"])
                Image.fromarray(picture).save(out / word / f"{person['seed']:06}.png")
            elif len(prompts) < 4 * people:
                prompts.append(tell(label))
        (out / f"{word}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
