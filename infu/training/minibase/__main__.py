"""`python -m infu.training.minibase COMMAND RUN`: each command goes on where it stopped.

On N cores, N processes of one thread are faster than one of N threads:
`torchrun --nproc-per-node N -m infu.training.minibase COMMAND RUN`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from infu.errors import InfuError
from infu.training.minibase import autoencoder, data, diffusion
from infu.training.minibase.export import export as export_base
from infu.training.minibase.latents import load_latents
from infu.training.minibase.networks import make_base
from infu.training.minibase.runs import LOG, Run
from infu.training.plot import draw_losses
from infu.training.run import read_log, stoppable
from infu.training.world.dataset import read_shards
from infu.whole import write_whole

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Argument(help="the run's folder")]
Pictures = Annotated[Path, typer.Option(help="the shards of `python -m infu.training.world.dataset`")]
Steps = Annotated[int, typer.Option(min=1, help="in all; the rate falls over the last third")]
Batch = Annotated[int, typer.Option(min=1)]
Threads = Annotated[int, typer.Option(min=1, help="of PyTorch, in each process")]
Every = Annotated[int, typer.Option(min=1, help="steps between two states, and two sheets of samples")]
SEED, SAID = 0, 20


@app.command()
def encode(run: Folder, pictures: Pictures) -> None:
    """Pictures and captions -> latents and token ids. Again when there are more pictures."""
    data.encode(pictures, run, typer.echo)
    shape = read_shards(pictures).pictures.shape
    write_whole(run / "size.json", lambda part: part.write_text(json.dumps([shape[2], shape[1]])))


@app.command()
def dit(
    run: Folder, steps: Steps = 60_000, batch: Batch = 16, threads: Threads = 1, every: Every = 250
) -> None:
    """Text encoders and DiT from captions."""
    torch.set_num_threads(threads)
    encoded, training = data.load_encoded(run, read_size(run)), diffusion.open_dit(run, steps)

    def sample(step: int) -> None:
        sampled = make_base(run)
        with torch.no_grad():
            for parameter, average in zip(sampled.parameters(), training.ema, strict=True):
                parameter.copy_(average)
        diffusion.draw_samples(run, sampled, encoded, training.folder / "samples" / f"{step:07}.png")
        write_whole(
            training.folder / "losses.png", lambda part: draw_losses(read_log(training.folder / LOG), part)
        )

    network = training.network
    go(training, lambda step: diffusion.loss_of_dit(network, encoded, batch, SEED, step), every, sample)


@app.command()
def distil(
    run: Folder, steps: Steps = 3000, batch: Batch = 16, threads: Threads = 1, every: Every = 250
) -> None:
    """Guidance into the DiT's guidance embedding: one pass then does what two did."""
    torch.set_num_threads(threads)
    encoded, training = data.load_encoded(run, read_size(run)), diffusion.open_distilled(run, steps)
    student = training.network
    go(training, lambda step: diffusion.loss_of_distilled(student, encoded, batch, SEED, step), every)


@app.command()
def decoder(
    run: Folder, pictures: Pictures, steps: Steps = 8000, batch: Batch = 4, threads: Threads = 1
) -> None:
    """Latents -> pictures."""
    train_half(run, pictures, autoencoder.DECODER, autoencoder.loss_of_decoder, steps, batch, threads)


@app.command()
def encoder(
    run: Folder, pictures: Pictures, steps: Steps = 4000, batch: Batch = 4, threads: Threads = 1
) -> None:
    """Pictures -> latents."""
    train_half(run, pictures, autoencoder.ENCODER, autoencoder.loss_of_encoder, steps, batch, threads)


@app.command()
def export(
    run: Folder, folder: Annotated[Path, typer.Argument(help="what base_model_path then names")]
) -> None:
    """The newest weights, in FLUX.1-dev's layout."""
    export_base(run, folder, read_size(run))


def train_half(run: Path, pictures: Path, name: str, loss_of, steps: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    shards, latents = read_shards(pictures), load_latents(run / "latents.npz")
    training = autoencoder.open_half(run, name, steps)
    go(training, lambda step: loss_of(training.network, latents, shards, batch, SEED, step), 200)


def go(training: Run, loss_of, every: int, sample=lambda step: None) -> None:
    """To the end, or until a signal asks to stop; saved each time `every` steps are done, and at the end."""
    recent = []
    with stoppable() as asked:
        for log in training.go(loss_of):
            recent = [*recent[1 - SAID :], log.loss]
            stop = training.any_asked(asked())
            last = stop or log.step == training.steps
            if training.rank == 0 and (log.step % SAID == 0 or last):
                mean, minutes = sum(recent) / len(recent), log.seconds / 60
                typer.echo(f"step {log.step} of {training.steps}  loss {mean:.4f}  {minutes:.1f} minutes")
            if log.step % every == 0 or last:
                training.save()
                if training.rank == 0:
                    sample(log.step)
            if stop:
                break


def read_size(run: Path) -> tuple[int, int]:
    width, height = json.loads((run / "size.json").read_text())
    return width, height


def main() -> None:
    if "RANK" in os.environ:  # torchrun's
        dist.init_process_group("gloo")
    try:
        app(standalone_mode=True)
    except InfuError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
