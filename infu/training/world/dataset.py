"""People -> shards of pictures with their labels: `python -m infu.training.world.dataset FOLDER`.

A shard is `000000.npz` (pictures uint8 (n, H, W, 3), keypoints float32 (n, 5, 2)) and `000000.jsonl` (a line
of labels for each: who, what is seen, several captions). A shard that is there is not made again; several
processes, each with its own `--part`, share the work.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from infu.training.world.captions import make_caption
from infu.training.world.renderer import Render, Renderer

PEOPLE = 125  # a shard
WORDINGS = 6  # captions a picture


@dataclass(frozen=True, eq=False)
class Shards:
    """All of a folder, in order: uint8 (n, H, W, 3), float32 (n, 5, 2), and a dict of labels for each."""

    pictures: np.ndarray
    keypoints: np.ndarray
    labels: list[dict]


def make_shards(
    folder: Path, people: range, pictures: int, size: tuple[int, int], part: int = 0, parts: int = 1
):
    """Write shard after shard of this part, and yield each one's path when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    renderer = Renderer(*size)
    for shard, first in enumerate(range(people.start, people.stop, PEOPLE)):
        path = folder / f"{first:06}.npz"
        if shard % parts != part or path.exists():
            continue
        renders = []
        for seed in range(first, min(first + PEOPLE, people.stop)):
            renders += renderer.render_person(seed, list(range(pictures)))
        write_shard(path, renders)
        yield path


def write_shard(path: Path, renders: list[Render]) -> None:
    lines = [json.dumps(labels_of(render)) for render in renders]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    unfinished = path.with_suffix(".tmp.npz")
    np.savez(
        unfinished,
        pictures=np.stack([render.picture for render in renders]),
        keypoints=np.stack([render.keypoints for render in renders]),
    )
    os.replace(unfinished, path)  # last, and whole or not at all


def labels_of(render: Render) -> dict:
    """Plain JSON values: `person` and `look` as their dataclasses have them, and `captions`."""
    person = {name: value for name, value in asdict(render.person).items() if name != "weights"}
    captions = [make_caption(render.person, render.look, wording) for wording in range(WORDINGS)]
    return {"person": person, "look": asdict(render.look), "captions": captions}


def read_shards(folder: Path) -> Shards:
    """Raises `FileNotFoundError` where there is no shard."""
    paths = sorted(path for path in folder.glob("*.npz") if not path.name.endswith(".tmp.npz"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no shard. Render some: python -m infu.training.world.dataset {folder}"
        )
    pictures, keypoints, labels = [], [], []
    for path in paths:
        with np.load(path) as arrays:
            pictures.append(arrays["pictures"])
            keypoints.append(arrays["keypoints"])
        labels += [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return Shards(np.concatenate(pictures), np.concatenate(keypoints), labels)


def part_shards(shards: Shards, share: float = 0.03) -> tuple[Shards, Shards]:
    """All but the last pictures, and those: people whom the first part does not show."""
    people = [label["person"]["seed"] for label in shards.labels]
    last = people.index(people[round(len(people) * (1 - share))])
    return tuple(
        Shards(shards.pictures[part], shards.keypoints[part], shards.labels[part])
        for part in (slice(last), slice(last, None))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0, help="seed of the first person")
    parser.add_argument("--people", type=int, default=3000)
    parser.add_argument("--pictures", type=int, default=5, help="of each person")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--height", type=int, default=160)
    parser.add_argument("--part", type=int, default=0, help="this process's, from 0")
    parser.add_argument("--parts", type=int, default=1)
    given = parser.parse_args()
    people, size = range(given.first, given.first + given.people), (given.width, given.height)
    for path in make_shards(given.folder, people, given.pictures, size, given.part, given.parts):
        print(path, flush=True)


if __name__ == "__main__":
    main()
