"""The folder of an image encoder, read once for both backends: CLIP's vision tower (XLabs' IP-Adapter,
released: openai/clip-vit-large-patch14) or SigLIP's (InstantX's, google/siglip-so400m-patch14-384).

A whole CLIP or SigLIP is read as well, its text tower left aside. Where `config.json` is silent,
transformers' defaults hold.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infu.errors import BrokenFile, MissingFile
from infu.vision import Preparation
from infu.weights.files import open_weights

ASIDE = re.compile(r"text_model\.|text_projection\.|logit_(scale|bias)$|.*\.position_ids$")
DEFAULTS = {  # transformers' CLIPVisionConfig, SiglipVisionConfig
    "clip": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "projection_dim": 512,
    },
    "siglip": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        "projection_dim": 0,
    },
}  # fmt: skip
MEAN = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
STD = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}


@dataclass(frozen=True)
class VisionConfig:
    """The sizes of a vision transformer, as transformers calls them. `projection_dim` is CLIP's alone."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    projection_dim: int


@dataclass(frozen=True, eq=False)
class VisionFile:
    """`tensors`: the tower's, views of the file; a SigLIP's without `vision_model.`, as in transformers 5."""

    siglip: bool
    config: VisionConfig
    preparation: Preparation
    tensors: dict[str, np.ndarray]

    @property
    def embedding_size(self) -> int:
        """How many numbers a picture becomes."""
        return self.config.hidden_size if self.siglip else self.config.projection_dim


def read_vision(folder: Path) -> VisionFile:
    """Raises `MissingFile`, `BrokenFile`."""
    if not folder.is_dir():
        raise MissingFile(
            f"There is no folder {folder.name!r} of an image encoder. Give the folder of CLIP ViT-L/14 "
            "(XLabs' IP-Adapter) or of SigLIP so400m (InstantX's)."
        )
    values = read_json(folder / "config.json")
    kind = next((k for k in ("siglip", "clip") if str(values.get("model_type", "")).startswith(k)), None)
    if kind is None:
        raise BrokenFile(
            f"{folder.name}/config.json is of {values.get('model_type')!a:.40}, not of CLIP or SigLIP. Give "
            "the folder of the image encoder that the IP-Adapter was trained with."
        )
    inner = values.get("vision_config") or {}
    whole = {name: values[name] for name in ("projection_dim",) if name in values}
    own = inner | whole if "vision_config" in values else values
    sizes = DEFAULTS[kind] | {name: own[name] for name in DEFAULTS[kind] if name in own}
    weights = open_weights(folder)
    prefix = "vision_model." if kind == "siglip" else ""
    names = [name for name in weights if not ASIDE.match(name)]
    return VisionFile(
        siglip=kind == "siglip",
        config=VisionConfig(**sizes),
        preparation=read_preparation(folder, kind, sizes["image_size"]),
        tensors={name.removeprefix(prefix): weights.read(name) for name in names},
    )


def read_preparation(folder: Path, kind: str, size: int) -> Preparation:
    """`preprocessor_config.json`, which may lack: then what CLIP and SigLIP were trained with."""
    path = folder / "preprocessor_config.json"
    values = read_json(path) if path.is_file() else {}
    stated = values.get("crop_size" if kind == "clip" else "size", values.get("size", size))
    if isinstance(stated, Mapping):  # newer files: {"shortest_edge": s}, {"height": s, "width": s}
        stated = next(iter(stated.values()), size)
    mean, std = values.get("image_mean", MEAN[kind]), values.get("image_std", STD[kind])
    if stated != size or len(mean) != 3 or len(std) != 3:
        raise BrokenFile(
            f"{folder.name}/preprocessor_config.json prepares pictures of {stated!a:.20} pixels, and the "
            f"encoder takes {size}. Copy the folder again."
        )
    return Preparation(size, kind == "clip", tuple(mean), tuple(std))


def read_json(path: Path) -> dict[str, Any]:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise MissingFile(f"{where} is missing. Copy the folder again, or download it.")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BrokenFile(f"{where} is damaged. Copy the folder again, or download it.")
    return values
