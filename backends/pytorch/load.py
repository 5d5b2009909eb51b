"""Model files -> diffusers' and transformers' networks, tensor by tensor, strictly.

A network is built without memory (meta device), then every tensor of the files is put where its name says,
cast and, where asked, quantised on the way: the whole model never stands in memory twice.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import cpu_offload, init_empty_weights
from torch import Tensor, nn

from backends.pytorch.compressed import CompressedLinear, compress
from backends.pytorch.projection import Projection
from backends.pytorch.quantise import quantizable, quantize_linear
from backends.pytorch.tensors import to_tensor
from infu.errors import BrokenFile, MissingFile
from infu.weights.checkpoint import Blocks, Checkpoint, Fp8, open_part
from infu.weights.config import make_config
from infu.weights.controlnet import make_controlnet_config
from infu.weights.files import fold
from infu.weights.torchfile import read_state_dict

Shapes = Mapping[str, Any]  # name -> anything with `.shape`


def build_transformer(config: dict) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_config(config)


def build_infusenet(config: dict) -> nn.Module:
    from diffusers import FluxControlNetModel

    with warnings.catch_warnings():  # diffusers 0.42 warns about an import of its own
        warnings.simplefilter("ignore", FutureWarning)
        return FluxControlNetModel.from_config({k: v for k, v in config.items() if k != "_infu_flux_version"})


def build_vae(config: dict) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config)


def build_clip(config: dict) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**config))


def build_t5(config: dict) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**config))


BUILDS = {
    "transformer": build_transformer,
    "infusenet": build_infusenet,
    "controlnet": build_infusenet,  # the same class
    "vae": build_vae,
    "text_encoder": build_clip,
    "text_encoder_2": build_t5,
}


def load_network(
    part: str,
    path: Path,
    base: Path,
    dtype: torch.dtype,
    device: str,
    bits: int | None = None,
    sequential: bool = False,
) -> nn.Module:
    """A network's folder or single file -> the network on `device`, in `dtype`, not trainable.

    The config of a single file is that of the folder `base`, sized as the tensors are. `bits` quantises the
    blocks. `sequential`: the weights stay in main memory, or in their files where `device` is the CPU.
    """
    weights = open_part(path, part)
    network = build_empty(BUILDS[part], find_config(part, path, base, weights))
    if not sequential:
        return load_weights(network, weights, dtype, device, bits)
    if device == "cpu":
        places = match(network, weights)
        for name, parameter in network.named_parameters():  # still without memory; accelerate casts to these
            parameter.data = parameter.data.to(kept_dtype(network, name, dtype))
        if "shared.weight" in places:
            places[T5_EMBEDDING] = places["shared.weight"]
        cpu_offload(network, "cpu", state_dict=FileTensors(places, weights))
        return network.eval().requires_grad_(False)
    network = load_weights(network, weights, dtype, "cpu", bits)
    packed = any(isinstance(module, CompressedLinear) for module in network.modules())
    cpu_offload(network, device, offload_buffers=packed)
    return network


def find_config(part: str, path: Path, base: Path, weights: Checkpoint) -> dict:
    """The config of a network's folder, or what a single file's tensors and the base's config say."""
    if part == "controlnet":
        return make_controlnet_config(read_config(base), path, weights)
    config = read_config(path if path.is_dir() else base)
    if part in ("transformer", "infusenet") and not path.is_dir():
        config = make_config(config, weights)
    return config


def read_shapes(part: str, path: Path, base: Path) -> dict[str, tuple[int, ...]]:
    """Module name -> the shape of its weight, of a network that need not be loaded: linear layers, norms,
    embeddings."""
    network = build_empty(BUILDS[part], find_config(part, path, base, open_part(path, part)))
    parameters = network.named_parameters(remove_duplicate=False)
    return {n.removesuffix(".weight"): tuple(p.shape) for n, p in parameters if n.endswith(".weight")}


