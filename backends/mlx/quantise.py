"""Weight-only quantisation: linear layers inside the blocks, affine in groups along the input axis.

A layer is exchanged while the network is still empty, and `load_weights` packs each tensor as it is read, so
the model is never in memory unpacked.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from backends.mlx.layers import replace_module
from infu.errors import InvalidRequest

BITS = (8, 6, 4, 3)  # an error of 0.6, 2, 9 and 19 % of a layer's output; 2 bits are noise
GROUPS = (64, 32)  # the larger if it divides the row, as it does in the real networks


class QuantisedLinear(nn.QuantizedLinear):
    """MLX's, but on a CPU in float32: MLX 0.32 adds up bfloat16 there, an error of 6 to 13 %, and slowly."""

    def __call__(self, x: mx.array) -> mx.array:
        if mx.default_device() == mx.Device(mx.cpu):
            return super().__call__(x.astype(mx.float32)).astype(x.dtype)
        return super().__call__(x)


def check_bits(bits: Any) -> None:
    if bits is not None and bits not in BITS:
        raise InvalidRequest(
            f"quantize must be 8, 6, 4 or 3 bits on the MLX backend, or left out, not {bits!r}."
        )


def quantise_layers(network: nn.Module, bits: int) -> nn.Module:
    """Exchange the layers of an empty network; their packed weights come with `load_weights`."""
    for name, layer in network.named_modules():
        if (
            isinstance(layer, nn.Linear) and "block" in name
        ):  # first and last layers are small and matter most
            outputs, inputs = layer.weight.shape
            group = next((size for size in GROUPS if inputs % size == 0), None)
            if group:
                quantised = QuantisedLinear(inputs, outputs, "bias" in layer, group_size=group, bits=bits)
                replace_module(network, name, quantised)
    return network
