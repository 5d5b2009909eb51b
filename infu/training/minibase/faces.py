"""The mini model's face encoder: what the embedded recogniser and a reader of heads say, as one vector.

The recogniser learnt on photographs, and to it all renders are one family: half of what it says of a render
is what it says of every render. That direction is taken out of renders and photographs alike. What the rest
does not carry from one to the other stands beside it: haircut, beard, glasses, age as the reader sees them,
and the head's low-frequency colour. (The reader, asked for colours, is sure and wrong of photographs.)
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from infu.align import HEAD, unit
from infu.recognisers import Recogniser
from infu.training.world.dataset import Shards
from infu.training.world.reader import WHITE, Reader
from infu.whole import write_whole

OPSET, IR_VERSION = 17, 8  # what onnxruntime 1.20 reads
TOLD = ("male", "haircut", "fringe", "beard", "glasses", "age")
CELL, ROWS, COLUMNS = 8, (1, 7), (2, 6)  # pixels of the head; the cells in which there is little else
CELLS = 3 * (ROWS[1] - ROWS[0]) * (COLUMNS[1] - COLUMNS[0])


class Spread(NamedTuple):
    """What is seen of renders has this mean; times `scale` what is told, and the colours, have about unit
    length, as the recogniser's part has."""

    mean: np.ndarray
    scale: np.ndarray


def export_appearance(reader: Reader, family: np.ndarray, path: Path, spread: Spread | None = None) -> None:
    """`family` (E',): of `find_family`; `spread`: of `find_spread`, None to find it. -> an ONNX graph: `head`
    (N, 64, 64, 3) RGB 0..255 and `face` (N, E') of unit length -> `output` (N, E)."""
    graph = Nodes()
    x = graph("Transpose", "head", perm=[0, 3, 1, 2])
    x = pixels = graph("Sub", graph("Div", x, graph.constant(WHITE / 2)), graph.constant(1.0))
    for conv in reader.convs:
        weights = graph.constant(conv.weight), graph.constant(conv.bias)
        x = graph("Relu", graph("Conv", x, *weights, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]))
    x = graph("Flatten", graph("GlobalAveragePool", x))
    x = graph("Gemm", x, graph.constant(reader.head.weight), graph.constant(reader.head.bias), transB=1)
    facts, start = [], 0
    for name, width in reader.widths.items():
        columns = graph.columns(x, start, start + width)
        start += width
        if name in TOLD:
            facts.append(graph("Softmax", columns, axis=1) if width > 1 else columns)
    cells = graph("AveragePool", pixels, kernel_shape=[CELL] * 2, strides=[CELL] * 2)
    facts.append(graph("Flatten", graph.columns(graph.columns(cells, *ROWS, 2), *COLUMNS, 3)))
    seen = graph("Concat", *facts, axis=1)
    if spread is not None:
        seen = graph("Mul", graph("Sub", seen, graph.constant(spread.mean)), graph.constant(spread.scale))
    direction = graph.constant(family[:, None])
    along = graph("MatMul", graph("MatMul", "face", direction), graph.constant(family[None]))
    face = graph("Sub", "face", along)
    face = graph("Div", face, graph("ReduceL2", face, axes=[1], keepdims=1))
    graph("Concat", face, seen, axis=1, output="output")
    told = sum(width for name, width in reader.widths.items() if name in TOLD)
    size = len(family) + told + CELLS
    graph.save(path, {"head": ["N", HEAD, HEAD, 3], "face": ["N", len(family)]}, size)


def find_family(recogniser: Recogniser, shards: Shards, count: int = 500) -> np.ndarray:
    """The mean of what the recogniser says of `count` renders (E',), of unit length."""
    numbers = np.random.default_rng(0).permutation(len(shards.pictures))[:count]
    return unit(
        np.mean([unit(recogniser.embed(shards.pictures[n], shards.keypoints[n])) for n in numbers], axis=0)
    )


def find_spread(seen: np.ndarray) -> Spread:
    """`seen` (n, E - E'): of renders, by a graph that has no spread yet."""
    told = seen.shape[1] - CELLS
    share = np.repeat([told, CELLS], [told, CELLS]) ** -0.5
    return Spread(seen.mean(0), share / np.maximum(seen.std(0), 1e-3))


class Nodes:
    """An ONNX graph as it grows: a call adds a node and returns the name of what it makes."""

    def __init__(self):
        self._nodes, self._constants = [], []

    def __call__(self, kind: str, *inputs: str, output: str | None = None, **attributes) -> str:
        output = output or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value, dtype=np.float32) -> str:
        value = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def columns(self, x: str, start: int, stop: int, axis: int = 1) -> str:
        return self("Slice", x, *(self.constant([place], np.int64) for place in (start, stop, axis)))

    def save(self, path: Path, inputs: dict[str, list], size: int) -> None:
        ends = {**inputs, "output": ["N", size]}
        shaped = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends.items()
        ]
        graph = helper.make_graph(self._nodes, "appearance", shaped[:-1], shaped[-1:], self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        write_whole(path, lambda part: part.write_bytes(model.SerializeToString()))