class FileTensors(Mapping[str, Tensor]):
    """Parameter name -> its tensor, read from its file each time it is asked for."""

    def __init__(self, places: dict[str, str], weights: Checkpoint):
        self._places, self._weights = places, weights

    def __getitem__(self, name: str) -> Tensor:
        return to_tensor(self._weights.read(self._places[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load_projection(path: Path, dtype: torch.dtype, device: str) -> nn.Module:
    """`image_proj_model.bin` -> the projection."""
    return load_by_shapes(Projection, read_projection(path), path.name, dtype, device)


def load_by_shapes(
    build: Callable[[dict[str, tuple[int, ...]]], nn.Module],
    weights: Mapping[str, np.ndarray],
    file: str,
    dtype: torch.dtype,
    device: str,
) -> nn.Module:
    """A network whose sizes are all in its tensors: `build` is given their shapes, by name. `file` is what
    errors call it."""
    try:
        empty = build_empty(build, {name: tensor.shape for name, tensor in weights.items()})
    except (KeyError, ValueError, IndexError):
        raise BrokenFile(f"{file} holds another network's tensors: {fold(weights)}.") from None
    try:
        return load_weights(empty, weights, dtype, device)
    except BrokenFile as error:
        raise BrokenFile(f"{file}: {error}") from None


def read_projection(path: Path) -> dict[str, np.ndarray]:
    weights = read_state_dict(path)
    if not isinstance(weights.get("image_proj"), dict):
        raise BrokenFile(
            f'{path.name} has no "image_proj": it is not InfiniteYou\'s projection. Download it again.'
        )
    return weights["image_proj"]


def read_config(folder: Path) -> dict:
    """The `config.json` of a network's folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFile(
            f"{folder.name}/config.json is missing. Run `python -m infu download`, or copy it again."
        )
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise BrokenFile(f"{folder.name}/config.json is damaged. Run `python -m infu download`.") from None


def build_empty(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """The network on the meta device; buffers that are computed, not loaded, are real."""
    with init_empty_weights(include_buffers=False):
        return build(config)


def load_weights(
    network: nn.Module,
    weights: Shapes,
    dtype: torch.dtype,
    device: str,
    bits: int | None = None,
) -> nn.Module:
    """Put every tensor in its place. Raises `BrokenFile` naming what is missing, left over or misshapen."""
    places = match(network, weights)
    quantized = {name for name, module in network.named_modules() if bits and quantizable(name, module)}
    replaced = set()
    for name in sorted(places, key=lambda name: name.endswith(".bias")):  # a bias comes with its weight
        parent, _, leaf = name.rpartition(".")
        module = network.get_submodule(parent)
        kept = kept_dtype(network, name, dtype)
        if leaf == "weight" and isinstance(module, nn.Linear):
            bias = f"{parent}.bias"
            bias = read_tensor(weights, places[bias]).to(device, dtype) if bias in places else None
            layer = (
                None if bits else compress(packed(weights, places[name]), module.in_features, bias, device)
            )
            if parent in quantized:
                weight = read_tensor(weights, places[name]).to(device, dtype)
                layer = quantize_linear(weight, bias, bits)
            if layer is not None:
                network.set_submodule(parent, layer)
                replaced.add(parent)
        if parent not in replaced:
            tensor = read_tensor(weights, places[name]).to(device, kept)
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    if hasattr(network, "tie_weights"):
        network.tie_weights()  # T5: `shared` and `encoder.embed_tokens` are one
    return network.to(device).eval().requires_grad_(False)


def kept_dtype(network: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a parameter of a network in `dtype`: in float16 some stay float32, as T5's `wo`."""
    names = getattr(network, "_keep_in_fp32_modules", None) or () if dtype == torch.float16 else ()
    return torch.float32 if any(part in names for part in name.split(".")) else dtype


def match(network: nn.Module, weights: Shapes) -> dict[str, str]:
    """Parameter name -> its tensor's name in the files, one to one, shapes equal."""
    if any(name.endswith(".scales") for name in weights):
        raise BrokenFile(
            "These weights are packed for MLX (`python -m infu quantize`), which PyTorch cannot read. "
            "Choose the mlx backend, or give the original model."
        )
    sources = {name.removeprefix(CLIP_PREFIX): name for name in weights}
    embedding = sources.pop(T5_EMBEDDING, None)  # a T5 file has one or the other name, or both
    if embedding is not None:
        sources.setdefault("shared.weight", embedding)
    parameters = {n: p for n, p in network.named_parameters(remove_duplicate=False) if n != T5_EMBEDDING}
    missing = [name for name in parameters if name not in sources]
    extra = [name for name in sources if name not in parameters]
    wrong = [n for n, p in parameters.items() if n in sources and tuple(weights[sources[n]].shape) != p.shape]
    if isinstance(weights, Checkpoint):
        wrong = [weights.origin(sources[name]) for name in wrong]
    kinds = (("missing", missing), ("not known", extra), ("of another shape", wrong))
    faults = [f"{what} {fold(names)}" for what, names in kinds if names]
    if faults:
        raise BrokenFile(f"These are not the weights of this {type(network).__name__}: {'; '.join(faults)}.")
    return {name: sources[name] for name in parameters}


CLIP_PREFIX = "text_model."  # in the files, but since transformers 5 no longer in the module
T5_EMBEDDING = "encoder.embed_tokens.weight"


def read_tensor(weights: Any, name: str) -> Tensor:
    """A tensor of a `Checkpoint`, or of a dict of arrays. Raises `BrokenFile` for NaN or infinity."""
    if not isinstance(weights, Checkpoint):
        return to_tensor(weights[name])
    tensor = to_tensor(weights.read(name))
    if not (tensor if tensor.element_size() > 1 else tensor.float()).isfinite().all():
        raise weights.not_finite(name)
    return tensor


def packed(weights: Any, name: str) -> Fp8 | Blocks | None:
    return weights.packed(name) if isinstance(weights, Checkpoint) else None
