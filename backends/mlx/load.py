"""Model files -> MLX networks, tensor by tensor, strictly: each tensor is used once or named in an error.

Attributes carry the checkpoint's names, so no table maps one to the other. Building costs no memory: MLX
makes an array when it is asked for, and what a new layer starts with is replaced before that.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx import clip, dit, infusenet, projection, t5, vae
from backends.mlx.compressed import CompressedLinear, compress_layers
from backends.mlx.quantise import BITS, quantise_layers
from backends.mlx.stream import stream_layers
from infu.errors import BrokenFile, InvalidRequest, MissingFile
from infu.weights.checkpoint import Checkpoint, open_part
from infu.weights.config import make_config
from infu.weights.controlnet import make_controlnet_config
from infu.weights.files import fold
from infu.weights.torchfile import read_state_dict

Config = TypeVar("Config")
PACKED_ROWS = 1024  # of a weight that is being quantised: 60 MB of the widest in float32
Weights = Checkpoint | Mapping[str, np.ndarray]  # name -> anything with `.shape`
Chosen = Callable[[str], bool] | None  # which linear layers stay in their file (stream.py), by name


# One function per network: `path` is a folder, or a file whose config is then in the folder `base`.


def load_dit(
    path: Path, base: Path, dtype: mx.Dtype, bits: int | None = None, streamed: Chosen = None
) -> dit.DiT:
    weights = open_part(path, "transformer")
    return load_network(dit.DiT(flux_config(path, base, weights)), path, weights, dtype, bits, streamed)


def load_infusenet(
    path: Path, base: Path, dtype: mx.Dtype, bits: int | None = None, streamed: Chosen = None
) -> infusenet.InfuseNet:
    weights = open_part(path, "infusenet")
    network = infusenet.InfuseNet(flux_config(path, base, weights))
    return load_network(network, path, weights, dtype, bits, streamed)


def load_controlnet(
    path: Path, base: Path, dtype: mx.Dtype, bits: int | None = None, streamed: Chosen = None
) -> infusenet.InfuseNet:
    weights = open_part(path, "controlnet")
    base_config = vars(read_config(dit.FluxConfig, base / "config.json", dit.OLD_CONFIG))
    values = make_controlnet_config(base_config, path, weights)
    config = dit.FluxConfig(**{f.name: values[f.name] for f in fields(dit.FluxConfig)})
    extras = (values["num_mode"] or 0, values["conditioning_embedding_channels"] or 0)
    network = infusenet.InfuseNet(config, *extras)
    return load_network(network, path, weights, dtype, bits, streamed)


def flux_config(path: Path, base: Path, weights: Checkpoint) -> dit.FluxConfig:
    """A folder's own config; of a single file the base's, sized as the tensors are."""
    config = read_config(dit.FluxConfig, config_of(path, base), dit.OLD_CONFIG)
    sizes = {} if path.is_dir() else make_config({}, weights)
    return replace(config, **{f.name: sizes[f.name] for f in fields(config) if f.name in sizes})


def load_vae(path: Path, base: Path, dtype: mx.Dtype) -> vae.VAE:
    network = vae.VAE(read_config(vae.VAEConfig, config_of(path, base)))
    return load_network(network, path, open_part(path, "vae"), dtype)


def load_clip(path: Path, base: Path, dtype: mx.Dtype) -> clip.CLIP:
    network = clip.CLIP(read_config(clip.CLIPConfig, config_of(path, base)))
    return load_network(network, path, open_part(path, "text_encoder"), dtype)


def load_t5(
    path: Path, base: Path, dtype: mx.Dtype, bits: int | None = None, streamed: Chosen = None
) -> t5.T5:
    network = t5.T5(read_config(t5.T5Config, config_of(path, base)))
    weights = open_part(path, "text_encoder_2")
    return load_network(network, path, weights, dtype, bits, streamed, t5.TIED)


def load_projection(path: Path, dtype: mx.Dtype) -> projection.Projection:
    """`image_proj_model.bin`, a torch file: {"image_proj": …}."""
    weights = read_state_dict(path).get("image_proj")
    if not isinstance(weights, dict):
        raise BrokenFile(
            f'{path.name} has no "image_proj": it is not InfiniteYou\'s projection. Download it again.'
        )
    return load_by_shapes(projection.Projection, weights, path.name, dtype)


def load_by_shapes(
    build: Callable[[dict[str, tuple[int, ...]]], nn.Module],
    weights: Mapping[str, np.ndarray],
    file: str,
    dtype: mx.Dtype,
) -> nn.Module:
    """A network whose sizes are all in its tensors: `build` is given their shapes, by name. `file` is what
    errors call it."""
    try:
        network = build({name: array.shape for name, array in weights.items()})
    except (KeyError, ValueError, IndexError):
        raise BrokenFile(f"{file} holds another network's tensors: {fold(weights)}.") from None
    try:
        return load_weights(network, weights, dtype)
    except BrokenFile as error:
        raise BrokenFile(f"{file}: {error}") from None


def load_network(
    network: nn.Module,
    path: Path,
    weights: Checkpoint,
    dtype: mx.Dtype,
    bits: int | None = None,
    streamed: Chosen = None,
    same: Mapping[str, str] | None = None,
) -> nn.Module:
    """Fill an empty network from its files, quantised to `bits` or to what the files are quantised to."""
    stored = stored_bits(path)
    if stored and bits not in (None, stored):
        raise InvalidRequest(
            f"{path.name!r} holds weights of {stored} bits, which cannot become {bits}. "
            f"Choose quantize={stored}, leave it out, or give the original model."
        )
    if stored or bits:
        quantise_layers(network, stored or bits)
    else:
        compress_layers(network, weights)
    load_weights(network, weights, dtype, same, streamed)
    mx.clear_cache()  # what was read and packed; else up to a gigabyte stays beside the network
    return network


def config_of(path: Path, base: Path) -> Path:
    return (path if path.is_dir() else base) / "config.json"


def stored_bits(path: Path) -> int | None:
    """The bits of a folder that `save.py` quantised; None for any other."""
    config = path / "config.json"
    if not config.is_file():
        return None
    try:
        quantization = json.loads(config.read_bytes()).get("quantization")
        bits = None if quantization is None else quantization["bits"]
    except (ValueError, TypeError, KeyError, AttributeError):
        bits = -1
    if bits is not None and bits not in BITS:
        raise BrokenFile(f"{path.name}/config.json does not say in how many bits it is. Quantise it again.")
    return bits


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


# Tensors.


@dataclass(frozen=True)
class Place:
    """Where a tensor goes, and its shape in the files."""

    module: nn.Module
    leaf: str
    shape: tuple[int, ...]


def load_weights(
    network: nn.Module,
    weights: Weights,
    dtype: mx.Dtype,
    same: Mapping[str, str] | None = None,
    streamed: Chosen = None,
) -> nn.Module:
    """Put every tensor in its place, in `dtype`; a quantised layer's is packed on the way.

    `same`: names in the files that stand for another. Raises `BrokenFile` naming what is missing, left over
    or of another shape.
    """
    packed = any(name.endswith(".scales") for name in weights)
    if packed and not any(isinstance(module, nn.QuantizedLinear) for module in network.modules()):
        raise BrokenFile(
            "The weights are packed, and their config.json, which says in how many bits, is not beside them. "
            "Give the folder that `python -m infu quantize` wrote."
        )
    places = find_places(network, packed)
    names = {name: (same or {}).get(name, name) for name in weights}
    check(type(network).__name__, places, weights, names)
    sources = {target: name for name, target in names.items()}
    if streamed:
        stream_layers(
            network, streamed, lambda name, layer: fill(layer, f"{name}.", sources, weights, dtype, packed)
        )
    return fill(network, "", sources, weights, dtype, packed)


def fill(
    module: nn.Module,
    prefix: str,
    sources: Mapping[str, str],
    weights: Weights,
    dtype: mx.Dtype,
    packed: bool,
) -> nn.Module:
    """Read the tensors of a module whose names in the network begin with `prefix`."""
    for name, place in find_places(module, packed).items():
        if isinstance(place.module, CompressedLinear) and place.leaf == "weight":
            place.module.keep(weights.packed(sources[prefix + name]))
            continue
        if isinstance(place.module, nn.QuantizedLinear) and place.leaf == "weight" and not packed:
            pack(
                place.module,
                read_array(weights, sources[prefix + name]),
                dtype,
                weights,
                sources[prefix + name],
            )
            continue
        array = to_array(read_array(weights, sources[prefix + name]))
        if not prefix:  # a streamed layer is read again and again
            check_finite(array, weights, sources[name])
        put(place, array, dtype)
    return module


def find_places(network: nn.Module, packed: bool = False) -> dict[str, Place]:
    """Parameter name -> its place. Files hold convolutions as (O, I, H, W); a quantised layer's weight is one
    matrix there, or with `packed` what MLX packs it into."""
    places = {}
    for prefix, module in network.named_modules():
        for leaf, value in module.items():
            if not isinstance(value, mx.array) or leaf.startswith("_"):
                continue
            shape = value.shape
            if isinstance(module, CompressedLinear) and leaf == "weight":
                shape = module.shape
            elif isinstance(module, nn.QuantizedLinear) and not packed:
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
    known = {name: places[target].shape for name, target in names.items() if target in places}
    kinds = {
        "missing": [name for name in places if name not in there],
        "not known": [name for name in names if name not in known],
        "of another shape": [name for name, shape in known.items() if tuple(weights[name].shape) != shape],
    }
    if isinstance(weights, Checkpoint):
        kinds["of another shape"] = [weights.origin(name) for name in kinds["of another shape"]]
    faults = [f"{what} {fold(found)}" for what, found in kinds.items() if found]
    if faults:
        raise BrokenFile(f"These are not the weights of this {kind}: {'; '.join(faults)}.")


def put(place: Place, array: mx.array, dtype: mx.Dtype) -> None:
    """One tensor into its module, computed at once, so that no more than one is in memory twice."""
    module, leaf = place.module, place.leaf
    if array.ndim == 4:
        array = array.transpose(0, 2, 3, 1)  # (O, H, W, I)
    module[leaf] = array if array.dtype == mx.uint32 else mx.contiguous(array.astype(dtype))
    mx.eval(module[leaf])


def pack(layer: nn.QuantizedLinear, rows: np.ndarray, dtype: mx.Dtype, weights: Weights, name: str) -> None:
    """A weight (out, in) into its quantised layer, some rows at a time: never whole in memory unpacked."""
    parts = []
    for start in range(0, len(rows), PACKED_ROWS):
        part = to_array(rows[start : start + PACKED_ROWS])
        check_finite(part, weights, name)
        parts.append(mx.quantize(part.astype(dtype), group_size=layer.group_size, bits=layer.bits))
        mx.eval(parts[-1])
    layer.weight, layer.scales, layer.biases = (mx.concatenate(same) for same in zip(*parts, strict=True))
    mx.eval(layer.weight, layer.scales, layer.biases)


def read_array(weights: Weights, name: str) -> np.ndarray:
    """A tensor in its file's dtype: a view of the file where the file has it plain."""
    return weights.read(name) if isinstance(weights, Checkpoint) else weights[name]


def check_finite(array: mx.array, weights: Weights, name: str) -> None:
    """Raise `BrokenFile` for NaN, which both reductions keep, or infinity. They need no memory."""
    if mx.issubdtype(array.dtype, mx.floating):
        if not mx.isfinite(mx.max(array)) or not mx.isfinite(mx.min(array)):
            told = f"{weights.name}: {weights.origin(name)}" if isinstance(weights, Checkpoint) else name
            raise BrokenFile(
                f"{told} has numbers that are not finite (NaN or infinity). The file is damaged, or was "
                "badly merged: download it again, or choose another."
            )


def to_array(array: np.ndarray) -> mx.array:
    """In the file's dtype; 8-bit floats, which MLX has not, exactly in a wider one."""
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return mx.from_fp8(mx.array(array.view(np.uint8)), mx.bfloat16)
    if array.dtype == ml_dtypes.float8_e5m2:  # the upper byte of a float16
        return (mx.array(array.view(np.uint8)).astype(mx.uint16) << 8).view(mx.float16)
    return mx.array(array)
