"""Shards of the world -> what the mini base trains on: packed latents and token ids, encoded once.

`RUN/latents.npz` and the two tokenizers are made once and stay; encoding again takes in new shards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from infu.errors import MissingFile
from infu.noise import pack_latents
from infu.prompt import Tokenizers
from infu.training.minibase.latents import fit_latents, load_latents
from infu.training.minibase.vocabulary import T5_LENGTH, make_clip_tokenizer, make_t5_tokenizer
from infu.training.world.dataset import Shards, read_shards
from infu.whole import write_whole

ARRAYS = ("latents", "t5", "clip")
DROPPED = 0.1  # of the captions: what is learnt without one is what guidance leads away from


@dataclass(frozen=True, eq=False)
class Encoded:
    """`latents` float16 (n, 2, L, 64): the picture and its mirror image; token ids uint16 `t5` (n, W, T) and
    `clip` (n, W, 77) of W captions each; `empty`: those of no caption; `size`: width, height."""

    latents: np.ndarray
    t5: np.ndarray
    clip: np.ndarray
    empty: tuple[np.ndarray, np.ndarray]
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Samples:
    """float32 (B, L, 64), and int64 ids (B, T) and (B, 77)."""

    latents: np.ndarray
    t5: np.ndarray
    clip: np.ndarray


def load_tokenizers(run: Path) -> Tokenizers:
    return Tokenizers(run / "tokenizer", run / "tokenizer_2", T5_LENGTH)


def encode(shards_folder: Path, run: Path, say: Callable[[str], None]) -> None:
    """Everything of `shards_folder` into `run`."""
    shards = read_shards(shards_folder)
    captions = [label["captions"] for label in shards.labels]
    if not (run / "latents.npz").is_file():
        fit_latents(shards.pictures).save(run / "latents.npz")
        flat = [caption for several in captions for caption in several]
        make_clip_tokenizer(flat, run / "tokenizer")
        make_t5_tokenizer(flat, run / "tokenizer_2")
    latents, tokenizers = load_latents(run / "latents.npz"), load_tokenizers(run)
    both = []
    for pictures in np.array_split(shards.pictures, max(1, len(shards.pictures) // 500)):
        packed = [
            pack_latents(latents.encode(p)).astype(np.float16) for p in (pictures, pictures[:, :, ::-1])
        ]
        both.append(np.stack(packed, 1))
    arrays = (
        np.concatenate(both),
        np.array([[tokenizers.t5(c)[0] for c in several] for several in captions], np.uint16),
        np.array([[tokenizers.clip(c)[0] for c in several] for several in captions], np.uint16),
    )
    for name, array in zip(ARRAYS, arrays, strict=True):
        write_whole(run / "data" / f"{name}.npy", lambda part, array=array: save_array(part, array))
    say(f"{len(shards.pictures)} pictures; {report(shards, arrays[1], latents)}")


def report(shards: Shards, t5: np.ndarray, latents) -> str:
    some = shards.pictures[:: max(1, len(shards.pictures) // 200)]
    error = np.square(latents.decode(latents.encode(some)).astype(float) - some).mean()
    full = (t5[..., -1] != 0).mean()
    decibels = 10 * np.log10(255**2 / error)
    return f"latents keep {decibels:.1f} dB; {full:.2%} of the captions fill {T5_LENGTH} tokens"


def save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, array)


def load_encoded(run: Path, size: tuple[int, int]) -> Encoded:
    missing = [name for name in ARRAYS if not (run / "data" / f"{name}.npy").is_file()]
    if missing:
        raise MissingFile(f"{run} holds no encoded pictures. Run `python -m infu.training.minibase encode`.")
    tokenizers = load_tokenizers(run)
    arrays = [np.load(run / "data" / f"{name}.npy", mmap_mode="r") for name in ARRAYS]
    return Encoded(*arrays, (tokenizers.t5("")[0], tokenizers.clip("")[0]), size)


def choose(encoded: Encoded, chosen: np.ndarray) -> Encoded:
    """Those of its pictures where `chosen` (n,) is True."""
    return replace(encoded, **{name: getattr(encoded, name)[chosen] for name in ARRAYS})


def read_samples(encoded: Encoded, seed: int, positions: range) -> Samples:
    """The samples at these positions of a run: a function of seed and position, so that a run that was
    stopped reads on. Every picture once an epoch, one of its captions or none, one time in two mirrored."""
    count = len(encoded.latents)
    latents, t5, clip = [], [], []
    for position in positions:
        epoch, place = divmod(position, count)
        number = np.random.default_rng((seed, epoch)).permutation(count)[place]
        rng = np.random.default_rng((seed, position, 2))
        wording, mirrored, dropped = (
            rng.integers(encoded.t5.shape[1]),
            rng.integers(2),
            rng.random() < DROPPED,
        )
        latents.append(encoded.latents[number, mirrored])
        t5.append(encoded.empty[0] if dropped else encoded.t5[number, wording])
        clip.append(encoded.empty[1] if dropped else encoded.clip[number, wording])
    return Samples(
        np.stack(latents).astype(np.float32), *(np.stack(ids).astype(np.int64) for ids in (t5, clip))
    )
