"""facexlib's ArcFace IR-SE50, whose embedding InfiniteYou was trained on: its `.pth` -> ONNX, once, no torch.

Follows facexlib 0.3 `recognition/arcface_arch.py` (`num_layers=50, mode="ir_se"`). In: BGR (1, 3, 112, 112)
in [-1, 1]; out: (1, 512), of unit length.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from infu.detectors import open_session
from infu.errors import BrokenFile, MissingFile
from infu.models import ARCFACE, infu_cache
from infu.weights.files import fold
from infu.weights.torchfile import read_torch_file

if TYPE_CHECKING:
    import onnxruntime

STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels, units; the first unit of each has stride 2
EPS = 1e-5  # batch norm's
OPSET, IR_VERSION = 17, 8  # what onnxruntime 1.20 reads
CONVERSION = 1  # a new number makes converted files of older versions be made anew


def load_arcface(path: Path) -> onnxruntime.InferenceSession:
    """`recognition_arcface_ir_se50.pth` -> a session. The converted file is kept in the user's cache folder,
    by the name, size and age of its origin. Raises `BrokenFile`."""
    stat = path.stat()
    origin = f"{CONVERSION} {path.name} {stat.st_size} {stat.st_mtime_ns}"
    converted = infu_cache() / f"arcface-{hashlib.sha256(origin.encode()).hexdigest()[:16]}.onnx"
    if converted.is_file():
        try:
            return open_session(converted, converted.name)
        except BrokenFile:  # a full disk, once; made again below
            pass
    model = convert(read_torch_file(path), path.name)
    write_whole(converted, model)
    return open_session(model, path.name)


def find_arcface(path: Path) -> Path:
    """The file, or the one of its usual name in a folder."""
    for file in (path, path / ARCFACE):
        if file.is_file():
            return file
    raise MissingFile(
        f"The face recogniser {ARCFACE} is missing. Run `python -m infu download`, which fetches it."
    )


def write_whole(file: Path, content: bytes) -> None:
    """The file, whole or not at all; where the folder cannot be written, not at all."""
    part = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, file)
    except OSError:  # no space, no right: the next run converts again
        with contextlib.suppress(OSError):
            part.unlink()


def convert(weights: Any, name: str) -> bytes:
    """A state dict -> the bytes of an ONNX file. Every tensor is used once, all others are named. `name` is
    what errors call the file."""
    if not isinstance(weights, dict) or not all(isinstance(value, np.ndarray) for value in weights.values()):
        raise BrokenFile(f"{name} is not a state dict. Run `python -m infu download`.")
    graph = Graph(name, weights)
    make_network(graph)
    unused = [key for key in weights if key not in graph.used and not key.endswith("num_batches_tracked")]
    if unused:
        raise BrokenFile(f"{name} holds tensors that ArcFace IR-SE50 does not have: {fold(unused)}.")
    return graph.to_bytes()


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


class Graph:
    """An ONNX graph as it grows: each method adds a layer and returns the name of its output."""

    def __init__(self, file_name: str, weights: dict[str, np.ndarray]):
        self.file_name, self.weights = file_name, weights
        self.used: set[str] = set()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, name: str, shape: tuple[int, ...], stored: tuple[int, ...] | None = None) -> str:
        """The tensor `name`, which must have this shape; stored in the graph with the shape `stored`."""
        value = self.weights.get(name)
        if value is None:
            raise BrokenFile(f"{self.file_name} lacks the tensor {name}. Run `python -m infu download`.")
        if value.shape != shape:
            raise BrokenFile(
                f"{self.file_name}: {name} has the shape {value.shape}; ArcFace IR-SE50's is {shape}."
            )
        value = np.ascontiguousarray(value, np.float32).reshape(stored or shape)
        self.initializers.append(onnx.numpy_helper.from_array(value, name))
        self.used.add(name)
        return name

    def conv(self, x: str, name: str, width: int, channels: int, kernel: int, stride: int = 1) -> str:
        weight = self.weight(f"{name}.weight", (channels, width, kernel, kernel))
        pads = [kernel // 2] * 4
        return self.node("Conv", x, weight, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def batch_norm(self, x: str, name: str, channels: int) -> str:
        parts = ("weight", "bias", "running_mean", "running_var")
        values = [self.weight(f"{name}.{part}", (channels,)) for part in parts]
        return self.node("BatchNormalization", x, *values, epsilon=EPS)

    def prelu(self, x: str, name: str, channels: int) -> str:
        return self.node("PRelu", x, self.weight(f"{name}.weight", (channels,), stored=(channels, 1, 1)))

    def to_bytes(self) -> bytes:
        ends = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("input", ["N", 3, 112, 112]), ("output", ["N", 512]))
        ]
        graph = onnx.helper.make_graph(self.nodes, "arcface_ir_se50", ends[:1], ends[1:], self.initializers)
        opset = [onnx.helper.make_opsetid("", OPSET)]
        return onnx.helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
