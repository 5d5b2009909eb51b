"""One module of a LoRA file -> what it does to each of ours: every kind, checked against the shapes.

Where a file has one module for several of ours (kohya's fused q, k, v), each takes its rows; a change whose
rows are not independent (LoKr, DoRA by column) is made whole first, then cut.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from infu.errors import BrokenFile
from infu.weights.changes import (
    Change,
    Dense,
    Hadamard,
    Kronecker,
    LowRank,
    Magnitude,
    Matrix,
    Replacement,
    Rows,
    take,
)
from infu.weights.names import Target

Parts = dict[str, np.ndarray]  # a module's tensors, by their role
ENDINGS = {  # after it: what the tensor is
    "down": (".lora_A.weight", ".lora_A.default.weight", ".lora_A", ".lora_down.weight", ".lora.down.weight",
             ".down.weight"),
    "up": (".lora_B.weight", ".lora_B.default.weight", ".lora_B", ".lora_up.weight", ".lora.up.weight",
           ".up.weight"),
    "alpha": (".alpha",),
    "up_bias": (".lora_B.bias", ".lora_B.default.bias", ".lora_up.bias"),
    "magnitude": (".lora_magnitude_vector", ".lora_magnitude_vector.weight",
                  ".lora_magnitude_vector.default.weight", ".magnitude", ".dora_scale"),
    "w1": (".lokr_w1",), "w1_a": (".lokr_w1_a",), "w1_b": (".lokr_w1_b",),
    "w2": (".lokr_w2",), "w2_a": (".lokr_w2_a",), "w2_b": (".lokr_w2_b",),
    "hada_w1_a": (".hada_w1_a",), "hada_w1_b": (".hada_w1_b",),
    "hada_w2_a": (".hada_w2_a",), "hada_w2_b": (".hada_w2_b",),
    "diff": (".scale.diff", ".diff"),
    "diff_b": (".diff_b",),
    "norm": (".scale", ".weight"),
}  # fmt: skip
CONTROLLED = ("x_embedder",)  # a control LoRA's reads a picture's latents beside the noise: twice the columns


def check_finite(keys: Mapping[str, str], parts: Parts) -> Parts:
    """The tensors, the 8-bit ones widened to float32 (exactly). Raises `BrokenFile` for NaN or infinity."""
    for role, array in parts.items():
        if array.dtype.itemsize == 1:
            parts[role] = array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise BrokenFile(
                f"The LoRA has numbers that are not finite in {keys[role]}: it cannot be used. "
                "Download it again; if that does not help, it was damaged when it was made."
            )
    return parts


def make_changes(
    module: str,
    parts: Parts,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, Any],
) -> dict[str, Change]:
    """The tensors of one module of a file -> a change for each of its targets."""
    rows = cut_rows(target, [shape[0] for shape in shapes.values()])
    whole = (sum(shape[0] for shape in shapes.values()), *next(iter(shapes.values()))[1:])
    matrix, rank = read_matrix(module, parts)
    matrix, control = cut_control(module, matrix, parts, target, whole)
    if matrix is not None and matrix.shape != whole:
        raise BrokenFile(describe_mismatch(module, matrix.shape, whole))
    factor = read_factor(module, parts, rank, target, metadata) if matrix is not None else 1.0
    bias = read_bias(module, parts, factor, whole[0])
    lengths = read_magnitude(module, parts, whole) if matrix is not None else None
    by_column = lengths is not None and is_column(parts)
    changes = {}
    for name, own in zip(target.modules, rows, strict=True):
        magnitude = None
        if lengths is not None:
            magnitude = Magnitude(lengths if by_column else take(lengths, own), by_column, target.modules)
        cut = None if matrix is None else matrix.take(own)
        changes[name] = Change(cut, factor, None if bias is None else take(bias, own), magnitude, control)
    return changes


def cut_rows(target: Target, heights: list[int]) -> list[Rows]:
    """Which rows of the file's module each target takes."""
    rows, start = [], 0
    for height in heights:
        stop, middle = start + height, start + height // 2
        swapped = (slice(middle, stop), slice(start, middle))
        rows.append(swapped if target.swapped else (slice(start, stop),))
        start = stop
    return rows


