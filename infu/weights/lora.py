"""LoRA files -> low-rank weight deltas by diffusers module name: PEFT / diffusers and kohya layouts.

Delta = scale * alpha / rank * up @ down (arXiv 2106.09685, 4.1). Where a file has one module for several of
ours (kohya's fused q, k, v), `down` is shared and `up` is cut by the rows of each target.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infu.errors import BrokenFile, MissingFile
from infu.weights.files import fold, open_weights

DOUBLE = {  # lora_unet_double_blocks_{i}_KEY is transformer_blocks.{i}.VALUES
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_mod_lin": ("norm1_context.linear",),
}
SINGLE = {  # lora_unet_single_blocks_{i}_KEY is single_transformer_blocks.{i}.VALUES
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
KOHYA = (("double", "transformer_blocks", DOUBLE), ("single", "single_transformer_blocks", SINGLE))
HALVES = {  # ending of a key -> which half of the pair it is
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}


@dataclass(frozen=True, eq=False)
class LowRank:
    """One delta: `down` (r, in), `up` (out, r), views of the file in its dtype; `factor` = alpha / rank."""

    down: np.ndarray
    up: np.ndarray
    factor: float


@dataclass(frozen=True, eq=False)
class LoraFile:
    """Module name -> its delta, and the keys that fit no module."""

    deltas: dict[str, LowRank]
    unused: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        return [f"A LoRA has parts that this model does not use: {fold(self.unused)}."] if self.unused else []


def read_lora(path: Path, shapes: Mapping[str, tuple[int, int]]) -> LoraFile:
    """Read a LoRA for a network whose linear modules have these (out, in) `shapes`, by diffusers name.

    Raises `BrokenFile` when nothing in the file fits, a pair is not whole, or a shape contradicts.
    """
    if not path.is_file():
        raise MissingFile(f"There is no LoRA file {path.name!r}. Give the path of a safetensors file.")
    weights = open_weights(path)
    parts: dict[str, dict[str, np.ndarray]] = {}
    unused = []
    for key in weights:
        module, half = split_key(key)
        if half is None or not targets_of(module, shapes):
            unused.append(key)
        else:
            parts.setdefault(module, {})[half] = weights.read(key)
    deltas: dict[str, LowRank] = {}
    for module, halves in parts.items():
        deltas.update(cut(module, halves, {name: shapes[name] for name in targets_of(module, shapes)}))
    if not deltas:
        raise BrokenFile(f"Nothing in the LoRA fits this model. It holds {fold(unused) or 'no tensors'}.")
    return LoraFile(deltas, tuple(unused))


def split_key(key: str) -> tuple[str, str | None]:
    """`module.lora_A.weight` -> module, "down"; half is None for a key of no known ending."""
    for ending, half in HALVES.items():
        if key.endswith(ending):
            return key.removesuffix(ending), half
    return key, None


def targets_of(module: str, shapes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """A file's module name -> our module names, in the order of its rows; none if it is not known."""
    name = module.removeprefix("transformer.")
    if name in shapes:
        return (name,)
    for kind, blocks, table in KOHYA:
        found = re.fullmatch(rf"lora_unet_{kind}_blocks_(\d+)_(\w+)", module)
        if found and found[2] in table:
            targets = tuple(f"{blocks}.{found[1]}.{target}" for target in table[found[2]])
            return targets if all(target in shapes for target in targets) else ()
    return ()


def cut(
    module: str, halves: dict[str, np.ndarray], targets: dict[str, tuple[int, int]]
) -> dict[str, LowRank]:
    """One pair of a file -> a delta for each of its targets."""
    if "down" not in halves or "up" not in halves:
        raise BrokenFile(f"The LoRA has half a pair for {module}: its file is damaged. Download it again.")
    down, up = halves["down"], halves["up"]
    rows, columns = sum(out for out, _ in targets.values()), next(iter(targets.values()))[1]
    if down.ndim != 2 or up.ndim != 2 or down.shape[1] != columns or up.shape != (rows, down.shape[0]):
        raise BrokenFile(
            f"The LoRA was made for another model: {module} has {up.shape} x {down.shape}, "
            f"and this model needs {rows} rows and {columns} columns."
        )
    rank = down.shape[0]
    alpha = float(halves["alpha"].reshape(-1)[0]) if "alpha" in halves and halves["alpha"].size else 0.0
    factor = alpha / rank if alpha else 1.0  # absent or 0 means none was set
    if not (np.isfinite(down).all() and np.isfinite(up).all() and np.isfinite(factor)):
        raise BrokenFile(f"The LoRA has numbers that are not finite in {module}: it cannot be used.")
    deltas, start = {}, 0
    for name, (out, _) in targets.items():
        deltas[name] = LowRank(down, up[start : start + out], factor)
        start += out
    return deltas
