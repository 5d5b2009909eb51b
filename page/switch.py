"""Another model in place of the loaded one, which stays wherever the new one cannot be had."""

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from backends import load_backend
from infu.errors import InvalidRequest, NotEnoughMemory
from infu.info import RELEASED, gigabytes, needed_here
from infu.memory import fits, read_machine, shortage
from infu.models import ModelFiles, locate
from infu.options import PATHS

if TYPE_CHECKING:
    from page.studio import Studio

MEMORY = ("device", "main", "shared")


def switch(studio: "Studio", options: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Load a model with `load_backend`'s `options`. `tell` is called with the key of each stage's text.

    Runs under way are waited for. Where both fit into memory the old model works until the new one is there;
    else it is put away first, and loaded again after a failure.

    Raises `InfuError`: `NotEnoughMemory` before anything is fetched or put away for nothing, and what
    `load_backend` raises. The old model is then the one in use.
    """
    if not studio.switching.acquire(blocking=False):
        raise InvalidRequest("Another model is being loaded. Wait until it is there.")
    try:
        tell("model_reading")
        machine, dtype = read_machine(), find_dtype(studio, options)
        if all(options.get(name) == RELEASED.get(name) for name in PATHS):
            check_fits(None, options, dtype, machine)
        files = locate(**{name: options.get(name) for name in (*PATHS, "model_version")})
        needed = check_fits(files, options, dtype, machine)
        tell("model_loading")
        if fits_beside(studio, needed, machine):
            backend = load_backend(**options)
            with studio.turns.alone():
                studio.take(backend, options)
        else:
            with studio.turns.alone():
                put_in_place(studio, options)
    finally:
        studio.switching.release()


def put_in_place(studio: "Studio", options: dict[str, Any]) -> None:
    """The old model out, then the new one in; after a failure the old one in again."""
    studio.take(None, studio.options)
    gc.collect()  # networks and their hooks refer to one another
    try:
        studio.take(load_backend(**options), options)
    except Exception:
        with suppress(Exception):  # what goes wrong now is the studio's trouble, and in its notice
            studio.load()
        raise


def check_fits(
    files: ModelFiles | None, options: dict[str, Any], dtype: str, machine: dict[str, Any]
) -> dict[str, Any]:
    """The memory that a model needs here (`memory_needed`'s). Raises `NotEnoughMemory`."""
    needed = needed_here(files, machine, dtype, options.get("quantize"), options.get("offload"))
    if (short := shortage(needed, machine)) is not None:
        wanted, there = short
        raise NotEnoughMemory(
            f"Loaded like this the model needs {gigabytes(wanted)} of memory; this machine has "
            f"{gigabytes(there)}. Choose fewer bits, or a way that keeps less of it in memory."
        )
    return needed


def fits_beside(studio: "Studio", needed: dict[str, Any], machine: dict[str, Any]) -> bool:
    """Whether a model that needs this much can be loaded while the old one still works."""
    old = studio.backend
    if old is None:
        return True
    held = needed_here(
        old.files, machine, old.dtype, studio.options.get("quantize"), studio.options.get("offload")
    )
    both = {name: needed[name] + held[name] for name in MEMORY}
    free = machine["device_memory"] is not None or needed["shared"] <= machine["available"]
    return fits(both, machine) and free


def find_dtype(studio: "Studio", options: dict[str, Any]) -> str:
    """What the numbers will be kept in: what was asked for, or what the loaded model took by itself."""
    return options.get("dtype") or (studio.backend.dtype if studio.backend else "float32")
