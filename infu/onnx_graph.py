"""facexlib's networks, `.pth` -> ONNX, once, without torch: a graph grown from a state dict, kept.

So that both backends run them in onnxruntime, and neither needs facexlib.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from infu.cache import stamp
from infu.detectors import open_session
from infu.errors import BrokenFile, InfuError
from infu.models import infu_cache
from infu.weights.files import fold
from infu.weights.torchfile import read_torch_file
from infu.whole import write_whole

if TYPE_CHECKING:
    import onnxruntime

EPS = 1e-5  # batch norm's
OPSET, IR_VERSION = 17, 8  # what onnxruntime 1.20 reads

REPEATED = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}  # torch's

Shape = list[int | str]  # a size that may differ has a name
Ends = dict[str, Shape]


def load_converted(
    path: Path, kind: str, version: int, convert: Callable[[Any, str], bytes]
) -> onnxruntime.InferenceSession:
    """A `.pth` -> a session. The converted file is kept in the user's cache folder, by the name, size and age
    of its origin; `version`: a new number makes those of older versions be made anew. Raises `BrokenFile`."""
    size, changed = stamp(path)
    origin = f"{version} {path.name} {size} {changed}"
    converted = infu_cache() / f"{kind}-{hashlib.sha256(origin.encode()).hexdigest()[:16]}.onnx"
    if converted.is_file():
        try:
            return open_session(converted, converted.name)
        except BrokenFile:  # a full disk, once; made again below
            pass
    model = convert(read_torch_file(path), path.name)
    with contextlib.suppress(InfuError, OSError):  # no space, no right: the next run converts again
        write_whole(converted, lambda part: part.write_bytes(model))
    return open_session(model, path.name)


class Graph:
    """An ONNX graph as it grows: each method adds a layer and returns the name of its output."""

    def __init__(self, network: str, file_name: str, weights: Any):
        """`network`, `file_name`: what errors call the architecture and the file; `weights`: a state dict."""
        if not isinstance(weights, dict) or not all(isinstance(v, np.ndarray) for v in weights.values()):
            raise BrokenFile(f"{file_name} is not a state dict. Run `python -m infu download`.")
        self.network, self.file_name, self.weights = network, file_name, weights
        self.used: set[str] = set()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, shape: tuple[int, ...], stored: tuple[int, ...] | None = None) -> str:
        """The tensor `name`, which must have this shape; stored in the graph with the shape `stored`."""
        value = self.weights.get(name)
        if value is None:
            raise BrokenFile(f"{self.file_name} lacks the tensor {name}. Run `python -m infu download`.")
        if value.shape != shape:
            raise BrokenFile(
                f"{self.file_name}: {name} has the shape {value.shape}; {self.network}'s is {shape}."
            )
        value = np.ascontiguousarray(value, np.float32).reshape(stored or shape)
        self.initializers.append(onnx.numpy_helper.from_array(value, name))
        self.used.add(name)
        return name

    def conv(
        self, x: str, name: str, width: int, channels: int, kernel: int, stride: int = 1, bias: bool = False
    ) -> str:
        """A convolution that keeps the size, but for its stride."""
        weights = [self.weight(f"{name}.weight", (channels, width, kernel, kernel))]
        if bias:
            weights.append(self.weight(f"{name}.bias", (channels,)))
        pads = [kernel // 2] * 4
        return self.node("Conv", x, *weights, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def batch_norm(self, x: str, name: str, channels: int) -> str:
        parts = ("weight", "bias", "running_mean", "running_var")
        values = [self.weight(f"{name}.{part}", (channels,)) for part in parts]
        return self.node("BatchNormalization", x, *values, epsilon=EPS)

    def prelu(self, x: str, name: str, channels: int) -> str:
        return self.node("PRelu", x, self.weight(f"{name}.weight", (channels,), stored=(channels, 1, 1)))

    def max_pool(self, x: str) -> str:
        """Of 3 x 3, to half the size, as every ResNet begins."""
        return self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def to_bytes(self, inputs: Ends, outputs: Ends, unused: Iterable[str] = ()) -> bytes:
        """The ONNX file. Every tensor is used once or begins with one of `unused`; all others are named."""
        skipped = tuple(unused)
        left = [
            name
            for name in self.weights
            if name not in self.used
            and not name.endswith("num_batches_tracked")
            and not name.startswith(skipped)
        ]
        if left:
            raise BrokenFile(
                f"{self.file_name} holds tensors that {self.network} does not have: {fold(left)}."
            )
        ends = [
            [
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
                for name, shape in side.items()
            ]
            for side in (inputs, outputs)
        ]
        graph = onnx.helper.make_graph(self.nodes, "network", *ends, self.initializers)
        opset = [onnx.helper.make_opsetid("", OPSET)]
        return onnx.helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
