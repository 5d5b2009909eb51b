"""The projection: a face embedding -> identity tokens, a Perceiver resampler (arXiv 2204.14198, 3.1).

Attributes carry the names in `image_proj_model.bin`; every size but the head's 64 is in its shapes.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from backends.mlx.layers import split_heads

HEAD = 64  # the one size no tensor tells
NORM_EPS = 1e-5


class Projection(nn.Module):
    def __init__(self, shapes: Mapping[str, Sequence[int]]):
        """`shapes`: the shape of every tensor of the checkpoint, by name."""
        super().__init__()
        width, embedding = shapes["proj_in.weight"]
        outputs = shapes["proj_out.weight"][0]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        inner, hidden = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        self.latents = mx.zeros(tuple(shapes["latents"]))
        self.proj_in = nn.Linear(embedding, width)
        self.proj_out = nn.Linear(width, outputs)
        self.norm_out = nn.LayerNorm(outputs, eps=NORM_EPS)
        self.layers = [[Attention(width, inner), make_feed_forward(width, hidden)] for _ in range(depth)]

    def __call__(self, embedding: mx.array) -> mx.array:
        """(B, E) -> (B, Q, joint width)."""
        x = self.proj_in(embedding)[:, None]  # (B, 1, D)
        latents = mx.broadcast_to(self.latents, (len(x), *self.latents.shape[1:]))  # (B, Q, D)
        for attention, (norm, up, gelu, down) in self.layers:
            latents = attention(x, latents) + latents
            latents = down(gelu(up(norm(latents)))) + latents
        return self.norm_out(self.proj_out(latents))


class Attention(nn.Module):
    """Latents attend over the embedding and themselves."""

    def __init__(self, width: int, inner: int, head: int = HEAD):
        super().__init__()
        self.head = head
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=NORM_EPS), nn.LayerNorm(width, eps=NORM_EPS)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def __call__(self, x: mx.array, latents: mx.array) -> mx.array:
        """x (B, X, D), latents (B, Q, D) -> (B, Q, D)."""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = mx.split(self.to_kv(mx.concatenate([x, latents], axis=1)), 2, axis=-1)
        return self.to_out(attend(self.to_q(latents), k, v, self.head))


def attend(q: mx.array, k: mx.array, v: mx.array, head: int) -> mx.array:
    """q (B, Q, W), k, v (B, K, W), in heads of `head` -> (B, Q, W); the softmax in float32."""
    q, k, v = (split_heads(y, y.shape[-1] // head) for y in (q, k, v))  # (B, H, ., head)
    y = mx.fast.scaled_dot_product_attention(q, k, v, scale=head**-0.5)
    return y.transpose(0, 2, 1, 3).flatten(2)


def make_feed_forward(width: int, hidden: int) -> list[nn.Module]:
    return [
        nn.LayerNorm(width, eps=NORM_EPS),
        nn.Linear(width, hidden, bias=False),
        nn.GELU(approx="none"),
        nn.Linear(hidden, width, bias=False),
    ]
