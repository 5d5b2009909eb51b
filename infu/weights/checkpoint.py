"""One network's tensors out of any file that holds it, under diffusers' names: BFL's single files, ComfyUI's
all-in-one and fp8 files, GGUF, diffusers' folders.

Nothing is converted in advance: an entry says which rows of which tensor of the file it is, and `read` makes
the numbers of that one. What is stored in 8 bits or fewer can also be had as it is (`packed`).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from infu.errors import BrokenFile
from infu.weights.changes import Rows, take
from infu.weights.files import WeightFiles, fold, open_weights
from infu.weights.foreign import refuse_channels, refuse_quantisation, refuse_weights
from infu.weights.gguf import PLAIN, GgufFile, all_finite
from infu.weights.names import (
    BLOCKS,
    OUTSIDE,
    SIDE_OUTSIDE,
    SWAPPED,
    T5_GGUF,
    VAE,
    XLABS_HINT,
    block_numbers,
    rename,
)

PREFIXES = {  # of a network in a file that holds several
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("vae.", "first_stage_model."),
    "text_encoder": ("text_encoders.clip_l.transformer.",),
    "text_encoder_2": ("text_encoders.t5xxl.transformer.",),
    "infusenet": (),
    "controlnet": (),
}
SIGNS = {  # a tensor that a network always has, in one spelling or another
    "transformer": r"^(double_blocks|transformer_blocks)\.\d+\.",
    "vae": r"^decoder\.conv_in\.",
    "text_encoder": r"^(text_model\.)?embeddings\.token_embedding\.",
    "text_encoder_2": r"^(encoder\.block|enc\.blk)\.\d+\.",
    "infusenet": r"^controlnet_(x_embedder|blocks|single_blocks)\.",
    "controlnet": r"^(controlnet_(x_embedder|blocks)|input_hint_block)\.",
}
ONLY_CONTROLNET = r"^(controlnet_mode_embedder|input_hint_block)\."  # else its tensors are as InfuseNet's
TITLES = {"transformer": "FLUX transformer", "vae": "VAE", "text_encoder": "CLIP text encoder",
          "text_encoder_2": "T5 encoder", "infusenet": "InfuseNet", "controlnet": "ControlNet"}  # fmt: skip
NEEDLESS = (
    r"^(text_projection\.weight|logit_scale|(text_model\.)?embeddings\.position_ids|scaled_fp8|spiece_model)$"
)
SCALES = (".scale_weight", ".weight_scale")  # of an fp8 layer's weight: ComfyUI's older and newer spelling
HINTS = (
    ".scale_input",
    ".input_scale",
    ".comfy_quant",
)  # for fp8 arithmetic, which is not used; and the format
FP8 = {"float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn), "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2)}

NO_NUMBER = {FP8["float8_e4m3fn"]: 0x7F, FP8["float8_e5m2"]: 0x7C}  # from these bits on, the sign left away


@dataclass(frozen=True)
class Entry:
    """A tensor: those `rows` of the file's `source`, or all, in `shape`. `scale` names an fp8 weight's scale;
    `cast`: what numbers the stored bytes are."""

    source: str
    shape: tuple[int, ...]
    nbytes: int
    dtype: np.dtype  # of what `read` gives
    rows: Rows | None = None
    scale: str | None = None
    cast: np.dtype | None = None


@dataclass(frozen=True, eq=False)
class Fp8:
    """values (out, in) in 8-bit floats; the weight is values * scale, () or (out, 1) float32."""

    values: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, eq=False)
class Blocks:
    """uint8 (out, bytes of a row) in a type of GGUF's."""

    values: np.ndarray
    kind: str


