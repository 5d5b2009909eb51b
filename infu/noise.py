"""Seed -> initial noise, the same on every backend and device; and FLUX's packing of latents."""

import numpy as np

CHANNELS = 16  # of FLUX's latent space
SCALE = 8  # pixels per latent pixel


def make_noise(seed: int, width: int, height: int) -> np.ndarray:
    """Standard normal float32 (1, 16, height / 8, width / 8) from numpy's PCG64; sizes multiples of 16."""
    shape = (1, CHANNELS, height // SCALE, width // SCALE)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def pack_latents(latents: np.ndarray) -> np.ndarray:
    """(B, C, h, w) -> (B, h / 2 * w / 2, 4 C), channels in the order c, row, column of the 2 x 2 patch."""
    B, C, h, w = latents.shape
    x = latents.reshape(B, C, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(x.reshape(B, h // 2 * w // 2, C * 4))


def unpack_latents(packed: np.ndarray, width: int, height: int) -> np.ndarray:
    """The inverse of `pack_latents` for a picture of width x height pixels."""
    B, _, D = packed.shape
    h, w = height // SCALE // 2, width // SCALE // 2
    x = packed.reshape(B, h, w, D // 4, 2, 2).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(x.reshape(B, D // 4, h * 2, w * 2))
