"""EVA02-CLIP's visual tower (arXiv 2303.11331): a picture -> five hidden states and a pooled vector.

Follows ToTheBeginning/PuLID `eva_clip/eva_vit_model.py`; module attributes are the names in the checkpoint.
B batch, P patches (CLS token not counted), D width, H heads.
"""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx.dit import rotate
from backends.mlx.layers import split_heads
from infu.weights.pulid import EVA_STATES, ROPE_THETA, Shapes, count_layers

NORM_EPS = 1e-6


class EvaTower(nn.Module):
    def __init__(self, shapes: Shapes, head: int, span: int):
        """`shapes`: of the checkpoint's tensors, by name; `head`: numbers of a head; `span`: what the
        positions of a side span."""
        super().__init__()
        width, channels, patch, _ = shapes["patch_embed.proj.weight"]
        tokens, outputs = shapes["pos_embed"][1], shapes["head.weight"][0]
        hidden = shapes["blocks.0.mlp.w1.weight"][0]
        self.patch_embed = {"proj": nn.Conv2d(channels, width, patch, stride=patch)}
        self.cls_token, self.pos_embed = mx.zeros((1, 1, width)), mx.zeros((1, tokens, width))
        self.blocks = [Block(width, hidden, head) for _ in range(count_layers(shapes, "blocks"))]
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, outputs)
        self._rope = make_rope(math.isqrt(tokens - 1), head, span)

    def __call__(self, pixels: mx.array) -> tuple[list[mx.array], mx.array]:
        """pixels (B, 3, S, S), normalised -> hidden states, five of (B, 1 + P, D), and pooled (B, 768)."""
        x = self.patch_embed["proj"](pixels.transpose(0, 2, 3, 1)).flatten(1, 2)  # (B, P, D)
        cls = mx.broadcast_to(self.cls_token, (len(x), 1, x.shape[-1]))
        x = mx.concatenate([cls, x], axis=1) + self.pos_embed
        states = []
        for i, block in enumerate(self.blocks):
            if i in EVA_STATES:
                states.append(x)
            x = block(x, self._rope)
        return states, self.head(self.norm(x)[:, 0])


def make_rope(side: int, head: int, span: int) -> mx.array:
    """cos + i sin, complex64 (side * side, head / 2): the first half of a head turns by the patch's row, the
    second by its column; positions r * span / side."""
    frequencies = ROPE_THETA ** -(np.arange(0, head // 2, 2) / (head // 2))
    angles = np.arange(side)[:, None] / side * span * frequencies  # (side, head / 4)
    grid = np.concatenate([np.repeat(angles, side, axis=0), np.tile(angles, (side, 1))], axis=1)  # row-major
    return mx.array(np.exp(1j * grid).astype(np.complex64))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, head: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=NORM_EPS), nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, head)
        self.mlp = SwiGlu(width, hidden)

    def __call__(self, x: mx.array, rope: mx.array) -> mx.array:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Queries and values have a bias of their own, keys none."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.num_heads = width // head
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = mx.zeros(width), mx.zeros(width)
        self.inner_attn_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)

    def __call__(self, x: mx.array, rope: mx.array) -> mx.array:
        q, k, v = (
            split_heads(y, self.num_heads)  # (B, H, 1 + P, D / H)
            for y in (self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias)
        )
        scale = q.shape[-1] ** -0.5
        y = mx.fast.scaled_dot_product_attention(
            rotate_patches(q, rope), rotate_patches(k, rope), v, scale=scale
        )
        return self.proj(self.inner_attn_ln(y.transpose(0, 2, 1, 3).flatten(2)))


def rotate_patches(x: mx.array, rope: mx.array) -> mx.array:
    """x (B, H, 1 + P, d), turned by its patches' angles in float32; the CLS token stays."""
    turned = rotate(x[:, :, 1:].astype(mx.float32), rope)
    return mx.concatenate([x[:, :, :1], turned.astype(x.dtype)], axis=2)


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Linear(width, hidden),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
        )
        self.ffn_ln = nn.LayerNorm(hidden, eps=NORM_EPS)

    def __call__(self, x: mx.array) -> mx.array:
        return self.w3(self.ffn_ln(nn.silu(self.w1(x)) * self.w2(x)))
