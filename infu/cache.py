"""The last few results of each kind, kept by what they depend on: nothing is computed twice in a row."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Cache:
    """`cache(kind, key, make)` is the kept result, else `make()`, kept. Safe to use from several threads."""

    def __init__(self, size: int):
        """`size`: results of each kind; the one used longest ago goes first."""
        self.size = size
        self._lock = threading.RLock()  # held while making: two who want the same thing make it once
        self._kinds: dict[str, OrderedDict[Hashable, object]] = {}

    def __call__(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            kept = self._kinds.setdefault(kind, OrderedDict())
            if key not in kept:
                kept[key] = make()
            kept.move_to_end(key)
            while len(kept) > self.size:
                kept.popitem(last=False)
            return kept[key]

    def holds(self, kind: str, key: Hashable) -> bool:
        with self._lock:
            return key in self._kinds.get(kind, ())

    def clear(self, *kinds: str) -> None:
        """Forget these kinds, or everything."""
        with self._lock:
            for kind in kinds or list(self._kinds):
                self._kinds.pop(kind, None)


def digest(array: np.ndarray) -> str:
    """A key for a cache: the same numbers in the same shape give the same key."""
    head = repr((array.shape, array.dtype.str)).encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and time of change: what keeps a loaded file loads it again when it was replaced."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def identify(path: Path | str) -> Hashable:
    """A key for a cache: the same file, or folder, unchanged. What is not there has a key of its own too."""
    path = Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return (str(path), *((file.name, *stamp(file)) for file in files if file.is_file()))