class Checkpoint(Mapping[str, Entry]):
    """Name -> entry, of one network. `read(name)` gives the numbers, `packed(name)` what is stored."""

    def __init__(self, name: str, raw: WeightFiles | GgufFile, entries: dict[str, Entry]):
        self.name, self.raw, self.entries = name, raw, entries

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def origin(self, name: str) -> str:
        """The file's own name of a tensor, for errors."""
        return self.entries[name].source if name in self.entries else name

    def read(self, name: str) -> np.ndarray:
        """The numbers in `shape`: a view of the file, or float32 where they are scaled or in blocks."""
        entry = self.entries[name]
        values = self._rows(entry)
        if entry.scale is not None:
            values = values.astype(np.float32) * self._scale(entry)
        return values.reshape(entry.shape)

    def is_packed(self, name: str) -> bool:
        """Whether it is a matrix stored in 8 bits or fewer, row by row as the network has it."""
        entry = self.entries[name]
        if len(entry.shape) != 2 or not name.endswith(".weight"):
            return False
        if isinstance(self.raw, GgufFile):
            stored = self.raw[entry.source]
            return stored.kind not in PLAIN and stored.shape[-1] == entry.shape[1]
        return (entry.cast or self.raw[entry.source].dtype) in FP8.values()

    def kind(self, name: str) -> str:
        """How an `is_packed` matrix is stored: "fp8", or a type of GGUF's."""
        return self.raw[self.entries[name].source].kind if isinstance(self.raw, GgufFile) else "fp8"

    def packed(self, name: str) -> Fp8 | Blocks | None:
        """A matrix as it is stored, where `is_packed`. Raises `BrokenFile` for NaN or infinity in it."""
        entry = self.entries[name]
        if not self.is_packed(name):
            return None
        if isinstance(self.raw, GgufFile):
            blocks = self.raw.blocks(entry.source)
            kind = self.raw[entry.source].kind
            blocks = blocks if entry.rows is None else take(blocks, entry.rows)
            if not all_finite(blocks, kind):
                raise self.not_finite(name)
            return Blocks(blocks, kind)
        scale = np.ones((), np.float32) if entry.scale is None else self._scale(entry)
        values = self._rows(entry)
        if not np.isfinite(scale).all() or (values.view(np.uint8) & 0x7F).max() >= NO_NUMBER[values.dtype]:
            raise self.not_finite(name)
        return Fp8(values, scale)

    def not_finite(self, name: str) -> BrokenFile:
        """What to say of a tensor with NaN or infinity in it."""
        return BrokenFile(
            f"{self.name}: {self.origin(name)} has numbers that are not finite (NaN or infinity). The file "
            "is damaged, or was badly merged: download it again, or choose another."
        )

    def _rows(self, entry: Entry) -> np.ndarray:
        if isinstance(self.raw, GgufFile):
            return self.raw.read(entry.source, entry.rows)
        values = self.raw.read(entry.source)
        values = values if entry.cast is None else values.view(entry.cast)
        return values if entry.rows is None else take(values, entry.rows)

    def _scale(self, entry: Entry) -> np.ndarray:
        """float32, () for the whole weight or (out, 1) for its rows."""
        scale = self.raw.read(entry.scale).astype(np.float32)
        if scale.size == 1:
            return scale.reshape(())
        scale = scale.reshape(-1, 1)
        return scale if entry.rows is None else take(scale, entry.rows)


def find_parts(weights: Mapping[str, Any]) -> list[str]:
    """The networks that a file holds: "transformer", "vae", ..."""
    found = [
        part for part in SIGNS if any(re.search(SIGNS[part], name) for name in part_names(weights, part))
    ]
    if "controlnet" not in found:
        return found
    own = any(re.search(ONLY_CONTROLNET, name) for name in weights)
    others = ("transformer", "infusenet" if own else "controlnet")  # with blocks of the same names
    return [part for part in found if part not in others]


def list_parts(file: str, weights: Any) -> list[str]:
    """The networks of FLUX.1 in a `file`, at least one. Raises `BrokenFile`, saying what it is instead."""
    parts = find_parts(weights)
    for part in parts or ["transformer"]:
        refuse_weights(file, weights, part)
    if not parts:
        raise BrokenFile(f"{file} is of no kind that is known here. It has {fold(weights) or 'no tensors'}.")
    return parts


def part_names(weights: Mapping[str, Any], part: str) -> dict[str, str]:
    """Names of one network in a file of several, without its prefix -> the file's own."""
    prefix = next((p for p in PREFIXES[part] if any(name.startswith(p) for name in weights)), "")
    return {name.removeprefix(prefix): name for name in weights if name.startswith(prefix)}


