"""The projection: a face embedding -> identity tokens, a Perceiver resampler (arXiv 2204.14198, 3.1).

Module attributes are the names in `image_proj_model.bin`; every size but the head's 64 is in its shapes.
"""

import torch
from torch import Tensor, nn

HEAD = 64  # the one size no tensor tells
NORM_EPS = 1e-5


class Attention(nn.Module):
    """Latents attend over the embedding and themselves."""

    def __init__(self, width: int, inner: int, head: int = HEAD):
        super().__init__()
        self.head = head
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x (B, X, D), latents (B, Q, D) -> (B, Q, D)."""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(latents), k, v, self.head))


def attend(q: Tensor, k: Tensor, v: Tensor, head: int) -> Tensor:
    """q (B, Q, W), k, v (B, K, W), in heads of `head` -> (B, Q, W); the softmax in float32, as released."""
    q, k, v = (y.unflatten(-1, (-1, head)).transpose(1, 2) for y in (q, k, v))  # (B, H, ., head)
    scale = head**-0.25  # on both sides, so that neither factor grows too large for 16 bits
    weights = torch.softmax((q * scale) @ (k * scale).transpose(-1, -2), dim=-1, dtype=torch.float32)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


class Projection(nn.Module):
    """Face embedding (B, E) -> identity tokens (B, Q, joint width)."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        """`shapes`: the shape of every tensor of the checkpoint, by name."""
        super().__init__()
        width, embedding = shapes["proj_in.weight"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        inner, hidden = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        self.latents = nn.Parameter(torch.empty(shapes["latents"]))
        self.proj_in = nn.Linear(embedding, width)
        self.proj_out = nn.Linear(width, shapes["proj_out.weight"][0])
        self.norm_out = nn.LayerNorm(shapes["proj_out.weight"][0], eps=NORM_EPS)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(width, inner), make_feed_forward(width, hidden)]) for _ in range(depth)
        )

    def forward(self, embedding: Tensor) -> Tensor:
        x = self.proj_in(embedding)[:, None]  # (B, 1, D)
        latents = self.latents.expand(len(x), -1, -1)  # (B, Q, D)
        for attention, feed_forward in self.layers:
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


def make_feed_forward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width, eps=NORM_EPS),
        nn.Linear(width, hidden, bias=False),
        nn.GELU(approximate="none"),
        nn.Linear(hidden, width, bias=False),
    )
