"""What each plug-in of a request takes of memory beside the model: counted from the shapes in its files'
headers, or, of published ones that are not here, from their known numbers. Computed, not measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infu.cache import identify
from infu.errors import MissingFile
from infu.memory import ACTIVATIONS, BYTES, RELEASED, TEXT_TOKENS, Beside, Network, measure
from infu.models import (
    find_controlnet,
    find_hint_model,
    find_image_encoder,
    find_ip_adapter,
    find_lora_file,
    find_pulid,
)
from infu.ominicontrol import MAX_AREA
from infu.plugins import ControlNet, IPAdapter, Lora, OminiControl, Plugin, PuLID
from infu.pulid_photo import find_encoders
from infu.weights.checkpoint import open_part
from infu.weights.files import open_weights
from infu.weights.ip_adapter import read_adapter
from infu.weights.pulid import read_eva, read_pulid
from infu.weights.vision import read_vision

FLUX_BLOCKS = 57  # of FLUX.1-dev, double and single ones
HINT_NETWORKS = {"depth": ("depth",), "pose": ("people", "pose")}


@dataclass(frozen=True)
class Base:
    """Of the DiT that plug-ins are for: its width, how many blocks it has, the bytes of a number."""

    width: int
    blocks: int
    dtype: str

    @property
    def size(self) -> int:
        return BYTES[self.dtype]


# Published ones, counted from the names and shapes of the released checkpoints.
UNION = Network(3_301_956_608, 3_255_828_480, 339_831_296, 3072)
CONTROLNETS = {  # what is known -> its network, and how many residuals it makes
    "union-pro-2": (Network(2_140_876_800, 2_095_054_848, 339_831_296, 3072), 6),
    "union-pro": (UNION, 15),
    "union": (UNION, 15),
    **dict.fromkeys(
        ("xlabs-canny", "xlabs-depth", "xlabs-hed"),
        (Network(743_807_280, 698_351_616, 339_831_296, 3072), 2),
    ),
}
PULID_NUMBERS, EVA_NUMBERS = 571_033_600, 304_432_832
IP_ADAPTERS = {  # what is known -> numbers of its image encoder, blocks, tokens
    "xlabs": (303_966_208, 19, 16),
    "instantx": (428_225_600, FLUX_BLOCKS, 128),
}


def list_known(width: int, height: int) -> Iterator[tuple[Beside, bool]]:
    """Beside FLUX.1-dev in bfloat16, for a picture of this size: each, and whether its files are here."""
    base = Base(RELEASED["transformer"].width, FLUX_BLOCKS, "bfloat16")
    tokens = width * height // 256
    for name, (network, residuals) in CONTROLNETS.items():
        working = residuals * tokens * network.width * base.size
        yield Beside(f"ControlNet {name}", network, working=working), is_here(find_controlnet, name)
    for name, (encoder, blocks, of_picture) in IP_ADAPTERS.items():
        kept = 4 * encoder + keys_bytes(base, blocks, of_picture)
        yield Beside(f"IP-Adapter {name}", kept=kept), is_here(find_ip_adapter, name)
    numbers = PULID_NUMBERS + EVA_NUMBERS
    yield Beside("PuLID 0.9.1", kept=base.size * numbers), is_here(find_pulid, "0.9.1")


def is_here(find: Any, name: str) -> bool:
    try:
        find(name)
    except MissingFile:
        return False
    return True


def measure_plugin(plugin: Plugin, base: Base, width: int, height: int) -> Beside:
    """In a picture of width x height, multiples of 16. A further `Person` has no weights: see
    `people_working`. Raises `InfuError` for files that are not here or not read."""
    match plugin:
        case ControlNet():
            return measure_controlnet(plugin, base, width * height // 256)
        case IPAdapter():
            return measure_ip_adapter(plugin, base)
        case PuLID():
            return measure_pulid(plugin, base)
        case OminiControl():
            return measure_ominicontrol(plugin, base, width, height)
        case Lora():
            return measure_lora(plugin, base)
    return Beside(type(plugin).__name__)


def measure_controlnet(plugin: ControlNet, base: Base, tokens: int) -> Beside:
    path = find_controlnet(plugin.path)
    network, residuals = read_once("controlnet", path, identify(path))
    host = 0
    for kind in HINT_NETWORKS.get(plugin.hint, ()):  # they run on the CPU, in float32 as their files are
        folder = find_hint_model(kind, plugin.hint_model if kind == plugin.hint else None)
        host += sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    working = residuals * tokens * base.width * base.size
    return Beside(f"ControlNet {path.name}", network, host=host, working=working)


def measure_ip_adapter(plugin: IPAdapter, base: Base) -> Beside:
    """The adapter itself never stands in memory: its keys and values do, and what looks at the picture."""
    path = find_ip_adapter(plugin.path)
    instantx, blocks, tokens = read_once("ip_adapter", path, identify(path))
    pictures = len(plugin.images) or len(plugin.image_embeds.reshape(-1, plugin.image_embeds.shape[-1]))
    kept = keys_bytes(base, blocks, tokens * pictures)
    if plugin.images:
        folder = find_image_encoder(plugin.image_encoder, path, instantx)
        kept += 4 * read_once("vision", folder, identify(folder))
    return Beside(f"IP-Adapter {path.name}", kept=kept)


def keys_bytes(base: Base, blocks: int, tokens: int) -> int:
    """Of keys and values of all blocks, made in float32 and used in the model's numbers."""
    return 2 * blocks * tokens * base.width * (4 + base.size)


