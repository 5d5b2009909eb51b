"""The rectified-flow schedule: number of steps and picture size -> sigmas from 1 to 0."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infu.weights.checkpoint import has_guidance

if TYPE_CHECKING:
    from infu.models import ModelFiles


@dataclass(frozen=True)
class Scheduler:
    """The fields of `scheduler_config.json` that the flow depends on."""

    use_dynamic_shifting: bool
    shift: float
    base_shift: float
    max_shift: float
    base_image_seq_len: int
    max_image_seq_len: int


def read_scheduler(path: Path) -> Scheduler:
    """`scheduler_config.json` -> Scheduler. schnell's file leaves out what it does not use."""
    values = SCHNELL | json.loads(path.read_text())
    return Scheduler(**{f.name: values[f.name] for f in fields(Scheduler)})


def read_flow(files: ModelFiles) -> tuple[Scheduler, bool]:
    """A model's schedule, and whether it takes a guidance scale. A schnell transformer in the base folder of
    another model has schnell's schedule all the same."""
    scheduler, guidance = (
        read_scheduler(files.scheduler / "scheduler_config.json"),
        has_guidance(files.transformer),
    )
    if not guidance and files.transformer != files.base / "transformer":
        scheduler = unshifted(scheduler)
    return scheduler, guidance


def unshifted(scheduler: Scheduler) -> Scheduler:
    """The same without any shift, as schnell's."""
    return replace(scheduler, use_dynamic_shifting=False, shift=1.0)


SCHNELL = {  # diffusers' defaults for the fields a config may leave out (FlowMatchEulerDiscreteScheduler)
    "use_dynamic_shifting": False,
    "shift": 1.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def make_sigmas(num_steps: int, num_tokens: int, scheduler: Scheduler) -> list[float]:
    """`num_steps` + 1 sigmas, 1 down to 0, shifted for `num_tokens` image tokens (arXiv 2403.03206, 5.3.2;
    BFL `sampling.py` get_schedule)."""
    sigmas = np.linspace(1.0, 1.0 / num_steps, num_steps)
    if scheduler.use_dynamic_shifting:
        slope = (scheduler.max_shift - scheduler.base_shift) / (
            scheduler.max_image_seq_len - scheduler.base_image_seq_len
        )
        mu = scheduler.base_shift + slope * (num_tokens - scheduler.base_image_seq_len)
        factor = math.exp(mu)
    else:
        factor = scheduler.shift
    shifted = factor * sigmas / (1.0 + (factor - 1.0) * sigmas)
    return [*shifted.tolist(), 0.0]


def in_window(step: int, num_steps: int, start: float, end: float) -> bool:
    """Whether step `step` of N (0-based) counts: a pair of inclusive bounds, of where a step begins and where
    it ends, as InfuseNet's and diffusers' ControlNets'."""
    return step / num_steps >= start and (step + 1) / num_steps <= end
