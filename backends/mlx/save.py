"""A model -> a folder with the same model, its large networks quantised: smaller on disk, and loaded at once.

The layouts stay: `folder/base` as FLUX.1's, `folder/InfiniteYou` as released, each network's `config.json`
saying how it is quantised. `load.load_network` reads back, bit for bit, what it makes of the original.
"""

import errno
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from backends.mlx import load
from backends.mlx.quantise import check_bits
from infu.errors import InfuError, InvalidRequest
from infu.flow import read_scheduler, unshifted
from infu.models import RELEASE, ModelFiles

COPIED = ("scheduler", "tokenizer", "tokenizer_2")


def save_quantised(files: ModelFiles, folder: Path, bits: int, dtype: str = "bfloat16") -> None:
    """Quantise `files` (one version of InfiniteYou) into `folder`, which must not exist. `dtype`: of what is
    not quantised, and of the scales."""
    check_bits(bits)
    if dtype == "float16":
        raise InvalidRequest("FLUX makes NaN in float16 on MLX. Choose bfloat16 or float32.")
    if folder.exists():
        raise InvalidRequest(f"{folder.name!r} exists already. Give a folder that does not.")
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        save_base(files, unfinished / "base", bits, getattr(mx, dtype))
        if files.infusenet is not None:
            save_identity(files, unfinished / "InfiniteYou", bits, getattr(mx, dtype))
        unfinished.rename(folder)
    except OSError as error:
        reason = error.strerror or "no room or no right there"  # `copytree` collects several errors
        raise InfuError(
            f"{folder.name!r} cannot be written: {reason}. Make room, or choose another folder."
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # gigabytes, whatever stopped it


def save_base(files: ModelFiles, target: Path, bits: int, dtype: mx.Dtype) -> None:
    for name in COPIED:
        shutil.copytree(getattr(files, name), target / name)
    if (files.base / "model_index.json").is_file():
        shutil.copy(files.base / "model_index.json", target)
    for name in ("text_encoder", "vae"):
        copy_network(getattr(files, name), files.base / name, target / name)
    network = load.load_t5(files.text_encoder_2, files.base / "text_encoder_2", dtype, bits)
    save_network(network, network.encoder.config, bits, target / "text_encoder_2")
    network = load.load_dit(files.transformer, files.base / "transformer", dtype, bits)
    save_network(network, network.config, bits, target / "transformer")
    if not network.config.guidance_embeds and files.transformer != files.base / "transformer":
        unshift(target / "scheduler" / "scheduler_config.json")  # a schnell out of a file, in another's base


def unshift(path: Path) -> None:
    values = json.loads(path.read_text()) | asdict(unshifted(read_scheduler(path)))
    path.write_text(json.dumps(values, indent=2))


def save_identity(files: ModelFiles, target: Path, bits: int, dtype: mx.Dtype) -> None:
    version = target / RELEASE / files.model_version
    network = load.load_infusenet(files.infusenet, files.base / "transformer", dtype, bits)
    save_network(network, network.config, bits, version / "InfuseNetModel")
    shutil.copy(files.projection, version)
    supports = files.projection.parents[2] / "supports"
    if supports.is_dir():
        shutil.copytree(supports, target / "supports")


def save_network(network: nn.Module, config: object, bits: int, target: Path) -> None:
    target.mkdir(parents=True)
    weights = dict(tree_flatten(network.parameters()))
    try:
        mx.save_safetensors(str(target / "model.safetensors"), weights, {"format": "mlx", "bits": str(bits)})
    except RuntimeError as error:  # MLX's word for a full disk
        raise OSError(errno.EIO, "the disk is full or refuses") from error
    values = asdict(config) | {"quantization": {"bits": bits}}
    (target / "config.json").write_text(json.dumps(values, indent=2))


def copy_network(path: Path, base: Path, target: Path) -> None:
    """A network that stays as it is: a folder, or a file whose config is in the folder `base`."""
    if path.is_dir():
        shutil.copytree(path, target)
        return
    target.mkdir(parents=True)
    shutil.copy(path, target / "model.safetensors")
    shutil.copy(load.config_of(path, base), target)