def open_part(path: Path, part: str) -> Checkpoint:
    """The tensors of `part`, one of `TITLES`, in a file or folder. Raises `MissingFile`, or `BrokenFile` for
    what is broken, not whole, or not this network."""
    raw = open_weights(path)
    refuse_weights(path.name, raw, part)
    names = part_names(raw, part)
    if not any(re.search(SIGNS[part], name) for name in names):
        raise BrokenFile(f"{path.name} holds no {TITLES[part]}. It has {fold(names) or 'no tensors'}.")
    names = {name: source for name, source in names.items() if not re.search(NEEDLESS, name)}
    entries = make_entries(path.name, raw, names)
    if part == "transformer":
        reads = entries.get("img_in.weight") or entries.get("x_embedder.weight")
        refuse_channels(path.name if path.is_file() else path.parent.name, reads and reads.shape[-1])
    if part == "transformer" and any(name.startswith("double_blocks.") for name in entries):
        check_complete(path.name, entries)
        entries = from_bfl(path.name, entries)
    elif part == "controlnet" and any(name.startswith("double_blocks.") for name in entries):
        check_complete(path.name, entries, SIDE_OUTSIDE, BLOCKS[:1])
        entries = from_bfl(path.name, {rename(name, XLABS_HINT): entry for name, entry in entries.items()})
    elif part == "vae" and any(".block_1." in name for name in entries):
        entries = from_bfl_vae(entries)
    elif part == "text_encoder_2" and isinstance(raw, GgufFile):
        entries = {rename(name, T5_GGUF): entry for name, entry in entries.items()}
    return Checkpoint(path.name, raw, entries)


def make_entries(file: str, raw: WeightFiles | GgufFile, names: Mapping[str, str]) -> dict[str, Entry]:
    """Names without prefix -> entries, scales and hints taken out and minded."""
    formats = read_formats(file, raw, names)
    entries = {}
    for name, source in names.items():
        if name.endswith(SCALES + HINTS):
            continue
        header, layer = raw[source], name.removesuffix(".weight")
        scale = next((names[layer + ending] for ending in SCALES if layer + ending in names), None)
        scale = scale if name.endswith(".weight") else None
        cast = FP8[formats[layer]] if layer in formats and header.dtype.itemsize == 1 else None
        packed = f"{layer}.scales" in names  # a folder that the MLX backend quantised
        if (cast or header.dtype).kind in "iub" and name.endswith(".weight") and not packed:
            raise BrokenFile(
                f"{file} stores {name} as whole numbers ({header.dtype}) of a quantisation that is not known "
                "here. Choose a file in bf16, fp8 or GGUF."
            )
        dtype = np.dtype(np.float32) if scale else cast or header.dtype
        shape = logical_shape(raw, names, name)
        if scale and math.prod(raw[scale].shape) not in (1, *shape[:1]):
            raise BrokenFile(f"{file} is damaged: {scale} does not go with its weight. Download it again.")
        entries[name] = Entry(source, shape, header.nbytes, dtype, None, scale, cast)
    return entries


