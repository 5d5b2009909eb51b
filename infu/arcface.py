"""facexlib's ArcFace IR-SE50, whose embedding InfiniteYou was trained on: its `.pth` -> ONNX, once, no torch.

Follows facexlib 0.3 `recognition/arcface_arch.py` (`num_layers=50, mode="ir_se"`). In: BGR (1, 3, 112, 112)
in [-1, 1]; out: (1, 512), of unit length.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from infu.errors import MissingFile
from infu.models import ARCFACE
from infu.onnx_graph import Graph, load_converted

if TYPE_CHECKING:
    import onnxruntime

STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels, units; the first unit of each has stride 2
CONVERSION = 1  # a new number makes converted files of older versions be made anew


def load_arcface(path: Path) -> onnxruntime.InferenceSession:
    """`recognition_arcface_ir_se50.pth` -> a session. Raises `BrokenFile`."""
    return load_converted(path, "arcface", CONVERSION, convert)


def find_arcface(path: Path) -> Path:
    """The file, or the one of its usual name in a folder."""
    for file in (path, path / ARCFACE):
        if file.is_file():
            return file
    raise MissingFile(
        f"The face recogniser {ARCFACE} is missing. Run `python -m infu download`, which fetches it."
    )


def convert(weights: Any, name: str) -> bytes:
    """A state dict -> the bytes of an ONNX file. Every tensor is used once, all others are named. `name` is
    what errors call the file."""
    graph = Graph("ArcFace IR-SE50", name, weights)
    make_network(graph)
    return graph.to_bytes({"input": ["N", 3, 112, 112]}, {"output": ["N", 512]})


def make_network(graph: Graph) -> None:
    """IR-SE50, layer by layer, from the graph's `input` to its `output`."""
    x = graph.conv("input", "input_layer.0", 3, 64, kernel=3)
    x = graph.prelu(graph.batch_norm(x, "input_layer.1", 64), "input_layer.2", 64)
    width, index = 64, 0
    for channels, units in STAGES:
        for unit in range(units):
            x = make_unit(graph, x, f"body.{index}", width, channels, stride=1 if unit else 2)
            width, index = channels, index + 1
    x = graph.node("Flatten", graph.batch_norm(x, "output_layer.0", 512))  # (N, 512 * 7 * 7), channels first
    weight = graph.weight("output_layer.3.weight", (512, 512 * 7 * 7))
    x = graph.node("Gemm", x, weight, graph.weight("output_layer.3.bias", (512,)), transB=1)
    x = graph.batch_norm(x, "output_layer.4", 512)
    graph.node("Div", x, graph.node("ReduceL2", x, axes=[1], keepdims=1), output="output")


def make_unit(graph: Graph, x: str, name: str, width: int, channels: int, stride: int) -> str:
    """Shortcut + squeeze-and-excited residual; the stride is the second convolution's."""
    shortcut = x
    if width != channels:
        shortcut = graph.conv(x, f"{name}.shortcut_layer.0", width, channels, kernel=1, stride=stride)
        shortcut = graph.batch_norm(shortcut, f"{name}.shortcut_layer.1", channels)
    elif stride != 1:
        shortcut = graph.node("MaxPool", x, kernel_shape=[1, 1], strides=[stride, stride])
    residual = f"{name}.res_layer"
    x = graph.batch_norm(x, f"{residual}.0", width)
    x = graph.prelu(graph.conv(x, f"{residual}.1", width, channels, kernel=3), f"{residual}.2", channels)
    x = graph.conv(x, f"{residual}.3", channels, channels, kernel=3, stride=stride)
    x = graph.batch_norm(x, f"{residual}.4", channels)
    gate = graph.node("GlobalAveragePool", x)
    gate = graph.node("Relu", graph.conv(gate, f"{residual}.5.fc1", channels, channels // 16, kernel=1))
    gate = graph.node("Sigmoid", graph.conv(gate, f"{residual}.5.fc2", channels // 16, channels, kernel=1))
    return graph.node("Add", shortcut, graph.node("Mul", x, gate))
