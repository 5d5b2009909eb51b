"""An IP-Adapter's file, read once for both backends: XLabs' (`ip_adapter.safetensors`, style) and InstantX's
(`ip-adapter.bin`). Both turn a picture's vector into tokens and hold keys and values for blocks of the DiT.

Every size is in the tensors' shapes. Names: x-flux `src/flux/modules/layers.py`; InstantX
FLUX.1-dev-IP-Adapter `infer_flux_ipa_siglip.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infu.errors import BrokenFile, MissingFile
from infu.weights.files import ArrayFile, WeightFiles, fold, open_weights
from infu.weights.foreign import name_weights

NORM_EPS = 1e-5  # of the tokens' LayerNorm, and of InstantX's RMS norm of the keys; no file tells it
XLABS = {
    "ip_adapter_proj_model.proj": "proj.0",
    "ip_adapter_proj_model.norm": "norm",
    r"double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj": "block",
}
INSTANTX = {
    "image_proj.proj.0": "proj.0",
    "image_proj.proj.2": "proj.1",
    "image_proj.norm": "norm",
    r"ip_adapter\.(\d+)\.to_([kv])_ip": "block",
}
FILES = ("ip_adapter.safetensors", "ip-adapter.bin")  # as XLabs and InstantX call it
SIGNS = {"ip_adapter_proj_model.proj.weight": XLABS, "image_proj.proj.2.weight": INSTANTX}

Layer = tuple[np.ndarray, np.ndarray | None]  # weight (out, in) and bias (out,) of a linear layer or a norm


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """Arrays are views of the file, in its dtype. `projector`: one or two layers, an erf GELU between them;
    `keys` and `values`: a layer for each block, in order."""

    name: str
    instantx: bool  # keys are normed, and what is added stands before `to_out`; else neither
    projector: tuple[Layer, ...]
    norm: Layer
    keys: tuple[Layer, ...]
    values: tuple[Layer, ...]

    @property
    def embedding_size(self) -> int:
        """How many numbers a picture's vector has."""
        return self.projector[0][0].shape[1]

    @property
    def token_width(self) -> int:
        return self.norm[0].shape[0]

    @property
    def num_tokens(self) -> int:
        """How many tokens a picture becomes."""
        return self.projector[-1][0].shape[0] // self.token_width

    def check_base(self, num_double: int, num_single: int, width: int) -> None:
        """Raise `BrokenFile` where the adapter does not fit a DiT of so many blocks of this width."""
        blocks = num_double + num_single if self.instantx else num_double
        if (len(self.keys), self.keys[0][0].shape[0]) != (blocks, width):
            raise BrokenFile(
                f"{self.name} was made for another base model: it has {len(self.keys)} blocks of width "
                f"{self.keys[0][0].shape[0]}, and the loaded one {blocks} of width {width}. Choose one "
                "made for the loaded model."
            )


def read_adapter(path: Path) -> AdapterFile:
    """XLabs' or InstantX's file, or a folder with it. Raises `MissingFile`, `BrokenFile`."""
    path = next((path / name for name in FILES if (path / name).is_file()), path)
    if not path.is_file():
        raise MissingFile(f"There is no IP-Adapter file {path.name!r}. Check its name and folder.")
    return sort_tensors(path.name, open_weights(path))


def sort_tensors(name: str, weights: WeightFiles | ArrayFile) -> AdapterFile:
    """The tensors of the file `name`, by what they do."""
    table = next((table for sign, table in SIGNS.items() if sign in weights), None)
    if table is None:
        what = name_weights(weights) or "no IP-Adapter for FLUX.1 that is known here"
        raise BrokenFile(
            f"{name} is {what}. Give XLabs' ip_adapter.safetensors or InstantX's ip-adapter.bin."
        )
    ours = {theirs: rename(theirs, table) for theirs in weights}
    if unknown := [theirs for theirs, known in ours.items() if known is None]:
        raise BrokenFile(f"{name} holds tensors that no IP-Adapter has: {fold(unknown)}.")
    arrays = {known: weights.read(theirs) for theirs, known in ours.items()}
    count = len({known.split(".")[1] for known in arrays if known.startswith("block.")})
    try:
        file = AdapterFile(
            name=name,
            instantx=table is INSTANTX,
            projector=tuple(layer(arrays, f"proj.{i}") for i in range(2 if table is INSTANTX else 1)),
            norm=layer(arrays, "norm"),
            keys=tuple(layer(arrays, f"block.{i}.k") for i in range(count)),
            values=tuple(layer(arrays, f"block.{i}.v") for i in range(count)),
        )
        check_shapes(file)
    except KeyError as error:
        raise BrokenFile(f"{name} is not whole: it lacks {error}. Download it again.") from None
    except ValueError as error:
        raise BrokenFile(f"{name} has tensors of a shape that does not fit: {error}.") from None
    return file


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """A tensor's name -> `proj.0.weight`, `norm.bias`, `block.3.k.weight`; None for one that is not known."""
    stem, _, leaf = name.rpartition(".")
    for pattern, ours in table.items():
        found = re.fullmatch(pattern, stem)
        if found and leaf in ("weight", "bias"):
            return ".".join([ours, *(str(int(g)) if g.isdigit() else g for g in found.groups()), leaf])
    return None


def layer(arrays: Mapping[str, np.ndarray], name: str) -> Layer:
    return arrays[f"{name}.weight"], arrays.get(f"{name}.bias")


def check_shapes(file: AdapterFile) -> None:
    """Raise `ValueError`, `KeyError` unless each layer takes what the one before it gives."""
    if file.norm[1] is None or not file.keys:
        raise KeyError("a norm, keys or values")
    token, size = file.token_width, file.embedding_size
    for weight, bias in file.projector:
        if bias is None:
            raise KeyError("a bias of its projector")
        expect(weight, (len(bias), size), "projector")
        size = len(bias)
    expect(file.norm[1], (token,), "norm")
    if size % token or not size:
        raise ValueError(f"{size} numbers are no tokens of {token}")
    width = file.keys[0][0].shape[0]
    for weight, bias in (*file.keys, *file.values):
        expect(weight, (width, token), "keys and values")
        if bias is not None:
            expect(bias, (width,), "keys and values")


def expect(array: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{what} {array.shape} instead of {shape}")
