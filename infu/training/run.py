"""A run from the outside: settings -> weights in `model_dir`; in `run_dir` states, the log, the plot of the
losses, sample pictures. It goes on where it stopped, and stops when asked, after the step it is in."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from infu import GenerationRequest, generate
from infu.errors import NoFaceError
from infu.images import read_photo
from infu.metadata import save_picture
from infu.training.config import Sample, TrainSettings
from infu.training.engine import StepLog, Trainer
from infu.training.plot import draw_losses
from infu.whole import write_whole

LOG, SCORES, PLOT = "log.jsonl", "samples.jsonl", "losses.png"


def train(settings: TrainSettings, say: Callable[[str], None]) -> None:
    """One stage, to its end or until it is stopped (SIGINT, SIGTERM). `say` gets a line a step. Raises
    `InfuError`."""
    for sample in settings.samples:
        read_photo(sample.id_image)  # now, not after the first thousand steps
    trainer = Trainer(settings)
    accelerator = trainer.accelerator
    run_dir = settings.run_dir
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in (LOG, SCORES):
            cut_log(run_dir / name, trainer.step)
        say(f"{len(trainer.shards)} samples; {settings.steps - trainer.step} of {settings.steps} steps to go")
    with stoppable() as asked:
        for log in trainer.steps():
            if accelerator.is_main_process:
                add_line(run_dir / LOG, asdict(log))
                say(tell(log, settings.steps))
            stop = any_process(asked(), accelerator.device)
            last = stop or log.step == settings.steps
            sampled = log.step % settings.sample_every == 0 and bool(settings.samples)
            saved = log.step % settings.save_every == 0
            if last or sampled or saved:
                trainer.export()
                if accelerator.is_main_process:
                    write_whole(run_dir / PLOT, lambda path: draw_losses(read_log(run_dir / LOG), path))
            if sampled or (last and settings.samples):
                draw_samples(trainer)
            if last or saved:
                trainer.save_state()
            if stop:
                break
    accelerator.end_training()


def draw_samples(trainer: Trainer) -> None:
    """The settings' sample pictures with the weights just exported, and how like its person each is."""
    settings = trainer.settings
    if trainer.accelerator.is_main_process:
        backend = trainer.load_exported()
        for i, sample in enumerate(settings.samples):
            path = settings.run_dir / "samples" / f"{trainer.step:08d}-{i}.png"
            likeness = draw_sample(sample, backend, path)
            add_line(settings.run_dir / SCORES, {"step": trainer.step, "sample": i, "likeness": likeness})
    trainer.accelerator.wait_for_everyone()


def draw_sample(sample: Sample, backend: Any, path: Path) -> float | None:
    """A picture into `path` -> the cosine of its face and the photograph's; None where it shows no face."""
    result = generate(GenerationRequest(**dict(sample)), backend)
    write_whole(path, lambda part: save_picture(result.image, part, result.metadata))
    try:
        found = backend.faces.embed([np.asarray(result.image)])
    except NoFaceError:
        return None
    return float(found @ backend.faces.embed([read_photo(sample.id_image)]))


def any_process(asked: bool, device: torch.device | str = "cpu") -> bool:
    """Whether any of the processes was asked to stop: all of them must end at the same step."""
    flag = torch.tensor(float(asked), device=device)
    if dist.is_initialized():
        dist.all_reduce(flag)
    return flag.item() > 0


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yields whether a signal asked to stop; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The log.


def tell(log: StepLog, steps: int) -> str:
    return (
        f"step {log.step} of {steps}  loss {log.loss:.4f}  gradient {log.grad_norm:.3g}  "
        f"rate {log.learning_rate:.3g}  {log.seconds:.2f} s"
    )


def add_line(path: Path, values: dict[str, Any]) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(values) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def cut_log(path: Path, step: int) -> None:
    """Lines of steps after the state that a run goes on from are made again."""
    kept = [json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step]
    if path.is_file():
        write_whole(path, lambda part: part.write_text("".join(kept)))
