"""The VAE's two halves, each by itself: the decoder draws pictures from the fixed latents, the encoder finds
the latents of pictures. Neither waits for the other, nor the DiT for them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infu.keypoints import draw_keypoints
from infu.training.minibase.latents import Latents
from infu.training.minibase.networks import make_vae
from infu.training.minibase.runs import Loss, Run
from infu.training.world.dataset import Shards

DECODER, ENCODER = "decoder", "encoder"
NOISE = 0.1  # at most, on the decoder's latents: the DiT's are not exact either
CONTROLS = 0.25  # of the encoder's pictures are control images: five points on black, or black
LOG_VARIANCE = -12.0  # the encoder is exact: nothing samples around its mean


def open_half(run: Path, name: str, steps: int) -> Run:
    """`name`: DECODER or ENCODER."""
    half = getattr(make_vae(), name)
    optimizer = torch.optim.AdamW(half.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    return Run(run / name, half, [optimizer], steps)


def loss_of_decoder(
    decoder: nn.Module, latents: Latents, shards: Shards, batch: int, seed: int, step: int
) -> Loss:
    rng = np.random.default_rng((seed, step, 4))
    pictures = draw_pictures(shards, batch, rng)
    encoded = latents.encode(pictures)
    encoded += rng.standard_normal(encoded.shape, np.float32) * rng.uniform(
        0, NOISE, (batch, 1, 1, 1)
    ).astype("f4")
    drawn, wanted = decoder(torch.from_numpy(encoded)), to_tensor(pictures)
    difference = drawn - wanted
    slopes = [
        (difference[..., 1:] - difference[..., :-1]),
        (difference[..., 1:, :] - difference[..., :-1, :]),
    ]
    return Loss(F.mse_loss(drawn, wanted) + difference.abs().mean() + sum(s.abs().mean() for s in slopes))


def loss_of_encoder(
    encoder: nn.Module, latents: Latents, shards: Shards, batch: int, seed: int, step: int
) -> Loss:
    rng = np.random.default_rng((seed, step, 5))
    pictures = draw_pictures(shards, batch, rng)
    for i in np.flatnonzero(rng.random(batch) < CONTROLS):
        pictures[i] = draw_control(shards, rng)
    mean, log_variance = encoder(to_tensor(pictures)).chunk(2, dim=1)
    wanted = torch.from_numpy(latents.encode(pictures))
    error = F.mse_loss(mean, wanted) + 0.3 * F.l1_loss(mean, wanted)
    return Loss(error + 1e-3 * (log_variance - LOG_VARIANCE).square().mean())


def draw_pictures(shards: Shards, batch: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (B, H, W, 3), some mirrored, some brighter or darker or of another tint."""
    pictures = shards.pictures[rng.integers(len(shards.pictures), size=batch)].copy()
    for i in range(batch):
        if rng.random() < 0.5:
            pictures[i] = pictures[i, :, ::-1]
        if rng.random() < 0.3:
            gain = rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3)
            pictures[i] = np.clip(pictures[i] * gain, 0, 255)
    return pictures


def draw_control(shards: Shards, rng: np.random.Generator) -> np.ndarray:
    """What `infu.pipeline` encodes beside the picture: a face's five points, larger, smaller, elsewhere."""
    height, width = shards.pictures.shape[1:3]
    if rng.random() < 0.2:
        return np.zeros((height, width, 3), np.uint8)
    points = shards.keypoints[rng.integers(len(shards.keypoints))]
    middle = points.mean(0)
    turn = cv2.getRotationMatrix2D(middle.tolist(), rng.normal(0, 8), rng.uniform(0.4, 1.4))
    moved = points @ turn[:, :2].T + turn[:, 2] + rng.normal(0, 0.1, 2) * (width, height)
    return draw_keypoints(moved, width, height)


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), -1..1."""
    return torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def measure_halves(decoder: nn.Module, encoder: nn.Module, latents: Latents, pictures: np.ndarray) -> dict:
    """PSNR in dB of pictures not trained on: through decoder alone, and through both halves."""
    wanted = to_tensor(pictures)
    alone = decoder(torch.from_numpy(latents.encode(pictures)))
    both = decoder(encoder(wanted).chunk(2, dim=1)[0])
    return {"decoder": psnr(alone, wanted), "both": psnr(both, wanted)}


def psnr(drawn: Tensor, wanted: Tensor) -> float:
    return float(10 * torch.log10(4 / (drawn.clamp(-1, 1) - wanted).square().mean()))
