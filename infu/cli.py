"""The command line: `python -m infu generate | batch | download | hint | quantize | info | inspect |
make-data | train`.

Exit codes: 0; 1 for an error its reader can put right; 2 for wrong usage; 70 for a fault of InfU's own; 130
for Ctrl-C. Standard output holds results only; progress, notes and errors go to standard error.
"""

import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from PIL import Image

from infu.batch import read_batch
from infu.errors import InfuError, InvalidRequest, MissingFile, ModelError
from infu.models import NAMED_LORAS
from infu.options import PATHS, ModelOptions, OutputOptions, PictureOptions, read_array, spread
from infu.pipeline import Result, check_noise
from infu.pipeline import generate as make_picture
from infu.plugins import HINTS, Lora
from infu.request import GenerationRequest
from infu.results import make_folder, write_picture

if TYPE_CHECKING:
    from backends.base import Backend
    from infu.models import Published

app = typer.Typer(
    name="infu",
    help="InfiniteYou: one photograph of a face and one sentence in, a new picture of that person out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
DryRun = Annotated[bool, typer.Option("--dry_run", help="Print memory and time, and do nothing.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
Folder = Annotated[Path, typer.Option("--out_results_dir", help="Folder for the pictures; made if absent.")]


@app.command()
@spread
def generate(
    picture: PictureOptions,
    model: ModelOptions,
    output: OutputOptions,
    out_results_dir: Folder = Path("results"),
) -> None:
    """Make pictures of the person in a photograph.

    Without --base_model_path and --model_dir the mini model that ships with InfU makes them.
    """
    with reported(output):
        request, noise = picture.request(), read_array("noise", picture.noise)
        if noise is not None:
            noise = check_noise(request, noise)
        loading = model.loading()
        make_folder(out_results_dir)
        backend = load(loading, output)
        wanted = {"realism": picture.enable_realism_lora, "anti_blur": picture.enable_anti_blur_lora}
        loras = [find_lora(backend, name) for name, on in wanted.items() if on]
        request = request.replace(plugins=(*loras, *request.plugins))
        make_pictures(request, backend, out_results_dir, output, noise=noise)


@app.command()
@spread
def batch(
    file: Annotated[Path, typer.Argument(help="One JSON object a line: GenerationRequest's fields.")],
    model: ModelOptions,
    output: OutputOptions,
    out_results_dir: Folder = Path("results"),
) -> None:
    """Make the pictures that a file asks for, with one model.

    A line that cannot be done is named and skipped; the exit code is then 1.
    """
    with reported(output):
        loading = model.loading()
        make_folder(out_results_dir)
        jobs = list(read_batch(file))
        backend, failed = None, 0
        for line, request in jobs:
            if isinstance(request, GenerationRequest):
                backend = backend or load(loading, output)
            try:
                if isinstance(request, InfuError):
                    raise request
                make_pictures(request, backend, out_results_dir, output, line)
            except InfuError as error:
                failed += 1
                complain(error, output, line)
        if failed:
            say(f"{failed} of {len(jobs)} lines were skipped.", output)
            raise typer.Exit(1)


@app.command()
@spread
def download(
    model: ModelOptions,
    output: OutputOptions,
    ip_adapter: Annotated[
        list[str] | None,
        typer.Option("--ip_adapter", help="Besides, xlabs or instantx with its image encoder; repeat."),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option("--controlnet", help="Besides, union-pro-2, xlabs-canny, … or a hub id; repeat."),
    ] = None,
    hint: Annotated[
        list[str] | None,
        typer.Option("--hint", help="Besides, what finds depth or pose in a photograph; repeat."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", help=f"Besides, one of {', '.join(NAMED_LORAS)}; repeat."),
    ] = None,
    pulid: Annotated[
        str | None,
        typer.Option("--pulid", help="Besides, PuLID 0.9.1 or 0.9.0 with what looks at its photo."),
    ] = None,
) -> None:
    """Fetch FLUX.1-dev and InfiniteYou, or those named.

    Into the hub's cache (HF_HOME moves it); what is there already is kept, and needs no request.
    """
    from infu.models import (
        BASE,
        INFINITE_YOU,
        fetch_controlnet,
        fetch_hint_models,
        fetch_ip_adapter,
        fetch_lora,
        fetch_pulid,
        fetch_recogniser,
        locate,
    )

    with reported(output):
        paths = {name: getattr(model, name) for name in PATHS}
        if not any(paths.values()):
            paths |= {"base_model_path": BASE, "model_dir": INFINITE_YOU}
        with downloading(output):
            for name in ip_adapter or ():  # first: a wrong name is told before 40 GB are fetched
                for published in fetch_ip_adapter(name):
                    say_here(name, published, output)
            for name in controlnet or ():
                say_here(name, fetch_controlnet(name), output)
            for kind in hint or ():
                for published in fetch_hint_models(kind):
                    say_here(kind, published, output)
            for name in lora or ():
                say_here(name, fetch_lora(name), output)
            for name, licence in fetch_pulid(pulid).items() if pulid else ():
                say(f"{name} is here ({licence}).", output)
            files = locate(model_version=model.model_version, **paths)
            fetch_recogniser(files)
        values = {"name": files.name, "model_version": files.model_version}
        typer.echo(json.dumps(values) if output.json else f"{files.name} is here, whole.")


@app.command()
@spread
def hint(
    kind: Annotated[str, typer.Argument(help=f"What is made: {', '.join(HINTS)}.")],
    photo: Annotated[Path, typer.Argument(help="The photograph it is made of.")],
    file: Annotated[Path, typer.Argument(help="The PNG to write.")],
    output: OutputOptions,
    width: Annotated[int, typer.Option("--width", help="Pixels, the picture's.")] = 864,
    height: Annotated[int, typer.Option("--height", help="Pixels, the picture's.")] = 1152,
    hint_model: Annotated[
        str | None, typer.Option("--hint_model", help="Another network, of depth and pose: folder or hub id.")
    ] = None,
) -> None:
    """Make what a ControlNet follows: the edges of a photograph, its depth, or the poses in it.

    To look at it before the run; a ControlNet makes it by itself where it is told to.
    """
    from infu.hints import make_hint

    with reported(output):
        picture = Image.fromarray(make_hint(kind, photo, width, height, hint_model))
        try:
            picture.save(file, "PNG")
        except OSError:
            raise InvalidRequest(f"{file.name!r} cannot be written. Choose another folder.") from None
        typer.echo(json.dumps({"file": str(file)}) if output.json else str(file))


@app.command()
@spread
def quantize(
    folder: Annotated[Path, typer.Argument(help="A new folder; base/ and InfiniteYou/ come into it.")],
    model: ModelOptions,
    output: OutputOptions,
) -> None:
    """Save a model in 8, 6, 4 or 3 bits (MLX).

    The large networks are packed as --quantize says; the rest is copied. The MLX backend loads it as any
    other.
    """
    from infu.models import locate

    with reported(output):
        bits = model.loading()["quantize"]
        if bits is None:
            raise InvalidRequest("Say in how many bits: --quantize 8, 6, 4 or 3.")
        if importlib.util.find_spec("mlx") is None:
            raise ModelError("Saving a quantised model needs MLX. Install it with `pip install '.[mlx]'`.")
        with downloading(output):
            paths = {name: getattr(model, name) for name in PATHS}
            files = locate(model_version=model.model_version, **paths)
        from backends.mlx.save import save_quantised

        save_quantised(files, folder, bits, model.dtype or "bfloat16")
        values = {"base_model_path": str(folder / "base"), "model_dir": None}
        if files.infusenet is not None:
            values["model_dir"] = str(folder / "InfiniteYou")
        flags = " ".join(f"--{name} {value}" for name, value in values.items() if value)
        typer.echo(json.dumps(values) if output.json else f"Load it with {flags}")


@app.command()
@spread
def info(model: ModelOptions, output: OutputOptions) -> None:
    """What is here, and what it needs.

    Models, backends, this machine's memory, and whether each way of loading the model fits into it.
    """
    from infu.info import describe_installation, draw_report

    with reported(output):
        values = describe_installation(model.model_version, **{name: getattr(model, name) for name in PATHS})
        typer.echo(json.dumps(values) if output.json else draw_report(values))


@app.command()
@spread
def inspect(
    file: Annotated[Path, typer.Argument(help="A base, a network of one, or a LoRA; file or folder.")],
    model: ModelOptions,
    output: OutputOptions,
) -> None:
    """What a file of weights is, how much of it matches, and the memory it will need.

    A LoRA is held against the model of --base_model_path.
    """
    from infu.inspect import describe_file, draw_file, read_model_shapes

    with reported(output):
        values = describe_file(file, read_model_shapes(model.base_model_path))
        typer.echo(json.dumps(values) if output.json else draw_file(values))


@app.command("make-data")
def make_data(
    settings: Annotated[Path, typer.Argument(help="A YAML or JSON file; docs/training.md shows one.")],
    ray: Annotated[
        str | None, typer.Option("--ray", help="A Ray cluster's address; left out: this machine alone.")
    ] = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Encode photographs to train on; for stage 2, make the pictures of their people first.

    Photographs come from folders, tar shards (webdataset) and parquet files. One that does not serve is left
    out, with its reason in reports/; the same command goes on after whatever stopped it.
    """
    output = OutputOptions(debug=debug)
    with reported(output), training():
        from infu.training.config import DataSettings, read_settings
        from infu.training.estimate import estimate_data
        from infu.training.make_data import make_data as make

        values = read_settings(DataSettings, settings)
        if dry_run:
            typer.echo("\n".join(estimate_data(values, lambda text: say(text, output))))
        else:
            typer.echo(json.dumps(make(values, ray, lambda text: say(text, output))))


@app.command()
def train(
    settings: Annotated[Path, typer.Argument(help="A YAML or JSON file; docs/training.md shows one.")],
    dry_run: DryRun = False,
    devices: Annotated[int, typer.Option("--devices", min=1, help="For --dry_run: how many share it.")] = 1,
    tflops: Annotated[
        float | None,
        typer.Option("--tflops", help="For --dry_run: what a device reaches; left out: measured."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train InfuseNet and projection: stage 1 on data of make-data, stage 2 on data made with stage 1.

    Goes on where an earlier run of the same run_dir stopped; Ctrl-C stops after the step it is in. On
    several GPUs: accelerate launch -m infu train FILE.
    """
    output = OutputOptions(debug=debug)
    with reported(output), training():
        from infu.training.config import TrainSettings, read_settings
        from infu.training.estimate import estimate_training
        from infu.training.run import train as train_model

        values = read_settings(TrainSettings, settings)
        if dry_run:
            typer.echo("\n".join(estimate_training(values, devices, tflops)))
        else:
            train_model(values, lambda text: say(text, output))


def main() -> None:
    app()


@contextmanager
def training() -> Iterator[None]:
    """Says what to install where training's packages are not."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield
    except ModuleNotFoundError as error:
        raise InfuError(
            f"Training needs the package {error.name!r}. Install it with `pip install '.[pytorch,training]'`."
        ) from None


# One request.


def load(loading: dict[str, Any], output: OutputOptions) -> "Backend":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin cost 5 times on a busy machine
    say("Loading the model ...", output)
    from backends import load_backend

    with downloading(output):
        return load_backend(**loading)


@contextmanager
def downloading(output: OutputOptions) -> Iterator[None]:
    """No warnings of huggingface_hub's, which hold signed addresses; for a machine no progress bars; Ctrl-C
    ends the process at once: the hub's threads would first finish their files, of up to 10 GB each."""
    from huggingface_hub.utils import disable_progress_bars, logging

    from infu.hub import list_unfinished

    def leave(*_: Any) -> None:
        say("\nStopped.", output)
        while ours := list_unfinished() - before:  # the hub's threads go on until the process is gone
            for path in ours:
                path.unlink(missing_ok=True)
        os._exit(130)

    logging.set_verbosity_error()
    if output.json:
        disable_progress_bars()
    before, previous = list_unfinished(), signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def make_pictures(
    request: GenerationRequest,
    backend: "Backend",
    folder: Path,
    output: OutputOptions,
    line: int | None = None,
    noise: np.ndarray | None = None,
) -> None:
    """The request's pictures one by one, each written as soon as it is there."""
    for k, seed in enumerate(request.seeds):
        started = time.perf_counter()
        own_noise = None if noise is None else noise[k : k + 1]
        result = make_one(request.replace(seed=seed, num_images=1), own_noise, backend, output)
        values = {
            "file": str(write_picture(result, request, folder)),
            "seed": seed,
            "seconds": round(time.perf_counter() - started, 3),
            "notes": result.notes,
            "settings": result.metadata,
        }
        for note in result.notes:
            say(note, output)
        if line is not None:
            values = {"line": line} | values
        typer.echo(json.dumps(values) if output.json else values["file"])


def make_one(
    request: GenerationRequest, noise: np.ndarray | None, backend: "Backend", output: OutputOptions
) -> Result:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("seed {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    unseen = output.json or not sys.stderr.isatty()  # a log wants no bar
    with Progress(*columns, console=Console(stderr=True), disable=unseen) as bar:
        task = bar.add_task(str(request.seed), total=request.num_steps)
        return make_picture(
            request, backend, noise, lambda step, total, _: bar.update(task, completed=step, total=total)
        )


def find_lora(backend: "Backend", name: str) -> Lora:
    """One of the released optional LoRAs, at the released scale."""
    if name not in backend.optional_loras:
        raise MissingFile(
            f"This model has no {name} LoRA. Run `python -m infu download`, or ask for a picture without it."
        )
    return Lora(backend.optional_loras[name], 1.0)


# What is said, and the exit code.


def say(text: str, output: OutputOptions) -> None:
    """A line for a person; a machine reads the JSON alone."""
    if not output.json:
        typer.echo(text, err=True)


def say_here(name: str, published: "Published", output: OutputOptions) -> None:
    known = "" if name == published.repo else f"{name} of "  # else by its hub id
    how = "is here: it ships with this program" if published.ships else "is here"
    say(f"{known}{published.repo} {how} ({published.licence}).", output)


def complain(error: Exception, output: OutputOptions, line: int | None = None) -> None:
    """An error, in one line of text or as a JSON object, on standard error."""
    message = " ".join(str(error).split())
    if not isinstance(error, InfuError):
        message = f"Unexpected {type(error).__name__}: {message} (--debug shows where)"
    if output.json:
        values = {"error": type(error).__name__, "message": message}
        typer.echo(json.dumps(values if line is None else {"line": line} | values), err=True)
    else:
        typer.echo(message if line is None else f"line {line}: {message}", err=True)
    if output.debug:
        traceback.print_exception(error, file=sys.stderr)


@contextmanager
def reported(output: OutputOptions) -> Iterator[None]:
    """Turn what goes wrong inside into a line on standard error and an exit code."""
    try:
        yield
    except (typer.Exit, typer.BadParameter, BrokenPipeError):
        raise
    except InfuError as error:
        complain(error, output)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say("Stopped.", output)
        raise typer.Exit(130) from None
    except Exception as error:
        complain(error, output)
        raise typer.Exit(70) from None