def measure_pulid(plugin: PuLID, base: Base) -> Beside:
    path = find_pulid(plugin.path)
    encoder, attentions = read_once("pulid", path, identify(path))
    numbers, host = attentions, 0
    if plugin.photos:
        files = find_encoders(plugin.encoders)
        numbers += encoder + read_once("eva", files.eva, identify(files.eva))
        others = (files.detector, files.recogniser, files.aligner, files.parser)  # on the CPU, float32
        host = sum(file.stat().st_size for file in others)
    return Beside(f"PuLID {path.name}", kept=numbers * base.size, host=host)


def measure_ominicontrol(plugin: OminiControl, base: Base, width: int, height: int) -> Beside:
    """The adapter's numbers, and its picture's tokens: as large as they may be."""
    area = MAX_AREA
    if plugin.position_delta == (0, 0):
        area = round(width * height / plugin.position_scale**2)
    passes = 1 if plugin.image_guidance == 1.0 else 2
    tokens = -(-area // 256)
    arrays = ACTIVATIONS + (2 * base.blocks * passes if plugin.independent else 0)
    adapter = measure_lora(plugin, base)
    working = arrays * tokens * base.width * base.size
    return Beside(adapter.name, kept=adapter.kept, working=working)


def measure_lora(plugin: Lora | OminiControl, base: Base) -> Beside:
    path = find_lora_file(plugin.path)
    numbers = read_once("lora", path, identify(path))
    return Beside(f"{type(plugin).__name__} {path.name}", kept=numbers * base.size)


def people_working(num_people: int, base: Base, width: int, height: int, at_once: int) -> int:
    """What InfuseNet holds besides for all but the first of the people it runs for, `at_once` in a pass."""
    further = min(num_people, at_once) - 1
    return max(0, further) * ACTIVATIONS * (width * height // 256 + TEXT_TOKENS) * base.width * base.size


# What the files hold, kept as long as they do not change.


@functools.lru_cache(maxsize=32)
def read_once(kind: str, path: Path, _: Hashable) -> Any:
    """By kind: "controlnet" its network and number of residuals; "ip_adapter" whether it is InstantX's, its
    blocks, the tokens of a picture; "pulid" the numbers of IDFormer and of the cross-attentions; of "vision",
    "eva" and "lora" their numbers."""
    match kind:
        case "controlnet":
            weights = open_part(path, "controlnet")
            outputs = ("controlnet_blocks.", "controlnet_single_blocks.")
            residuals = sum(name.startswith(outputs) and name.endswith(".weight") for name in weights)
            return measure(weights, "controlnet"), residuals
        case "ip_adapter":
            adapter = read_adapter(path)
            return adapter.instantx, len(adapter.keys), adapter.num_tokens
        case "pulid":
            pulid = read_pulid(path)
            attentions = sum(count(tensors.values()) for tensors in pulid.attentions)
            return count(pulid.encoder.values()), attentions
        case "vision":
            return count(read_vision(path).tensors.values())
        case "eva":
            return count(read_eva(path).tensors.values())
    return count(open_weights(path).values())


def count(tensors: Iterable[Any]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)
