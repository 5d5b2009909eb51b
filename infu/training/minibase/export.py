"""A run -> the folder that `load_backend(base_model_path=...)` loads: FLUX.1-dev's layout, float16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from infu.training.minibase.autoencoder import DECODER, ENCODER, open_half
from infu.training.minibase.diffusion import DISTILLED, DIT, SCHEDULER, Student
from infu.training.minibase.latents import load_latents
from infu.training.minibase.networks import Base, make_base, make_vae
from infu.training.minibase.runs import STATE, load_average
from infu.whole import write_whole

STEPS = 20  # of sampling, where a request names none
SENTENCE = "a photo of a woman, wearing a blue sweater, smiling, in a park"  # the page's first


def export(run: Path, folder: Path, size: tuple[int, int], guided: bool = True) -> None:
    """The newest states."""
    save_transformers(load_trained_base(run, guided), folder)
    vae = make_vae()
    for half in (DECODER, ENCODER):
        setattr(vae, half, load_average(open_half(run, half, 1).network, run / half))
    save_network(vae, folder / "vae", "diffusion_pytorch_model")
    write_json(folder / "vae" / "latent_colours.json", load_latents(run / "latents.npz").colours())
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(run / name, folder / name, dirs_exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    shutil.copy(SCHEDULER, folder / "scheduler")
    width, height = size
    defaults = {"width": width, "height": height, "num_steps": STEPS, "prompt": SENTENCE}
    write_json(folder / "generation_defaults.json", defaults)
    write_json(folder / "model_index.json", {"_class_name": "FluxPipeline"})


def load_trained_base(run: Path, guided: bool = True) -> Base:
    """With the distilled DiT where there is one and it is wanted, else the DiT as it is."""
    base = load_average(make_base(run), run / DIT)
    if guided and (run / DISTILLED / STATE).is_file():
        base.dit = load_average(Student(base), run / DISTILLED).dit
    return base


def save_transformers(base: Base, folder: Path) -> None:
    save_network(base.dit, folder / "transformer", "diffusion_pytorch_model")
    save_network(base.clip, folder / "text_encoder", "model", "text_model.")  # the name in FLUX.1-dev's file
    save_network(base.t5, folder / "text_encoder_2", "model")


def save_network(network: nn.Module, folder: Path, name: str, prefix: str = "") -> None:
    config = (
        json.loads(network.config.to_json_string(use_diff=False))
        if is_transformers(network)
        else own(network)
    )
    write_json(folder / "config.json", config)
    kept = {}
    for key, tensor in network.state_dict().items():
        if not any(tensor.data_ptr() == other.data_ptr() for other in kept.values()):  # T5 ties two names
            kept[key] = tensor
    halves = {prefix + key: tensor.to(torch.float16).contiguous() for key, tensor in kept.items()}
    write_whole(folder / f"{name}.safetensors", lambda part: save_file(halves, part, {"format": "pt"}))


def is_transformers(network: nn.Module) -> bool:
    return hasattr(network.config, "to_json_string")


def own(network: nn.Module) -> dict:
    """A diffusers network's config, without what diffusers adds for itself."""
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


def write_json(path: Path, values: dict) -> None:
    write_whole(path, lambda part: part.write_text(json.dumps(values, indent=2) + "\n"))
