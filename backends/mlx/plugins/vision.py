"""CLIP's and SigLIP's image encoders: a picture -> the vector an IP-Adapter reads.

Attributes carry transformers' names (`CLIPVisionModelWithProjection`; `SiglipVisionModel`, in the file under
`vision_model.`). P patches, D width.
"""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.base import Backend
from backends.mlx.clip import MLP, Encoder
from backends.mlx.layers import split_heads
from backends.mlx.load import load_weights
from infu.cache import digest, identify
from infu.vision import prepare
from infu.weights.vision import VisionConfig, VisionFile, read_vision


def encode_picture(backend: Backend, folder: Path, picture: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (1, E): CLIP's `image_embeds`, SigLIP's `pooler_output`; not normalised.
    In float32, as each picture passes once."""

    def encode() -> np.ndarray:
        file = read_vision(folder)
        network = backend.network("vision", folder, lambda: load_vision(file))
        return backend.numpy(network(backend.array(prepare(picture, file.preparation))))

    return backend.cache("picture", (identify(folder), digest(picture)), encode)


def load_vision(file: VisionFile) -> nn.Module:
    network = SiglipVision(file.config) if file.siglip else ClipVision(file.config)
    return load_weights(network, file.tensors, mx.float32)


class ClipVision(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.vision_model = ClipTower(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def __call__(self, pixels: mx.array) -> mx.array:
        """pixels (B, 3, s, s) -> (B, E)."""
        return self.visual_projection(self.vision_model(pixels))


class ClipTower(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        D = config.hidden_size
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(D, eps=config.layer_norm_eps)  # so spelled in every file
        self.encoder = Encoder(config, mask=None)
        self.post_layernorm = nn.LayerNorm(D, eps=config.layer_norm_eps)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))  # (B, 1 + P, D)
        return self.post_layernorm(x[:, 0])


class Embeddings(nn.Module):
    """Patches in rows, plus their learned positions; what is left over right and below is cut off."""

    def __init__(self, config: VisionConfig, extra: int, bias: bool):
        """`extra`: positions that are no patch's."""
        super().__init__()
        patch, D = config.patch_size, config.hidden_size
        self.patch_embedding = nn.Conv2d(3, D, patch, stride=patch, bias=bias)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + extra, D)

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = self.patch_embedding(pixels.transpose(0, 2, 3, 1)).flatten(1, 2)  # (B, P, D)
        return self.joined(patches) + self.position_embedding.weight

    def joined(self, patches: mx.array) -> mx.array:
        return patches


class ClipEmbeddings(Embeddings):
    def __init__(self, config: VisionConfig):
        super().__init__(config, extra=1, bias=False)
        self.class_embedding = mx.zeros(config.hidden_size)

    def joined(self, patches: mx.array) -> mx.array:
        first = mx.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[2]))
        return mx.concatenate([first, patches], axis=1)


class SiglipVision(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = Embeddings(config, extra=0, bias=True)
        self.encoder = Encoder(config, mask=None)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = PoolingHead(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        """pixels (B, 3, s, s) -> (B, D)."""
        return self.head(self.post_layernorm(self.encoder(self.embeddings(pixels))))


class PoolingHead(nn.Module):
    """One learned query attends over all patches."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        D = config.hidden_size
        self.probe = mx.zeros((1, 1, D))
        self.attention = PackedAttention(D, config.num_attention_heads)
        self.layernorm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array) -> mx.array:
        probe = mx.broadcast_to(self.probe, (len(x), 1, x.shape[2]))
        y = self.attention(probe, x)
        return (y + self.mlp(self.layernorm(y)))[:, 0]


class PackedAttention(nn.Module):
    """torch's `nn.MultiheadAttention`: the weights of q, k, v in one, in this order."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight, self.in_proj_bias = mx.zeros((3 * width, width)), mx.zeros(3 * width)
        self.out_proj = nn.Linear(width, width)

    def __call__(self, queries: mx.array, x: mx.array) -> mx.array:
        weights, biases = mx.split(self.in_proj_weight, 3), mx.split(self.in_proj_bias, 3)
        q, k, v = (
            split_heads(y @ weight.T + bias, self.num_heads)
            for y, weight, bias in zip((queries, x, x), weights, biases, strict=True)
        )
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
        return self.out_proj(y.transpose(0, 2, 1, 3).flatten(2))
