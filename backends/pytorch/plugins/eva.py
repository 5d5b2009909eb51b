"""EVA02-CLIP's visual tower (arXiv 2303.11331): a picture -> five hidden states and a pooled vector.

Follows ToTheBeginning/PuLID `eva_clip/eva_vit_model.py`; module attributes are the names in the checkpoint.
B batch, P patches (CLS token not counted), D width, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.pytorch.dit import rotate
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
        self.head_size, self.span, self.side = head, span, math.isqrt(tokens - 1)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width))
        self.blocks = nn.ModuleList(Block(width, hidden, head) for _ in range(count_layers(shapes, "blocks")))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, outputs)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """pixels (B, 3, S, S), normalised -> hidden states, five of (B, 1 + P, D), and pooled (B, 768)."""
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)  # (B, P, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        rope = make_rope(self.side, self.head_size, self.span, x.device)
        states = []
        for i, block in enumerate(self.blocks):
            if i in EVA_STATES:
                states.append(x)
            x = block(x, rope)
        return states, self.head(self.norm(x)[:, 0])


def make_rope(side: int, head: int, span: int, device) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 (side * side, head / 2): the first half of a head turns by the patch's row, the
    second by its column; positions r * span / side."""
    frequencies = ROPE_THETA ** -(torch.arange(0, head // 2, 2, dtype=torch.float32) / (head // 2))
    angles = torch.arange(side, dtype=torch.float32)[:, None] / side * span * frequencies  # (side, head / 4)
    grid = torch.cat([angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)], dim=-1)
    grid = grid.flatten(0, 1).to(device)  # row-major
    return grid.cos(), grid.sin()


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, head: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=NORM_EPS), nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, head)
        self.mlp = SwiGlu(width, hidden)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Queries and values have a bias of their own, keys none."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.head = head
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (-1, self.head)).transpose(1, 2)  # (B, H, 1 + P, D / H)
            for y in (self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias)
        )
        y = F.scaled_dot_product_attention(rotate_patches(q, rope), rotate_patches(k, rope), v)
        return self.proj(self.inner_attn_ln(y.transpose(1, 2).flatten(2)))


def rotate_patches(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, H, 1 + P, d), turned by its patches' angles in float32; the CLS token stays."""
    return torch.cat([x[:, :, :1], rotate(x[:, :, 1:], rope)], dim=2)


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Linear(width, hidden),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
        )
        self.ffn_ln = nn.LayerNorm(hidden, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))
