"""LoRA as low-rank branches beside linear layers: what a layer puts out + factor * up(down(x)).

A branch is a forward hook, so it works on quantised and offloaded layers too, and taking it away leaves the
network as it was, bit for bit.
"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from backends.pytorch.load import to_tensor
from infu.weights.lora import LowRank


class Branches:
    """The branches of a request: (delta file's module -> delta, scale) for each LoRA, in order."""

    def __init__(self, loras: Iterable[tuple[dict[str, LowRank], float]], device: str):
        self._loras, self._device = list(loras), device
        self._network: nn.Module | None = None
        self._handles = []

    def attach(self, network: nn.Module) -> nn.Module:
        """The network with its branches. Attaching again to the same network does nothing."""
        if network is not self._network and self._loras:
            self.detach()
            for deltas, scale in self._loras:
                for name, delta in deltas.items():
                    down, up = (
                        to_tensor(half).to(self._device, network.dtype) for half in (delta.down, delta.up)
                    )
                    hook = make_hook(down, up, scale * delta.factor)
                    self._handles.append(network.get_submodule(name).register_forward_hook(hook))
            self._network = network
        return network

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._network = [], None


def make_hook(down: Tensor, up: Tensor, factor: float):
    """down (r, in), up (out, r) -> a forward hook that adds the branch to a linear layer's output."""

    def add_branch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + F.linear(F.linear(inputs[0], down), up) * factor

    return add_branch


def linear_shapes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of every linear layer."""
    modules = network.named_modules()
    return {name: (m.out_features, m.in_features) for name, m in modules if isinstance(m, nn.Linear)}
