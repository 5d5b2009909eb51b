"""Encoded samples in files, and the order in which a run reads them.

A shard is one safetensors file of N samples of one picture size, `NAME-WxH-N.safetensors`: `latents` and
`control` (N, L, 64), the second of the five-point drawing, `embedding` (N, E), and, unless captions are
encoded during training, `states` (N, T, joint width) and `pooled` (N, P). For a ControlNet `control` is of
the hint, whose kind `dataset.json` names, and there is no embedding; for a style IP-Adapter there is no
`control`, and `embedding` is the picture's own. Its header holds of each sample its name, its caption and all
its scores. `black-WxH.safetensors` holds the black control picture's latents of
each size, and `dataset.json` what was encoded with what.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from infu.errors import BrokenFile, InvalidRequest, MissingFile
from infu.models import APPEARANCE
from infu.training.loss import Batch
from infu.whole import write_whole

SHARDS, BLACK, DATASET = "shards", "black-{}x{}.safetensors", "dataset.json"
NAME = re.compile(r".+-(\d+)x(\d+)-(\d+)\.safetensors")
OPEN = 64  # files kept open by a reader


@dataclass(frozen=True, eq=False)
class Encoded:
    """One encoded picture. `row`: its name, its caption and its scores, as JSON values."""

    size: tuple[int, int]
    tensors: Mapping[str, Tensor]
    row: Mapping[str, Any]


def write_shard(folder: Path, name: str, samples: Sequence[Encoded]) -> None:
    """Samples of one size -> one file."""
    (size,) = {sample.size for sample in samples}
    tensors = {key: torch.stack([s.tensors[key] for s in samples]).contiguous() for key in samples[0].tensors}
    header = {"rows": json.dumps([dict(sample.row) for sample in samples])}
    path = folder / SHARDS / f"{name}-{size[0]}x{size[1]}-{len(samples)}.safetensors"
    write_whole(path, lambda part: save_file(tensors, part, header))


def write_black(folder: Path, size: tuple[int, int], latents: Tensor) -> None:
    """The latents (L, 64) of the black control picture of one size."""
    write_whole(folder / BLACK.format(*size), lambda part: save_file({"control": latents.contiguous()}, part))


def write_dataset(folder: Path, values: Mapping[str, Any]) -> None:
    """What a folder holds. Raises `InvalidRequest` where it holds something else already."""
    path = folder / DATASET
    if path.is_file() and (there := json.loads(path.read_text())) != dict(values):
        other = [key for key in values if values[key] != there.get(key)]
        raise InvalidRequest(
            f"{folder.name} holds data made with another {', '.join(other)}. Choose a new folder, or "
            "go on with "
            "the settings it was begun with."
        )
    write_whole(path, lambda part: part.write_text(json.dumps(dict(values), indent=2) + "\n"))


def keep_appearance(folder: Path, appearance: Path) -> None:
    """What is trained on a face encoder's vectors needs that encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / APPEARANCE, lambda part: shutil.copy(appearance, part))


def read_dataset(folder: Path) -> dict[str, Any]:
    path = folder / DATASET
    if not path.is_file():
        raise MissingFile(
            f"{folder.name} holds no data to train on. Make it with `python -m infu make-data`."
        )
    return json.loads(path.read_text())


@lru_cache(maxsize=OPEN)
def open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # safetensors raises an exception of its own kind, and OSError
        raise BrokenFile(f"{path.name} is damaged. Delete it, and make it again.") from error


@lru_cache(maxsize=OPEN)
def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of each sample of a shard its name, its caption and its scores."""
    return json.loads(open_shard(path).metadata()["rows"])


@lru_cache(maxsize=OPEN)
def load_black(folder: Path, size: tuple[int, int]) -> Tensor:
    return load_file(folder / BLACK.format(*size))["control"]


class Shards:
    """All samples of some folders, numbered from 0."""

    def __init__(self, folders: Sequence[Path]):
        """Raises `MissingFile` where a folder has no shard, `InvalidRequest` where they do not go
        together."""
        self.datasets = [read_dataset(folder) for folder in folders]
        for key in ("base", "faces", "embedding_size", "text_tokens", "hint", "encoder"):
            if len({json.dumps(dataset.get(key)) for dataset in self.datasets}) > 1:
                raise InvalidRequest(
                    f"The folders of data differ in their {key}. Train on folders that were made alike."
                )
        self.paths, self.sizes, counts = [], [], []
        for folder in folders:
            paths = sorted((folder / SHARDS).glob("*.safetensors"))
            if not paths:
                raise MissingFile(
                    f"{folder.name} holds no shard yet. Make it with `python -m infu make-data`."
                )
            for path in paths:
                width, height, count = map(int, NAME.fullmatch(path.name).groups())
                self.paths.append(path)
                self.sizes.append((width, height))
                counts.append(count)
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def by_size(self) -> list[np.ndarray]:
        """The numbers of the samples of each size."""
        groups: dict[tuple[int, int], list[np.ndarray]] = {}
        for i, size in enumerate(self.sizes):
            groups.setdefault(size, []).append(np.arange(self._starts[i], self._starts[i + 1]))
        return [np.concatenate(groups[size]) for size in sorted(groups)]

    def find(self, number: int) -> tuple[int, int]:
        """A sample's shard, and its place there."""
        i = int(np.searchsorted(self._starts, number, side="right")) - 1
        return i, int(number - self._starts[i])

    def caption(self, number: int) -> str:
        i, place = self.find(number)
        return read_rows(self.paths[i])[place]["caption"]

    def read(self, numbers: Sequence[int], with_points: Sequence[bool]) -> Batch:
        """Samples of one size. Where `with_points` is False the control image is black. What the folders do
        not hold is None."""
        tensors: dict[str, list[Tensor]] = {}
        for number, points in zip(numbers, with_points, strict=True):
            i, place = self.find(number)
            shard = open_shard(self.paths[i])
            for name in shard.keys():
                tensors.setdefault(name, []).append(shard.get_slice(name)[place])
            if "control" in tensors and not points:
                tensors["control"][-1] = load_black(self.paths[i].parents[1], self.sizes[i])
        stacked = {name: torch.stack(values) for name, values in tensors.items()}
        return Batch(*self.sizes[i], **dict.fromkeys(("control", "embedding", "states", "pooled")) | stacked)


class Order:
    """Which samples make which batch: a function of the seed and the batch's number alone. In each epoch
    every sample comes up once; those that do not fill a last batch of their size are joined by others of
    it."""

    def __init__(self, groups: Sequence[np.ndarray], batch: int, seed: int):
        self._groups, self._batch, self._seed = groups, batch, seed
        self.per_epoch = sum(-(-len(group) // batch) for group in groups)
        self._made: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.per_epoch)
        if self._made[0] != epoch:
            self._made = epoch, self._make_epoch(epoch)
        return self._made[1][place]

    def _make_epoch(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self._seed, epoch))
        batches = []
        for group in self._groups:
            mixed = random.permutation(group)
            whole = -(-len(mixed) // self._batch) * self._batch
            batches.append(np.resize(mixed, whole).reshape(-1, self._batch))
        batches = np.concatenate(batches)
        return batches[random.permutation(len(batches))]
