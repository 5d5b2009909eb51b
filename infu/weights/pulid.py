"""PuLID-FLUX's two files, read once for both backends: the checkpoint (0.9.0 or 0.9.1: an IDFormer and the
cross-attentions beside the DiT) and EVA02-CLIP-L-336's visual tower.

Every size is in the tensors' shapes but those of a head, and which blocks are followed by a cross-attention:
a `config.json` beside the file may name them, else they are the released ones (ToTheBeginning/PuLID,
`pulid/encoders_transformer.py`, `eva_clip/model_configs/EVA02-CLIP-L-14-336.json`).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infu.errors import BrokenFile, MissingFile
from infu.weights.files import fold, open_weights
from infu.weights.foreign import name_weights

ENCODER, ATTENTIONS = "pulid_encoder.", "pulid_ca."
ENCODER_HEAD, ATTENTION_HEAD = 64, 128  # numbers of a head
DOUBLE_INTERVAL, SINGLE_INTERVAL = 2, 4  # a cross-attention follows each second double, fourth single block
EVA = "EVA02_CLIP_L_336_psz14_s6B.pt"
VISUAL, EVA_HEAD, EVA_SPAN = "visual.", 64, 16  # `EVA_SPAN`: what the positions of a side's patches span
EVA_SIGNS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.inner_attn_ln.weight")
EVA_STATES = (4, 8, 12, 16, 20)  # blocks whose inputs IDFormer reads
ROPE_THETA = 10_000.0
ROPE_TABLE = re.compile(r"(^|\.)rope\.freqs_(cos|sin)$")  # rounded in the file: they are computed instead

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class PulidFile:
    """`encoder`: IDFormer's tensors; `attentions`: those of each cross-attention, in the order of use, the
    ones after double blocks first. Arrays are views of the file."""

    name: str
    encoder: Arrays
    attentions: tuple[Arrays, ...]
    encoder_head: int
    attention_head: int
    double_interval: int
    single_interval: int

    @property
    def num_tokens(self) -> int:
        """How many identity tokens a face becomes."""
        return self.encoder["latents"].shape[1]

    @property
    def token_width(self) -> int:
        return self.encoder["proj_out"].shape[1]

    @property
    def image_width(self) -> int:
        """The width of the DiT that the cross-attentions were made for."""
        return self.attentions[0]["norm2.weight"].shape[0]

    def find_blocks(self, modules: Shapes) -> list[int]:
        """The blocks that a cross-attention follows, the double ones counted first. `modules`: shapes of a
        DiT's weights by module. Raises `BrokenFile` where the cross-attentions do not fit."""
        num_double, num_single = (
            count_layers(modules, f"{kind}transformer_blocks") for kind in ("", "single_")
        )
        singles = range(0, num_single, self.single_interval)
        blocks = [*range(0, num_double, self.double_interval), *(num_double + i for i in singles)]
        width = modules["x_embedder"][0]
        if (len(self.attentions), self.image_width) != (len(blocks), width):
            raise BrokenFile(
                f"{self.name} was made for another base model: it has {len(self.attentions)} "
                f"cross-attentions of width {self.image_width}, and the loaded one takes {len(blocks)} of "
                f"width {width}. Use it with FLUX.1-dev or a fine-tune of it."
            )
        return blocks


@dataclass(frozen=True, eq=False)
class EvaFile:
    """The tensors of the visual tower, without `visual.`; arrays are views of the file."""

    name: str
    tensors: Arrays
    head: int
    span: int

    @property
    def image_size(self) -> int:
        """The side of the picture it takes, in pixels."""
        side = math.isqrt(self.tensors["pos_embed"].shape[1] - 1)
        return side * self.tensors["patch_embed.proj.weight"].shape[-1]


