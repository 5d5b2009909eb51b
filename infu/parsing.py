"""An aligned face -> what each of its pixels shows: facexlib's BiSeNet (arXiv 1808.00897), in onnxruntime.

Follows facexlib 0.3 `parsing/bisenet.py`, whose weights are `parsing_bisenet.pth`. Labels: 0 background, 1
skin, 2 and 3 brows, 4 and 5 eyes, 6 glasses, 7 and 8 ears, 9 earring, 10 nose, 11 mouth, 12 and 13 lips, 14
neck, 15 necklace, 16 clothes, 17 hair, 18 hat.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from infu.cache import stamp
from infu.onnx_graph import REPEATED, Graph, load_converted

SIDE, CLASSES = 512, 19
MEAN, DEVIATION = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))  # ImageNet's, RGB
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # of the ResNet-18: channels, stride; two blocks each
TRAINING_ONLY = ("conv_out16.", "conv_out32.")  # the heads of the coarser scales
CONVERSION = 1  # a new number makes converted files of older versions be made anew


def parse_face(crop: np.ndarray, weights: Path) -> np.ndarray:
    """uint8 RGB (512, 512, 3) -> labels (512, 512). Raises `BrokenFile` for weights of something else."""
    session = load_parser(weights, *stamp(weights))
    return session.run(None, {"input": make_input(crop)})[0][0].argmax(axis=0)


def make_input(crop: np.ndarray) -> np.ndarray:
    """uint8 RGB (512, 512, 3) -> float32 (1, 3, 512, 512)."""
    pixels = (crop.astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


@lru_cache(maxsize=1)
def load_parser(file: Path, size: int, changed: int):
    """`size` and `changed` of the file: one that was replaced is loaded again."""
    return load_converted(file, "bisenet", CONVERSION, convert)


def convert(weights: Any, name: str) -> bytes:
    """A state dict -> the bytes of an ONNX file: (1, 3, 512, 512) -> scores (1, 19, 512, 512)."""
    graph = Graph("BiSeNet", name, weights)
    make_network(graph)
    ends = {"input": [1, 3, SIDE, SIDE]}, {"output": [1, CLASSES, SIDE, SIDE]}
    return graph.to_bytes(*ends, unused=TRAINING_ONLY)


def make_network(graph: Graph) -> None:
    """Context path over a ResNet-18, fusion with its features at an eighth, and the finest head."""
    feat8, feat16, feat32 = make_resnet(graph)
    average = unit(graph, graph.node("GlobalAveragePool", feat32), "cp.conv_avg", 512, 128, kernel=1)
    coarse = graph.node("Add", refine(graph, feat32, "cp.arm32", 512), average)
    coarse = unit(graph, enlarge(graph, coarse), "cp.conv_head32", 128, 128)
    middle = graph.node("Add", refine(graph, feat16, "cp.arm16", 256), coarse)
    context = unit(graph, enlarge(graph, middle), "cp.conv_head16", 128, 128)

    x = graph.node("Concat", feat8, context, axis=1)
    x = unit(graph, x, "ffm.convblk", 256, 256, kernel=1)
    gate = graph.conv(graph.node("GlobalAveragePool", x), "ffm.conv1", 256, 64, kernel=1)
    gate = graph.conv(graph.node("Relu", gate), "ffm.conv2", 64, 256, kernel=1)
    x = graph.node("Add", graph.node("Mul", x, graph.node("Sigmoid", gate)), x)

    x = graph.conv(unit(graph, x, "conv_out.conv", 256, 256), "conv_out.conv_out", 256, CLASSES, kernel=1)
    scales = graph.constant(np.float32([1, 1, 8, 8]))
    how = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    graph.node("Resize", x, "", scales, output="output", **how)


def make_resnet(graph: Graph) -> tuple[str, str, str]:
    """The features at an eighth, a sixteenth and a thirty-second of the size."""
    x = graph.conv("input", "cp.resnet.conv1", 3, 64, kernel=7, stride=2)
    x = graph.max_pool(graph.node("Relu", graph.batch_norm(x, "cp.resnet.bn1", 64)))
    features, width = [], 64
    for stage, (channels, stride) in enumerate(STAGES, 1):
        x = make_block(graph, x, f"cp.resnet.layer{stage}.0", width, channels, stride)
        x = make_block(graph, x, f"cp.resnet.layer{stage}.1", channels, channels, 1)
        features.append(x)
        width = channels
    return tuple(features[1:])


def make_block(graph: Graph, x: str, name: str, width: int, channels: int, stride: int) -> str:
    shortcut = x
    if width != channels or stride != 1:
        shortcut = graph.conv(x, f"{name}.downsample.0", width, channels, kernel=1, stride=stride)
        shortcut = graph.batch_norm(shortcut, f"{name}.downsample.1", channels)
    x = graph.conv(x, f"{name}.conv1", width, channels, kernel=3, stride=stride)
    x = graph.node("Relu", graph.batch_norm(x, f"{name}.bn1", channels))
    x = graph.batch_norm(
        graph.conv(x, f"{name}.conv2", channels, channels, kernel=3), f"{name}.bn2", channels
    )
    return graph.node("Relu", graph.node("Add", shortcut, x))


def unit(graph: Graph, x: str, name: str, width: int, channels: int, kernel: int = 3) -> str:
    x = graph.conv(x, f"{name}.conv", width, channels, kernel)
    return graph.node("Relu", graph.batch_norm(x, f"{name}.bn", channels))


def refine(graph: Graph, x: str, name: str, width: int) -> str:
    """Each channel weighted by what its average says."""
    x = unit(graph, x, f"{name}.conv", width, 128)
    gate = graph.conv(graph.node("GlobalAveragePool", x), f"{name}.conv_atten", 128, 128, kernel=1)
    gate = graph.node("Sigmoid", graph.batch_norm(gate, f"{name}.bn_atten", 128))
    return graph.node("Mul", x, gate)


def enlarge(graph: Graph, x: str) -> str:
    """To twice the size, by repeating pixels."""
    return graph.node("Resize", x, "", graph.constant(np.float32([1, 1, 2, 2])), **REPEATED)
