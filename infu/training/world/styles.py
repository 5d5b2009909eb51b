"""A rendered photo -> the same as a pencil drawing or a watercolour, so that prompts have a style to obey."""

from __future__ import annotations

import cv2
import numpy as np


def apply_style(picture: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> the same. `style`: one of `people.STYLES`."""
    if style == "drawing":
        return draw_lines(picture, rng)
    if style == "watercolour":
        return paint_watercolour(picture, rng)
    return picture


def draw_lines(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pencil on paper: lines by a thresholded difference of Gaussians (Winnemoeller 2011), shading by what is
    darker than its surroundings. Without the shading the detector finds half of the faces."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    scale = picture.shape[1] / 128
    fine = cv2.GaussianBlur(grey, (0, 0), 0.6 * scale)
    lines = 1 + np.tanh(12 * (fine - cv2.GaussianBlur(grey, (0, 0), 1.2 * scale) * 0.98 + 0.004).clip(-1, 0))
    around = np.clip(fine / (cv2.GaussianBlur(grey, (0, 0), 14 * scale) + 0.08), 0, 1.25) / 1.25
    tone = 0.1 + 0.45 * fine**0.5 + 0.45 * around
    grain = 1 + 0.02 * smooth_noise(rng, grey.shape, 60)
    ink = np.clip(lines * tone * grain, 0, 1)[..., None]
    sheet, pencil = np.array([252, 249, 242]), np.array([46, 42, 44])
    return np.rint(pencil + (sheet - pencil) * ink).clip(0, 255).astype(np.uint8)


def paint_watercolour(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat washes with dark edges, pigment that pools, paper at the border."""
    height, width = picture.shape[:2]
    scale = width / 128
    wash = picture
    for _ in range(3):
        wash = cv2.bilateralFilter(wash, 0, 38, 2.2 * scale)
    wash = wash.astype(np.float32) / 255
    grey = wash.mean(2, keepdims=True)
    wash = np.clip(grey + (wash - grey) * 1.25, 0, 1) ** 0.8
    edges = np.abs(cv2.Laplacian(cv2.GaussianBlur(wash.mean(2), (0, 0), 1.0 * scale), cv2.CV_32F))
    pools = 1 + 0.16 * smooth_noise(rng, (height, width), 5) + 0.06 * smooth_noise(rng, (height, width), 28)
    wash = wash ** (pools + 3.0 * np.clip(edges, 0, 0.12))[..., None]
    y, x = np.mgrid[0:height, 0:width]
    border = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y)) / (0.045 * width)
    border = np.clip(border + 0.9 * smooth_noise(rng, (height, width), 9) - 0.3, 0, 1)[..., None]
    sheet = np.array([0.98, 0.97, 0.94]) * (1 + 0.015 * smooth_noise(rng, (height, width), 60)[..., None])
    return np.rint(255 * np.clip(sheet * (1 - border + border * wash), 0, 1)).astype(np.uint8)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """float32 (H, W), about -1..1, with `cells` over the width."""
    grid = rng.uniform(-1, 1, (cells * size[0] // size[1] + 1, cells)).astype(np.float32)
    return cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)