def read_matrix(module: str, parts: Parts) -> tuple[Matrix | None, int]:
    """The change of the weight, and the rank that alpha is divided by; 0: no alpha counts."""
    if "down" in parts or "up" in parts:
        down, up = need(module, parts, "down"), need(module, parts, "up")
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
            raise BrokenFile(
                f"The LoRA contradicts itself at {module}: its halves have the shapes {up.shape} and "
                f"{down.shape}, made for another model or damaged. Download it again."
            )
        return LowRank(down, up), down.shape[0]
    if any(role.startswith("hada") for role in parts):
        factors = [need(module, parts, f"hada_{name}") for name in ("w1_a", "w1_b", "w2_a", "w2_b")]
        product(module, *factors[:2]), product(module, *factors[2:])
        return Hadamard(*factors), factors[1].shape[0]
    if any(role.startswith(("w1", "w2")) for role in parts):
        (w1, rank1), (w2, rank2) = (read_factor_pair(module, parts, name) for name in ("w1", "w2"))
        return Kronecker(w1, w2), rank1 or rank2
    if "norm" in parts:
        return Replacement(parts["norm"]), 0
    return (Dense(parts["diff"]), 0) if "diff" in parts else (None, 0)


def cut_control(
    module: str, matrix: Matrix | None, parts: Parts, target: Target, whole: tuple[int, ...]
) -> tuple[Matrix | None, Matrix | None]:
    """A control LoRA's matrix of x_embedder -> its columns for the noise, and those for the control picture;
    of any other the matrix, None."""
    if matrix is None or target.modules != CONTROLLED or matrix.shape != (whole[0], 2 * whole[1]):
        return matrix, None
    if isinstance(matrix, Kronecker) or "magnitude" in parts:
        raise BrokenFile(
            f"The LoRA is a FLUX.1 Control LoRA whose {module} is a LoKr or DoRA, which is not supported. "
            "Use one whose layer is a plain LoRA, as those of BFL."
        )
    return matrix.columns(slice(0, whole[1])), matrix.columns(slice(whole[1], None))


def read_factor_pair(module: str, parts: Parts, name: str) -> tuple[np.ndarray, int]:
    """One of LoKr's two matrices, whole, and its rank if it was factored, else 0."""
    if name in parts:
        if parts[name].ndim != 2:
            raise BrokenFile(f"The LoRA's {module} is a LoKr of a convolution, which FLUX has none of.")
        return parts[name], 0
    a, b = need(module, parts, f"{name}_a"), need(module, parts, f"{name}_b")
    return product(module, a, b), b.shape[0]


