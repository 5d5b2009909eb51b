"""A file of `torch.save` -> nested dicts of numpy arrays, without torch and without unpickling.

The pickle inside is read by a machine of our own that knows the few instructions a state dict needs and
rebuilds tensors, nothing else; whatever else it asks for is refused by name. Tensors are views of the file.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import ml_dtypes
import numpy as np

from infu.errors import BrokenFile, MissingFile
from infu.weights.intruder import name_intruder

STORAGES = {  # torch's typed storage -> its numbers
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
ORDERED_DICT = "collections.OrderedDict"
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")  # of what `REBUILD_FROM_TYPE` makes: an array here
KNOWN = {*STORAGES, *REBUILD_PARAMETER, *TYPES, ORDERED_DICT, REBUILD_TENSOR, REBUILD_FROM_TYPE}

MAX_PICKLE = (
    16 << 20
)  # bytes; a state dict's has less than one million, and each may take a hundred of memory
MAX_REPEATED = 1 << 20  # numbers of a tensor that repeats its storage (`expand`), against shapes that lie
LEGACY = (
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin: a pickled number
)
FAULTS = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
    Warning,  # where warnings are errors: pickletools warns of a text with an escape that is none
)  # fmt: skip


@dataclass(frozen=True)
class Name:
    """Something the pickle asks for by its module and name; only compared, never imported."""

    name: str


@dataclass(frozen=True)
class Storage:
    """`numel` numbers under `key`, and where they start in the file once that is known."""

    key: str
    dtype: np.dtype
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in numbers, not bytes; checked against it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self):
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
            raise ValueError("a shape that is none")
        if len(self.shape) != len(self.strides) or len(self.shape) > 32:
            raise ValueError("shape and strides do not match")
        numel = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if numel and last >= self.storage.numel or numel > max(self.storage.numel, MAX_REPEATED):
            raise ValueError("a shape larger than its storage")


class Refused(ValueError):
    """What the file asks for and no tensor needs."""


def read_state_dict(path: Path) -> dict[Any, Any]:
    """`read_torch_file` of a file that holds a dict; any other is refused."""
    values = read_torch_file(path)
    if not isinstance(values, dict):
        raise BrokenFile(f"{Path(path).name} holds no tensors by name. Download it again.")
    return values


def read_torch_file(path: Path) -> Any:
    """The file's nested dict, its tensors as arrays of their own dtype (bfloat16: `ml_dtypes`). The arrays
    are views of the mapped file; writing to one changes memory only. Raises `MissingFile`, `BrokenFile`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFile(
            f"The model has no {path.name!r}. Run `python -m infu download`, or give its folder."
        )
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
            if not start.startswith((b"PK\3\4", LEGACY)):
                raise BrokenFile(f"{path.name} {looks_like(start)}. Download it again.")
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        value, places = read_zip(path, data) if start.startswith(b"PK") else read_legacy(data)
        storages = {storage: map_storage(storage, data, start) for storage, start in places.items()}
        return resolve(value, storages, {})
    except Refused as refused:
        raise BrokenFile(
            f"{path.name} asks for {refused}, which no tensor needs. Such a file may be made to do harm: "
            "do not use it. Download the model from where its authors publish it."
        ) from None
    except FAULTS:
        raise BrokenFile(f"{path.name} is damaged or cut short. Download it again.") from None


