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

from infu.align import HEAD, unit
from infu.onnx_graph import Graph
from infu.recognisers import Recogniser, load_recogniser
from infu.training.minibase.identities import view
from infu.training.world.dataset import Shards
from infu.training.world.reader import WHITE, Reader
from infu.whole import write_whole

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
    state = {name: tensor.numpy() for name, tensor in reader.state_dict().items()}
    graph = Graph("the reader of heads", path.name, state)
    x = graph.node("Transpose", "head", perm=[0, 3, 1, 2])
    x = graph.node("Div", x, graph.constant(np.float32(WHITE / 2)))
    x = pixels = graph.node("Sub", x, graph.constant(np.float32(1)))
    for i, conv in enumerate(reader.convs):
        widths = conv.in_channels, conv.out_channels
        x = graph.node("Relu", graph.conv(x, f"convs.{i}", *widths, kernel=3, stride=2, bias=True))
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    head = [graph.weight(f"head.{part}", state[f"head.{part}"].shape) for part in ("weight", "bias")]
    x = graph.node("Gemm", x, *head, transB=1)
    facts, start = [], 0
    for name, width in reader.widths.items():
        columns = cut(graph, x, start, start + width)
        start += width
        if name in TOLD:
            facts.append(graph.node("Softmax", columns, axis=1) if width > 1 else columns)
    cells = graph.node("AveragePool", pixels, kernel_shape=[CELL] * 2, strides=[CELL] * 2)
    facts.append(graph.node("Flatten", cut(graph, cut(graph, cells, *ROWS, 2), *COLUMNS, 3)))
    seen = graph.node("Concat", *facts, axis=1)
    if spread is not None:
        mean, scale = (graph.constant(np.float32(values)) for values in spread)
        seen = graph.node("Mul", graph.node("Sub", seen, mean), scale)
    direction = graph.constant(np.float32(family[:, None]))
    along = graph.node("MatMul", "face", direction)
    face = graph.node("Sub", "face", graph.node("MatMul", along, graph.constant(np.float32(family[None]))))
    face = graph.node("Div", face, graph.node("ReduceL2", face, axes=[1], keepdims=1))
    graph.node("Concat", face, seen, axis=1, output="output")
    told = sum(width for name, width in reader.widths.items() if name in TOLD)
    inputs = {"head": ["N", HEAD, HEAD, 3], "face": ["N", len(family)]}
    model = graph.to_bytes(inputs, {"output": ["N", len(family) + told + CELLS]})
    write_whole(path, lambda part: part.write_bytes(model))


def cut(graph: Graph, x: str, start: int, stop: int, axis: int = 1) -> str:
    return graph.node("Slice", x, *(graph.constant(np.int64([place])) for place in (start, stop, axis)))


def make_face_encoder(reader: Reader, shards: Shards, path: Path) -> None:
    """`export_appearance`, its spread found on every tenth of these pictures."""
    recogniser = load_recogniser(None)
    family = find_family(recogniser, shards)
    export_appearance(reader, family, path)
    raw = load_recogniser(path)
    numbers = range(0, len(shards.pictures), 10)
    seen = [raw.embed(*view(shards, n)[:2])[recogniser.size :] for n in numbers]
    export_appearance(reader, family, path, find_spread(np.stack(seen)))


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
