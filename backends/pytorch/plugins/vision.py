"""CLIP's and SigLIP's image encoders, by transformers: a picture -> the vector an IP-Adapter reads."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from backends.base import Backend
from backends.pytorch.load import build_empty, load_weights
from infu.cache import digest, identify
from infu.vision import prepare
from infu.weights.vision import VisionFile, read_vision


def encode_picture(backend: Backend, folder: Path, picture: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (1, E): CLIP's `image_embeds`, SigLIP's `pooler_output`; not normalised.
    In float32, as each picture passes once."""

    def encode() -> np.ndarray:
        file = read_vision(folder)
        network = backend.network("vision", folder, lambda: load_vision(file, backend.device))
        pixels = backend.array(prepare(picture, file.preparation))
        encoded = network(pixels)
        return backend.numpy(encoded.pooler_output if file.siglip else encoded.image_embeds)

    return backend.cache("picture", (identify(folder), digest(picture)), encode)


def load_vision(file: VisionFile, device: str) -> nn.Module:
    return load_weights(build_empty(build_vision, file), file.tensors, torch.float32, device)


def build_vision(file: VisionFile) -> nn.Module:
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    kind, config = CLIPVisionModelWithProjection, CLIPVisionConfig
    if file.siglip:
        kind, config = SiglipVisionModel, SiglipVisionConfig
    return kind(config(**vars(file.config)))
