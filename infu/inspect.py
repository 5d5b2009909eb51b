"""What a file of weights is: a network, several, or a LoRA; its precision, its size, the memory it needs."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infu.errors import BrokenFile, InfuError, MissingFile
from infu.models import BASE, PARTS, locate
from infu.weights.checkpoint import TITLES, Checkpoint, list_parts, open_part
from infu.weights.files import open_weights
from infu.weights.foreign import name_file, name_foreign_lora, refuse_pipeline
from infu.weights.gguf import GgufFile
from infu.weights.lora import NETWORKS, PREFIXES, Shapes, find_prefix, read_lora, split_key
from infu.weights.names import count_blocks
from infu.weights.triggers import find_triggers

SIGNS = {"down", "w1", "w1_a", "hada_w1_a", "diff", "diff_b"}  # tensors of a LoRA, by their role


def describe_file(path: Path, networks: Mapping[str, Shapes] | None = None) -> dict[str, Any]:
    """Plain JSON values. `networks`: the shapes of a model's modules (`read_lora`'s), for which a LoRA is
    checked; without them its names are looked at alone. Raises `InfuError`, saying what the file is, for one
    that cannot be used."""
    path = Path(path).expanduser()
    if not path.exists():
        raise MissingFile(f"There is no file {path.name!r}. Check its name and folder.")
    if (path / "transformer").is_dir() or (path / "model_index.json").is_file():
        return describe_folder(path)
    raw = open_weights(path)
    values = {"file": path.name, "tensors": len(raw), "bytes": raw.nbytes, "precision": count_kinds(raw)}
    packing = describe_packing(path, raw)
    if packing is not None:
        values["packed"] = packing
    if is_lora(raw):
        return values | describe_lora(path, raw, networks)
    other = name_file(raw)
    if other is not None:
        return values | {"what": other}
    parts = list_parts(path.name, raw)
    networks = {part: describe_network(open_part(path, part), part) for part in parts}
    return values | {"what": " + ".join(n["what"] for n in networks.values()), "networks": networks}


def describe_folder(path: Path) -> dict[str, Any]:
    """A whole base in diffusers' layout: each of its networks that is there."""
    refuse_pipeline(path)
    parts = {part: open_part(path / part, part) for part in PARTS if (path / part).is_dir()}
    precision: Counter[str] = Counter()
    for part in parts.values():
        precision.update(count_kinds(part.raw))
    networks = {name: describe_network(part, name) for name, part in parts.items()}
    return {
        "file": path.name,
        "tensors": sum(len(part.raw) for part in parts.values()),
        "bytes": sum(part.raw.nbytes for part in parts.values()),
        "precision": dict(precision.most_common()),
        "what": " + ".join(network["what"] for network in networks.values()),
        "networks": networks,
    }


def is_lora(raw: Mapping[str, Any]) -> bool:
    return any(split_key(name)[1] in SIGNS for name in raw)


def count_kinds(raw: Mapping[str, Any]) -> dict[str, int]:
    """How the numbers are stored -> how many tensors are."""
    kinds = (raw[name].kind if isinstance(raw, GgufFile) else str(raw[name].dtype) for name in raw)
    return dict(Counter(kinds).most_common())


