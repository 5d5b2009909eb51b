"""How much memory a model needs in each way of loading it, from the sizes in its files' headers; and how
much this machine has. Computed, not measured: weights to the byte, what a run needs besides as an estimate.
"""

import functools
import math
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infu.errors import ModelError
from infu.models import ModelFiles
from infu.weights.checkpoint import Checkpoint, open_part

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GROUP = 64  # quantised weights that share a 16-bit scale and a 16-bit offset
LARGE = ("transformer", "infusenet", "text_encoder_2")  # these are quantised, and offloaded by layer
STAGES = (("text_encoder", "text_encoder_2"), ("transformer", "infusenet", "projection"), ("vae",))
DENOISING = 1  # of these stages: where plug-ins are
TEXT_TOKENS = 512
RESIDUALS = 14  # of InfuseNet, kept while the base runs
ACTIVATIONS = (
    16  # arrays as wide as the network that live at once in a single block: 3 of attention, 4 + 5 of MLP
)
DECODER_ARRAYS = (
    5  # full-size arrays of the VAE's last stage at once; 4.0 measured at 512 x 512 (CPU, float32)
)
MAC_SHARE = 0.75  # of a Mac's memory is what Metal lets a process use


@dataclass(frozen=True)
class Network:
    """Sizes of one network, in numbers: all, those that quantisation packs, those of its largest block.
    `width`: how wide its blocks are (a VAE's: channels at full size). `stored`: bytes of a network that is
    quantised in its files already, and stays so. `compressed`: numbers and bytes of the matrices that are in
    fp8 or GGUF's blocks there, and stay so unless they are quantised."""

    total: int
    packed: int
    block: int
    width: int
    stored: int | None = None
    compressed: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Beside:
    """What a plug-in takes beside the model (counted by infu/plugin_sizes.py). `network`: one that is
    quantised, and offloaded, as InfuseNet is; and in bytes, `kept`: what stays on the device whatever is
    offloaded; `host`: what is in main memory; `working`: what a step holds besides."""

    name: str
    network: Network | None = None
    kept: int = 0
    host: int = 0
    working: int = 0

    def weights(self, dtype: str, quantize: int | None) -> int:
        """Bytes of all that stays between two steps."""
        return network_bytes(self.network, dtype, quantize) + self.kept + self.host


RELEASED = {  # FLUX.1-dev and InfiniteYou, counted from the names and shapes of the released checkpoints
    "transformer": Network(11_901_408_320, 11_834_228_736, 339_831_296, 3072),
    "infusenet": Network(2_952_654_336, 2_906_652_672, 339_831_296, 3072),
    "text_encoder_2": Network(4_762_310_656, 4_630_511_616, 192_948_224, 4096),
    "text_encoder": Network(123_060_480, 0, 37_945_344, 768),
    "vae": Network(83_819_683, 0, 16_524_800, 256),
    "projection": Network(84_595_968, 0, 84_595_968, 1280),
}


def memory_needed(
    files: ModelFiles | None,
    dtype: str = "bfloat16",
    quantize: int | None = None,
    offload: str | None = None,
    width: int = 864,
    height: int = 1152,
    beside: Sequence[Beside] = (),
) -> dict[str, Any]:
    """Bytes needed to make a picture of width x height. `files` None: FLUX.1-dev with InfiniteYou; `beside`:
    the plug-ins.

    `parts`: the weights of each network; `weights`: their sum; `working`: what a run needs besides, about;
    `device`: the memory of a graphics card; `main`: main memory beside such a card; `shared`: main memory
    where there is no other (a CPU, a Mac).
    """
    networks = RELEASED if files is None else read_networks(files)
    parts = {name: weight_bytes(name, network, dtype, quantize) for name, network in networks.items()}
    working = working_bytes(networks, dtype, width, height) + sum(one.working for one in beside)
    added = [network_bytes(one.network, dtype, quantize) for one in beside]
    kept, host = (sum(getattr(one, kind) for one in beside) for kind in ("kept", "host"))
    everything = sum(parts.values()) + sum(added)
    stages = [sum(parts.get(name, 0) for name in names) for names in STAGES]
    stages[DENOISING] += sum(added)
    block = max(
        weight_bytes(name, network, dtype, quantize, network.block) for name, network in networks.items()
    )
    blocks = [network_bytes(one.network, dtype, quantize, block=True) for one in beside]
    resident = {None: everything, "model": max(stages), "sequential": max(block, *blocks, 0)}[offload] + kept
    return {
        "parts": parts,
        "weights": everything + kept + host,
        "working": working,
        "device": resident + working,
        "main": (everything if offload else max(*parts.values(), *added)) + host,
        "shared": resident + working + host,
    }


def network_bytes(network: Network | None, dtype: str, quantize: int | None, block: bool = False) -> int:
    """Bytes of a plug-in's network, or of its largest block."""
    if network is None:
        return 0
    return weight_bytes("infusenet", network, dtype, quantize, network.block if block else None)


