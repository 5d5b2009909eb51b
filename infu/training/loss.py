"""Rectified flow (arXiv 2503.16418, eq. 5; arXiv 2403.03206): the velocity from data to noise is learnt.

z = (1 - t) x0 + t eps, the target is eps - x0, t = sigmoid of a standard normal, plain squared error. No
shift of t by picture size: the paper names none.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.pytorch.dit import EACH, Constants, make_constants, velocity
from backends.pytorch.infusenet import infuse
from infu.hooks import Additions

BINS = 10  # of t, in which the loss is logged too: a mean over t hides what happens at either end


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples of one size, encoded. `latents` (B, L, 64): x0; `control` (B, L, 64): the control image's, or
    the hint's, None for a style IP-Adapter; `embedding` (B, E): the face's or the style picture's, None where
    there is a hint; `states` (B, T, joint width) and `pooled` (B, P): the caption, None until it is encoded.
    """

    width: int
    height: int
    latents: Tensor
    control: Tensor | None
    embedding: Tensor | None
    states: Tensor | None
    pooled: Tensor | None

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()})


def draw_noise(
    seed: int, positions: Sequence[int], shape: Sequence[int], time_mean: float = 0.0
) -> tuple[list[float], Tensor]:
    """For the samples at these positions of the run: t in (0, 1), the sigmoid of a normal of this mean and
    deviation 1, and noise float32 (B, *shape).

    A function of the seed and the position alone, so that a run that was stopped, or that is spread over
    other processes, draws the same numbers.
    """
    times, noises = [], []
    for position in positions:
        random = np.random.default_rng((seed, position))
        times.append(float(1 / (1 + np.exp(-time_mean - random.standard_normal()))))
        noises.append(random.standard_normal(shape, dtype=np.float32))
    return times, torch.from_numpy(np.stack(noises))


def mix(latents: Tensor, noise: Tensor, times: Sequence[float]) -> Tensor:
    """x0 and eps (B, L, 64) -> z (B, L, 64)."""
    t = torch.tensor(times, dtype=latents.dtype, device=latents.device)[:, None, None]
    return (1 - t) * latents + t * noise


def flow_error(velocity: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """Squared error of each sample (B,), float32."""
    target = noise.float() - latents.float()
    return F.mse_loss(velocity.float(), target, reduction="none").mean(dim=(1, 2))


def by_time(times: Sequence[float], errors: Sequence[float]) -> tuple[list[float], list[int]]:
    """Errors of samples at `times` -> their sum, and their number, in each of `BINS` equal bins of t."""
    bins = np.minimum((np.asarray(times) * BINS).astype(int), BINS - 1)
    sums = np.bincount(bins, weights=np.asarray(errors, np.float64), minlength=BINS)
    return sums.tolist(), np.bincount(bins, minlength=BINS).tolist()


class FlowLoss(nn.Module, ABC):
    """What trains, a subclass's submodules, with the frozen base beside it: `base` is no submodule, so that
    nothing here saves it, shards it or hands it to an optimiser."""

    def __init__(self, base: nn.Module, guidance_scale: float):
        super().__init__()
        self._held = (base.requires_grad_(False),)
        self._guidance_scale = guidance_scale

    @property
    def base(self) -> nn.Module:
        return self._held[0]

    def forward(self, batch: Batch, noise: Tensor, times: Sequence[float]) -> Tensor:
        """noise (B, L, 64), B times -> the error of each sample (B,)."""
        noisy = mix(batch.latents.float(), noise, times)
        return flow_error(self.velocity(batch, noisy, times), batch.latents, noise)

    @abstractmethod
    def velocity(self, batch: Batch, noisy: Tensor, times: Sequence[float]) -> Tensor:
        """(B, L, 64) -> (B, L, 64): the way of one step of `infu.pipeline`, a time for each sample."""

    def run_base(self, batch: Batch, noisy: Tensor, times: Sequence[float], additions: Additions) -> Tensor:
        """(B, L, 64) -> the base's velocity (B, L, 64), with what is added to it."""
        base, (states, guidance) = self.base, (batch.states, self._guidance_scale)
        constants = make_batch_constants(base, batch, times, states, guidance)
        return velocity(base, constants, EACH, noisy.to(base.dtype), additions)

    def run_side(
        self,
        side: nn.Module,
        batch: Batch,
        noisy: Tensor,
        times: Sequence[float],
        states: Tensor,
        guidance_scale: float,
    ) -> Tensor:
        """The same with the residuals of `side`, a ControlNet or InfuseNet, which reads `states` as its
        text."""
        constants = make_batch_constants(side, batch, times, states, guidance_scale)
        residuals = infuse(side, constants, EACH, noisy.to(side.dtype), batch.control.to(side.dtype), 1.0)
        return self.run_base(batch, noisy, times, Additions(residuals=(residuals.to(self.base.dtype),)))


def make_batch_constants(
    network: nn.Module, batch: Batch, times: Sequence[float], states: Tensor, guidance_scale: float
) -> Constants:
    """Those of a network whose samples have a time each."""
    of_text = (states.to(network.dtype), batch.pooled.to(network.dtype), guidance_scale)
    return make_constants(network, [*times, 0.0], batch.width, batch.height, *of_text)


class InfuseLoss(FlowLoss):
    """InfuseNet and the projection."""

    def __init__(self, infusenet: nn.Module, projection: nn.Module, base: nn.Module, guidance_scale: float):
        super().__init__(base, guidance_scale)
        self.infusenet, self.projection = infusenet, projection

    def velocity(self, batch: Batch, noisy: Tensor, times: Sequence[float]) -> Tensor:
        identity = self.projection(batch.embedding.to(self.projection.latents.dtype))  # (B, 8, joint width)
        return self.run_side(self.infusenet, batch, noisy, times, identity, 1.0)


class ControlNetLoss(FlowLoss):
    """A ControlNet, which reads the text and the guidance that the base reads, and a hint."""

    def __init__(self, controlnet: nn.Module, base: nn.Module, guidance_scale: float):
        super().__init__(base, guidance_scale)
        self.controlnet = controlnet

    def velocity(self, batch: Batch, noisy: Tensor, times: Sequence[float]) -> Tensor:
        return self.run_side(self.controlnet, batch, noisy, times, batch.states, self._guidance_scale)
