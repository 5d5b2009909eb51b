"""Five face points -> the control image InfuseNet was trained on; a control photograph -> fitted to output.

Follows the released InfiniteYou pipeline (`pipelines/pipeline_infu_flux.py`), equal to it to the pixel.
"""

import math

import cv2
import numpy as np
from PIL import Image

from infu.errors import InvalidRequest

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))  # one per point, RGB
NOSE = 2
LIMBS = (0, 1, 3, 4)  # each is drawn from its point to the nose
LIMB_HALF_WIDTH, POINT_RADIUS = 4, 10
DIMMED = 0.6  # the limbs; the points keep their full colour
FARTHEST = 16384  # pixels; OpenCV's fixed-point arithmetic overflows not far beyond


def draw_keypoints(keypoints: np.ndarray, width: int, height: int) -> np.ndarray:
    """Points (5, 2), x and y in pixels: eye, eye, nose, mouth corner, mouth corner, left before right in the
    picture -> uint8 RGB (height, width, 3). Points outside the canvas are drawn as far as they reach in."""
    points = np.asarray(keypoints, np.float64).reshape(5, 2)
    if not np.abs(points).max() <= FARTHEST:  # NaN fails too
        raise InvalidRequest(f"control_keypoints must lie within {FARTHEST} pixels of the picture's corner.")
    canvas = np.zeros((height, width, 3), np.uint8)
    for index in LIMBS:
        draw_limb(canvas, points[index], points[NOSE], COLOURS[index])
    canvas = (canvas * DIMMED).astype(np.uint8)  # 255 becomes 153: truncated, not rounded
    for (x, y), colour in zip(points, COLOURS, strict=True):
        cv2.circle(canvas, (int(x), int(y)), POINT_RADIUS, colour, -1)
    return canvas


def draw_limb(canvas: np.ndarray, point: np.ndarray, nose: np.ndarray, colour: tuple[int, int, int]) -> None:
    """A filled ellipse between two points, every number truncated toward zero as released."""
    (cx, cy), (dx, dy) = (point + nose) / 2, point - nose
    half_length, angle = int(math.hypot(dx, dy) / 2), int(math.degrees(math.atan2(dy, dx)))
    outline = cv2.ellipse2Poly((int(cx), int(cy)), (half_length, LIMB_HALF_WIDTH), angle, 0, 360, 1)
    cv2.fillConvexPoly(canvas, outline, colour)


def fit_control_photo(photo: np.ndarray | Image.Image, width: int, height: int) -> Image.Image:
    """A control photograph (RGB) of any size -> width x height: fitted by the output's shorter side, centred
    on white, what is over is cut."""
    photo = (photo if isinstance(photo, Image.Image) else Image.fromarray(photo)).convert("RGB")
    w, h = photo.size
    if width <= height:
        fitted_width, fitted_height = width, max(1, int(width * (h / w)))
    else:
        fitted_width, fitted_height = max(1, int(height * (w / h))), height
    if fitted_width * fitted_height > 16 * width * height:  # a strip, which would take gigabytes
        middle = cut_middle(photo, 2 * width / fitted_width, 2 * height / fitted_height)
        return fit_control_photo(middle, width, height)
    canvas = Image.new("RGB", (width, height), "white")
    fitted = photo.resize((fitted_width, fitted_height), Image.Resampling.LANCZOS)
    canvas.paste(fitted, ((width - fitted_width) // 2, (height - fitted_height) // 2))
    return canvas


def cut_middle(photo: Image.Image, of_width: float, of_height: float) -> Image.Image:
    """The middle of a photograph: these parts of its width and height, all of it where a part is over 1."""
    w, h = photo.size
    x, y = (max(0, int(side * (1 - part) / 2)) for side, part in ((w, of_width), (h, of_height)))
    return photo.crop((x, y, w - x, h - y))