def weight_bytes(
    name: str, network: Network, dtype: str, quantize: int | None, numbers: int | None = None
) -> int:
    """Bytes of a network's weights, or of `numbers` of them that are like the rest."""
    numbers = network.total if numbers is None else numbers
    if network.stored is not None:
        return round(numbers / network.total * network.stored)
    if quantize is None or name not in LARGE:
        inside, size = network.compressed
        whole = (network.total - inside) * BYTES[dtype] + size
        return round(numbers / network.total * whole)
    packed = network.packed / network.total
    return round(numbers * (packed * (quantize + 32 / GROUP) / 8 + (1 - packed) * BYTES[dtype]))


def working_bytes(networks: Mapping[str, Network], dtype: str, width: int, height: int) -> int:
    """What denoising or, where that is more, decoding holds besides the weights."""
    tokens = width * height // 256
    denoising = networks["transformer"].width * (ACTIVATIONS * (tokens + TEXT_TOKENS) + RESIDUALS * tokens)
    decoding = networks["vae"].width * DECODER_ARRAYS * width * height
    return BYTES[dtype] * max(denoising, decoding)


# What the files hold.


def read_networks(files: ModelFiles) -> dict[str, Network]:
    """The networks of a model, by the part's name. A part whose header cannot be read counts as released."""
    paths = {name: getattr(files, name) for name in RELEASED}
    return {name: read_network(name, path) for name, path in paths.items() if path is not None}


@functools.lru_cache(maxsize=32)
def read_network(name: str, path: Path) -> Network:
    """One of `RELEASED`."""
    if name == "projection":  # a torch file, float32
        return Network(path.stat().st_size // 4, 0, path.stat().st_size // 4, RELEASED[name].width)
    try:
        return measure(open_part(path, name), name)
    except ModelError:
        return RELEASED[name]


def measure(weights: Checkpoint, name: str) -> Network:
    numbers = {key: math.prod(header.shape) for key, header in weights.items() if not is_copy(key, weights)}
    matrices = {key: weights[key].shape for key in numbers if is_packed(key, weights[key].shape)}
    blocks: Counter[str] = Counter()
    for key, count in numbers.items():
        block = re.match(r"(.*?block\w*\.\d+)\.", key)
        blocks[block[1] if block else key] += count
    return Network(
        total=sum(numbers.values()),
        packed=sum(numbers[key] for key in matrices) if name in (*LARGE, "controlnet") else 0,
        block=max(blocks.values()),
        stored=weights.nbytes if any(key.endswith(".scales") for key in weights) else None,
        compressed=(
            sum(numbers[key] for key in numbers if weights.is_packed(key)),
            sum(weights[key].nbytes for key in numbers if weights.is_packed(key)),
        ),
        width=full_size_channels(weights)
        if name == "vae"
        else max((min(s) for s in matrices.values()), default=0),
    )


def is_copy(name: str, weights: Checkpoint) -> bool:
    """T5's one embedding may stand in its files under two names."""
    return name == "encoder.embed_tokens.weight" and "shared.weight" in weights


def is_packed(name: str, shape: tuple[int, ...]) -> bool:
    """Linear layers inside the blocks; T5's table of relative positions is none."""
    return len(shape) == 2 and "block" in name and name.endswith(".weight") and "relative" not in name


def full_size_channels(weights: Checkpoint) -> int:
    """Channels that the VAE's decoder has at the picture's size, on entering its last stage."""
    last = weights.get("decoder.conv_out.weight")
    return 2 * last.shape[1] if last is not None else RELEASED["vae"].width


# What the machine has.


def read_machine() -> dict[str, Any]:
    """`memory`: bytes of main memory; `usable`: what networks may take of it; `available`: free at present;
    `device`: a graphics card's name or None; `device_memory`: its bytes or None."""
    memory = psutil.virtual_memory()
    mac = sys.platform == "darwin" and platform.machine() == "arm64"
    card = read_nvidia()
    return {
        "memory": memory.total,
        "usable": round(memory.total * (MAC_SHARE if mac else 1.0)),
        "available": memory.available,
        "device": card[0] if card else "Apple GPU" if mac else None,
        "device_memory": card[1] if card else None,
    }


def has_room(path: Path) -> bool:
    """Whether what a file holds, or a folder's files, has room in the main memory that is free at present."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) <= psutil.virtual_memory().available


def read_nvidia() -> tuple[str, int] | None:
    """Name and bytes of the NVIDIA card in use, asked of its driver, not of torch: that would load it."""
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    query = ["nvidia-smi", f"--id={index}", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        name, mebibytes = answer.strip().splitlines()[0].rsplit(",", 1)
        return name.strip(), int(mebibytes) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):  # no card, no driver, none allowed
        return None


def fits(needed: Mapping[str, Any], machine: Mapping[str, Any]) -> bool:
    """Whether what `memory_needed` computed can run on what `read_machine` found."""
    if machine["device_memory"] is None:
        return needed["shared"] <= machine["usable"]
    return needed["device"] <= machine["device_memory"] and needed["main"] <= machine["usable"]


def shortage(needed: Mapping[str, Any], machine: Mapping[str, Any]) -> tuple[int, int] | None:
    """The bytes that are needed, and those that are there, of the memory that is too small; None where all
    `fits`."""
    if fits(needed, machine):
        return None
    card = machine["device_memory"]
    if card is None:
        return needed["shared"], machine["usable"]
    return (needed["device"], card) if needed["device"] > card else (needed["main"], machine["usable"])
