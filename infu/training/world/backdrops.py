"""What is behind a person: a colour as in a studio, or a place out of focus; and the light of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from infu.training.world.people import COLOURS, Look

Canvas = np.ndarray  # float32 (H, W, 3), 0..255, drawn in place


@dataclass(frozen=True)
class Light:
    """Linear colours: the key light, what comes from above and below, and what rims the edges."""

    key: tuple[float, float, float]
    sky: tuple[float, float, float]
    ground: tuple[float, float, float]
    rim: tuple[float, float, float] = (0.1, 0.1, 0.1)


STUDIO = Light((1.0, 0.97, 0.93), (0.52, 0.53, 0.56), (0.34, 0.31, 0.30))
LIGHTS = {
    "beach": Light((1.2, 1.1, 0.95), (0.50, 0.58, 0.68), (0.46, 0.40, 0.32), (0.3, 0.28, 0.24)),
    "forest": Light((0.85, 0.92, 0.75), (0.42, 0.50, 0.42), (0.26, 0.28, 0.20), (0.2, 0.28, 0.14)),
    "night": Light((0.85, 0.72, 0.62), (0.26, 0.28, 0.46), (0.20, 0.16, 0.22), (0.5, 0.28, 0.5)),
    "room": Light((1.05, 0.94, 0.78), (0.48, 0.45, 0.42), (0.34, 0.29, 0.25)),
    "library": Light((1.0, 0.86, 0.66), (0.44, 0.40, 0.36), (0.30, 0.24, 0.20)),
    "snow": Light((0.9, 0.95, 1.05), (0.62, 0.66, 0.74), (0.52, 0.54, 0.58), (0.2, 0.22, 0.26)),
}
OUTDOORS = Light((1.12, 1.06, 0.95), (0.50, 0.55, 0.62), (0.34, 0.34, 0.28), (0.25, 0.25, 0.22))


def light_of(look: Look) -> Light:
    return STUDIO if look.backdrop in COLOURS else LIGHTS.get(look.backdrop, OUTDOORS)


def draw_backdrop(look: Look, size: tuple[int, int]) -> Canvas:
    """-> float32 (height, width, 3), sRGB 0..255."""
    width, height = size
    rng = np.random.default_rng([look.seed, 5])
    canvas = np.empty((height, width, 3), np.float32)
    if look.backdrop in COLOURS:
        return draw_studio(canvas, rng, COLOURS[look.backdrop])
    blur = PLACE[look.backdrop](canvas, rng)
    canvas = cv2.GaussianBlur(canvas, (0, 0), width * blur * rng.uniform(0.8, 1.2))
    return canvas * rng.uniform(0.88, 1.08)


def draw_studio(canvas: Canvas, rng: np.random.Generator, colour: tuple[float, float, float]) -> Canvas:
    """A paper roll with a lamp on it."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / height
    spot = np.exp(
        -((x - rng.uniform(0.1, 0.7)) ** 2 + (y - rng.uniform(0.1, 0.6)) ** 2) / rng.uniform(0.15, 0.6)
    )
    canvas[:] = np.array(colour, np.float32) * rng.uniform(0.9, 1.1) * (0.78 + 0.34 * spot[..., None])
    return canvas


def draw_park(canvas: Canvas, rng: np.random.Generator) -> float:
    height, width = canvas.shape[:2]
    draw_sky(canvas, (150, 190, 228), (214, 228, 236))
    horizon = int(height * rng.uniform(0.5, 0.68))
    draw_leaves(canvas, rng, 46, (0, horizon), ((58, 98, 44), (120, 156, 74)), 0.13)
    draw_ground(canvas, horizon, (126, 158, 76), (84, 122, 52))
    draw_bokeh(canvas, rng, 10, ((226, 236, 170),), 0.6)
    return 0.028


def draw_beach(canvas: Canvas, rng: np.random.Generator) -> float:
    height = canvas.shape[0]
    draw_sky(canvas, (104, 168, 224), (206, 228, 238))
    sea, sand = int(height * rng.uniform(0.36, 0.5)), int(height * rng.uniform(0.58, 0.7))
    draw_ground(canvas, sea, (40, 122, 164), (92, 178, 186))
    for _ in range(5):
        y = int(rng.uniform(sea, sand))
        cv2.line(canvas, (0, y), (canvas.shape[1], y + int(rng.normal(0, 2))), (206, 230, 232), 1)
    draw_ground(canvas, sand, (226, 202, 156), (200, 168, 122))
    return 0.012


