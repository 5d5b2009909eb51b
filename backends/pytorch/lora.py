"""What LoRA files change, as branches beside the layers: a layer's output + scale * (change)(its input).

A branch is a forward hook, so it works on quantised, compressed and offloaded layers too, needs no second
copy of a weight, and taking it away leaves the network as it was, bit for bit. All changes of a layer are
computed from its own output, so their order does not matter.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.pytorch.tensors import to_tensor
from infu.weights.changes import (
    Change,
    Changes,
    ControlPicture,
    Dense,
    Hadamard,
    Kronecker,
    LowRank,
    Matrix,
    Replacement,
    Rows,
)

Branch = Callable[[nn.Module, Tensor, Tensor], Tensor]  # module, input, output -> what is added to the output


class Branches:
    """The branches of a request on one network: (changes, scale) for each LoRA. They count while `on`."""

    def __init__(self, loras: Iterable[tuple[Changes, float]], device: str, on: bool = True):
        self._loras, self._device, self.on = [lora for lora in loras if lora[0]], device, on
        self._network: nn.Module | None = None
        self._handles = []

    def attach(self, network: nn.Module) -> nn.Module:
        """The network with its branches. Attaching again to the same network does nothing."""
        if network is not self._network and self._loras:
            self.detach()
            branches: dict[str, list[Branch]] = {}
            for changes, scale in self._loras:
                maker = BranchMaker(network, changes, scale, self._device)
                for name in changes:
                    branches.setdefault(name, []).append(maker.make(name))
            for name, own in branches.items():
                self._handles.append(network.get_submodule(name).register_forward_hook(self._hook(own)))
            self._network = network
        return network

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._network = [], None

    def _hook(self, branches: list[Branch]) -> Callable[..., Tensor]:
        def add_branches(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            total = output
            for branch in branches if self.on else ():
                total = total + branch(module, inputs[0], output)
            return total

        return add_branches


@contextmanager
def exchanged(own: Branches, others: Branches) -> Iterator[None]:
    """Within, the branches `own` count and `others`, on the same network, do not."""
    own.on, others.on = True, False
    try:
        yield
    finally:
        own.on, others.on = False, True


class BranchMaker:
    """Makes the branches of one LoRA on one network, its tensors on the device in the network's dtype."""

    def __init__(self, network: nn.Module, changes: Changes, scale: float, device: str):
        self._network, self._changes, self._scale, self._device = network, changes, scale, device
        self._columns: dict[tuple[str, ...], Tensor] = {}  # modules -> length of each column over all of them

    def make(self, name: str) -> Branch:
        module, change = self._network.get_submodule(name), self._changes[name]
        bias = None if change.bias is None else self._tensor(change.bias * np.float32(self._scale))
        matrix = None if change.matrix is None else self._matrix(change.matrix)
        if change.magnitude is not None:
            apply = self._make_dora(name, change, matrix)
        elif matrix is None:
            apply = None
        elif isinstance(matrix, Replacement):
            times, scale = applier(module, matrix), self._scale

            def apply(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
                return scale * (times(x) - output)
        else:
            times = applier(module, matrix)
            factor = self._scale * change.factor

            def apply(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
                return times(x) * factor

        dtype = self._network.dtype

        def branch(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
            x = x.to(dtype) if x.is_floating_point() else x
            added = 0 if apply is None else apply(module, x, output)
            return (added if bias is None else added + bias).to(output.dtype)

        return branch

    def _make_dora(self, name: str, change: Change, matrix: Matrix) -> Branch:
        """scale * (W' - W) x with W' = V * magnitude / |V|, V = W + factor * matrix: the layer's own output
        serves as W x, so that no W' is kept."""
        module = self._network.get_submodule(name)
        times, factor, scale = applier(module, matrix), change.factor, self._scale
        values = self._tensor(change.magnitude.values).float()
        if change.magnitude.by_column:
            ratio = (values / self._column_lengths(change.magnitude.modules)).to(self._network.dtype)  # (in,)

            def by_column(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
                turned = x * ratio
                return scale * (module.forward(turned) + factor * times(turned) - output)

            return by_column
        ratio = (values / self._changed_weight(name).norm(dim=1)).to(self._network.dtype)  # (out,)
        bias = 0 if module.bias is None else rested(module, "bias").to(self._device, self._network.dtype)

        def by_row(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
            own = output - bias
            return scale * (ratio * (own + factor * times(x)) - own)

        return by_row

    def _column_lengths(self, modules: tuple[str, ...]) -> Tensor:
        if modules not in self._columns:
            squares = sum(self._changed_weight(name).square().sum(dim=0) for name in modules)
            self._columns[modules] = squares.sqrt()  # (in,)
        return self._columns[modules]

    def _changed_weight(self, name: str) -> Tensor:
        """W + factor * matrix in float32 (out, in), for its lengths alone."""
        change = self._changes[name]
        weight = whole_weight(self._network.get_submodule(name)).to(self._device, torch.float32)
        exact = self._matrix(change.matrix, torch.float32)
        return weight + change.factor * multiplied_out(exact)

    def _matrix(self, matrix: Matrix, dtype: torch.dtype | None = None) -> Matrix:
        """The same form, its arrays as tensors on the device."""
        return to_tensors(matrix, self._device, dtype or self._network.dtype)

    def _tensor(self, array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        return to_tensor(array).to(self._device, dtype or self._network.dtype)


def to_tensors(matrix: Matrix, device: str, dtype: torch.dtype) -> Matrix:
    """The same form, its arrays as tensors."""
    arrays = {name: value for name, value in vars(matrix).items() if isinstance(value, np.ndarray)}
    tensors = {name: to_tensor(array).to(device, dtype) for name, array in arrays.items()}
    return type(matrix)(**vars(matrix) | tensors)


def embed_controls(controls: Iterable[ControlPicture]) -> Tensor | None:
    """What control LoRAs add to x_embedder's output, float32 (1, L, D); None where there are none."""
    terms = [
        c.factor * F.linear(c.latents, multiplied_out(to_tensors(c.matrix, c.latents.device, torch.float32)))
        for c in controls
    ]
    return sum(terms) if terms else None


def applier(module: nn.Module, matrix: Matrix) -> Callable[[Tensor], Tensor]:
    """What `module` would put out if its weight were `matrix`, its bias nothing; its input -> that."""
    if isinstance(module, nn.Embedding):
        return lambda ids: F.embedding(ids, multiplied_out(matrix))
    if isinstance(module, nn.LayerNorm):
        return lambda x: F.layer_norm(x, matrix.shape, matrix.values, None, module.eps)
    if (
        isinstance(matrix, Dense | Replacement) and len(matrix.shape) == 1
    ):  # an RMSNorm; T5 calls its eps otherwise
        eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        return lambda x: F.rms_norm(x, matrix.shape, matrix.values, eps)
    if isinstance(matrix, LowRank):
        return lambda x: F.linear(F.linear(x, matrix.down), matrix.up)
    if isinstance(matrix, Kronecker):
        return lambda x: apply_kronecker(matrix, x)
    return lambda x: F.linear(x, multiplied_out(matrix))


def apply_kronecker(matrix: Kronecker, x: Tensor) -> Tensor:
    """kron(w1, w2) x without the product: x (..., c1 c2) -> (..., r1 r2), or those `rows`."""
    folded = x.unflatten(-1, (matrix.w1.shape[1], matrix.w2.shape[1]))  # (..., c1, c2)
    y = matrix.w1 @ (folded @ matrix.w2.T)  # (..., r1, r2)
    return take_rows(y.flatten(-2), matrix.rows, -1)


def multiplied_out(matrix: Matrix) -> Tensor:
    """The change as one tensor, shaped as the weight."""
    if isinstance(matrix, LowRank):
        return matrix.up @ matrix.down
    if isinstance(matrix, Kronecker):
        return take_rows(torch.kron(matrix.w1.contiguous(), matrix.w2.contiguous()), matrix.rows, 0)
    if isinstance(matrix, Hadamard):
        return (matrix.w1_a @ matrix.w1_b) * (matrix.w2_a @ matrix.w2_b)
    return matrix.values


def take_rows(tensor: Tensor, rows: Rows | None, dim: int) -> Tensor:
    if rows is None:
        return tensor
    parts = [tensor.narrow(dim, part.start, part.stop - part.start) for part in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def whole_weight(module: nn.Module) -> Tensor:
    """A layer's weight (out, in), however it is kept."""
    return module.dequantize(torch.float32) if hasattr(module, "dequantize") else rested(module, "weight")


def rested(module: nn.Module, leaf: str) -> Tensor:
    """A layer's tensor where it rests: of an offloaded layer with accelerate's hook."""
    tensor = getattr(module, leaf)
    return module._hf_hook.weights_map[leaf] if tensor.is_meta else tensor