def product(module: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise BrokenFile(f"The LoRA contradicts itself at {module}: {a.shape} does not go with {b.shape}.")
    return a.astype(np.float32) @ b.astype(np.float32)


def need(module: str, parts: Parts, role: str) -> np.ndarray:
    if role not in parts:
        raise BrokenFile(
            f"The LoRA has half a pair for {module}: its file has no {module}{ENDINGS[role][0]}, "
            "or as others spell it. It is damaged: download it again."
        )
    return parts[role]


def read_factor(module: str, parts: Parts, rank: int, target: Target, metadata: Mapping[str, Any]) -> float:
    """alpha / rank; 1 where no alpha was stored, or 0. Of a LoKr whose parts are whole alpha says nothing:
    trainers store any number there."""
    if rank == 0:
        return 1.0
    alpha = float(parts["alpha"].reshape(-1)[0]) if "alpha" in parts and parts["alpha"].size else 0.0
    divisor = float(rank)
    if not alpha:
        alpha = find_alpha(metadata, target)
        divisor = math.sqrt(rank) if metadata.get("rslora") else divisor
    factor = alpha / divisor if alpha else 1.0
    if not math.isfinite(factor):
        raise BrokenFile(f"The LoRA's alpha of {module} is not finite: it cannot be used.")
    return factor


def read_bias(module: str, parts: Parts, factor: float, rows: int) -> np.ndarray | None:
    """float32 (out,): `diff_b` as it is, plus the bias of `up` times alpha / rank."""
    terms = [
        (parts[role], weight) for role, weight in (("diff_b", 1.0), ("up_bias", factor)) if role in parts
    ]
    for bias, _ in terms:
        if bias.shape != (rows,):
            raise BrokenFile(describe_mismatch(f"{module} (bias)", bias.shape, (rows,)))
    return sum(bias.astype(np.float32) * np.float32(weight) for bias, weight in terms) if terms else None


def read_magnitude(module: str, parts: Parts, whole: tuple[int, ...]) -> np.ndarray | None:
    """DoRA's lengths: (out,) for rows, (in,) for columns."""
    if "magnitude" not in parts:
        return None
    values = parts["magnitude"]
    wanted = whole[1] if is_column(parts) else whole[0]
    if values.size != wanted or max(values.shape) != wanted:
        raise BrokenFile(
            f"The LoRA's magnitudes of {module} have the shape {values.shape}; this model needs "
            f"({whole[0]}, 1) or (1, {whole[1]}). It was made for another model, or is damaged."
        )
    return values.reshape(-1).astype(np.float32)


def is_column(parts: Parts) -> bool:
    """Whether DoRA's lengths are those of the columns, (1, in); of the rows they are (out, 1) or (out,)."""
    shape = parts["magnitude"].shape
    return len(shape) == 2 and shape[0] == 1


def describe_mismatch(module: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Why a module does not fit; FLUX.2's blocks have FLUX.1's names, only their MLP is wider."""
    width = found[1] if len(found) == 2 else 0
    mlp = {"linear1": 9, "img_mlp.0": 6, "txt_mlp.0": 6, "img_mlp_0": 6, "txt_mlp_0": 6}
    flux2 = any(module.endswith(name) and found[0] == times * width for name, times in mlp.items())
    sizes = f"{module} is {' x '.join(map(str, found))} there and {' x '.join(map(str, wanted))} here"
    if len(found) == len(wanted) == 2 and module.endswith(("img_in", "x_embedder")) and found[1] > wanted[1]:
        return (
            f"The LoRA reads more than the noise and one control picture ({sizes}): it was made for "
            "inpainting (FLUX.1 Fill) or the like, which is not supported."
        )
    return f"The LoRA was made for another model{' (FLUX.2)' if flux2 else ''}: {sizes}."


# What a file's metadata says.


def read_settings(metadata: Mapping[str, str], network: str) -> dict[str, Any]:
    """Alphas of one network that stand in the header and not in tensors: PEFT's settings as diffusers saves
    them (`lora_adapter_metadata`: "transformer.lora_alpha", ...), else kohya's `ss_network_alpha`."""
    try:
        values = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        values = {key.removeprefix(f"{network}."): value for key, value in values.items()}
        pattern = {str(k): float(v) for k, v in dict(values.get("alpha_pattern") or {}).items()}
        alpha = float(values.get("lora_alpha") or metadata.get("ss_network_alpha") or 0)
        return {"alpha": alpha, "pattern": pattern, "rslora": bool(values.get("use_rslora"))}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {"alpha": 0.0, "pattern": {}, "rslora": False}


def find_alpha(metadata: Mapping[str, Any], target: Target) -> float:
    """The header's alpha of a module: PEFT's pattern names modules by their endings."""
    for name, alpha in metadata["pattern"].items():
        if any(module == name or module.endswith(f".{name}") for module in target.modules):
            return alpha
    return metadata["alpha"]
