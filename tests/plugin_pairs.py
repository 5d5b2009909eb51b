"""Every kind of plug-in on the golden base, two of each, and the requests of their pairs."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from golden import GOLDEN, KOHYA, PEFT, read_golden
from plugin_cases import NETWORKS, PLUGINS

from infu import ControlNet, GenerationRequest, IPAdapter, Lora, OminiControl, Person, PuLID
from infu.plugins import Plugin

SIZE = {"width": 64, "height": 80}
PLAIN = GenerationRequest("A man, portrait", seed=1, num_steps=2, max_sequence_length=32, **SIZE)
INFU, GUIDED = "InfiniteYou", "OminiControl, guided"


def make_kinds() -> dict[str, tuple[Plugin, Plugin]]:
    """Of each kind two that differ: in the file where there are two, else in the picture or the face."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, SIZE["height"], SIZE["width"], 3), np.uint8)
    faces = np.random.default_rng(1).standard_normal((2, 512)).astype(np.float32)
    style, face = (
        np.load(folder / "ipa.npz")["image_embeds"] for folder in (PLUGINS, GOLDEN / "instantx_ip_adapter")
    )
    tokens = np.load(GOLDEN / "pulid/plain.npz")["id_tokens"]
    control, xlabs = GOLDEN / "lora/foreign/bfl_control.safetensors", PLUGINS / NETWORKS["xlabs"]
    pulid = GOLDEN / "pulid/checkpoint/pulid_flux_v0.9.1.safetensors"

    def adapters(path: Path, vector: np.ndarray) -> tuple[IPAdapter, IPAdapter]:
        return IPAdapter(path, image_embeds=vector), IPAdapter(path, image_embeds=-vector)

    subject, spatial = (GOLDEN / f"ominicontrol/{name}.safetensors" for name in ("subject", "spatial"))
    return {
        "LoRA": (Lora(PEFT, 0.8), Lora(KOHYA, 1.0)),
        "control LoRA": (Lora(control, 1.0, pictures[0]), Lora(control, 0.5, pictures[1])),
        "ControlNet": (
            ControlNet(PLUGINS / NETWORKS["union"], pictures[0], mode="depth"),
            ControlNet(PLUGINS / NETWORKS["pro2"], pictures[1]),
        ),
        "XLabs ControlNet": (ControlNet(xlabs, pictures[0], 0.7), ControlNet(xlabs, pictures[1], 0.7)),
        "XLabs IP-Adapter": adapters(PLUGINS / "ip_adapter.safetensors", style),
        "InstantX IP-Adapter": adapters(GOLDEN / "instantx_ip_adapter/ip-adapter.bin", face),
        "PuLID": (PuLID(pulid, id_tokens=tokens), PuLID(pulid, id_tokens=-tokens)),
        "OminiControl": (
            OminiControl(subject, pictures[0], position_delta=(0, -32)),
            OminiControl(spatial, pictures[1]),
        ),
        GUIDED: (
            OminiControl(spatial, pictures[1], image_guidance=1.5),
            OminiControl(spatial, pictures[0], image_guidance=2.0),
        ),
        "Person": (
            Person(mask="left", id_embedding=faces[0]),
            Person(mask="right", id_embedding=faces[1]),
        ),
    }


KINDS = make_kinds()
NAMES = (INFU, *KINDS)
Part = tuple[str, int]  # a kind, and which of its two
# Two kinds, or two of one kind. A request has one InfiniteYou, and its further people are `Person`.
PAIRS: list[tuple[Part, Part]] = [
    ((one, 0), (other, int(one == other)))
    for one, other in itertools.combinations_with_replacement(NAMES, 2)
    if (one, other) != (INFU, INFU)
]
REFUSED = [((GUIDED, 0), (GUIDED, 1))]  # each with an image_guidance of its own
WORKING = [pair for pair in PAIRS if pair not in REFUSED]


def ask(parts: Iterable[Part]) -> GenerationRequest:
    """The request with these plug-ins, in this order; InfiniteYou is the request's own face."""
    parts, face = list(parts), {}
    if (INFU, 0) in parts:
        face = {"id_embedding": read_golden("control").request.id_embedding}
    return PLAIN.replace(plugins=[KINDS[name][i] for name, i in parts if name != INFU], **face)


def make_refused() -> dict[str, GenerationRequest]:
    """What is refused of a plug-in beside something else than another plug-in."""
    union, control = KINDS["ControlNet"][0], KINDS["control LoRA"][0]
    asked: dict[str, dict[str, Any]] = {
        "a control LoRA without its picture": {"plugins": [Lora(control.path, 1.0)]},
        "a picture with a LoRA that follows none": {"plugins": [Lora(PEFT, 1.0, control.image)]},
        "a union ControlNet without its mode": {"plugins": [ControlNet(union.path, union.image)]},
        "PuLID by tokens alone, with a negative prompt": {
            "plugins": KINDS["PuLID"][:1], "negative_prompt": "blurred", "true_cfg_scale": 2.0,
        },
        "a region without a face": {"id_mask": "left"},
    }  # fmt: skip
    return {what: PLAIN.replace(**changes) for what, changes in asked.items()}
