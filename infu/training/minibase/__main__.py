"""`python -m infu.training.minibase COMMAND RUN`: each command goes on where it stopped.

On N cores, N processes of one thread are faster than one of N threads:
`torchrun --nproc-per-node N -m infu.training.minibase COMMAND RUN`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.distributed as dist
import typer

from backends import load_backend
from infu.errors import InfuError
from infu.images import read_photo
from infu.models import APPEARANCE, list_versions, locate
from infu.recognisers import load_recogniser
from infu.training.judge import Judge
from infu.training.minibase import autoencoder, data, diffusion, identities
from infu.training.minibase import lora as loras
from infu.training.minibase import table as tables
from infu.training.minibase.export import export as export_base
from infu.training.minibase.export import load_trained_base
from infu.training.minibase.faces import make_face_encoder
from infu.training.minibase.latents import load_latents
from infu.training.minibase.networks import make_base
from infu.training.minibase.plugins import write_hints, write_styles
from infu.training.minibase.runs import LOG, Run, load_average
from infu.training.minibase.tower import write_tower
from infu.training.plot import draw_losses
from infu.training.run import any_process, read_log, stoppable
from infu.training.shards import keep_appearance
from infu.training.world import reader as readers
from infu.training.world.dataset import part_shards, read_shards
from infu.training.world.renderer import Renderer
from infu.whole import write_whole

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Argument(help="the run's folder")]
Pictures = Annotated[Path, typer.Option(help="the shards of `python -m infu.training.world.dataset`")]
Steps = Annotated[int, typer.Option(min=1, help="in all; the rate falls over the last third")]
Batch = Annotated[int, typer.Option(min=1)]
Threads = Annotated[int, typer.Option(min=1, help="of PyTorch, in each process")]
Every = Annotated[int, typer.Option(min=1, help="steps between two states, and two sheets of samples")]
SEED, SAID = 0, 20
EMBEDDINGS = "embeddings.npy"


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
def reader(
    run: Folder,
    pictures: Pictures,
    of: Annotated[Literal["head", "picture"], typer.Option(help="what it reads")],
    steps: Steps = 5000,
    batch: Batch = 32,
    threads: Threads = 1,
) -> None:
    """What a head or a whole picture shows. The last shard stays unseen, and is what it is measured on."""
    torch.set_num_threads(threads)
    seen, unseen = part_shards(read_shards(pictures))
    training = readers.open_reader(run, of, steps)
    network = training.network
    go(training, lambda step: readers.loss_of_reader(network, seen, batch, SEED, step), 500)
    right = readers.measure(readers.load_reader(run, of), unseen)
    write_whole(run / f"{of}.json", lambda part: part.write_text(json.dumps(right, indent=2) + "\n"))
    typer.echo(f"read rightly: {right}")


@app.command()
def faces(run: Folder, pictures: Pictures) -> None:
    """The face encoder, from the head's reader; and what it says of every picture."""
    shards = read_shards(pictures)
    make_face_encoder(readers.load_reader(run, "head"), shards, run / APPEARANCE)
    identities.embed_all(load_recogniser(run / APPEARANCE), shards, run / EMBEDDINGS)


@app.command()
def hints(
    run: Folder,
    pictures: Pictures,
    base: Annotated[Path, typer.Option(help="what `export` wrote")],
    out: Annotated[Path, typer.Option()],
) -> None:
    """A canny ControlNet's samples for `python -m infu train`."""
    write_hints(run, load_backend("pytorch", base, dtype="float32"), read_shards(pictures), out)


@app.command()
def styles(
    run: Folder,
    pictures: Pictures,
    base: Annotated[Path, typer.Option(help="what `export` wrote")],
    encoder: Annotated[Path, typer.Option(help="SigLIP's folder; made, tiny, where there is none")],
    out: Annotated[Path, typer.Option()],
) -> None:
    """A style IP-Adapter's samples for `python -m infu train`, and the image encoder it will read by."""
    if not encoder.exists():
        write_tower(encoder)
    write_styles(run, load_backend("pytorch", base, dtype="float32"), read_shards(pictures), encoder, out)


@app.command()
def samples(
    run: Folder,
    pictures: Pictures,
    base: Annotated[Path, typer.Option()],
    out: Annotated[Path, typer.Option()],
) -> None:
    """Stage 1's samples for `python -m infu train`, encoded with `base`, which `export` wrote."""
    network = load_average(make_base(run), run / diffusion.DIT)
    name = locate(base_model_path=base).name
    identities.write_identities(run, network, name, read_shards(pictures), np.load(run / EMBEDDINGS), out)
    keep_appearance(out, run / APPEARANCE)


