"""A picture -> faces, by facexlib's RetinaFace with ResNet-50 (arXiv 1905.00641), in onnxruntime.

Follows facexlib 0.3 `detection/retinaface.py`, whose weights are `detection_Resnet50_Final.pth`. PuLID aligns
its crop by the five points that this detector finds.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from infu.cache import stamp
from infu.detectors import Face, without_overlaps
from infu.onnx_graph import REPEATED, Graph, load_converted

MEAN = np.float32((104, 117, 123))  # BGR
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # of the ResNet-50: width, blocks, stride
EXPANSION = 4
WIDTH = 256  # of the pyramid
STEPS = (8, 16, 32)  # pixels of a cell of each level
ANCHORS = ((16, 32), (64, 128), (256, 512))  # sides of the boxes that each cell proposes, in pixels
VARIANCES = (0.1, 0.2)  # of what the network says of a box's place, and of its size
MAX_OVERLAP = 0.4
CONVERSION = 1  # a new number makes converted files of older versions be made anew


def find_by_retinaface(picture: np.ndarray, weights: Path, threshold: float) -> list[Face]:
    """uint8 RGB (H, W, 3) at its own size -> the faces that score more than `threshold`, best first. Raises
    `BrokenFile` for weights of something else."""
    session = load_retinaface(weights, *stamp(weights))
    pixels = picture[:, :, ::-1].astype(np.float32) - MEAN
    boxes, scores, points = session.run(None, {"input": pixels.transpose(2, 0, 1)[None]})
    return decode(boxes[0], scores[0, :, 1], points[0], picture.shape[:2], threshold)


@lru_cache(maxsize=1)
def load_retinaface(file: Path, size: int, changed: int):
    """`size` and `changed` of the file: one that was replaced is loaded again."""
    return load_converted(file, "retinaface", CONVERSION, convert)


def decode(
    boxes: np.ndarray, scores: np.ndarray, points: np.ndarray, size: tuple[int, int], threshold: float
) -> list[Face]:
    """What the network says of every anchor: (A, 4), (A,), (A, 10) -> faces in pixels of a picture of `size`
    (height, width)."""
    seen = scores > threshold
    centres, sides = (values[seen] for values in make_anchors(*size))
    boxes, scores, points = boxes[seen], scores[seen], points[seen].reshape(-1, 5, 2)
    middles = centres + boxes[:, :2] * VARIANCES[0] * sides[:, None]
    halves = sides[:, None] * np.exp(boxes[:, 2:] * VARIANCES[1]) / 2
    corners = np.concatenate([middles - halves, middles + halves], axis=1).astype(np.float32)
    keypoints = (centres[:, None] + points * VARIANCES[0] * sides[:, None, None]).astype(np.float32)
    found = zip(corners, keypoints, scores, strict=True)
    faces = [Face(box, own, float(score), max(size)) for box, own, score in found]
    return without_overlaps(faces, MAX_OVERLAP)


def make_anchors(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle (A, 2) and side (A,) of every proposed box, in pixels: level by level, row by row."""
    centres, sides = [], []
    for step, own in zip(STEPS, ANCHORS, strict=True):
        rows, columns = -(-height // step), -(-width // step)
        y, x = np.mgrid[:rows, :columns].reshape(2, -1)
        centres.append(np.repeat((np.stack([x, y], axis=1) + 0.5) * step, len(own), axis=0))
        sides.append(np.tile(np.float64(own), rows * columns))
    return np.concatenate(centres), np.concatenate(sides)


def convert(weights: Any, name: str) -> bytes:
    """A state dict -> the bytes of an ONNX file: (1, 3, H, W) -> boxes, scores and points of every anchor."""
    if isinstance(weights, dict):  # it was trained on several GPUs, which shows in its names
        weights = {str(key).removeprefix("module."): value for key, value in weights.items()}
    graph = Graph("RetinaFace with ResNet-50", name, weights)
    make_network(graph)
    outputs = {"boxes": [1, "anchors", 4], "scores": [1, "anchors", 2], "points": [1, "anchors", 10]}
    return graph.to_bytes({"input": [1, 3, "height", "width"]}, outputs)


def make_network(graph: Graph) -> None:
    """ResNet-50, feature pyramid, context modules, heads."""
    levels = make_resnet(graph)
    fine, middle, coarse = (
        unit(graph, x, f"fpn.output{i}", width, WIDTH, kernel=1)
        for i, (x, width) in enumerate(zip(levels, (512, 1024, 2048), strict=True), 1)
    )
    middle = graph.node("Add", middle, enlarge(graph, coarse, middle))
    middle = unit(graph, middle, "fpn.merge2", WIDTH, WIDTH)
    fine = unit(graph, graph.node("Add", fine, enlarge(graph, middle, fine)), "fpn.merge1", WIDTH, WIDTH)
    features = [make_context(graph, x, f"ssh{i}") for i, x in enumerate((fine, middle, coarse), 1)]
    for head, size, output in (("BboxHead", 4, "boxes"), ("LandmarkHead", 10, "points")):
        make_head(graph, features, head, size, output)
    graph.node("Softmax", make_head(graph, features, "ClassHead", 2, None), axis=-1, output="scores")


def make_resnet(graph: Graph) -> list[str]:
    """The features at an eighth, a sixteenth and a thirty-second of the size."""
    x = graph.conv("input", "body.conv1", 3, 64, kernel=7, stride=2)
    x = graph.max_pool(graph.node("Relu", graph.batch_norm(x, "body.bn1", 64)))
    features, width = [], 64
    for stage, (inner, blocks, stride) in enumerate(STAGES, 1):
        for block in range(blocks):
            x = make_block(graph, x, f"body.layer{stage}.{block}", width, inner, 1 if block else stride)
            width = inner * EXPANSION
        features.append(x)
    return features[1:]


def make_block(graph: Graph, x: str, name: str, width: int, inner: int, stride: int) -> str:
    channels, shortcut = inner * EXPANSION, x
    if width != channels:
        shortcut = graph.conv(x, f"{name}.downsample.0", width, channels, kernel=1, stride=stride)
        shortcut = graph.batch_norm(shortcut, f"{name}.downsample.1", channels)
    x = graph.batch_norm(graph.conv(x, f"{name}.conv1", width, inner, kernel=1), f"{name}.bn1", inner)
    x = graph.conv(graph.node("Relu", x), f"{name}.conv2", inner, inner, kernel=3, stride=stride)
    x = graph.node("Relu", graph.batch_norm(x, f"{name}.bn2", inner))
    x = graph.batch_norm(graph.conv(x, f"{name}.conv3", inner, channels, kernel=1), f"{name}.bn3", channels)
    return graph.node("Relu", graph.node("Add", x, shortcut))


def make_context(graph: Graph, x: str, name: str) -> str:
    """SSH (arXiv 1708.03979): fields of view of 3, 5 and 7 side by side."""
    half, quarter = WIDTH // 2, WIDTH // 4
    near = unit(graph, x, f"{name}.conv3X3", WIDTH, half, rectified=False)
    x = unit(graph, x, f"{name}.conv5X5_1", WIDTH, quarter)
    wide = unit(graph, x, f"{name}.conv5X5_2", quarter, quarter, rectified=False)
    x = unit(graph, x, f"{name}.conv7X7_2", quarter, quarter)
    widest = unit(graph, x, f"{name}.conv7x7_3", quarter, quarter, rectified=False)
    return graph.node("Relu", graph.node("Concat", near, wide, widest, axis=1))


def make_head(graph: Graph, features: list[str], name: str, size: int, output: str | None) -> str:
    """`size` numbers of each anchor of all levels: (1, A, size)."""
    shape = graph.constant(np.int64([1, -1, size]))
    parts = []
    for level, x in enumerate(features):
        x = graph.conv(x, f"{name}.{level}.conv1x1", WIDTH, len(ANCHORS[level]) * size, kernel=1, bias=True)
        parts.append(graph.node("Reshape", graph.node("Transpose", x, perm=[0, 2, 3, 1]), shape))
    return graph.node("Concat", *parts, axis=1, output=output)


def unit(
    graph: Graph, x: str, name: str, width: int, channels: int, kernel: int = 3, rectified: bool = True
) -> str:
    x = graph.batch_norm(graph.conv(x, f"{name}.0", width, channels, kernel), f"{name}.1", channels)
    return graph.node("Relu", x) if rectified else x


def enlarge(graph: Graph, x: str, like: str) -> str:
    """To the size of `like`, which has as many channels, by repeating pixels."""
    return graph.node("Resize", x, "", "", graph.node("Shape", like), **REPEATED)
