"""Where a network rests between uses: on the device, in main memory, or in its files alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Resident:
    """One network, and what `offload` does with it between `arrive` and `leave`.

    None: it stays on the device. "model": it goes to main memory; on a CPU, where there is no other place,
    it is dropped and read again when it is next wanted. "sequential": its weights stay in main memory (on a
    CPU: in their files) and each layer's come to the device while it runs (`load.load_sequential`).
    """

    def __init__(self, load: Callable[[str], nn.Module], device: str, offload: str | None):
        """`load(device)` reads the network onto a device."""
        self._load, self.device, self.offload = load, device, offload
        self._network: nn.Module | None = None

    def arrive(self) -> nn.Module:
        """The network, ready to run on the device."""
        if self._network is None:
            self._network = self._load(self.device)
        elif self.offload == "model":
            self._network.to(self.device)
        return self._network

    def leave(self) -> None:
        """The network is not needed for a while."""
        if self.offload == "model" and self._network is not None:
            if self.device == "cpu":
                self._network = None
            else:
                self._network.to("cpu")
                torch.cuda.empty_cache()

    @contextmanager
    def use(self) -> Iterator[nn.Module]:
        try:
            yield self.arrive()
        finally:
            self.leave()

    @property
    def nbytes(self) -> int:
        """Bytes of weights in memory now, wherever; none of what rests in its files."""
        if self._network is None:
            return 0
        tensors = [*self._network.parameters(), *self._network.buffers()]
        return sum(t.nbytes for t in tensors if t.device.type != "meta")
