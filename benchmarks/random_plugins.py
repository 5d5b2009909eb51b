"""A plug-in of every kind with random weights for a model of random_model.py, for benchmarks.

Widths are an eighth of the published ones, as MIDDLE's are of FLUX.1-dev's; how many tokens a picture or a
face becomes is as published.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxControlNetModel
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.random_model import Sizes, save_network
from infu import ControlNet, IPAdapter, Lora, OminiControl, Person, PuLID
from infu.plugins import Plugin

RANK = 16
VECTOR = 96  # of a picture, of 768 (CLIP) or 1152 (SigLIP)
INNER, ID_WIDTH = 256, 256  # of PuLID's cross-attentions, of 2048: two heads of 128
IMAGE_TOKENS = {"xlabs": 16, "instantx": 128}
ID_TOKENS = 32


def make_plugins(folder: Path, base: Path, sizes: Sizes, side: int) -> dict[str, list[Plugin]]:
    """Write every plug-in's file into `folder`, for the model in `base`; their pictures are `side` pixels."""
    torch.manual_seed(1)
    width = sizes.heads * sizes.head
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    vector = np.random.default_rng(1).standard_normal(VECTOR).astype(np.float32)
    face = np.random.default_rng(2).standard_normal(sizes.embedding).astype(np.float32)
    tokens = np.random.default_rng(3).standard_normal((ID_TOKENS, ID_WIDTH)).astype(np.float32)
    config = json.loads((base / "transformer/config.json").read_text())
    save_network(make_controlnet(config), folder / "controlnet", sizes.dtype)
    files = {
        "lora": make_lora(width, sizes),
        "pulid": make_pulid(width, sizes),
        **{kind: make_adapter(kind, width, sizes) for kind in IMAGE_TOKENS},
    }
    paths = {name: folder / f"{name}.safetensors" for name in files}
    for name, state in files.items():
        save_file(state, paths[name])
    return {
        "a LoRA of rank 16": [Lora(paths["lora"], 1.0)],
        "a ControlNet of one block": [ControlNet(folder / "controlnet", picture)],
        "XLabs IP-Adapter": [IPAdapter(paths["xlabs"], image_embeds=vector)],
        "InstantX IP-Adapter": [IPAdapter(paths["instantx"], image_embeds=vector)],
        "PuLID": [PuLID(paths["pulid"], id_tokens=tokens)],
        "OminiControl, as many tokens as the picture": [OminiControl(paths["lora"], picture)],
        "OminiControl, independent": [OminiControl(paths["lora"], picture, independent=True)],
        "another person": [Person("right", id_embedding=face)],
    }


def make_controlnet(config: dict) -> FluxControlNetModel:
    """One double block for four of the base's, about Pro-2.0's 6 for 19."""
    known = {name: value for name, value in config.items() if name not in ("out_channels", "patch_size")}
    network = FluxControlNetModel(**known | {"num_layers": 1, "num_single_layers": 0})
    for layer in (*network.controlnet_blocks, network.controlnet_x_embedder):
        layer.reset_parameters()  # diffusers starts them at zero, which would do nothing
    return network


def make_lora(width: int, sizes: Sizes) -> dict[str, Tensor]:
    """On most of what OminiControl's published adapters change, so it can be one."""
    attention = {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1}  # layer -> how many widths it gives
    of_blocks = {
        "transformer_blocks": (sizes.doubles, attention | {"norm1.linear": 6}),
        "single_transformer_blocks": (sizes.singles, attention | {"norm.linear": 3, "proj_mlp": 4}),
    }
    state = {}
    for blocks, (depth, layers) in of_blocks.items():
        for i, (layer, times) in itertools.product(range(depth), layers.items()):
            name = f"transformer.{blocks}.{i}.{layer}"
            state[f"{name}.lora_A.weight"] = torch.randn(RANK, width) * width**-0.5
            state[f"{name}.lora_B.weight"] = torch.randn(times * width, RANK) * 0.01
    return state


def make_adapter(kind: str, width: int, sizes: Sizes) -> dict[str, Tensor]:
    """An IP-Adapter's tensors under its authors' names; biases are left out."""
    inner, out = sizes.joint, IMAGE_TOKENS[kind] * sizes.joint
    if kind == "xlabs":
        projector = {"ip_adapter_proj_model.proj": (out, VECTOR)}
        norm = "ip_adapter_proj_model.norm"
        name = "double_blocks.{}.processor.ip_adapter_double_stream_{}_proj"
        blocks = range(sizes.doubles)
    else:
        projector = {"image_proj.proj.0": (2 * VECTOR, VECTOR), "image_proj.proj.2": (out, 2 * VECTOR)}
        norm, name = "image_proj.norm", "ip_adapter.{}.to_{}_ip"
        blocks = range(sizes.doubles + sizes.singles)
    state = {f"{norm}.weight": torch.ones(inner), f"{norm}.bias": torch.zeros(inner)}
    for layer, (rows, columns) in projector.items():
        state[f"{layer}.weight"] = torch.randn(rows, columns) * columns**-0.5
        state[f"{layer}.bias"] = torch.zeros(rows)
    for i, letter in itertools.product(blocks, "kv"):
        state[f"{name.format(i, letter)}.weight"] = torch.randn(width, inner) * inner**-0.5
    return state


def make_pulid(width: int, sizes: Sizes) -> dict[str, Tensor]:
    """The cross-attentions; of IDFormer, which no request here asks, what tells its sizes."""
    state = {
        "pulid_encoder.latents": torch.zeros(1, ID_TOKENS, 128),
        "pulid_encoder.proj_out": torch.zeros(128, ID_WIDTH),
        "pulid_encoder.layers.0.0.to_q.weight": torch.zeros(128, 128),
    }
    for i in range((sizes.doubles + 1) // 2 + (sizes.singles + 3) // 4):
        for norm, size in (("norm1", ID_WIDTH), ("norm2", width)):
            state[f"pulid_ca.{i}.{norm}.weight"] = torch.ones(size)
            state[f"pulid_ca.{i}.{norm}.bias"] = torch.zeros(size)
        shapes = {"to_q": (INNER, width), "to_kv": (2 * INNER, ID_WIDTH), "to_out": (width, INNER)}
        for name, (rows, columns) in shapes.items():
            state[f"pulid_ca.{i}.{name}.weight"] = torch.randn(rows, columns) * columns**-0.5
    return state