def read_formats(file: str, raw: Any, names: Mapping[str, str]) -> dict[str, str]:
    """Layer -> how its weight is stored, as `comfy_quant` tensors or the header say. Raises `BrokenFile` for
    a format that is not supported."""
    formats: dict[str, str] = {}
    try:
        layers = json.loads(raw.metadata.get("_quantization_metadata", "{}")).get("layers", {})
        inverse = {source: name for name, source in names.items()}
        for layer, hint in layers.items():
            name = inverse.get(f"{layer}.weight", f"{layer}.weight")
            formats[name.removesuffix(".weight")] = str(hint["format"])
        for name, source in names.items():
            if name.endswith(".comfy_quant"):
                hint = json.loads(raw.read(source).tobytes())
                formats[name.removesuffix(".comfy_quant")] = str(hint["format"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenFile(f"{file} has damaged notes on its quantisation. Download it again.") from None
    for layer, kind in formats.items():
        if kind not in FP8:
            refuse_quantisation(file, layer, kind)
    return formats


def logical_shape(raw: Any, names: Mapping[str, str], name: str) -> tuple[int, ...]:
    """The shape of a tensor as the network has it. GGUF needs rows of 32 or 256 numbers, so a narrower matrix
    may be stored in other rows: ComfyUI notes its shape, others leave it to the bias."""
    header = raw[names[name]]
    if not isinstance(raw, GgufFile) or not name.endswith(".weight") or len(header.shape) != 2:
        return header.shape
    noted = raw.metadata.get(f"comfy.gguf.orig_shape.{names[name]}")
    numel = math.prod(header.shape)
    if isinstance(noted, list) and math.prod(noted) == numel:
        return tuple(int(length) for length in noted)
    bias = names.get(f"{name.removesuffix('.weight')}.bias")
    rows = raw[bias].shape[0] if bias else header.shape[0]
    return header.shape if rows == header.shape[0] or numel % rows else (rows, numel // rows)


# BFL's names.


def check_complete(
    file: str, entries: Mapping[str, Entry], outside: Iterable[str] = OUTSIDE, kinds=BLOCKS
) -> None:
    """Raise `BrokenFile`, naming what is missing of a FLUX with blocks 0 to the last, or is no matrix or
    vector where there should be one. `outside`, `kinds`: the modules and kinds of blocks that it has."""
    guidance = any(name.startswith("guidance_in.") for name in entries)
    modules = [name for name in outside if guidance or not name.startswith("guidance_in")]
    for blocks, _, table in kinds:
        numbers = block_numbers(entries, blocks)
        modules += [f"{blocks}.{i}.{key}" for i in range(max(numbers, default=0) + 1) for key in table]
    wanted = [
        f"{module}.{leaf}"
        for module in modules
        for leaf in (("scale",) if module.endswith("_norm") else ("weight", "bias"))
    ]
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise BrokenFile(f"{file} is not whole: it has no {fold(missing)}. Download it again.")
    for name in wanted:
        shape = entries[name].shape
        if len(shape) != (2 if name.endswith(".weight") else 1) or 0 in shape:
            raise BrokenFile(f"{file} is damaged: {name} has the shape {shape}. Download it again.")


def from_bfl(file: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """BFL's names -> diffusers', a fused tensor cut into those it holds. A name not known stays as it is."""
    made = {}
    tables = {bfl: (ours, table) for bfl, ours, table in BLOCKS}
    for name, entry in entries.items():
        module, _, leaf = name.rpartition(".")
        leaf = "weight" if leaf == "scale" else leaf
        found = re.match(r"(\w+_blocks)\.(\d+)\.(.+)", module)
        if leaf not in ("weight", "bias"):
            made[name] = entry
        elif module in OUTSIDE:
            target = OUTSIDE[module]
            half = entry.shape[0] // 2
            rows = (slice(half, None), slice(0, half)) if target in SWAPPED else None
            made[f"{target}.{leaf}"] = replace(entry, rows=rows)
        elif found and found[1] in tables and found[3] in tables[found[1]][1]:
            ours, table = tables[found[1]]
            targets = [f"{ours}.{found[2]}.{value}" for value in table[found[3]]]
            width = entries[f"{module}.weight"].shape[-1] if len(targets) > 1 else 0
            heights = cut_heights(file, name, entry, width, len(targets))
            start = 0
            for target, height in zip(targets, heights, strict=True):
                made[f"{target}.{leaf}"] = cut(entry, start, height) if len(targets) > 1 else entry
                start += height
        else:
            made[name] = entry
    return made


def cut_heights(file: str, name: str, entry: Entry, width: int, count: int) -> list[int]:
    """Rows of each part: q, k and v are as high as the network is wide, the MLP takes the rest."""
    if count == 1:
        return [entry.shape[0]]
    heights = [width] * 3 + [entry.shape[0] - 3 * width] * (count - 3)
    if sum(heights) != entry.shape[0] or min(heights) <= 0:
        raise BrokenFile(f"{file} is no FLUX.1: {name} has the shape {entry.shape}. Choose another file.")
    return heights


def cut(entry: Entry, start: int, height: int) -> Entry:
    share = entry.nbytes * height // entry.shape[0]
    rows = (slice(start, start + height),)
    return replace(entry, rows=rows, shape=(height, *entry.shape[1:]), nbytes=share)


def from_bfl_vae(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """BFL's autoencoder: stages counted from the other end, attention as 1 x 1 convolutions."""
    last = max(int(found[1]) for name in entries if (found := re.match(r"decoder\.up\.(\d+)\.", name)))
    made = {}
    for name, entry in entries.items():
        name = rename(name, VAE, last)
        is_linear = ".attentions." in name and len(entry.shape) == 4
        made[name] = replace(entry, shape=entry.shape[:2]) if is_linear else entry
    return made


def has_guidance(path: Path) -> bool:
    """Whether a transformer takes a guidance scale: dev and its like; schnell does not."""
    return any("guidance_embedder" in name for name in open_part(path, "transformer"))
