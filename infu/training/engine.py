"""The loop: encoded shards and a base -> InfuseNet and projection, or what trains in their place, on one
process or on many (accelerate).

`Trainer.steps` yields a log of each step; printing, sampling, saving and stopping are `run.py`'s. What a step
does is a function of the settings, the weights, AdamW's moments and the step's number; all of it is in a
state.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from backends.pytorch.backend import PytorchBackend
from backends.pytorch.load import load_network
from infu.errors import InvalidRequest, MissingFile, NonFiniteError
from infu.models import APPEARANCE, MINI, RELEASE, ModelFiles, locate
from infu.training.config import VERSIONS, TrainSettings
from infu.training.ip_adapter import AdapterLoss, make_adapter, save_adapter
from infu.training.loss import Batch, ControlNetLoss, FlowLoss, InfuseLoss, by_time, draw_noise
from infu.training.networks import (
    load_trained,
    make_infusenet,
    make_projection,
    save_embedded_faces,
    save_release,
    save_side_network,
    take_part,
)
from infu.training.shards import Order, Shards
from infu.whole import write_whole

STATE = "state.json"  # written last: a folder of states without it is half of one


@dataclass(frozen=True)
class StepLog:
    """One step: the mean error, its sum and the number of samples in each bin of t, the gradient's length
    before clipping, seconds."""

    step: int
    loss: float
    sums: Sequence[float]
    counts: Sequence[int]
    learning_rate: float
    grad_norm: float
    seconds: float


class Micro(Dataset):
    """What this process reads: its share of each batch, a micro-batch at a time."""

    def __init__(self, shards: Shards, order: Order, settings: TrainSettings, rank: int, processes: int):
        self._shards, self._order, self._settings = shards, order, settings
        self._rank, self._processes = rank, processes
        self.per_step = settings.batch // (settings.micro_batch * processes)

    def __getitem__(self, n: int) -> tuple[Batch, list[int], list[int]]:
        """The n-th micro-batch; its samples' numbers; their positions in the run, the same however many
        processes share it."""
        settings = self._settings
        step, micro = divmod(n, self.per_step)
        first = (micro * self._processes + self._rank) * settings.micro_batch
        places = range(first, first + settings.micro_batch)
        numbers = [int(self._order[step][place]) for place in places]
        positions = [step * settings.batch + place for place in places]
        share = 1.0 if settings.network == "controlnet" else settings.keypoints_share
        with_points = [
            np.random.default_rng((settings.seed, position, 1)).random() < share for position in positions
        ]
        return self._shards.read(numbers, with_points), numbers, positions


class Trainer:
    """A run, begun or gone on with. Lives in every process of it."""

    def __init__(self, settings: TrainSettings):
        """Raises `InfuError` for data, a base or settings that do not go together."""
        self.settings = settings
        self.shards = Shards(settings.data)
        self.files = locate(base_model_path=settings.base_model_path or MINI / "base")
        self._check_data()
        self.accelerator = make_accelerator(settings)
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        part = self.files.transformer
        base = load_network(
            "transformer", part, self.files.base / "transformer", self.dtype, self.accelerator.device
        )
        trainee = self._make_trainee(base)
        self.base = base
        side = getattr(trainee, settings.network, None)  # InfuseNet or the ControlNet; an IP-Adapter is none
        self.config = {} if side is None else dict(side.config)
        optimizer = torch.optim.AdamW(
            trainee.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.trainee, self.optimizer = self.accelerator.prepare(trainee, optimizer)
        self._encoder: PytorchBackend | None = None
        self.step = self._load_state()

    def steps(self) -> Iterator[StepLog]:
        """The steps that are left. When a log comes out its step is done, and may be saved."""
        settings, accelerator = self.settings, self.accelerator
        order = Order(self.shards.by_size(), settings.batch, settings.seed)
        micro = Micro(self.shards, order, settings, accelerator.process_index, accelerator.num_processes)
        numbers = range(self.step * micro.per_step, settings.steps * micro.per_step)
        batches = iter(DataLoader(micro, batch_size=None, sampler=numbers, num_workers=settings.workers))
        while self.step < settings.steps:
            started = time.perf_counter()
            self._set_learning_rate()
            errors, times = [], []
            for _ in range(micro.per_step):
                error, drawn = self._backward(*next(batches))
                errors.append(error)
                times += drawn
            yield self._log(torch.cat(errors), times, started)

    def _backward(self, batch: Batch, numbers: list[int], positions: list[int]) -> tuple[Tensor, list[float]]:
        """One micro-batch -> its errors and times; the last of a step moves the weights."""
        accelerator = self.accelerator
        if batch.states is None:
            batch = replace(batch, **self._encode([self.shards.caption(number) for number in numbers]))
        times, noise = draw_noise(
            self.settings.seed, positions, batch.latents.shape[1:], self.settings.time_mean
        )
        batch, noise = batch.to(accelerator.device), noise.to(accelerator.device)
        with accelerator.accumulate(self.trainee):
            error = self.trainee(batch, noise, times)
            accelerator.backward(error.mean())
            if accelerator.sync_gradients:
                longest = self.settings.max_grad_norm or math.inf
                self._grad_norm = accelerator.clip_grad_norm_(self.trainee.parameters(), longest)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return error.detach(), times

    def _log(self, errors: Tensor, times: list[float], started: float) -> StepLog:
        """The log of the step that is done, over all processes. Raises `NonFiniteError`."""
        accelerator = self.accelerator
        own = torch.tensor(by_time(times, errors.tolist()), dtype=torch.float64, device=accelerator.device)
        sums, counts = accelerator.reduce(own, reduction="sum").tolist()
        loss, grad_norm = sum(sums) / sum(counts), float(self._grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(
                f"Step {self.step} made numbers that are not finite. Go on from the last state with a lower "
                "learning_rate, or with a max_grad_norm."
            )
        self.step += 1
        rate = self.optimizer.param_groups[0]["lr"]
        seconds = time.perf_counter() - started
        return StepLog(self.step, loss, sums, [int(c) for c in counts], rate, grad_norm, seconds)

    def _set_learning_rate(self) -> None:
        """Constant, after a linear warm-up and before a linear way down to nothing."""
        settings = self.settings
        up = (self.step + 1) / max(1, settings.warmup_steps)
        down = (settings.steps - self.step) / max(1, settings.cooldown_steps)
        share = min(1.0, up, down)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share

    # What goes into a run.

    def _check_data(self) -> None:
        (there,) = {dataset["base"] for dataset in self.shards.datasets}
        if there != self.files.name:
            raise InvalidRequest(
                f"The data was encoded with the base {there!r} and this run has {self.files.name!r}. "
                "Train on "
                "data that was made with the same base."
            )
        dataset, network = self.shards.datasets[0], self.settings.network
        held, trains = "faces", ("infusenet", "ip_adapter")
        if dataset.get("hint") is not None:
            held, trains = f"{dataset['hint']} hints", ("controlnet",)
        elif dataset["faces"] is None:
            held, trains = "style pictures", ("ip_adapter",)
        if network not in trains:
            raise InvalidRequest(
                f"The data holds {held}, on which no {network} trains. Name other data, or another network."
            )

    def _make_trainee(self, base: nn.Module) -> FlowLoss:
        """New networks for stage 1; for stage 2 those of stage 1."""
        settings = self.settings
        if settings.stage == 1:
            return make_trainee(base, settings, self.shards.datasets[0]["embedding_size"])
        folder = (settings.start_from or settings.model_dir) / RELEASE / VERSIONS[1]
        if not (folder / "image_proj_model.bin").is_file():
            raise MissingFile(
                f"There is no {RELEASE}/{VERSIONS[1]} to start stage 2 from. Train stage 1 first, or "
                "name its "
                "model_dir in start_from."
            )
        return checkpointed(InfuseLoss(*load_trained(folder), base, settings.guidance_scale), settings)

    def _encode(self, captions: list[str]) -> dict[str, Tensor]:
        """Captions whose data holds no text states."""
        if self._encoder is None:
            self._encoder = self._make_backend(self.files, None)  # a caption in every step: it stays
        texts = [self._encoder.encode_prompt(caption) for caption in captions]
        # Out of inference mode, so that autograd may keep them.
        return {
            "states": torch.cat([text.states for text in texts]).clone(),
            "pooled": torch.cat([text.pooled for text in texts]).clone(),
        }

    def _make_backend(self, files: ModelFiles, offload: str | None) -> PytorchBackend:
        """The base that is training's own, with the networks that encode and decode."""
        name = str(self.dtype).removeprefix("torch.")
        return PytorchBackend(files, name, None, offload, transformer=self.base)

    # What comes out.

    def export(self) -> None:
        """The weights as they are now, into `model_dir`."""
        state = self.accelerator.get_state_dict(self.trainee)
        if self.accelerator.is_main_process:
            settings, dtype = self.settings, getattr(torch, self.settings.save_dtype)
            if settings.network == "ip_adapter":
                save_adapter(settings.model_dir, state, dtype)
            elif settings.network == "controlnet":
                save_side_network(settings.model_dir, take_part(state, "controlnet", dtype), self.config)
            else:
                save_release(settings.model_dir, settings.version, state, self.config, dtype)
                if self.shards.datasets[0]["faces"] == "embedded":
                    save_embedded_faces(settings.model_dir, settings.data[0] / APPEARANCE)
        self.accelerator.wait_for_everyone()

    def load_exported(self) -> PytorchBackend:
        """The model as a user would load it, around this process's own base."""
        files = locate(
            base_model_path=self.files.base,
            model_dir=self.settings.model_dir,
            model_version=self.settings.version,
        )
        return self._make_backend(files, "model" if self.accelerator.device.type == "cuda" else None)

    def save_state(self) -> None:
        """Everything needed to go on, in a folder of the step's number; the oldest ones go."""
        folder = self._states / f"{self.step:08d}"
        self.accelerator.save_state(str(folder))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            text = json.dumps({"step": self.step})
            write_whole(folder / STATE, lambda path: path.write_text(text))
            for old in self._list_states()[: -self.settings.keep_states]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _load_state(self) -> int:
        """Weights and moments of the newest state, where there is one -> the steps that are done."""
        states = self._list_states()
        if not states:
            return 0
        self.accelerator.load_state(str(states[-1]))
        return json.loads((states[-1] / STATE).read_text())["step"]

    @property
    def _states(self) -> Path:
        return self.settings.run_dir / "states"

    def _list_states(self) -> list[Path]:
        return sorted(path.parent for path in self._states.glob(f"*/{STATE}"))


