"""Whether a request's plug-ins have room in memory beside the loaded model: asked before it starts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from infu.errors import InfuError, NotEnoughMemory
from infu.info import gigabytes, needed_here
from infu.memory import Beside, read_machine, shortage
from infu.plugin_sizes import Base, measure_plugin, people_working
from infu.request import GenerationRequest
from infu.weights.lora import TRANSFORMER
from infu.weights.names import count_blocks

if TYPE_CHECKING:
    from backends.base import Backend

TOKENS_AT_ONCE = 8192  # of several people in one pass of InfuseNet: a gigabyte of activations at full size


def check_room(request: GenerationRequest, backend: Backend) -> None:
    """Raise `NotEnoughMemory` where the model and the request's plug-ins need more than this machine has."""
    beside = measure_request(request, backend)
    if not beside:
        return
    machine = read_machine()
    if backend.device == "cpu":  # a card that the backend does not use is none
        machine["device_memory"] = None
    how = (backend.dtype, backend.bits, backend.offload)
    needed = needed_here(backend.files, machine, *how, request.run_size, beside)
    if (short := shortage(needed, machine)) is None:
        return
    wanted, there = short
    taken = [(one.weights(backend.dtype, backend.bits) + one.working, one.name) for one in beside]
    told = ", ".join(f"{name} {gigabytes(nbytes)}" for nbytes, name in sorted(taken, reverse=True))
    raise NotEnoughMemory(
        f"With its plug-ins this request needs {gigabytes(wanted)} of memory; this machine has "
        f"{gigabytes(there)}. The plug-ins take of it: {told}. Leave one out, ask for a smaller picture, or "
        'load the model with quantize=8 or 4, or with offload="model" or "sequential" (`python -m infu info` '
        "says what fits)."
    )


def measure_request(request: GenerationRequest, backend: Backend) -> list[Beside]:
    """What each of a request's plug-ins takes. One whose file cannot be measured is left out: the run tells
    what is wrong with it."""
    if not any(plugin.counts for plugin in request.plugins):
        return []
    base, size = base_of(backend), request.run_size
    found, loaded = [], set()  # `loaded`: the networks of two plug-ins with one file are one
    for plugin in (*request.loras, *request.networks):
        with suppress(InfuError):
            one = measure_plugin(plugin, base, *size)
            if one.network is not None and str(plugin.path) in loaded:
                one = replace(one, network=None)
            loaded.add(str(plugin.path))
            found.append(one)
    people = people_working(len(request.people), base, *size, people_at_once(*size))
    return [*found, Beside("further people", working=people)] if people else found


def base_of(backend: Backend) -> Base:
    shapes = backend.module_shapes[TRANSFORMER]
    return Base(shapes["x_embedder"][0], sum(count_blocks(shapes)), backend.dtype)


def people_at_once(width: int, height: int) -> int:
    """How many people InfuseNet runs for in one pass."""
    return max(1, TOKENS_AT_ONCE // (width // 16 * (height // 16)))
