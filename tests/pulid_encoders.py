"""A folder of everything that looks at PuLID's photograph: real layouts, weights that know nothing."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import onnx
import torch
from golden import GOLDEN

from infu.pulid_photo import ALIGNER, PARSER, RECOGNISER

FIXTURE = GOLDEN / "pulid"
FACEXLIB = FIXTURE / "facexlib"


def make_weights(network: str) -> dict[str, np.ndarray]:
    """The fixture's weights, by its rule (as tests/golden/arcface)."""
    weights = {}
    for name, shape in json.loads((FACEXLIB / "manifests.json").read_text())[network].items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            weights[name] = 1 + 0.1 * np.abs(noise)
        elif name.endswith(("running_mean", "bias")):
            weights[name] = 0.1 * noise
        else:
            weights[name] = 0.6 + 0.1 * noise if len(shape) == 1 else noise / np.sqrt(np.prod(shape[1:]))
    return {name: np.asarray(value, np.float32) for name, value in weights.items()}


def save_torch(weights: dict[str, np.ndarray], path: Path) -> None:
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, path)


def make_recogniser(path: Path) -> None:
    """In glintr100's place: 512 numbers of (1, 3, 112, 112), each a mean of some of the pixels."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    matrix = np.random.default_rng(0).standard_normal((3 * 14 * 14, 512)).astype(np.float32)
    nodes = [
        node("AveragePool", ["input.1"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "matrix"], ["1333"]),
    ]
    ends = (
        value("input.1", onnx.TensorProto.FLOAT, [1, 3, 112, 112]),
        value("1333", onnx.TensorProto.FLOAT, [1, 512]),
    )
    graph = onnx.helper.make_graph(
        nodes, "recogniser", ends[:1], ends[1:], [onnx.numpy_helper.from_array(matrix, "matrix")]
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def make_encoders(folder: Path) -> Path:
    """RetinaFace sees faces where its network is a little surer than elsewhere."""
    shutil.copytree(FIXTURE / "eva", folder / "eva")
    shutil.copytree(GOLDEN / "scrfd" / "antelopev2", folder / "antelopev2")
    make_recogniser(folder / "antelopev2" / RECOGNISER)
    save_torch(make_weights("bisenet"), folder / PARSER)
    retina = make_weights("retinaface")
    for level in range(3):
        retina[f"ClassHead.{level}.conv1x1.bias"] += np.float32([0, 3.2, 0, 3.2])
    save_torch(retina, folder / ALIGNER)
    return folder