def read_zip(path: Path, data: mmap.mmap) -> tuple[Any, dict[Storage, int]]:
    """The format since torch 1.6: an uncompressed zip of `data.pkl` and one entry per storage."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    root = [name for name in entries if name.endswith("/data.pkl")][0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries:
        start = find_entry(data, entries[f"{root}byteorder"])
        if data[start : start + 6] != b"little":
            raise Refused("the byte order of another kind of machine")
    pickle, machine = entries[f"{root}data.pkl"], Machine()
    start = find_entry(data, pickle)
    if pickle.file_size > MAX_PICKLE:
        raise Refused(f"{pickle.file_size >> 20} MB of instructions")
    value = machine.read(Bytes(data, start, start + pickle.file_size))
    places = {}
    for storage in machine.storages.values():
        entry = entries[f"{root}data/{storage.key}"]
        if entry.file_size != storage.numel * storage.dtype.itemsize:
            raise ValueError("a storage of another size than its entry")
        places[storage] = find_entry(data, entry)
    return value, places


def find_entry(data: mmap.mmap, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes start in the file, all of them inside it."""
    if (
        entry.compress_type != zipfile.ZIP_STORED
        or entry.file_size != entry.compress_size
        or entry.flag_bits & 1
    ):
        raise Refused(
            "compressed data"
        )  # torch never compresses: this is how a small file becomes a large one
    header = data[entry.header_offset : entry.header_offset + 30]
    name_length, extra_length = struct.unpack("<4s22xHH", header)[1:]
    start = entry.header_offset + 30 + name_length + extra_length
    if header[:4] != b"PK\3\4" or start + entry.file_size > len(data):
        raise ValueError("an entry outside the file")
    return start


def read_legacy(data: mmap.mmap) -> tuple[Any, dict[Storage, int]]:
    """The format before torch 1.6: five pickles (a magic number, a version, the machine, the value, the
    storages' keys), then each storage: how many numbers, in 8 bytes, and the numbers."""
    stream = Bytes(data, 0, min(len(data), MAX_PICKLE))
    machine = Machine()
    _, _, host, value, keys = (machine.read(stream) for _ in range(5))
    if not host["little_endian"]:
        raise Refused("the byte order of another kind of machine")
    places, position = {}, stream.position
    for key in keys:
        storage = machine.storages[key]
        end = position + 8 + storage.numel * storage.dtype.itemsize
        if struct.unpack("<q", data[position : position + 8]) != (storage.numel,) or end > len(data):
            raise ValueError("a storage of another size than its data")
        places[storage], position = position + 8, end
    return value, places


def map_storage(storage: Storage, data: mmap.mmap, start: int) -> np.ndarray:
    """A storage's numbers where they lie in the mapped file."""
    if not storage.numel:
        return np.zeros(0, storage.dtype)
    raw = np.frombuffer(data, np.uint8, storage.numel * storage.dtype.itemsize, start)
    if start % storage.dtype.itemsize:
        raw = raw.copy()  # an unaligned view is slow, and refused by some
    return raw.view(storage.dtype)


def resolve(value: Any, storages: dict[Storage, np.ndarray], seen: dict[int, Any]) -> Any:
    """The value, tensors made arrays. A shared container stays shared; one inside itself is refused."""
    if isinstance(value, Tensor):
        return make_array(value, storages[value.storage])
    if value is None or isinstance(value, str | int | float):
        return value
    if not isinstance(value, dict | list | tuple):
        raise Refused(f"{value.name} as a value" if isinstance(value, Name) else f"a {type(value).__name__}")
    if id(value) not in seen:
        seen[id(value)] = None
        if isinstance(value, dict):
            seen[id(value)] = {key: resolve(item, storages, seen) for key, item in value.items()}
        else:
            seen[id(value)] = type(value)(resolve(item, storages, seen) for item in value)
    if seen[id(value)] is None:
        raise ValueError("a container inside itself")
    return seen[id(value)]


def make_array(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """A view of its storage's numbers; `Tensor` has checked that it stays inside."""
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)


class Bytes:
    """Part of the file as the stream that `pickletools` reads; nothing it asks for exceeds what is there."""

    def __init__(self, data: mmap.mmap, start: int, end: int):
        self.data, self.position, self.end = data, start, end

    def read(self, count: int) -> bytes:
        start, self.position = self.position, min(self.position + count, self.end)
        return self.data[start : self.position]

    def readline(self) -> bytes:
        newline = self.data.find(b"\n", self.position, self.end)
        return self.read((self.end if newline < 0 else newline + 1) - self.position)


PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
          "BINSTRING", "SHORT_BINSTRING"}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """Runs the instructions of a pickle (docs of `pickletools`) that a state dict is made of. Nothing is
    imported or called; `storages` collects those that tensors were made from, by key."""

    def __init__(self):
        self.storages: dict[str, Storage] = {}

    def read(self, stream: Bytes) -> Any:
        """One pickle -> its value, with `Tensor`s; the stream stands behind it afterwards."""
        self.stack, self.marks, self.memo = [], [], {}
        for code, arg, _ in pickletools.genops(stream):
            self.step(code.name, arg)
        return self.stack.pop()

    def step(self, code: str, arg: Any) -> None:
        stack = self.stack
        if code in PUSHED:
            stack.append(arg)
        elif code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in EMPTY:
            stack.append(EMPTY[code]())
        elif code in TUPLES:
            stack[-TUPLES[code] :] = [tuple(stack[-TUPLES[code] :])]
        elif code == "MARK":
            self.marks.append(len(stack))
        elif code == "TUPLE":
            stack.append(tuple(self.pop_marked()))
        elif code in ("APPEND", "APPENDS"):
            items = [stack.pop()] if code == "APPEND" else self.pop_marked()
            checked(stack[-1], list).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if code == "SETITEM" else self.pop_marked()
            checked(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if arg is None else arg] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif code in ("GLOBAL", "STACK_GLOBAL", "INST"):
            stack.append(self.look_up(arg.replace(" ", ".") if arg else f"{stack.pop(-2)}.{stack.pop()}"))
        elif code == "BINPERSID":
            stack.append(self.make_storage(*stack.pop()))
        elif code == "REDUCE":
            arguments = checked(stack.pop(), tuple)
            stack.append(rebuild(checked(stack.pop(), Name).name, arguments))
        elif code == "BUILD":
            stack.pop()  # a state dict's `_metadata`: the version of each module
            checked(stack[-1], dict)
        elif code not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"the instruction {code}")

    def pop_marked(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def look_up(self, name: str) -> Name:
        if name not in KNOWN:
            name = name.replace("__builtin__.", "builtins.")  # as torch's pickle protocol spells it
            raise Refused(shorten(repr(name), 80))  # on one line, whatever the file says
        return Name(name)

    def make_storage(
        self, kind: str, storage: Name, key: str, location: str, numel: int, *view: Any
    ) -> Storage:
        if kind != "storage" or type(numel) is not int or not 0 <= numel < 1 << 62:
            raise ValueError("a storage that is none")
        if any(view):
            raise Refused("a view of a storage")  # no state dict holds one; a tensor has its own offset
        made = Storage(checked(key, str), STORAGES[storage.name], numel)
        if self.storages.setdefault(key, made) != made:
            raise ValueError("two storages under one key")
        return made


def rebuild(name: str, arguments: tuple) -> Any:
    """What torch's functions of these names return, as an array is concerned."""
    if name == ORDERED_DICT:
        return dict(*arguments)
    if name == REBUILD_TENSOR:
        storage, offset, shape, strides = arguments[:4]
        return Tensor(checked(storage, Storage), offset, checked(shape, tuple), checked(strides, tuple))
    if name in REBUILD_PARAMETER:
        return checked(arguments[0], Tensor)
    if name == REBUILD_FROM_TYPE:
        function, kind, inner = arguments[:3]
        if checked(kind, Name).name not in TYPES or checked(function, Name).name == REBUILD_FROM_TYPE:
            raise Refused(f"{kind.name} as the type of a tensor")
        return rebuild(function.name, checked(inner, tuple))
    raise Refused(f"{name} as a function")


def checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected")
    return value


def looks_like(start: bytes) -> str:
    """What a file that is no torch file seems to be."""
    intruder = name_intruder(start)
    if intruder is not None:
        return intruder
    if start.startswith(b"\x80"):
        return "is a bare pickle, which can run programs and is not read"
    if start[257:262] == b"ustar":
        return "is in torch's oldest format (a tar), which is not read; save it again with a newer torch"
    return "is not a torch file, or is damaged"
