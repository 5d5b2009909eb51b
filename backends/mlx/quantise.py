"""Weight-only quantisation: linear layers inside the blocks, affine in groups along the input axis.

A layer is exchanged while the network is still empty, and `load_weights` packs each tensor as it is read,
so the model is never in memory unpacked.
"""

from typing import Any

import mlx.nn as nn

from infu.errors import InvalidRequest

BITS = (8, 6, 4, 3)  # an error of 0.6, 2, 9 and 19 % of a layer's output; 2 bits are noise
GROUPS = (64, 32)  # the larger if it divides the row, as it does in the real networks


def check_bits(bits: Any) -> None:
    if bits is not None and bits not in BITS:
        raise InvalidRequest(
            f"quantize must be 8, 6, 4 or 3 bits on the MLX backend, or left out, not {bits!r}."
        )


def quantise_layers(network: nn.Module, bits: int) -> nn.Module:
    """Exchange the layers of an empty network; their packed weights come with `load_weights`."""

    def how(name: str, module: nn.Module) -> bool | dict[str, Any]:
        """The first and last layers of a network are small and matter most: they stay as they are."""
        if not isinstance(module, nn.Linear) or "block" not in name:
            return False
        group = next((size for size in GROUPS if module.weight.shape[1] % size == 0), None)
        return {"group_size": group, "bits": bits} if group else False

    nn.quantize(network, class_predicate=how)
    return network
