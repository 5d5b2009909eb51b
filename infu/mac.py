"""What the MLX backend holds in a Mac's memory at once, and the way of loading that fits: computed from
sizes, as in `memory.py`, not measured. `python -m infu.mac` prints the tables of docs/mac.md.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infu.errors import ModelError
from infu.memory import (
    LARGE,
    MAC_SHARE,
    RELEASED,
    Beside,
    Network,
    network_bytes,
    read_networks,
    weight_bytes,
    working_bytes,
)
from infu.models import ModelFiles
from infu.weights.checkpoint import open_part

WAYS = (None, "model", "sequential")  # of offloading, the fastest first
MODULATIONS = {"transformer": 3_247_448_064, "infusenet": 736_339_968}  # numbers, of the released networks
MACS = (16, 24, 32, 48, 64, 96, 128)  # GiB
QUANTIZED = (None, 8, 6, 4, 3)
SIZES = ((864, 1152), (2048, 2048))


def mac_needed(
    files: ModelFiles | None,
    dtype: str = "bfloat16",
    quantize: int | None = None,
    offload: str | None = None,
    width: int = 864,
    height: int = 1152,
    beside: Sequence[Beside] = (),
) -> int:
    """Bytes in memory at the fullest moment of making a picture. `files` None: FLUX.1-dev with InfiniteYou;
    `beside`: the plug-ins.

    "model" leaves T5's layers and all modulations in their files, "sequential" every layer inside a block.
    """
    networks = RELEASED if files is None else read_networks(files)
    weights = in_files = block = 0
    for name, network in networks.items():
        weights += weight_bytes(name, network, dtype, quantize)
        if name in LARGE and offload:
            everything = offload == "sequential" or name == "text_encoder_2"
            numbers = network.packed if everything else count_modulations(files, name, network)
            in_files += weight_bytes(name, network, dtype, quantize, numbers)
            block = max(block, weight_bytes(name, network, dtype, quantize, network.block))
    for one in beside:
        weights += one.weights(dtype, quantize) + one.working
        if one.network is not None and offload == "sequential":
            in_files += weight_bytes("infusenet", one.network, dtype, quantize, one.network.packed)
            block = max(block, network_bytes(one.network, dtype, quantize, block=True))
    vae = replace(
        networks["vae"], width=networks["vae"].width // 2
    )  # decoded in bands: half the arrays at once
    return weights - in_files + block + working_bytes({**networks, "vae": vae}, dtype, width, height)


def count_modulations(files: ModelFiles | None, name: str, network: Network) -> int:
    """Numbers in the layers that shift, scale and gate: `norm1.linear` and the like."""
    try:
        shapes = {} if files is None else open_part(Path(getattr(files, name)), name)
        counts = {key: math.prod(entry.shape) for key, entry in shapes.items()}
    except ModelError:
        counts = {}
    found = sum(count for key, count in counts.items() if is_modulation(key))
    return found or round(network.total * MODULATIONS[name] / RELEASED[name].total)


def is_modulation(tensor: str) -> bool:
    _, norm, layer, _ = ("", "", *tensor.split("."))[-4:]
    return norm.startswith("norm") and layer == "linear"


def choose_offload(files: ModelFiles | None, dtype: str, quantize: int | None, usable: int) -> str | None:
    """The fastest way of loading for which `usable` bytes are enough; the smallest where none is."""
    fitting = (way for way in WAYS if mac_needed(files, dtype, quantize, way) <= usable)
    return next(fitting, WAYS[-1])


def draw_table(width: int, height: int) -> str:
    """Markdown: for each Mac and each kind of weights the way that fits, and what it takes."""
    kinds = ["bfloat16" if bits is None else f"{bits} bits" for bits in QUANTIZED]
    lines = [f"| {width} x {height} | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for memory in MACS:
        usable, cells = round((memory << 30) * MAC_SHARE), []
        for bits in QUANTIZED:
            needs = {way: mac_needed(None, "bfloat16", bits, way, width, height) for way in WAYS}
            way = next((way for way in WAYS if needs[way] <= usable), "none")
            cells.append("does not fit" if way == "none" else f"{NAMES[way]}, {needs[way] / 1e9:.1f} GB")
        lines.append(f"| {memory} GB ({usable / 1e9:.1f} usable) | {' | '.join(cells)} |")
    return "\n".join(lines)


NAMES = {None: "all in memory", "model": "model", "sequential": "sequential"}


if __name__ == "__main__":
    print("\n\n".join(draw_table(*size) for size in SIZES))
