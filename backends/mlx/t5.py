"""T5's encoder: token ids -> states for the DiT's text stream (arXiv 1910.10683, with gated GELU: v1.1).

Attributes carry transformers' names (`T5EncoderModel`). The residual stream, norms and attention are float32
whatever the weights are: T5's activations overflow float16 and are coarse in bfloat16.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx.layers import gelu_tanh, split_heads


@dataclass(frozen=True)
class T5Config:
    """The fields of `config.json` that the encoder is built from."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float


TIED = {"encoder.embed_tokens.weight": "shared.weight"}  # one tensor; a file holds either name or both


class T5(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config)

    def __call__(self, ids: mx.array) -> mx.array:
        """ids (B, T), padding included and attended to, as FLUX was trained -> float32 (B, T, d_model)."""
        return self.encoder(self.shared(ids).astype(mx.float32))


class Encoder(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.block = [Block(config, has_bias=i == 0) for i in range(config.num_layers)]
        self.final_layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def __call__(self, x: mx.array) -> mx.array:
        buckets = make_buckets(
            x.shape[1],
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias  # shared by all blocks
        bias = table(mx.array(buckets)).astype(mx.float32).transpose(2, 0, 1)  # (H, T, T)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class Block(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool):
        super().__init__()
        self.layer = [AttentionLayer(config, has_bias), FeedForwardLayer(config)]

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias))


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool):
        super().__init__()
        self.SelfAttention = Attention(config, has_bias)
        self.layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        y = self.layer_norm(x).astype(self.layer_norm.weight.dtype)
        return x + self.SelfAttention(y, bias)


class Attention(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool):
        super().__init__()
        self.num_heads = config.num_heads
        D, inner = config.d_model, config.num_heads * config.d_kv
        self.q, self.k = nn.Linear(D, inner, bias=False), nn.Linear(D, inner, bias=False)
        self.v, self.o = nn.Linear(D, inner, bias=False), nn.Linear(inner, D, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(
                config.relative_attention_num_buckets, config.num_heads
            )

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        q, k, v = (split_heads(f(x).astype(mx.float32), self.num_heads) for f in (self.q, self.k, self.v))
        y = softmax(q @ k.transpose(0, 1, 3, 2) + bias) @ v  # unscaled, as T5 was trained
        return self.o(y.transpose(0, 2, 1, 3).flatten(2).astype(x.dtype))


def softmax(x: mx.array) -> mx.array:
    """Over the last axis. On a CPU MLX's own adds up one number after another; over 512 tokens, nearly all of
    them padding, that alone is half of what the states are off by. Here 16 sums are added up."""
    x = mx.exp(x - x.max(axis=-1, keepdims=True))
    sums = x.reshape(*x.shape[:-1], math.gcd(x.shape[-1], 16), -1).sum(axis=-1)
    return x / sums.sum(axis=-1, keepdims=True)


class FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.layer_norm(x).astype(self.layer_norm.weight.dtype)
        return x + self.DenseReluDense(y)


class FeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))


def make_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Which row of the bias table a pair of positions reads, int (T, T): half of the buckets for each
    direction, in each one per distance at first, then logarithmically to `max_distance`."""
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    half = num_buckets // 2
    exact = half // 2
    away = np.abs(distance)
    ratio = np.log(np.maximum(away, exact).astype(np.float32) / exact) / np.float32(
        math.log(max_distance / exact)
    )
    far = np.minimum(exact + (ratio * (half - exact)).astype(int), half - 1)
    return np.where(distance > 0, half, 0) + np.where(away < exact, away, far)