def make_trainee(base: nn.Module, settings: TrainSettings, embedding_size: int) -> FlowLoss:
    """The networks that the settings name, new, beside `base`."""
    sizes, guidance = dict(settings.projection), settings.guidance_scale
    if settings.network == "ip_adapter":
        adapter = make_adapter(base, embedding_size, sizes["num_tokens"], settings.seed)
        return checkpointed(AdapterLoss(adapter, base, guidance), settings)
    infusenet = make_infusenet(base, settings.blocks_per_residual)
    if settings.network == "controlnet":
        return checkpointed(ControlNetLoss(infusenet, base, guidance), settings)
    projection = make_projection(embedding_size, base.config.joint_attention_dim, **sizes, seed=settings.seed)
    return checkpointed(InfuseLoss(infusenet, projection, base, guidance), settings)


def checkpointed(trainee: FlowLoss, settings: TrainSettings) -> FlowLoss:
    if settings.gradient_checkpointing:
        for network in (trainee.base, *trainee.children()):
            if isinstance(network, ModelMixin):
                network.enable_gradient_checkpointing()
    return trainee


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """Raises `InvalidRequest` where the batch cannot be shared among the processes."""
    plugin = None
    if settings.fsdp:
        # InfuseNet and projection are one unit: our forward calls the layers inside a block, not the block,
        # so only the whole is gathered by the call of it. 6 GB in bf16 for FLUX; moments and gradients stay
        # cut.
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="no_wrap",
            reshard_after_forward=False,
            state_dict_type="SHARDED_STATE_DICT",
        )
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=settings.precision,
        fsdp_plugin=plugin,
    )
    share = settings.micro_batch * accelerator.num_processes
    if settings.batch % share:
        raise InvalidRequest(
            f"batch ({settings.batch}) must be a multiple of micro_batch times processes ({share}). "
            "Change one of them."
        )
    accelerator.gradient_accumulation_steps = settings.batch // share
    return accelerator
