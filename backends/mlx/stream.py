"""Layers whose weights stay in their file: read for each call and gone after it, where memory is short.

A modulation is wanted once a picture, T5 once a prompt: streaming them costs no more than loading them.
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from backends.mlx.compressed import CompressedLinear
from backends.mlx.layers import replace_module
from backends.mlx.quantise import QuantisedLinear


class Streamed(nn.Module):
    """A linear layer that is not in memory. Not for `mx.compile`: it computes at once."""

    def __init__(self, layer: nn.Module, fill: Callable[[nn.Module], nn.Module]):
        """`layer`: empty, for its sizes only; `fill` gives an empty one like it its weights."""
        super().__init__()
        self.make, self.shape = copier(layer)
        self.fill = fill

    def __call__(self, x: mx.array) -> mx.array:
        y = self.fill(self.make())(x)
        mx.eval(y)
        return y


def copier(layer: nn.Module) -> tuple[Callable[[], nn.Module], tuple[int, int]]:
    """A function that makes an empty layer of the same kind, and (out, in)."""
    has_bias = "bias" in layer
    if isinstance(layer, CompressedLinear):
        return lambda: CompressedLinear(layer.shape, has_bias), layer.shape
    if isinstance(layer, QuantisedLinear):
        outputs, inputs = layer.weight.shape[0], layer.weight.shape[1] * 32 // layer.bits
        options = dict(group_size=layer.group_size, bits=layer.bits)
        return lambda: QuantisedLinear(inputs, outputs, has_bias, **options), (outputs, inputs)
    outputs, inputs = layer.weight.shape
    return lambda: nn.Linear(inputs, outputs, has_bias), (outputs, inputs)


def stream_layers(
    network: nn.Module, chosen: Callable[[str], bool], fill: Callable[[str, nn.Module], nn.Module]
) -> nn.Module:
    """Exchange the `chosen` linear layers of an empty network, by name; `fill(name, layer)` reads one."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.QuantizedLinear | CompressedLinear) and chosen(name):
            replace_module(network, name, Streamed(layer, lambda empty, name=name: fill(name, empty)))
    return network


def is_modulation(name: str) -> bool:
    """`transformer_blocks.3.norm1_context.linear`: 27 % of FLUX's weights."""
    *_, norm, leaf = ("", *name.split("."))
    return norm.startswith("norm") and leaf == "linear"


def is_in_block(name: str) -> bool:
    return "block" in name
