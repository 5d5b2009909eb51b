"""GGUF files -> names, shapes and arrays (github.com/ggml-org/ggml, `docs/gguf.md`).

The header is read here, every count and offset checked against the file; the `gguf` package knows the sizes
of the quantised types and turns their blocks into float32.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from infu.errors import BrokenFile
from infu.weights.changes import Rows, take
from infu.weights.files import MAX_HEADER, check_name

MAGIC = b"GGUF"
MAX_ENTRIES = 1 << 20  # of a header: FLUX has 780 tensors, a tokenizer's list 250,000 words
PLAIN = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
HALVES = {  # where in a block of a quantised type the float16 numbers begin, its scales and offsets
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "IQ3_XXS": (0,), "IQ3_S": (0,), "TQ1_0": (52,), "TQ2_0": (64,), "MXFP4": (),
}  # fmt: skip
NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY = 8, 9
ARCHITECTURES = (None, "flux", "t5", "t5encoder", "clip")  # None: stable-diffusion.cpp writes none


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. `shape` is as numpy has it, the reverse of the file's; `kind` names the type."""

    offset: int
    shape: tuple[int, ...]
    kind: str
    row_bytes: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers that `read` gives."""
        return PLAIN.get(self.kind, PLAIN["F32"])


class GgufFile(Mapping[str, GgufTensor]):
    """Tensor name -> where it lies; `read(name)` gives the numbers, `blocks(name)` what is stored."""

    def __init__(self, path: Path, tensors: dict[str, GgufTensor], metadata: dict[str, Any]):
        self.path, self.tensors, self.metadata = path, tensors, metadata
        self._map = np.memmap(path, np.uint8, mode="r")

    def __getitem__(self, name: str) -> GgufTensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def blocks(self, name: str) -> np.ndarray:
        """uint8 (rows, bytes of a row), a view of the mapped file."""
        tensor = self.tensors[name]
        raw = self._map[tensor.offset : tensor.offset + tensor.nbytes]
        return raw.reshape(-1, tensor.row_bytes)

    def read(self, name: str, rows: Rows | None = None) -> np.ndarray:
        """The numbers, or those of some rows: as stored where the type is plain, else float32."""
        tensor, blocks = self.tensors[name], self.blocks(name)
        if rows is not None and len(tensor.shape) == 1:
            return take(self.read(name), rows)
        blocks = blocks if rows is None else take(blocks, rows)
        shape = (*tensor.shape[:-1], tensor.shape[-1]) if rows is None else (len(blocks), tensor.shape[-1])
        if tensor.kind in PLAIN:
            return np.ascontiguousarray(blocks).view(PLAIN[tensor.kind]).reshape(shape)
        return dequantise(blocks, tensor.kind).reshape(shape)


def dequantise(blocks: np.ndarray, kind: str) -> np.ndarray:
    """uint8 (rows, bytes) -> float32 (rows, columns)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # NaN and infinity are named by who reads the numbers
        return dequantize(blocks, GGMLQuantizationType[kind])


def all_finite(blocks: np.ndarray, kind: str) -> bool:
    """Whether blocks uint8 (rows, bytes) hold finite numbers, by their scales: far quicker than by all."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    each = blocks.reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1])
    return not any((each[:, at + 1] & 0x7C == 0x7C).any() for at in HALVES[kind])


def open_gguf(path: Path) -> GgufFile:
    """Raises `BrokenFile` for a file that is cut short, contradicts itself, or has a type not known here."""
    raw = np.memmap(path, np.uint8, mode="r")
    reader = Reader(raw)
    try:
        version, num_tensors, num_entries = struct.unpack("<IQQ", reader.take(24)[4:])
        if version not in (2, 3) or max(num_tensors, num_entries) > MAX_ENTRIES:
            raise ValueError("a version or count that is none")
        metadata = dict((reader.text(), reader.value()) for _ in range(num_entries))
        infos = [read_info(reader) for _ in range(num_tensors)]
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-reader.position // alignment) * alignment
        tensors = {name: place(path, name, start, *info) for name, *info in infos}
    except (ValueError, TypeError, struct.error, ArithmeticError, UnicodeDecodeError, RecursionError):
        raise BrokenFile(f"{path.name} has a damaged header, or is truncated. Download it again.") from None
    if len(tensors) != num_tensors:
        raise BrokenFile(f"{path.name} names a tensor twice. Download it again.")
    if any(tensor.offset + tensor.nbytes > len(raw) for tensor in tensors.values()):
        raise BrokenFile(
            f"{path.name} is truncated ({len(raw)} bytes; its header promises more). Download it again."
        )
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise BrokenFile(
            f"{path.name} is a GGUF of another model ({architecture!a:.40}), not of FLUX.1. "
            "Choose one that was made of FLUX.1-dev or FLUX.1-schnell."
        )
    return GgufFile(path, tensors, metadata)


def read_info(reader: "Reader") -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, number of the type, offset."""
    name, num_dims = reader.text(), reader.number("<I")
    if not 1 <= num_dims <= 8:
        raise ValueError("a tensor without a shape")
    shape = tuple(reader.number("<Q") for _ in range(num_dims))[::-1]
    return check_name(name), shape, reader.number("<I"), reader.number("<Q")


def place(path: Path, name: str, start: int, shape: tuple[int, ...], number: int, offset: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number).name
    except ValueError:
        kind = f"number {number}"
    if kind not in PLAIN and kind not in HALVES:
        raise BrokenFile(
            f"{path.name} stores {name} in the type {kind}, which is not supported. "
            "Choose a file in Q8_0, Q5_K, Q4_K or another common type."
        )
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if math.prod(shape) > 1 << 40 or shape[-1] % block or 0 in shape:
        raise ValueError("a shape that does not go with its type")
    return GgufTensor(start + offset, shape, kind, shape[-1] // block * size)


class Reader:
    """Goes through a header; whatever a count says, nothing outside the file is read."""

    def __init__(self, raw: np.ndarray):
        self.raw, self.position = raw, 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= min(len(self.raw), MAX_HEADER) - self.position:
            raise ValueError("outside the file, or a header without end")
        self.position += count
        return self.raw[self.position - count : self.position].tobytes()

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8")

    def value(self, kind: int | None = None) -> Any:
        """One value of the metadata: a number, a string or a list of them."""
        kind = self.number("<I") if kind is None else kind
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError("a kind of value that is none")
        inner, count = self.number("<I"), self.number("<Q")
        if count > MAX_ENTRIES or inner == ARRAY:
            raise ValueError("a list that is too long, or of lists")
        if inner in NUMBERS:
            form = f"<{count}{NUMBERS[inner][1]}"
            return list(struct.unpack(form, self.take(struct.calcsize(form))))
        return [self.value(inner) for _ in range(count)]
