"""Text encoders and DiT learn the velocity from captions; then guidance is distilled into its embedding."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from infu.flow import make_sigmas, read_scheduler
from infu.models import MINI
from infu.noise import make_noise, pack_latents, unpack_latents
from infu.training.loss import by_time, draw_noise, flow_error, mix
from infu.training.minibase.data import Encoded, load_tokenizers, read_samples
from infu.training.minibase.latents import load_latents
from infu.training.minibase.networks import Base, make_base, make_optimizers
from infu.training.minibase.runs import Loss, Run, load_average
from infu.whole import write_whole

DIT, DISTILLED = "dit", "distilled"
MUON, ADAM = 4.8e-3, 1.2e-3
GUIDANCE = (1.0, 4.0)  # what the distilled model is asked for, at least and at most
SCHEDULER = MINI / "base" / "scheduler" / "scheduler_config.json"
PROMPTS = (
    "a photo of a woman with long blond hair, wearing a red t-shirt, smiling, blue background",
    "a photo of a man with short black hair, a beard, wearing a green sweater, looking serious, in a park",
    "a portrait of an old man with grey hair swept back, wearing glasses and a blue shirt, by the sea",
    "a young woman with curly red hair, wearing a yellow dress, laughing, white background",
    "a photo of a man, bald, with a moustache, wearing a black suit, in a library",
    "a watercolour of a woman with a brown bob, wearing a purple sweater, in the snow",
    "a pencil drawing of a man with short brown hair, wearing round glasses, smiling",
    "a photo of a woman with wavy black hair, wearing an orange striped t-shirt and a red beanie, at night",
)


def open_dit(run: Path, steps: int) -> Run:
    base = make_base(run)
    return Run(run / DIT, base, make_optimizers(base, MUON, ADAM), steps)


def loss_of_dit(base: Base, encoded: Encoded, batch: int, seed: int, step: int) -> Loss:
    positions = range(step * batch, (step + 1) * batch)
    samples = read_samples(encoded, seed, positions)
    latents = torch.from_numpy(samples.latents)
    times, noise = draw_noise(seed, positions, latents.shape[1:])
    states, pooled = base.read(torch.from_numpy(samples.t5), torch.from_numpy(samples.clip))
    errors = flow_error(base(mix(latents, noise, times), times, encoded.size, states, pooled), latents, noise)
    return Loss(errors.mean(), *by_time(times, errors.tolist()))


class Student(nn.Module):
    """What distilling trains: the DiT alone, beside its frozen teacher and text encoders."""

    def __init__(self, teacher: Base):
        super().__init__()
        self._teacher = (teacher.eval().requires_grad_(False),)  # no submodule: never saved, never trained
        self.dit = deepcopy(teacher.dit).requires_grad_(True).train()

    @property
    def teacher(self) -> Base:
        return self._teacher[0]


def open_distilled(run: Path, steps: int) -> Run:
    student = Student(load_average(make_base(run), run / DIT))
    optimizer = torch.optim.AdamW(student.parameters(), lr=4e-4, betas=(0.9, 0.99), weight_decay=0.0)
    return Run(run / DISTILLED, student, [optimizer], steps)


def loss_of_distilled(student: Student, encoded: Encoded, batch: int, seed: int, step: int) -> Loss:
    """One guidance a step: the student's one pass is to be what the teacher's two make."""
    teacher, positions = student.teacher, range(step * batch, (step + 1) * batch)
    samples = read_samples(encoded, seed + 1, positions)
    latents = torch.from_numpy(samples.latents)
    times, noise = draw_noise(seed + 1, positions, latents.shape[1:])
    noisy, guidance = mix(latents, noise, times), np.random.default_rng((seed, step, 3)).uniform(*GUIDANCE)
    with torch.no_grad():
        states, pooled = teacher.read(torch.from_numpy(samples.t5), torch.from_numpy(samples.clip))
        target = guide(teacher, noisy, times, encoded, states, pooled, guidance)
    guided = Base.forward(student, noisy, times, encoded.size, states, pooled, guidance)
    return Loss((guided - target).square().mean())


def guide(base: Base, noisy: Tensor, times, encoded: Encoded, states, pooled, guidance: float) -> Tensor:
    """Classifier-free guidance: away from what is drawn without a caption."""
    empty = base.read(*(torch.from_numpy(ids.astype(np.int64))[None] for ids in encoded.empty))
    without = base(noisy, times, encoded.size, *(x.expand(len(noisy), *x.shape[1:]) for x in empty))
    return without + guidance * (base(noisy, times, encoded.size, states, pooled) - without)


@torch.no_grad()
def draw_samples(run: Path, base: Base, encoded: Encoded, path: Path, guidance: float = 2.5, steps: int = 20):
    """`PROMPTS` by two passes a step, decoded linearly, side by side into a PNG."""
    width, height = encoded.size
    tokenizers, latents = load_tokenizers(run), load_latents(run / "latents.npz")
    ids = (np.concatenate([read(prompt) for prompt in PROMPTS]) for read in (tokenizers.t5, tokenizers.clip))
    states, pooled = base.read(*(torch.from_numpy(x) for x in ids))
    noise = np.concatenate([make_noise(seed, width, height) for seed in range(len(PROMPTS))])
    packed = torch.from_numpy(pack_latents(noise))
    sigmas = make_sigmas(steps, packed.shape[1], read_scheduler(SCHEDULER))
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        times = [sigma] * len(packed)
        packed = packed + (following - sigma) * guide(base, packed, times, encoded, states, pooled, guidance)
    pictures = latents.decode(unpack_latents(packed.numpy(), width, height))
    sheet = Image.fromarray(np.concatenate(list(pictures), axis=1))
    write_whole(path, lambda part: sheet.save(part, format="PNG"))
