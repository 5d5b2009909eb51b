"""What a LoRA does to one weight, in the form its file holds it: never multiplied out, as that costs memory.

The formulas are LyCORIS' (github.com/KohakuBlueleaf/LyCORIS, `docs/Algo-List.md`) and DoRA's
(arXiv 2402.09353).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Rows = tuple[slice, ...]  # which rows of a file's module one of ours takes, in this order


@dataclass(frozen=True, eq=False)
class LowRank:
    """up (out, r) @ down (r, in)."""

    down: np.ndarray
    up: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.up.shape[0], self.down.shape[1]

    def take(self, rows: Rows) -> "LowRank":
        return LowRank(self.down, take(self.up, rows))

    def columns(self, part: slice) -> "LowRank":
        return LowRank(self.down[:, part], self.up)


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: kron(w1, w2), of whose rows `rows` are used, or all."""

    w1: np.ndarray
    w2: np.ndarray
    rows: Rows | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w1.shape[0] * self.w2.shape[0], self.w1.shape[1] * self.w2.shape[1]

    def take(self, rows: Rows) -> "Kronecker":
        return Kronecker(self.w1, self.w2, rows)


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: (w1_a @ w1_b) * (w2_a @ w2_b), element by element."""

    w1_a: np.ndarray
    w1_b: np.ndarray
    w2_a: np.ndarray
    w2_b: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w1_a.shape[0], self.w1_b.shape[1]

    def take(self, rows: Rows) -> "Hadamard":
        return Hadamard(take(self.w1_a, rows), self.w1_b, take(self.w2_a, rows), self.w2_b)

    def columns(self, part: slice) -> "Hadamard":
        return Hadamard(self.w1_a, self.w1_b[:, part], self.w2_a, self.w2_b[:, part])


@dataclass(frozen=True, eq=False)
class Dense:
    """The difference itself, of a weight of any shape."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def take(self, rows: Rows) -> "Dense":
        return Dense(take(self.values, rows))

    def columns(self, part: slice) -> "Dense":
        return Dense(self.values[:, part])


@dataclass(frozen=True, eq=False)
class Replacement:
    """A norm's own weight (d,) in place of the network's: W + scale * (values - W)."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def take(self, rows: Rows) -> "Replacement":
        return Replacement(take(self.values, rows))


Matrix = LowRank | Kronecker | Hadamard | Dense | Replacement


@dataclass(frozen=True, eq=False)
class Magnitude:
    """DoRA: the length that each row (out,) of W + change gets, or each column (in,). A column's length runs
    over the rows of all `modules`: those that are one in the file."""

    values: np.ndarray
    by_column: bool
    modules: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Change:
    """One module's: W + scale * factor * matrix and bias + scale * `bias`, with `magnitude` DoRA's
    W + scale * (W' - W). `bias` is float32 (out,), its factor within. `control`: x_embedder's columns for the
    latents of a control picture, which scale * factor multiplies too; the network has none such."""

    matrix: Matrix | None
    factor: float = 1.0
    bias: np.ndarray | None = None
    magnitude: Magnitude | None = None
    control: Matrix | None = None


Changes = Mapping[str, Change]  # module name -> what one file does to it


@dataclass(frozen=True, eq=False)
class ControlPicture:
    """What a control LoRA adds to x_embedder's output at every step: factor * `matrix` (D, 64) times the
    picture's `latents` (1, L, 64), a backend's array."""

    matrix: Matrix
    factor: float
    latents: Any


def take(array: np.ndarray, rows: Rows) -> np.ndarray:
    """These rows of an array; a view where they are in one piece."""
    return array[rows[0]] if len(rows) == 1 else np.concatenate([array[part] for part in rows])
