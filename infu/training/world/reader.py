"""What a picture shows, read back by a small network that learnt on renders alone.

`PICTURE` reads a whole picture: did it obey its prompt? `HEAD` reads the aligned head of a photograph: it is
the appearance part of the mini model's face encoder (infu/recognisers.py), and so learns to bear what renders
never show: other cameras, other light, blur, noise, a face that was found a little beside its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infu.align import crop_head
from infu.training.minibase.runs import Loss, Run, load_average
from infu.training.world.dataset import Shards
from infu.training.world.people import COLOURS, EXPRESSIONS, HAIR, HAIRCUTS, PLACES

WIDTHS = (16, 32, 64, 96, 128)  # of the convolutions, each at half the size of the one before
WHITE = 255.0
UNSEEN = -1  # in place of a choice
NUMBERS = 10.0  # their error against that of a choice
MOVED, NUDGED = 0.02, 0.025  # deviations of the five points, together and each, of the face's size


@dataclass(frozen=True)
class Facts:
    """`choices`: of each fact its possible values; `numbers`: those that are numbers, 0..1, and how many."""

    choices: Mapping[str, tuple]
    numbers: Mapping[str, int]


PICTURE = Facts(
    {
        "hair": tuple(HAIR),
        "colour": tuple(COLOURS),
        "backdrop": (*COLOURS, *PLACES),
        "expression": tuple(EXPRESSIONS),
        "glasses": ("", "round", "square", "sun"),
        "hat": ("", "beanie", "cap", "sun hat"),
    },
    {},
)
HEAD = Facts(
    {
        "male": (False, True),
        "hair": tuple(HAIR),
        "haircut": HAIRCUTS,
        "fringe": (False, True),
        "beard": ("", "stubble", "moustache", "goatee", "beard"),
        "glasses": ("", "round", "square", "sun"),
    },
    {"skin": 3, "age": 1},
)


class Reader(nn.Module):
    """RGB (B, 3, H, W), 0..255, float32 -> (B, facts): scores of each choice, then the numbers."""

    def __init__(self, facts: Facts):
        super().__init__()
        torch.manual_seed(0)
        self.facts = facts
        sizes = zip((3, *WIDTHS), WIDTHS, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in sizes)
        self.head = nn.Linear(WIDTHS[-1], sum(self.widths.values()))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # no norms: five layers need none
            nn.init.zeros_(conv.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures / (WHITE / 2) - 1
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.head(x.mean(dim=(2, 3)))

    @property
    def widths(self) -> dict[str, int]:
        """How many columns of its output each fact has."""
        return {name: len(values) for name, values in self.facts.choices.items()} | self.facts.numbers

    def split(self, read: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.widths, read.split([*self.widths.values()], dim=1), strict=True))

    @torch.no_grad()
    def read(self, pictures: np.ndarray) -> dict[str, list]:
        """uint8 (B, H, W, 3) -> of each fact its likeliest value in each picture."""
        parts = self.split(self.eval()(to_tensor(pictures)))
        found = {name: parts[name].argmax(1).tolist() for name in self.facts.choices}
        return {name: [self.facts.choices[name][i] for i in places] for name, places in found.items()}


FACTS = {"head": HEAD, "picture": PICTURE}


def open_reader(run: Path, of: str, steps: int) -> Run:
    """`of`: one of FACTS."""
    reader = Reader(FACTS[of])
    return Run(run / of, reader, [torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-4)], steps)


def load_reader(run: Path, of: str) -> Reader:
    return load_average(Reader(FACTS[of]), run / of)


def loss_of_reader(reader: Reader, shards: Shards, batch: int, seed: int, step: int) -> Loss:
    """Pictures, or heads, made worse at random; what cannot be seen is not asked for."""
    rng = np.random.default_rng((seed, step, 6))
    numbers = rng.integers(len(shards.pictures), size=batch)
    is_head = reader.facts is HEAD
    pictures = np.stack([view(shards, n, is_head, rng) for n in numbers])
    parts, labels = reader.split(reader(to_tensor(pictures))), [shards.labels[n] for n in numbers]
    error = torch.zeros(())
    for name, values in reader.facts.choices.items():
        wanted = [values.index(truth(label, name)) if visible(label, name) else UNSEEN for label in labels]
        errors = F.cross_entropy(parts[name], torch.tensor(wanted), ignore_index=UNSEEN, reduction="none")
        error = error + errors.mean()
    for name in reader.facts.numbers:
        numbers = torch.from_numpy(np.stack([number(label, name) for label in labels]))
        error = error + NUMBERS * F.mse_loss(parts[name], numbers)
    return Loss(error)


def truth(label: Mapping, name: str):
    """What changes from picture to picture comes before what stays the person's."""
    return label["look"].get(name, label["person"].get(name))


def visible(label: Mapping, name: str) -> bool:
    look = label["look"]
    if name == "hair":
        return look["haircut"] != "bald" and look["style"] != "drawing"
    if name in ("colour", "backdrop") and look["style"] == "drawing":
        return name == "backdrop" and look["backdrop"] in PLACES
    return not (name in ("haircut", "fringe") and look["hat"])


def number(label: Mapping, name: str) -> np.ndarray:
    value = np.atleast_1d(np.asarray(truth(label, name), np.float32))
    return value / WHITE if name == "skin" else value


def view(shards: Shards, n: int, is_head: bool, rng: np.random.Generator) -> np.ndarray:
    picture, points = shards.pictures[n], shards.keypoints[n]
    if is_head:
        picture = crop_head(picture, nudge(points, rng))
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    return worsen(picture, rng, 1.0 if is_head else 0.4)


def nudge(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Five points (5, 2) as a detector might find them."""
    moves = rng.normal(0, MOVED, 2) + rng.normal(0, NUDGED, (5, 2))
    return points + moves * np.ptp(points, axis=0).max()


def worsen(picture: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Another camera: gain, tint, contrast, saturation, light from a side, blur, noise. uint8 -> uint8."""
    x = picture.astype(np.float32) / WHITE
    if rng.random() < 0.8:
        x = x ** np.exp(rng.normal(0, 0.3) * strength)
        x = x * np.exp(rng.normal(0, 0.15 * strength) + rng.normal(0, 0.06 * strength, 3))
        grey = x.mean(2, keepdims=True)
        x = grey + (x - grey) * np.exp(rng.normal(0, 0.3 * strength))
        down, right = (np.linspace(-1, 1, length) * rng.normal(0, 0.2 * strength) for length in x.shape[:2])
        x = x * (1 + down[:, None, None] + right[None, :, None])
    if rng.random() < 0.3:
        x = cv2.GaussianBlur(np.ascontiguousarray(x, np.float32), (0, 0), rng.uniform(0.4, 0.5 + strength))
    if rng.random() < 0.5:
        x = x + rng.normal(0, rng.uniform(0, 0.06) * strength, x.shape)
    return np.rint(np.clip(x, 0, 1) * WHITE).astype(np.uint8)


def to_tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float()


def measure(reader: Reader, shards: Shards) -> dict[str, float]:
    """The share of pictures in which each fact is read as it is, of those where it can be seen."""
    is_head = reader.facts is HEAD
    views = shards.pictures
    if is_head:
        views = np.stack([crop_head(*seen) for seen in zip(views, shards.keypoints, strict=True)])
    found = reader.read(views)
    return {name: share(values, shards.labels, name) for name, values in found.items()}


def share(values: Sequence, labels: Sequence[Mapping], name: str) -> float:
    pairs = zip(values, labels, strict=True)
    return float(np.mean([value == truth(label, name) for value, label in pairs if visible(label, name)]))
