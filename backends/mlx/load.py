"""Model files -> MLX networks, tensor by tensor, strictly: each tensor is used once or named in an error.

Attributes carry the checkpoint's names, so no table maps one to the other. Building costs no memory: MLX
makes an array when it is asked for, and what a new layer starts with is replaced before that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from infu.errors import BrokenFile, MissingFile
from infu.weights.files import WeightFiles, fold

Config = TypeVar("Config")
Weights = WeightFiles | Mapping[str, np.ndarray]  # name -> anything with `.shape`


@dataclass(frozen=True)
class Place:
    """Where a tensor goes, and its shape in the files."""

    module: nn.Module
    leaf: str
    shape: tuple[int, ...]


def read_config(kind: type[Config], path: Path, absent: Mapping[str, Any] | None = None) -> Config:
    """A `config.json` -> the dataclass of its network. `absent`: fields that older files may lack."""
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise MissingFile(f"{where} is missing. Run `python -m infu download`, or copy it again.")
    try:
        values = {**(absent or {}), **json.loads(path.read_bytes())}
        return kind(**{field.name: values[field.name] for field in fields(kind)})
    except (ValueError, TypeError):
        raise BrokenFile(f"{where} is damaged. Run `python -m infu download`, or copy it again.") from None
    except KeyError as error:
        raise BrokenFile(f"{where} has no {error}: it is another network's. Copy the right one.") from None


def load_weights(
    network: nn.Module, weights: Weights, dtype: mx.Dtype, same: Mapping[str, str] | None = None
) -> nn.Module:
    """Put every tensor in its place, in `dtype`; a quantised layer's is quantised on the way.

    `same`: names in the files that stand for another. Raises `BrokenFile` naming what is missing, left over
    or of another shape.
    """
    stored_quantised = any(name.endswith(".scales") for name in weights)
    places = find_places(network, stored_quantised)
    names = {name: (same or {}).get(name, name) for name in weights}
    check(type(network).__name__, places, weights, names)
    done = set()
    for name, target in names.items():
        if target not in done:
            put(places[target], read_tensor(weights, name), dtype, stored_quantised)
            done.add(target)
    return network


def find_places(network: nn.Module, stored_quantised: bool = False) -> dict[str, Place]:
    """Parameter name -> its place. A file holds convolutions as (O, I, H, W), and a layer that is quantised
    while loading as one matrix."""
    places = {}
    for prefix, module in network.named_modules():
        for leaf, value in module.items():
            if not isinstance(value, mx.array):
                continue
            shape = value.shape
            if isinstance(module, nn.QuantizedLinear) and not stored_quantised:
                if leaf in ("scales", "biases"):
                    continue
                if leaf == "weight":
                    shape = (shape[0], shape[1] * 32 // module.bits)
            elif len(shape) == 4:
                shape = (shape[0], shape[3], shape[1], shape[2])
            places[f"{prefix}.{leaf}" if prefix else leaf] = Place(module, leaf, tuple(shape))
    return places


def check(kind: str, places: Mapping[str, Place], weights: Weights, names: Mapping[str, str]) -> None:
    """Raise `BrokenFile` unless names and shapes agree."""
    there = set(names.values())
    kinds = {
        "missing": [name for name in places if name not in there],
        "not known": [name for name, target in names.items() if target not in places],
        "of another shape": [
            name
            for name, target in names.items()
            if target in places and tuple(weights[name].shape) != places[target].shape
        ],
    }
    faults = [f"{what} {fold(found)}" for what, found in kinds.items() if found]
    if faults:
        raise BrokenFile(f"These are not the weights of this {kind}: {'; '.join(faults)}.")


def put(place: Place, array: mx.array, dtype: mx.Dtype, stored_quantised: bool) -> None:
    """One tensor into its module, computed at once, so that no more than one is in memory twice."""
    module, leaf = place.module, place.leaf
    if isinstance(module, nn.QuantizedLinear) and leaf == "weight" and not stored_quantised:
        values = mx.quantize(array.astype(dtype), group_size=module.group_size, bits=module.bits)
        module.weight, module.scales, module.biases = values
        mx.eval(values)
        return
    if array.ndim == 4:
        array = array.transpose(0, 2, 3, 1)  # (O, H, W, I)
    module[leaf] = array if array.dtype == mx.uint32 else mx.contiguous(array.astype(dtype))
    mx.eval(module[leaf])


def read_tensor(weights: Weights, name: str) -> mx.array:
    """A tensor in its file's dtype; 8-bit floats, which MLX has not, exactly in a wider one."""
    array = weights.read(name) if isinstance(weights, WeightFiles) else weights[name]
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return mx.from_fp8(mx.array(array.view(np.uint8)), mx.bfloat16)
    if array.dtype == ml_dtypes.float8_e5m2:  # the upper byte of a float16
        return (mx.array(array.view(np.uint8)).astype(mx.uint16) << 8).view(mx.float16)
    return mx.array(array)
