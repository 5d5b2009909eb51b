"""What is installed, which models are here, and what each way of loading one needs on this machine."""

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any

from infu.errors import InfuError
from infu.mac import mac_needed
from infu.memory import Beside, fits, memory_needed, read_machine
from infu.models import BASE, INFINITE_YOU, ModelFiles, locate, name_model
from infu.plugin_sizes import list_known

BACKENDS = {"pytorch": "torch", "mlx": "mlx"}  # the package that each needs
DTYPES = ("bfloat16", "float32")
SIZE = (864, 1152)  # of the picture that memory is told for
RELEASED = {"base_model_path": BASE, "model_dir": INFINITE_YOU}


def describe_installation(model_version: str, **paths: Any) -> dict[str, Any]:
    """Plain JSON values. `paths` are `locate`'s; without any of them, the mini and the released model are
    looked at. The memory is that of the last model; where it is not here, of FLUX.1-dev with InfiniteYou."""
    choices = [paths] if any(paths.values()) else [{}, RELEASED]
    found = [find_model(model_version=model_version, **choice) for choice in choices]
    files, machine = found[-1][0], read_machine()
    return {
        "backends": {n: importlib.util.find_spec(package) is not None for n, package in BACKENDS.items()},
        "machine": machine,
        "models": [description for _, description in found],
        "memory_of": files.name if files else name_model(*RELEASED.values()),
        "memory": list_memory(files, machine),
        "plugins": list_plugins(),
    }


def find_model(**paths: Any) -> tuple[ModelFiles | None, dict[str, Any]]:
    """A model's files, None where it is not here whole; and its name, versions and what is missing."""
    try:
        files = locate(**paths, fetch=False)
    except InfuError as error:
        name = (
            name_model(paths.get("base_model_path") or BASE, paths.get("model_dir"))
            if len(paths) > 1
            else "mini"
        )
        return None, {"name": name, "here": False, "versions": [], "missing": [str(error)]}
    faces = {"face detector": files.detector, "face encoder (ArcFace)": files.recogniser}
    missing = [
        f"The {what} is not here. Run `python -m infu download`."
        for what, path in faces.items()
        if path is not None and not path.exists()
    ]
    return files, {
        "name": files.name,
        "here": True,
        "versions": list(files.model_versions),
        "missing": missing,
    }


def list_memory(files: ModelFiles | None, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """What each choice needs, in bytes, and whether this machine has it."""
    rows = []
    for dtype, quantize, offload in itertools.product(
        DTYPES, (None, 8, 6, 4, 3), (None, "model", "sequential")
    ):
        if is_offered(quantize, offload, machine):
            needed = needed_here(files, machine, dtype, quantize, offload)
            row = {"dtype": dtype, "quantize": quantize, "offload": offload, "fits": fits(needed, machine)}
            rows.append(row | {key: needed[key] for key in ("device", "main", "shared")})
    return rows


def needed_here(
    files: ModelFiles | None,
    machine: dict[str, Any],
    dtype: str,
    quantize: int | None,
    offload: str | None,
    size: tuple[int, int] = SIZE,
    beside: Sequence[Beside] = (),
) -> dict[str, Any]:
    """`memory_needed` by the backend that `auto` takes on this machine."""
    asked = (files, dtype, quantize, offload, *size, beside)
    needed = memory_needed(*asked)
    if machine["device"] == "Apple GPU":
        needed["shared"] = mac_needed(*asked)
    return needed


def is_offered(quantize: int | None, offload: str | None, machine: dict[str, Any]) -> bool:
    """Whether the backend that `auto` takes on this machine has this choice."""
    if machine["device"] == "Apple GPU":  # MLX has them all
        return True
    on_cpu = machine["device_memory"] is None  # there layers come from their files as they are: not quantised
    return quantize in (None, 8, 4) and not (on_cpu and quantize and offload == "sequential")


def list_plugins() -> list[dict[str, Any]]:
    """The published plug-ins of FLUX.1-dev whose sizes are known, and the bytes that each takes beside the
    model in bfloat16."""
    return [
        {
            "name": one.name,
            "memory": one.weights("bfloat16", None) + one.working,
            "here": is_here,
        }
        for one, is_here in list_known(*SIZE)
    ]


# As text.


def draw_report(values: dict[str, Any]) -> str:
    machine = values["machine"]
    card = machine["device"] or "no graphics card"
    if machine["device_memory"] is not None:
        card += f" with {gigabytes(machine['device_memory'])}"
    backends = [f"{name} ({'' if here else 'not '}installed)" for name, here in values["backends"].items()]
    memory = f"{gigabytes(machine['memory'])} of memory, {gigabytes(machine['available'])} free"
    lines = [f"Machine:  {memory}; {card}", f"Backends: {', '.join(backends)}", "Models:"]
    for model in values["models"]:
        versions = ", ".join(model["versions"]) or "no face"
        lines.append(f"  {model['name']}: {f'here ({versions})' if model['here'] else 'not here'}")
        lines += [f"    {sentence}" for sentence in model["missing"]]
    lines += [f"Memory that {values['memory_of']} needs for a picture of 864 x 1152, computed from sizes:"]
    lines += draw_table(values["memory"], machine["device_memory"] is not None)
    lines += ["Memory that a plug-in takes beside FLUX.1-dev, in bfloat16 and all kept:"]
    for plugin in values["plugins"]:
        here = "here" if plugin["here"] else "not here"
        lines.append(f"  {plugin['name']:<22}{gigabytes(plugin['memory']):<12}{here}")
    return "\n".join(lines)


def draw_table(rows: list[dict[str, Any]], on_card: bool) -> list[str]:
    head = ("dtype", "quantize", "offload", *(("card", "memory") if on_card else ("memory",)), "fits")
    table = [head]
    for row in rows:
        needs = [row["device"], row["main"]] if on_card else [row["shared"]]
        choice = [row["dtype"], str(row["quantize"] or "-"), row["offload"] or "-"]
        table.append((*choice, *map(gigabytes, needs), "yes" if row["fits"] else "no"))
    return ["  " + "".join(f"{cell:<12}" for cell in line).rstrip() for line in table]


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
