"""Weight files -> names, shapes and arrays: a safetensors file, or a folder with one or with shards.

The header is checked against the file before anything is read; tensors are views of the mapped file, so
reading one costs no memory until its numbers are used (github.com/huggingface/safetensors, "Format").
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from infu.errors import BrokenFile, MissingFile
from infu.weights.intruder import START, name_intruder

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER = 16 << 20  # bytes; FLUX's has 0.1 MB. The format allows 100 MB, which take gigabytes when parsed
MAX_NAME, MAX_DIMS = 400, 32  # of a tensor; FLUX's longest names have some 100 characters
MAX_ENTRIES = 1 << 17  # of a torch file: a dict that stands in many places grows without end
AGAIN = "Download it again with `python -m infu download`, or from where it came."
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class TensorHeader:
    """Where a tensor lies: `offset` in bytes from the start of `file`."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class WeightFiles(Mapping[str, TensorHeader]):
    """Tensor name -> header; `read(name)` gives the numbers. `metadata` is the files' own."""

    def __init__(self, headers: dict[str, TensorHeader], metadata: dict[str, str]):
        self.headers, self.metadata = headers, metadata
        self._maps: dict[Path, np.memmap] = {}

    def __getitem__(self, name: str) -> TensorHeader:
        return self.headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    @property
    def nbytes(self) -> int:
        return sum(header.nbytes for header in self.headers.values())

    def read(self, name: str) -> np.ndarray:
        """A read-only view of the mapped file, in the file's own dtype."""
        header = self.headers[name]
        if header.file not in self._maps:
            self._maps[header.file] = np.memmap(header.file, np.uint8, mode="r")
        raw = self._maps[header.file][header.offset : header.offset + header.nbytes]
        if header.offset % header.dtype.itemsize:
            raw = raw.copy()  # a file may place a tensor at an odd byte; an unaligned view is slow or refused
        return raw.view(header.dtype).reshape(header.shape)


def open_weights(path: Path) -> WeightFiles:
    """A safetensors file, or a folder that holds one, or shards and their index.

    Raises `MissingFile` for an absent file or shard, `BrokenFile` for one that is not what it says.
    """
    path = Path(path)
    if path.is_file():
        return open_file(path)
    if not path.is_dir():
        raise MissingFile(
            f"The model has no {path.name!r}. Run `python -m infu download`, or give its folder."
        )
    indices = sorted(path.glob("*.safetensors.index.json"))
    if indices:
        return open_shards(read_index(indices[0]))
    for name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        if (path / name).is_file():
            return open_shards([path / name])
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return open_shards(files)
    what = "several safetensors files and no index" if files else "no safetensors file"
    raise MissingFile(f"{path.name!r} holds {what}. Run `python -m infu download`, or copy the folder again.")


def open_file(path: Path) -> Any:
    """A single file by what it is: GGUF, a torch file (.bin, .pt, .pth, .ckpt), else safetensors."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"GGUF":
        from infu.weights.gguf import open_gguf

        return open_gguf(path)
    if path.suffix.lower() in TORCH_SUFFIXES:
        from infu.weights.torchfile import read_state_dict

        try:
            return ArrayFile(flatten(read_state_dict(path)))
        except ValueError:
            raise BrokenFile(f"{path.name} is no list of tensors by name. Download it again.") from None
    return open_shards([path])


class ArrayFile(Mapping[str, np.ndarray]):
    """Arrays by name, as `WeightFiles`: what a torch file holds."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays, self.metadata = arrays, {}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]


def flatten(values: dict[Any, Any]) -> dict[str, np.ndarray]:
    """Nested dicts -> arrays by dotted name, what some training scripts wrap in `state_dict` unwrapped."""
    arrays, left, seen = {}, [("", values)], 0
    while left:
        name, value = left.pop()
        seen += 1
        if isinstance(value, np.ndarray):
            arrays[check_name(name)] = value
        elif isinstance(value, dict):
            inner = value.get("state_dict")
            inside = (inner if isinstance(inner, dict) else value).items()
            start = f"{check_name(name)}." if name else ""
            left += [(f"{start}{key}", item) for key, item in reversed(inside)]
        if seen + len(left) > MAX_ENTRIES:
            raise ValueError("dicts in dicts without end")
    return arrays