def draw_mountains(canvas: Canvas, rng: np.random.Generator) -> float:
    height, width = canvas.shape[:2]
    draw_sky(canvas, (116, 164, 216), (220, 228, 232))
    for depth, (rock, snow) in enumerate(
        (((132, 146, 172), (226, 232, 240)), ((84, 98, 118), (240, 243, 246)))
    ):
        for _ in range(3):
            x, top = rng.uniform(0, width), height * rng.uniform(0.08 + 0.14 * depth, 0.34 + 0.1 * depth)
            half = rng.uniform(0.35, 0.6) * width
            fill(canvas, ((x - half, height), (x, top), (x + half, height)), rock)
            cap = 0.22
            fill(
                canvas,
                (
                    (x - half * cap, top + cap * (height - top)),
                    (x, top),
                    (x + half * cap * 0.6, top + cap * 0.6 * (height - top)),
                ),
                snow,
            )
    draw_ground(canvas, int(height * 0.72), (74, 104, 64), (96, 120, 70))
    return 0.014


def draw_forest(canvas: Canvas, rng: np.random.Generator) -> float:
    height, width = canvas.shape[:2]
    draw_sky(canvas, (70, 104, 62), (40, 62, 38))
    draw_bokeh(canvas, rng, 26, ((150, 186, 96), (206, 222, 150)), 0.55)
    for _ in range(9):
        x, thick = rng.uniform(0, width), int(rng.uniform(0.03, 0.09) * width)
        cv2.line(
            canvas,
            (int(x), 0),
            (int(x + rng.normal(0, 6)), height),
            tuple(rng.uniform(0.7, 1.2) * c for c in (62, 48, 36)),
            thick,
        )
    draw_leaves(canvas, rng, 26, (int(height * 0.6), height), ((36, 66, 30), (76, 112, 48)), 0.10)
    return 0.022


def draw_city(canvas: Canvas, rng: np.random.Generator) -> float:
    height, width = canvas.shape[:2]
    draw_sky(canvas, (172, 196, 220), (224, 228, 230))
    x = -10.0
    while x < width:
        wide, top = rng.uniform(0.14, 0.3) * width, int(height * rng.uniform(0.0, 0.42))
        wall = np.array(((150, 138, 128), (176, 160, 142), (120, 126, 136), (160, 122, 104))[rng.integers(4)])
        cv2.rectangle(canvas, (int(x), top), (int(x + wide), height), tuple(map(float, wall)), -1)
        pane = max(3, int(width * 0.035))
        for wy in range(top + pane, height, 2 * pane):
            for wx in range(int(x) + pane, int(x + wide) - pane, 2 * pane):
                shade = rng.uniform(0.45, 1.25)
                cv2.rectangle(
                    canvas, (wx, wy), (wx + pane, wy + pane), (96 * shade, 112 * shade, 130 * shade), -1
                )
        x += wide + rng.uniform(-2, 4)
    return 0.014


def draw_night(canvas: Canvas, rng: np.random.Generator) -> float:
    draw_sky(canvas, (14, 16, 38), (40, 32, 58))
    lamps = ((255, 190, 96), (255, 120, 90), (120, 180, 255), (255, 226, 170), (232, 110, 220))
    draw_bokeh(canvas, rng, 34, lamps, 0.75)
    return 0.010


def draw_room(canvas: Canvas, rng: np.random.Generator) -> float:
    height, width = canvas.shape[:2]
    wall = np.array(((222, 208, 184), (196, 204, 200), (214, 190, 176))[rng.integers(3)], np.float32)
    canvas[:] = wall * np.linspace(1.0, 0.82, width)[:: int(rng.choice([-1, 1]))][None, :, None]
    left = rng.random() < 0.5
    x = (0.0 if left else 0.64) * width
    cv2.rectangle(
        canvas, (int(x), int(0.04 * height)), (int(x + 0.36 * width), int(0.5 * height)), (250, 250, 246), -1
    )
    for bar in (0.18, 0.36):
        cv2.line(
            canvas,
            (int(x + bar * width), int(0.04 * height)),
            (int(x + bar * width), int(0.5 * height)),
            (196, 186, 170),
            3,
        )
    cv2.line(
        canvas, (int(x), int(0.27 * height)), (int(x + 0.36 * width), int(0.27 * height)), (196, 186, 170), 2
    )
    x = (0.66 if left else 0.04) * width
    frame = tuple(float(v) for v in rng.uniform(60, 200, 3))
    cv2.rectangle(
        canvas, (int(x), int(0.12 * height)), (int(x + 0.28 * width), int(0.36 * height)), (92, 66, 46), -1
    )
    cv2.rectangle(
        canvas,
        (int(x + 3), int(0.12 * height) + 3),
        (int(x + 0.28 * width) - 3, int(0.36 * height) - 3),
        frame,
        -1,
    )
    sofa = tuple(float(v) for v in np.array(COLOURS[str(rng.choice(list(COLOURS)))]) * 0.75)
    cv2.rectangle(canvas, (0, int(0.66 * height)), (width, height), sofa, -1)
    return 0.014


