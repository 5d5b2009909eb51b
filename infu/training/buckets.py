"""Picture sizes of about one area, and the cut of a photograph to the one that is nearest to its shape."""

import cv2
import numpy as np


def make_buckets(pixels: int, step: int, max_ratio: float) -> list[tuple[int, int]]:
    """Widths and heights, multiples of `step` (itself one of 16), each the largest of its width whose area is
    at most `pixels` and whose sides differ by at most `max_ratio`."""
    sizes = []
    for width in range(step, int((pixels * max_ratio) ** 0.5) + 1, step):
        height = pixels // width // step * step
        if height and max(width / height, height / width) <= max_ratio:
            sizes.append((width, height))
    return sizes


def choose_bucket(width: int, height: int, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose shape is nearest to a picture's, by the ratio of the ratios."""
    return min(buckets, key=lambda size: abs(np.log(size[0] / size[1] * height / width)))


def cut_to(
    photo: np.ndarray, box: np.ndarray, keypoints: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, float]:
    """uint8 RGB (H, W, 3) -> uint8 RGB of `size`, the five points in it, and by how much it was enlarged.
    What is cut off lies at two sides only, and the face's box is spared as far as it can be."""
    height, width = photo.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    inside = np.array(size) / scale  # of the photograph, width and height
    spare = np.array([width, height]) - inside
    face = np.asarray(box, np.float64).reshape(2, 2)
    start = np.clip(spare / 2, face[1] - inside, face[0])  # the middle, moved to hold the face
    large = face[1] - face[0] > inside
    start = np.where(large, face.mean(axis=0) - inside / 2, start)
    start = np.clip(start, 0, np.maximum(spare, 0))
    x, y = np.rint(start).astype(int)
    w, h = np.maximum(np.rint(inside).astype(int), 1)
    part = photo[y : y + h, x : x + w]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    factors = np.array(size) / np.array([part.shape[1], part.shape[0]])
    return cv2.resize(part, size, interpolation=how), (keypoints - [x, y]) * factors, float(scale)
