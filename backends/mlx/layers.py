"""What several of the networks need, exactly alike; and a network's layer by its name."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn


def split_heads(x: mx.array, num_heads: int) -> mx.array:
    B, L, D = x.shape
    return x.reshape(B, L, num_heads, D // num_heads).transpose(0, 2, 1, 3)  # (B, H, L, D / H)


@partial(mx.compile, shapeless=True)
def gelu_tanh(x: mx.array) -> mx.array:
    """GELU by tanh, in float32: one rounding instead of eight. sqrt(2 / pi) is 0.7978845608."""
    y = x.astype(mx.float32)
    return (0.5 * y * (1 + mx.tanh(0.7978845608 * (y + 0.044715 * y * y * y)))).astype(x.dtype)


def find_module(network: nn.Module, name: str) -> nn.Module:
    """`transformer_blocks.0.attn.to_out.0` -> that layer."""
    found = network
    for part in name.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    parent = find_module(network, owner) if owner else network
    parent[int(leaf) if isinstance(parent, list) else leaf] = module