def draw_library(canvas: Canvas, rng: np.random.Generator) -> float:
    height, width = canvas.shape[:2]
    canvas[:] = (62, 42, 28)
    shelf = max(12, int(height * 0.17))
    for bottom in range(shelf, height + shelf, shelf):
        x = 0.0
        while x < width:
            wide, tall = rng.uniform(0.02, 0.05) * width, rng.uniform(0.6, 0.86) * shelf
            spine = np.array(
                ((150, 48, 40), (46, 84, 70), (52, 66, 110), (190, 158, 96), (98, 66, 46), (206, 196, 176))[
                    rng.integers(6)
                ]
            )
            colour = tuple((spine * rng.uniform(0.7, 1.1)).tolist())
            cv2.rectangle(canvas, (int(x), int(bottom - tall)), (int(x + wide), bottom - 3), colour, -1)
            x += wide + 0.8
        cv2.line(canvas, (0, bottom), (width, bottom), (104, 74, 48), 3)
    return 0.010


def draw_snow(canvas: Canvas, rng: np.random.Generator) -> float:
    height, width = canvas.shape[:2]
    draw_sky(canvas, (172, 188, 206), (214, 222, 230))
    for _ in range(7):
        x, top, half = rng.uniform(0, width), height * rng.uniform(0.12, 0.4), rng.uniform(0.08, 0.16) * width
        tree = tuple(rng.uniform(0.8, 1.2) * c for c in (74, 96, 92))
        fill(canvas, ((x - half, height * 0.7), (x, top), (x + half, height * 0.7)), tree)
        fill(
            canvas,
            ((x - half * 0.4, top + height * 0.12), (x, top), (x + half * 0.3, top + height * 0.1)),
            (236, 240, 246),
        )
    draw_ground(canvas, int(height * rng.uniform(0.58, 0.68)), (240, 243, 248), (216, 224, 236))
    for _ in range(60):
        cv2.circle(
            canvas,
            (int(rng.uniform(0, width)), int(rng.uniform(0, height))),
            int(rng.uniform(1, 2.4)),
            (250, 251, 253),
            -1,
        )
    return 0.008


PLACE: dict[
    str, Callable[[Canvas, np.random.Generator], float]
] = {  # each returns its blur, as part of the width
    "park": draw_park,
    "beach": draw_beach,
    "mountains": draw_mountains,
    "forest": draw_forest,
    "city": draw_city,
    "night": draw_night,
    "room": draw_room,
    "library": draw_library,
    "snow": draw_snow,
}


def draw_sky(canvas: Canvas, top, bottom) -> None:
    t = np.linspace(0, 1, canvas.shape[0], dtype=np.float32)[:, None, None]
    canvas[:] = np.array(top, np.float32) * (1 - t) + np.array(bottom, np.float32) * t


def draw_ground(canvas: Canvas, horizon: int, far, near) -> None:
    draw_sky(canvas[horizon:], far, near)


def draw_leaves(canvas: Canvas, rng, count: int, rows: tuple[int, int], shades, size: float) -> None:
    dark, light = (np.array(shade) for shade in shades)
    for _ in range(count):
        at = int(rng.uniform(0, canvas.shape[1])), int(rng.uniform(*rows))
        colour = tuple((dark + (light - dark) * rng.random()).tolist())
        cv2.circle(canvas, at, int(canvas.shape[1] * size * rng.uniform(0.5, 1.2)), colour, -1)


def draw_bokeh(canvas: Canvas, rng, count: int, colours, strength: float) -> None:
    """Lights out of focus: discs that add to what is there."""
    for _ in range(count):
        disc = np.zeros(canvas.shape[:2], np.float32)
        at = int(rng.uniform(0, canvas.shape[1])), int(rng.uniform(0, canvas.shape[0] * 0.8))
        cv2.circle(disc, at, int(canvas.shape[1] * rng.uniform(0.015, 0.06)), 1, -1)
        part = disc[..., None] * strength * rng.uniform(0.3, 1)
        canvas += part * (np.array(colours[rng.integers(len(colours))], np.float32) - canvas)


def fill(canvas: Canvas, corners, colour) -> None:
    cv2.fillPoly(canvas, [np.array(corners, np.int32)], tuple(map(float, colour)))
