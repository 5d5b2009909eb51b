"""What a run will need, before it is begun: `train --dry_run` and `make-data --dry_run`.

Numbers of weights and of operations are counted, on torch's meta device, through the loss itself; activations
and what a device reaches of its peak are estimates, and are called so.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch.utils.flop_counter import FlopCounterMode

from backends.pytorch.load import BUILDS, find_config
from infu.memory import ACTIVATIONS, memory_needed
from infu.models import MINI, ModelFiles, locate
from infu.training.config import DataSettings, TrainSettings
from infu.training.engine import make_trainee
from infu.training.loss import Batch, FlowLoss
from infu.training.shards import Shards
from infu.training.sources import list_units, read_unit
from infu.weights.checkpoint import open_part

REACHED = 0.5  # of a matrix product's speed, by a whole training step: between 0.4 and 0.6 is usual for DiTs
PER_BLOCK = 34  # arrays of a block that are kept for the way back where it is not computed again
TEXT_TOKENS = 512
BLOCKS = (FluxTransformerBlock, FluxSingleTransformerBlock)
TIMED = 3  # photographs


def estimate_training(settings: TrainSettings, devices: int, tflops: float | None) -> list[str]:
    """Lines for a person. `devices`: how many share the work; `tflops`: what one of them reaches, in 10^12
    operations a second; None: measured here."""
    shards = Shards(settings.data)
    files = locate(base_model_path=settings.base_model_path or MINI / "base")
    embedding_size = shards.datasets[0]["embedding_size"]
    loss = make_on_meta(files, settings, embedding_size)
    base = loss.base
    width, height = max(set(shards.sizes), key=lambda size: (size[0] * size[1], size))
    operations = count_operations(loss, embedding_size, width, height)
    frozen, trained = (sum(p.numel() for p in network.parameters()) for network in (base, loss))
    size = 2 if settings.precision == "bf16" else 4
    cut = devices if settings.fsdp else 1
    blocks = sum(isinstance(m, BLOCKS) for network in (base, loss) for m in network.modules())
    hidden = base.config.num_attention_heads * base.config.attention_head_dim
    array = settings.micro_batch * (width * height // 256 + TEXT_TOKENS) * hidden * size
    arrays = blocks + 2 * ACTIVATIONS if settings.gradient_checkpointing else PER_BLOCK * blocks
    parts = {
        "the base, frozen": frozen * size,
        "weights that train and AdamW's moments, float32": trained * 12 // cut,
        "their gradients": trained * 4 // cut,
        "weights and gradients as they are used, whole": trained * size * (2 if settings.fsdp else size == 2),
        "activations, about": array * arrays,
    }
    measured = tflops is None
    speed = 1e12 * tflops if tflops else REACHED * measure_speed(size)
    seconds = operations * settings.batch / (devices * speed)
    how = f"{REACHED:g} of a matrix product measured here" if measured else "as given"
    return [
        f"{len(shards)} samples of up to {width} x {height}; {trained:,} weights train beside "
        f"{frozen:,} frozen",
        f"memory of each of {devices} devices, {settings.micro_batch} samples at a time:",
        *(f"  {giga(value):>9}  {name}" for name, value in parts.items()),
        f"  {giga(sum(parts.values())):>9}  in all",
        f"{operations:.3g} operations a sample, forward and back; {settings.batch} samples a step",
        f"{seconds:.3g} s a step, {settings.steps} steps: {duration(seconds * settings.steps)} "
        f"at {speed / 1e12:.3g} TFLOP/s a device ({how})",
    ]


def make_on_meta(files: ModelFiles, settings: TrainSettings, embedding_size: int) -> FlowLoss:
    """What the run trains and the base beside it, as shapes without numbers."""
    folder = files.base / "transformer"
    weights = open_part(files.transformer, "transformer")
    config = find_config("transformer", files.transformer, folder, weights)
    with torch.device("meta"):
        return make_trainee(BUILDS["transformer"](config), settings, embedding_size)


def count_operations(loss: FlowLoss, embedding_size: int, width: int, height: int) -> int:
    """Of one sample, forward and backward: additions and multiplications of matrix products and attention."""
    base = loss.base
    tokens, joint = width * height // 256, base.config.joint_attention_dim
    with torch.device("meta"):
        latents, control = torch.empty(1, tokens, 64), torch.empty(1, tokens, 64)
        text = torch.empty(1, TEXT_TOKENS, joint), torch.empty(1, base.config.pooled_projection_dim)
        batch = Batch(width, height, latents, control, torch.empty(1, embedding_size), *text)
        with FlopCounterMode(display=False) as counter:
            loss(batch, torch.empty(1, tokens, 64), [0.5]).mean().backward()
    return counter.get_total_flops()


def measure_speed(size: int) -> float:
    """Operations a second of a matrix product on this machine's device, in numbers of `size` bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype={2: torch.bfloat16, 4: torch.float32}[size])
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def estimate_data(settings: DataSettings, say: Callable[[str], None]) -> list[str]:
    """Lines for a person: how much there is to do, what a worker needs, and, timed on a few photographs into
    a folder that is then deleted, how long it will take."""
    from infu.training.make_data import check
    from infu.training.workers import PersonWorker, PhotoWorker

    units = list_units(settings.sources, settings.per_unit)
    with tempfile.TemporaryDirectory() as folder:
        trial = settings.model_copy(update={"out": Path(folder)})
        check(trial)
        say(f"Timing {TIMED} photographs ...")
        worker = (PersonWorker if settings.pictures else PhotoWorker)(trial.model_dump_json())
        files = worker.encoder.backend.files
        photos = list(itertools.islice(((raw, unit) for unit in units for raw in read_unit(unit)), TIMED))
        started = time.perf_counter()
        outcomes = [outcome for raw, unit in photos for outcome in worker.make_samples(raw, unit)]
        seconds = (time.perf_counter() - started) / max(1, len(photos))
    kept = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    nbytes = max((sum(t.nbytes for t in sample.tensors.values()) for sample in kept), default=0)
    count = sum(len(unit.paths) if unit.kind == "folder" else 0 for unit in units)
    whole = sum(unit.kind != "folder" for unit in units)
    needed = memory_needed(files, worker.encoder.backend.dtype, offload=settings.offload)
    return [
        f"{count} photographs in folders, and {whole} tar shards or groups of parquet rows: "
        f"{len(units)} units",
        f"memory of each of {settings.workers} workers: about {giga(needed['device'])}",
        f"{seconds:.3g} s a photograph on this machine; {len(kept)} samples came of {len(photos)}, "
        f"{nbytes / 1e6:.3g} MB each",
        f"the folders' photographs: {duration(seconds * count / settings.workers)} with {settings.workers} "
        f"such workers, {giga(nbytes * count * len(kept) / max(1, len(photos)))} on disk",
    ]


def giga(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g} GB"


def duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
