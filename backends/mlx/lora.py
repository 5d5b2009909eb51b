"""LoRA as low-rank branches beside linear layers: what a layer puts out + up(down(x)).

A layer that has branches is exchanged for a `Branched` one and put back afterwards, so quantised layers take
them as well, and taking them away leaves the network as it was, bit for bit.
"""

from collections.abc import Iterable, Mapping

import mlx.core as mx
import mlx.nn as nn

from backends.mlx.layers import find_module, replace_module
from backends.mlx.stream import Streamed
from infu.weights.lora import LowRank

Loras = Iterable[tuple[Mapping[str, LowRank], float]]  # module name -> delta, and the scale, of each file


class Branched(nn.Module):
    """`linear` with branches: down (r, in) and up (out, r), the factor within `up`."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear, self.downs, self.ups = linear, [], []

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        for down, up in zip(self.downs, self.ups, strict=True):
            y = y + (x @ down.T) @ up.T
        return y


class Branches:
    """The branches of one request on one network, until `detach`."""

    def __init__(self, network: nn.Module, loras: Loras, dtype: mx.Dtype):
        self.network = network
        self._branched: dict[str, Branched] = {}
        for deltas, scale in loras:
            for name, delta in deltas.items():
                branched = self._at(name)
                up = mx.array(delta.up).astype(mx.float32) * (scale * delta.factor)
                branched.downs.append(mx.array(delta.down).astype(dtype))
                branched.ups.append(up.astype(dtype))
        mx.eval([branched.parameters() for branched in self._branched.values()])

    def detach(self) -> None:
        for name, branched in self._branched.items():
            replace_module(self.network, name, branched.linear)
        self._branched = {}

    def _at(self, name: str) -> Branched:
        if name not in self._branched:
            self._branched[name] = Branched(find_module(self.network, name))
            replace_module(self.network, name, self._branched[name])
        return self._branched[name]


def linear_shapes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of every linear layer: quantised, streamed or plain."""
    shapes = {}
    for name, module in network.named_modules():
        if isinstance(module, Streamed):
            shapes[name] = module.shape
        elif isinstance(module, nn.QuantizedLinear):
            shapes[name] = (module.weight.shape[0], module.weight.shape[1] * 32 // module.bits)
        elif isinstance(module, nn.Linear):
            shapes[name] = module.weight.shape
    return shapes