def describe_packing(path: Path, raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """In how many bits, and in groups of how many, the MLX backend packed a network (`infu quantize`); None:
    it is not packed. `bits` and `group` are None where neither header nor config.json says so."""
    scales = next((name for name in raw if name.endswith(".scales")), None)
    weight = raw.get(f"{scales.removesuffix('.scales')}.weight") if scales else None
    if weight is None or weight.dtype != np.uint32:
        return None
    bits = read_bits(path, raw.metadata)
    numbers = weight.shape[-1] * 32 // bits if bits else 0  # of a row
    return {"for": "MLX", "bits": bits, "group": numbers // raw[scales].shape[-1] or None}


def read_bits(path: Path, metadata: Mapping[str, str]) -> int | None:
    try:
        told = metadata.get("bits") or json.loads((path / "config.json").read_bytes())["quantization"]["bits"]
        return int(told) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe_lora(path: Path, raw: Any, networks: Mapping[str, Shapes] | None) -> dict[str, Any]:
    foreign = name_foreign_lora(raw)
    if foreign:
        raise BrokenFile(foreign)
    values = {"what": "LoRA", "written_by": list_writers(raw)}
    values["trigger_words"] = find_triggers(getattr(raw, "metadata", {}))
    return values | (read_lora(path, networks).report if networks is not None else {"matched": None})


def list_writers(raw: Mapping[str, Any]) -> list[str]:
    """Who writes keys that begin like these."""
    found = {find_prefix(split_key(name)[0]) for name in raw if split_key(name)[1]}
    return [f"{who} ({prefix or 'no prefix'})" for prefix, who, _ in PREFIXES if prefix in found]


def describe_network(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """One network of a file: what it is, how much, and the bytes it takes in memory."""
    values: dict[str, Any] = {"what": TITLES[part], "tensors": len(checkpoint), "bytes": checkpoint.nbytes}
    if part in ("transformer", "infusenet", "controlnet"):
        guidance = any("guidance_embedder" in name for name in checkpoint)
        if part == "transformer":
            values["what"] = f"FLUX.1-{'dev' if guidance else 'schnell'} or a fine-tune of it"
        values["guidance"] = guidance
        values["double_blocks"], values["single_blocks"] = count_blocks(checkpoint)
        values["width"] = checkpoint["x_embedder.weight"].shape[0]
    values["memory"] = memory_of(checkpoint)
    return values


def memory_of(checkpoint: Checkpoint) -> int:
    """Bytes in memory at bfloat16, what is stored in 8 bits or fewer left as it is."""
    return sum(
        entry.nbytes if checkpoint.is_packed(name) or entry.dtype == np.uint32 else 2 * math.prod(entry.shape)
        for name, entry in checkpoint.items()
    )


# As text.


def draw_file(values: Mapping[str, Any]) -> str:
    """One screen about what `describe_file` found."""
    kinds = ", ".join(f"{kind} ({count})" for kind, count in values["precision"].items())
    lines = [
        f"{values['file']}: {values['what']}",
        f"  {values['tensors']} tensors, {megabytes(values['bytes'])}; stored as {kinds}",
    ]
    if "packed" in values:
        packed = values["packed"]
        sizes = f"{packed['bits']} bits, a scale and an offset for each {packed['group']} weights"
        lines.append(f"  packed for MLX: {sizes if packed['bits'] else 'its config.json is not beside it'}")
    for network in values.get("networks", {}).values():
        line = f"  {network['what']}: {network['tensors']} tensors matched"
        if "width" in network:
            blocks = f"{network['double_blocks']} + {network['single_blocks']} blocks"
            line += f", {blocks}, {network['width']} wide"
        lines.append(f"{line}; {megabytes(network['memory'])} of memory")
    if "written_by" in values:
        lines.append(f"  keys as by {'; '.join(values['written_by']) or 'nobody known'}")
        if values["trigger_words"]:
            lines.append(f"  trigger words: {', '.join(values['trigger_words'])}")
        lines += draw_match(values)
    return "\n".join(lines)


def draw_match(values: Mapping[str, Any]) -> list[str]:
    if values["matched"] is None:
        return ["  Give --base_model_path to see which modules of a model it changes."]
    used = ", ".join(f"{count} modules of {NETWORKS[name]}" for name, count in values["matched"].items())
    lines = [f"  changes {used}"]
    if recipe := values["few_steps"]:
        lines.append(
            f"  for few steps ({recipe['name']}): {recipe['num_steps']}, with guidance "
            f"{recipe['guidance_scale']:g} and a strength of {recipe['scale']:g}, unless others are asked for"
        )
    if values["needs_picture"]:
        lines.append("  a control LoRA: it needs a picture to follow (--lora FILE:SCALE:PICTURE)")
    lines += [f"  left out, as {reason}: {keys}" for reason, keys in values["ignored"].items()]
    if values["unused"]:
        lines.append(f"  not used ({values['unused']['count']} tensors): {values['unused']['names']}")
    return lines


def megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def read_model_shapes(base: Path | str | None) -> dict[str, Shapes] | None:
    """The shapes of a model's modules, out of its files' headers: no network is built. None: those of
    FLUX.1-dev, or None again where that is not here."""
    try:
        files = locate(base_model_path=base or BASE, fetch=False)
    except InfuError:
        if base is not None:
            raise
        return None
    return {
        part: {
            name.removesuffix(".weight"): tuple(entry.shape)
            for name, entry in open_part(getattr(files, part), part).items()
            if name.endswith(".weight")
        }
        for part in NETWORKS
    }
