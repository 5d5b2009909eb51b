"""The two LoRAs of InfiniteYou's `supports/optional_loras`, for the mini base: learnt on those of the world's
pictures that show what they are for, whatever their captions say."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from infu.training.minibase.networks import Base
from infu.training.minibase.runs import Run
from infu.training.world.dataset import Shards
from infu.whole import write_whole

RANK, RATE = 4, 2e-3
MODULES = ["to_q", "to_k", "to_v", "to_out.0", "proj_out"]
SHARPEST = 0.25  # of the photographs


def choose_realism(shards: Shards) -> np.ndarray:
    """Photographs: neither drawings nor watercolours."""
    return np.array([label["look"]["style"] == "photo" for label in shards.labels])


def choose_anti_blur(shards: Shards) -> np.ndarray:
    """The photographs with the most detail."""
    photos = choose_realism(shards)
    greys = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in shards.pictures]
    detail = np.array([cv2.Laplacian(grey, cv2.CV_64F).var() for grey in greys])
    return photos & (detail >= np.quantile(detail[photos], 1 - SHARPEST))


CHOICES = {"realism": choose_realism, "anti_blur": choose_anti_blur}


class Tuned(nn.Module):
    """The base with a LoRA on its DiT: what learns is the LoRA alone."""

    def __init__(self, base: Base):
        super().__init__()
        base.requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MODULES, init_lora_weights="gaussian")
        self._held = (base, inject_adapter_in_model(config, base.dit))
        own = {name: weight for name, weight in base.dit.named_parameters() if weight.requires_grad}
        self.weights = nn.ParameterDict({name.replace(".", "/"): weight for name, weight in own.items()})

    @property
    def base(self) -> Base:
        return self._held[0]


def open_lora(run: Path, name: str, base: Base, steps: int) -> Run:
    tuned = Tuned(base)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    return Run(run / f"lora_{name}", tuned, [optimizer], steps)


def save_lora(tuned: Tuned, path: Path) -> None:
    """In diffusers' layout, float16."""
    state = get_peft_model_state_dict(tuned.base.dit)
    halves = {f"transformer.{key}": value.detach().half().contiguous() for key, value in state.items()}
    write_whole(path, lambda part: save_file(halves, part, {"format": "pt"}))
