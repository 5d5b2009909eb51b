"""The hooks through which a network beside the DiT adds to it: InfuseNet, ControlNets, IP-Adapters, PuLID,
OminiControl. (The fourth, weight deltas of a LoRA, is in infu/weights/lora.py.)

Arrays and what computes with them are the backend's own. B batch, L image tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from backends.base import Array, Text


@dataclass(frozen=True, eq=False)
class Additions:
    """What is added to the DiT in one step of one pass: each field is a hook and holds an entry per network
    that adds there. Within a hook they are summed, so their order means nothing.

    `residuals`: a backend's `dit.Residuals`, to the image tokens after each block, spread over the blocks by
    `dit.sample_for` (a network with another rule gives as many samples as the base has blocks).
    The others are functions by the number of the block, the double ones counted first:
    `branches`: the block's queries after their norm and before RoPE (the image's in a double block, text and
    image in a single one; laid out as `dit.py` says) -> (B, rows, D), to the attention's output before
    `to_out`, in a single block before the MLP joins it (InstantX's IP-Adapter).
    `after`: the same of a double block, to its image tokens after the MLP (XLabs' IP-Adapter).
    `functions`: the image tokens (B, L, D) as the block left them -> (B, L, D), to these tokens (PuLID).
    `conditions`: the block's keys, in their positions, and values, of text and image -> those of further
    tokens, and a number that is added to the scores with them (OminiControl).
    """

    residuals: tuple[Any, ...] = ()
    branches: tuple[Mapping[int, Callable[[Array], Array]], ...] = ()
    after: tuple[Mapping[int, Callable[[Array], Array]], ...] = ()
    functions: tuple[Mapping[int, Callable[[Array], Array]], ...] = ()
    conditions: tuple[Mapping[int, Callable[[Array, Array], tuple[Array, Array, float]]], ...] = ()

    def at(self, hook: str, block: int) -> list[Callable[[Array], Array]]:
        """The functions of one hook at one block."""
        return [functions[block] for functions in getattr(self, hook) if block in functions]

    @property
    def computes(self) -> bool:
        """Whether it holds more than residuals: then there is no compiled step."""
        return bool(self.branches or self.after or self.functions or self.conditions)


NOTHING = Additions()


def total(parts: Iterable[Additions]) -> Additions:
    """What several networks add, together."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    return Additions(*(sum((getattr(part, f.name) for part in parts), ()) for f in fields(Additions)))


@dataclass(frozen=True, eq=False)
class Run:
    """What the pictures of one request share, for those who make a `Runner` of it. `width`, `height`: the
    run's, multiples of 16, of which the picture that was asked for, `size`, is the top left; `sigmas`: N + 1
    floats, 1 -> 0; `negative` is None where there is no negative pass."""

    sigmas: Sequence[float]
    width: int
    height: int
    text: Text
    negative: Text | None
    guidance_scale: float
    size: tuple[int, int]

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True, eq=False)
class Infused:
    """One person for InfuseNet: identity tokens (1, 8, 4096), control latents (1, L, 64), strength, and where
    that person may be, float32 (1, L, 4) at the four latent pixels of each token; None: everywhere, alone."""

    identity: Array
    control: Array
    scale: float
    mask: np.ndarray | None


class Runner(ABC):
    """One network beside the DiT, ready to run: what is constant over a request is computed when it is made.
    It is asked in every step, for the negative pass after the positive one, so it may keep in between what
    both passes take (diffusers' ControlNets); it keeps nothing from one step or picture to the next."""

    notes: tuple[str, ...] = ()  # what the user should know
    image_guidance: float = 1.0  # beyond 1: what its picture changes, changes so many times as much
    blind: Runner | None = None  # the same with a black picture, where that is asked for

    @abstractmethod
    def add(self, step: int, latents: Array, negative: bool) -> Additions:
        """What this step adds to that pass; `NOTHING` outside a window, or where a rule says so (InfuseNet
        adds nothing to the negative pass). `latents`: (1, L, 64)."""


@dataclass(frozen=True, eq=False)
class Steady(Runner):
    """Adds the same in each of its `steps`, whatever the latents: what attends to a picture or a face."""

    steps: frozenset[int]
    positive: Additions
    negative: Additions

    def add(self, step: int, latents: Array, negative: bool) -> Additions:
        if step not in self.steps:
            return NOTHING
        return self.negative if negative else self.positive
