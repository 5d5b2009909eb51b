"""A face's five points -> crops in which every face lies alike."""

from __future__ import annotations

import cv2
import numpy as np

# Where the five points of an upright face lie in a crop of 112 x 112 (insightface, `utils/face_align.py`).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
CROP = 112
HEAD = 64  # pixels; the crop of a whole head with its hair
HEAD_REGION, HEAD_CENTRE = 224, (56, 45)  # what it shows, in pixels of the 112 x 112 crop


def align(picture: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """uint8 RGB picture and five points -> uint8 RGB (112, 112, 3), bilinear, black outside, as released."""
    return cv2.warpAffine(picture, fit_similarity(keypoints), (CROP, CROP), borderValue=0)


def fit_similarity(keypoints: np.ndarray, template: np.ndarray = TEMPLATE) -> np.ndarray:
    """Rotation, uniform scale and translation (2, 3) that bring five points nearest to the template, by least
    squares (Umeyama 1991, "Least-squares estimation of transformation parameters", equations 38 to 43)."""
    points = np.asarray(keypoints, np.float64)
    centre, target = points.mean(axis=0), template.mean(axis=0)
    covariance = (template - target).T @ (points - centre) / len(points)
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])  # a rotation, never a mirror
    variance = (points - centre).var(axis=0).sum()
    linear = (u * signs) @ vt * ((singular * signs).sum() / max(variance, 1e-12))
    return np.concatenate([linear, (target - linear @ centre)[:, None]], axis=1)


def crop_head(picture: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """uint8 RGB picture and five points -> the head, aligned, uint8 RGB (64, 64, 3); the picture's edge is
    drawn out where the head leaves it."""
    scale = HEAD / HEAD_REGION
    matrix = fit_similarity(keypoints) * scale
    matrix[:, 2] += HEAD / 2 - scale * np.array(HEAD_CENTRE)
    shrink = np.sqrt(np.abs(np.linalg.det(matrix[:, :2])))
    if shrink < 0.5:  # a warp reads four pixels for each it writes, and would skip the others
        height, width = picture.shape[:2]
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        ratio = np.array(size) / (width, height)
        matrix = np.column_stack([matrix[:, :2] / ratio, matrix[:, 2] + matrix[:, :2] @ (0.5 / ratio - 0.5)])
    return cv2.warpAffine(picture, matrix, (HEAD, HEAD), borderMode=cv2.BORDER_REPLICATE)


def unit(vector: np.ndarray) -> np.ndarray:
    vector = np.asarray(vector, np.float32)
    return vector / np.linalg.norm(vector)
