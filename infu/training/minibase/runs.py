"""A run of steps in its folder: state, EMA, log. What a step computes is the caller's; a run that was stopped
goes on by the same call, and is then the run that was not stopped. Several processes (torchrun) make one run:
each has its part of every batch, and their gradients are averaged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infu.errors import NonFiniteError
from infu.training.run import LOG, add_line, cut_log
from infu.whole import write_whole

STATE = "state.pt"
WARM_UP = 100
EMA = 0.999  # at the end; earlier (1 + step) / (10 + step), which forgets the beginning


@dataclass(frozen=True)
class StepLog:
    """Of the first process. `seconds`, of the wall, and `processor`, of its cores, since the run began; stops
    are not counted."""

    step: int
    loss: float
    learning_rate: float
    seconds: float
    processor: float
    sums: Sequence[float] = ()
    counts: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class Loss:
    """`value` is minimised; what else is logged of it."""

    value: Tensor
    sums: Sequence[float] = ()
    counts: Sequence[int] = ()


class Run:
    """`network` learns, `ema` is its average: what is sampled and exported."""

    def __init__(self, folder: Path, network: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int):
        self.folder, self.network, self.optimizers, self.steps = folder, network, optimizers, steps
        self.ema = [p.detach().clone() for p in network.parameters()]
        self.step, self._seconds, self._processor = 0, 0.0, 0.0
        shared = dist.is_initialized()
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        if (folder / STATE).is_file():
            self._load()
        if self.rank == 0 and (folder / LOG).is_file():
            cut_log(folder / LOG, self.step)

    def go(self, loss_of: Callable[[int], Loss]) -> Iterator[StepLog]:
        """The steps that are left. `loss_of` gets a number that no other step or process has: its part of the
        data. When a log comes out its step is done, and may be saved."""
        while self.step < self.steps:
            wall, processor = time.perf_counter(), time.process_time()
            rate = rate_of(self.step, self.steps)
            for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
                for group, own in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = own * rate
            loss = loss_of(self.step * self.processes + self.rank)
            if not torch.isfinite(loss.value):
                raise NonFiniteError(f"The loss is {loss.value.item()} at step {self.step}. Lower the rate.")
            loss.value.backward()
            self._share_gradients()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                share = 1 - min(EMA, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(self.ema, list(self.network.parameters()), share)
            self.step += 1
            self._seconds += time.perf_counter() - wall
            self._processor += time.process_time() - processor
            log = StepLog(
                self.step, loss.value.item(), rate, self._seconds, self._processor, loss.sums, loss.counts
            )
            if self.rank == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                add_line(self.folder / LOG, asdict(log))
            yield log

    def _share_gradients(self) -> None:
        """Each process's own become their mean."""
        if self.processes > 1:
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            parts = flat.div_(self.processes).split([g.numel() for g in gradients])
            torch._foreach_copy_(
                gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
            )

    def save(self) -> None:
        if self.rank:
            return
        state = {
            "step": self.step,
            "seconds": self._seconds,
            "processor": self._processor,
            "network": self.network.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_whole(self.folder / STATE, lambda part: torch.save(state, part))

    def _load(self) -> None:
        state = torch.load(self.folder / STATE, weights_only=True)
        self.step, self._seconds, self._processor = state["step"], state["seconds"], state["processor"]
        self.network.load_state_dict(state["network"])
        self.ema = state["ema"]
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)


def rate_of(step: int, steps: int) -> float:
    """Of the learning rate: warm-up, then all of it, then down to a twentieth over the last third."""
    left = (steps - step) / (steps / 3)
    return min(1.0, (step + 1) / WARM_UP, max(0.05, left))


def load_average(network: nn.Module, folder: Path) -> nn.Module:
    """The EMA weights of the run in `folder`, put into a network like the one that learnt."""
    average = torch.load(folder / STATE, weights_only=True)["ema"]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), average, strict=True):
            parameter.copy_(value)
    return network.eval().requires_grad_(False)