def read_index(index: Path) -> list[Path]:
    """`*.safetensors.index.json` -> the shards it names, every one there."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BrokenFile(f"{index.name} is not a safetensors index. Download it again.") from None
    for name in names:
        if Path(name).name != name:
            raise BrokenFile(f"{index.name} names a shard outside its own folder. Download it again.")
        if not (index.parent / name).is_file():
            raise MissingFile(
                f"The shard {name} is missing. Run `python -m infu download`, which goes on where it stopped."
            )
    return [index.parent / name for name in names]


def open_shards(files: Iterable[Path]) -> WeightFiles:
    headers: dict[str, TensorHeader] = {}
    metadata: dict[str, str] = {}
    for file in files:
        shard, notes = read_header(file)
        metadata.update(notes)
        for name in shard:
            if name in headers:
                raise BrokenFile(f"The tensor {name} stands in two shards. Download the model again.")
        headers.update(shard)
    return WeightFiles(headers, metadata)


def read_header(file: Path) -> tuple[dict[str, TensorHeader], dict[str, str]]:
    """A safetensors file's tensors and metadata, each offset checked against the file's real size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(START)
        length = int.from_bytes(start[:8], "little")
        if MAX_HEADER < length <= size - 8:
            raise BrokenFile(
                f"{file.name} has a header of {length >> 20} MB, where a model's has less than one: it is "
                "not read, as it would fill the memory. Download the file from where its authors publish it."
            )
        if size < 8 or length > size - 8:  # an intruder's first bytes are a huge number
            raise BrokenFile(f"{file.name} {looks_like(start)}. {AGAIN}")
        stream.seek(8)
        raw = stream.read(length)
    try:
        entries = json.loads(raw)
        metadata = dict(entries.pop("__metadata__", {}) or {})
        headers = {
            check_name(name): read_entry(file, 8 + length, size, entry) for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise BrokenFile(f"{file.name} has a damaged header. Download it again.") from None
    return headers, {str(key): str(value) for key, value in metadata.items()}


def check_name(name: str) -> str:
    """A tensor's name, fit to stand in a sentence: it has to be short and printable, else `ValueError`."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError("a name that is none")
    return name


def read_entry(file: Path, data_start: int, size: int, entry: dict) -> TensorHeader:
    if entry["dtype"] not in DTYPES:
        raise BrokenFile(
            f"{file.name} holds numbers of the kind {entry['dtype']!a:.20}, which this version cannot read."
        )
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(length) for length in entry["shape"])
    header = TensorHeader(file, data_start + begin, shape, DTYPES[entry["dtype"]])
    if len(shape) > MAX_DIMS or min(shape, default=0) < 0 or begin < 0 or end - begin != header.nbytes:
        raise ValueError("sizes that contradict one another")
    if data_start + end > size:
        raise BrokenFile(
            f"{file.name} is truncated ({size} bytes; its header promises more). Download it again."
        )
    return header


def looks_like(start: bytes) -> str:
    """What a file that is not safetensors seems to be."""
    intruder = name_intruder(start)
    if intruder is not None:
        return intruder
    if start.startswith((b"PK", b"\x80")):
        return "is a pickle (.bin, .pt, .ckpt) under another name; only safetensors is read here"
    return "is not a safetensors file, or is truncated"


def fold(names: Iterable[str]) -> str:
    """Names with their numbers folded, for errors that can be read: `blocks.{0...18}.attn.to_q.weight`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=[._])\d+(?=[._])", name)
        key = name if number is None else name[: number.start()] + "{}" + name[number.end() :]
        groups.setdefault(key, []).append(-1 if number is None else int(number[0]))
    parts = []
    for key, numbers in groups.items():
        span = f"{min(numbers)}" if len(set(numbers)) == 1 else f"{{{min(numbers)}...{max(numbers)}}}"
        parts.append(key.replace("{}", span, 1))
    more = f" and {len(parts) - 8} more" if len(parts) > 8 else ""
    return ", ".join(parts[:8]) + more
