"""The mini VAE's latents: principal components of 8 x 8 patches, known after seconds of arithmetic.

The DiT learns against them at once; the VAE's decoder and encoder learn to speak them, each by itself.
Sixteen components keep 27 dB; each is scaled to the square root of its deviation: unscaled, the small ones
would drown in the diffusion's noise; whitened, their noise would weigh as much as a face.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infu.noise import CHANNELS, SCALE
from infu.whole import write_whole


@dataclass(frozen=True, eq=False)
class Latents:
    """latent (16,) = (patch (192,) - mean) @ basis * scale, of pixels in -1..1; their mean square is 1."""

    mean: np.ndarray  # (192,)
    basis: np.ndarray  # (192, 16), orthonormal columns
    scale: np.ndarray  # (16,)

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3), multiples of 8 -> float32 (B, 16, H / 8, W / 8)."""
        B, H, W, _ = pictures.shape
        latents = (patches(pictures) - self.mean) @ self.basis * self.scale
        return latents.reshape(B, H // SCALE, W // SCALE, CHANNELS).transpose(0, 3, 1, 2)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """The best linear inverse: float32 (B, 16, h, w) -> uint8 (B, 8 h, 8 w, 3)."""
        B, _, h, w = latents.shape
        pixels = latents.transpose(0, 2, 3, 1) / self.scale @ self.basis.T + self.mean
        pixels = pixels.reshape(B, h, w, SCALE, SCALE, 3).transpose(0, 1, 3, 2, 4, 5)
        return np.rint((pixels.reshape(B, h * SCALE, w * SCALE, 3) + 1) * 127.5).clip(0, 255).astype(np.uint8)

    def colours(self) -> dict:
        """`latent_colours.json`: a latent's mean colour, for previews."""
        channels = self.basis.reshape(SCALE * SCALE, 3, CHANNELS).mean(0)  # (3, 16)
        factors, bias = channels.T / self.scale[:, None], self.mean.reshape(-1, 3).mean(0)
        return {"factors": factors.round(5).tolist(), "bias": bias.round(5).tolist()}

    def save(self, path: Path) -> None:
        def write(part: Path) -> None:
            with part.open("wb") as stream:
                np.savez(stream, mean=self.mean, basis=self.basis, scale=self.scale)

        write_whole(path, write)


def load_latents(path: Path) -> Latents:
    with np.load(path) as file:
        return Latents(file["mean"], file["basis"], file["scale"])


def fit_latents(pictures: np.ndarray, count: int = 200_000) -> Latents:
    """From `count` patches of uint8 (n, H, W, 3), drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    chosen = patches(pictures[rng.permutation(len(pictures))[:1500]])
    chosen = chosen[rng.permutation(len(chosen))[:count]]
    mean = chosen.mean(0)
    values, vectors = np.linalg.eigh(np.cov((chosen - mean).T))
    basis = vectors[:, ::-1][:, :CHANNELS]  # eigh sorts upwards
    deviations = np.sqrt(values[::-1][:CHANNELS])
    scale = deviations**-0.5 / np.sqrt(deviations.mean())  # then the mean of the squares is 1
    return Latents(mean.astype(np.float32), basis.astype(np.float32), scale.astype(np.float32))


def patches(pictures: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 3) -> float32 (B H W / 64, 192), -1..1."""
    B, H, W, _ = pictures.shape
    cells = pictures.reshape(B, H // SCALE, SCALE, W // SCALE, SCALE, 3).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(-1, SCALE * SCALE * 3).astype(np.float32) / 127.5 - 1