def read_pulid(path: Path) -> PulidFile:
    """`pulid_flux_v0.9.0.safetensors` or `…0.9.1…`. Raises `MissingFile`, `BrokenFile`."""
    path = find_file(path, "PuLID's checkpoint (pulid_flux_v0.9.1.safetensors)")
    weights = open_weights(path)
    encoder = {n.removeprefix(ENCODER): weights.read(n) for n in weights if n.startswith(ENCODER)}
    attentions: dict[int, Arrays] = {}
    others = []
    for name in weights:
        found = re.match(r"pulid_ca\.(\d+)\.(.+)", name)
        if found:
            attentions.setdefault(int(found[1]), {})[found[2]] = weights.read(name)
        elif not name.startswith(ENCODER):
            others.append(name)
    if not encoder or not attentions:
        what = name_weights(weights) or "not PuLID-FLUX"
        raise BrokenFile(
            f"{path.name} is {what}: it has no pulid_encoder and pulid_ca tensors. Give "
            "pulid_flux_v0.9.1.safetensors of guozinan/PuLID."
        )
    if others:
        raise BrokenFile(f"{path.name} holds tensors that PuLID-FLUX does not have: {fold(others)}.")
    if sorted(attentions) != list(range(len(attentions))):
        raise BrokenFile(f"{path.name} lacks some of its cross-attentions. Download it again.")
    config = read_sizes(path)
    file = PulidFile(
        name=path.name,
        encoder=encoder,
        attentions=tuple(attentions[i] for i in range(len(attentions))),
        encoder_head=size_of(config.get("id_former"), "dim_head", ENCODER_HEAD),
        attention_head=size_of(config.get("cross_attention"), "dim_head", ATTENTION_HEAD),
        double_interval=size_of(config, "double_interval", DOUBLE_INTERVAL),
        single_interval=size_of(config, "single_interval", SINGLE_INTERVAL),
    )
    check_tensors(path.name, encoder, ENCODER, {"latents": 3, "proj_out": 2, "layers.0.0.to_q.weight": 2})
    for i, tensors in enumerate(file.attentions):
        check_tensors(path.name, tensors, f"{ATTENTIONS}{i}.", {"norm2.weight": 1, "to_q.weight": 2})
    check_heads(path.name, encoder["layers.0.0.to_q.weight"], file.encoder_head)
    check_heads(path.name, file.attentions[0]["to_q.weight"], file.attention_head)
    return file


def read_eva(path: Path) -> EvaFile:
    """EVA02-CLIP-L-336 as QuanSun/EVA-CLIP publishes it, or its `visual.*` alone; `path` may be the folder
    that holds it. The text tower is not read. Raises `MissingFile`, `BrokenFile`."""
    path = find_file(Path(path) / EVA if Path(path).is_dir() else path, f"PuLID's image encoder ({EVA})")
    weights = open_weights(path)
    visual = {name.removeprefix(VISUAL): name for name in weights if name.startswith(VISUAL)}
    if not all(sign in visual for sign in EVA_SIGNS):
        what = name_weights(weights) or "not EVA02-CLIP-L-336"
        raise BrokenFile(
            f"{path.name} is {what}: it has no such visual tower. Give {EVA} of QuanSun/EVA-CLIP."
        )
    tensors = {name: weights.read(source) for name, source in visual.items() if not ROPE_TABLE.search(name)}
    check_tensors(path.name, tensors, VISUAL, {"pos_embed": 3, "patch_embed.proj.weight": 4})
    config = read_sizes(path)
    head = size_of(config, "head_width", EVA_HEAD)
    check_heads(path.name, tensors["cls_token"].reshape(-1), head)
    return EvaFile(path.name, tensors, head, size_of(config, "pt_hw_seq_len", EVA_SPAN))


def find_file(path: Path, what: str) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFile(
            f"{what} is missing: there is no file {path.name!r}. Give its path, or fetch it with "
            "`python -m infu download --pulid 0.9.1`."
        )
    return path


def read_sizes(path: Path) -> Mapping[str, Any]:
    """The `config.json` beside a file; a released file has none, and one that is not its own says nothing."""
    try:
        config = json.loads((path.parent / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def size_of(config: Any, name: str, released: int) -> int:
    value = config.get(name) if isinstance(config, dict) else None
    return value if isinstance(value, int) and value > 0 else released


def count_layers(names: Iterable[str], name: str) -> int:
    """How many layers `name.0`, `name.1`, … there are."""
    return 1 + max((int(n.split(".")[1]) for n in names if re.match(rf"{name}\.\d+\.", n)), default=-1)


def check_tensors(file: str, tensors: Arrays, prefix: str, dims: Mapping[str, int]) -> None:
    """Raise `BrokenFile` unless the tensors that tell the sizes are there, with so many dimensions."""
    wrong = [prefix + name for name, dim in dims.items() if name not in tensors or tensors[name].ndim != dim]
    if wrong:
        raise BrokenFile(f"{file} lacks {fold(wrong)}, or has it in another shape. Download it again.")


def check_heads(file: str, tensor: np.ndarray, head: int) -> None:
    if len(tensor) % head:
        raise BrokenFile(f"{file} has an attention of width {len(tensor)}, which {head} does not divide.")