@app.command()
def lora(
    run: Folder,
    pictures: Pictures,
    out: Annotated[Path, typer.Option(help="a safetensors file")],
    of: Annotated[Literal["realism", "anti_blur"], typer.Option(help="what it is for")],
    steps: Steps = 200,
    batch: Batch = 16,
    threads: Threads = 1,
) -> None:
    """One of InfiniteYou's two optional LoRAs, for this base."""
    torch.set_num_threads(threads)
    encoded = data.choose(data.load_encoded(run, read_size(run)), loras.CHOICES[of](read_shards(pictures)))
    training = loras.open_lora(run, of, load_trained_base(run), steps)
    network = training.network
    go(training, lambda step: diffusion.loss_of_dit(network.base, encoded, batch, SEED, step), 100)
    loras.save_lora(network, out)


@app.command()
def photos(
    pictures: Pictures,
    out: Annotated[Path, typer.Argument(help="men/, men.txt, women/ and women.txt come into it")],
    people: Annotated[int, typer.Option(min=1, help="of each sex")] = 100,
) -> None:
    """Stage 2's sources: a photograph of each of some people, and prompts that fit them."""
    identities.write_photos(read_shards(pictures), out, people)


@app.command()
def table(
    run: Folder,
    base: Annotated[Path, typer.Option(help="what `export` wrote")],
    model_dir: Annotated[Path, typer.Option("--model_dir", help="InfiniteYou, trained on it")],
    judge: Annotated[Path, typer.Option(help="faceapi_resnet128_u8.onnx")],
    ip_adapter: Annotated[
        Path | None, typer.Option("--ip_adapter", help="an identity IP-Adapter, to compare")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Likeness and obedience on unseen people: the table of docs/training.md, as Markdown."""
    torch.set_num_threads(threads)
    people, read = tables.make_people(Renderer(*read_size(run))), readers.load_reader(run, "picture")
    judging = Judge(judge)
    backends = {
        version: load_backend("pytorch", base, model_dir=model_dir, model_version=version, dtype="float32")
        for version in list_versions(model_dir)
    }
    any_backend = next(iter(backends.values()))
    draws = {version: tables.make_draw(backend) for version, backend in backends.items()}
    if ip_adapter is not None:
        draws["identity IP-Adapter"] = tables.make_draw(any_backend, adapter=ip_adapter)
    draws |= {"plain base": tables.make_draw(any_backend, with_face=False), "true renders": tables.draw_true}
    rows = {}
    for name, draw in draws.items():
        rows[name] = tables.measure(people, judging, read, draw)
        typer.echo(f"{name}: {rows[name]}", err=True)
    typer.echo(tables.as_markdown(rows))
    for version, backend in backends.items():
        far = tables.measure_scales(
            people, judging, lambda scale, b=backend: tables.make_draw(b, scale=scale)
        )
        typer.echo(f"{version}, distance by scale: " + ", ".join(f"{k:g}: {v:.3f}" for k, v in far.items()))


@app.command()
def sheet(
    run: Folder,
    base: Annotated[Path, typer.Option(help="what `export` wrote")],
    model_dir: Annotated[Path, typer.Option("--model_dir", help="InfiniteYou, trained on it")],
    out: Annotated[Path, typer.Option(help="a PNG")],
    photo: Annotated[list[Path], typer.Option(help="photographs of women")] = (),
    version: str = "aes_stage2",
    people: Annotated[int, typer.Option(help="unseen renders below the photographs")] = 4,
    threads: Threads = 1,
) -> None:
    """Photographs and unseen renders against the table's prompts."""
    torch.set_num_threads(threads)
    size = read_size(run)
    given = [(read_photo(path), "woman") for path in photo]
    given += [(one.photo.picture, one.word) for one in tables.make_people(Renderer(*size), people)]
    backend = load_backend("pytorch", base, model_dir=model_dir, model_version=version, dtype="float32")
    tables.draw_sheet(backend, given, size).save(out)


@app.command()
def export(
    run: Folder,
    folder: Annotated[Path, typer.Argument(help="what base_model_path then names")],
    guided: Annotated[
        bool, typer.Option(help="with guidance distilled; without: what InfuseNet learns by")
    ] = True,
) -> None:
    """The newest weights, in FLUX.1-dev's layout."""
    export_base(run, folder, read_size(run), guided)


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
            stop = any_process(asked())
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
