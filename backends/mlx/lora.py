"""What LoRA files change, as branches beside linear layers: a layer's output + scale * (change)(its input).

A layer that has branches is exchanged for a `Branched` one and put back afterwards, so quantised and streamed
layers take them as well; the weights of norms and embeddings, which are small, are exchanged themselves.
Taking all away leaves the network as it was, bit for bit. All changes of a layer are computed from its own
output, so their order does not matter.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx.compressed import CompressedLinear
from backends.mlx.layers import find_module, replace_module
from backends.mlx.stream import Streamed
from infu.weights.changes import (
    Change,
    Changes,
    ControlPicture,
    Hadamard,
    Kronecker,
    LowRank,
    Matrix,
    Replacement,
    Rows,
)

Branch = Callable[[nn.Module, mx.array, mx.array], mx.array]  # layer, input, output -> what is added


class Branched(nn.Module):
    """`layer` with branches, each beside those it is one of: it counts while they are on."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.branches = layer, []

    def __call__(self, x: mx.array) -> mx.array:
        total = output = self.layer(x)
        for owner, branch in self.branches:
            if owner.on:
                total = total + branch(self.layer, x, output)
        return total


class Branches:
    """The branches of one request on one network, until `detach`: (changes, scale) for each LoRA. Several of
    these may be on one network, of which any may be off."""

    def __init__(self, network: nn.Module, loras: Iterable[tuple[Changes, float]], dtype: mx.Dtype):
        self.network, self.on = network, True
        self._names: list[str] = []
        self._exchanged: list[tuple[nn.Module, str, mx.array, mx.array]] = []  # its weight before, and now
        for changes, scale in loras:
            maker = BranchMaker(lambda name: whole(self._layer(name)), changes, scale, dtype)
            for name, change in changes.items():
                if isinstance(self._layer(name), LINEAR):
                    self._at(name).branches.append((self, maker.make(name)))
                else:
                    self._exchange(self._layer(name), change, scale)

    def switch(self, on: bool) -> None:
        """Whether they count. What is not on is as if it were not there."""
        if on != self.on:
            for module, leaf, before, now in self._exchanged if on else reversed(self._exchanged):
                module[leaf] = now if on else before
        self.on = on

    def detach(self) -> None:
        self.switch(False)
        for name in self._names:
            branched = find_module(self.network, name)
            branched.branches = [own for own in branched.branches if own[0] is not self]
            if not branched.branches:
                replace_module(self.network, name, branched.layer)
        self._names, self._exchanged = [], []

    def _layer(self, name: str) -> nn.Module:
        """A layer as it is without branches."""
        found = find_module(self.network, name)
        return found.layer if isinstance(found, Branched) else found

    def _at(self, name: str) -> Branched:
        found = find_module(self.network, name)
        if not isinstance(found, Branched):
            found = Branched(found)
            replace_module(self.network, name, found)
        if name not in self._names:
            self._names.append(name)
        return found

    def _exchange(self, module: nn.Module, change: Change, scale: float) -> None:
        """Give a norm or an embedding its changed weight and bias."""
        changed = {}
        if isinstance(change.matrix, Replacement):
            befores = (w for other, leaf, w, _ in self._exchanged if other is module and leaf == "weight")
            own = next(befores, module["weight"]).astype(mx.float32)  # as it is without other LoRAs
            changed["weight"] = scale * (to_array(change.matrix.values, mx.float32) - own)
        elif change.matrix is not None:
            matrix = multiplied_out(to_arrays(change.matrix, mx.float32))
            changed["weight"] = scale * change.factor * matrix
        if change.bias is not None:
            changed["bias"] = scale * to_array(change.bias, mx.float32)
        for leaf, difference in changed.items():
            before = module[leaf]
            module[leaf] = (before.astype(mx.float32) + difference).astype(before.dtype)
            self._exchanged.append((module, leaf, before, module[leaf]))


@contextmanager
def exchanged(own: Branches, others: Branches) -> Iterator[None]:
    """Within, the branches `own` count and `others`, on the same network, do not."""
    others.switch(False)
    own.switch(True)
    try:
        yield
    finally:
        own.switch(False)
        others.switch(True)


@contextmanager
def branched(
    network: nn.Module, loras: Iterable[tuple[Changes, float]], dtype: mx.Dtype
) -> Iterator[nn.Module]:
    """The network with its branches, within a `with`."""
    branches = Branches(network, loras, dtype)
    try:
        yield network
    finally:
        branches.detach()


class BranchMaker:
    """Makes the branches of one LoRA, in `dtype`. `whole` gives a layer with its weights, by name."""

    def __init__(self, whole: Callable[[str], nn.Module], changes: Changes, scale: float, dtype: mx.Dtype):
        self._whole, self._changes, self._scale, self._dtype = whole, changes, scale, dtype
        self._columns: dict[
            tuple[str, ...], mx.array
        ] = {}  # modules -> each column's length over all of them

    def make(self, name: str) -> Branch:
        change, scale = self._changes[name], self._scale
        bias = None if change.bias is None else to_array(change.bias * np.float32(scale), self._dtype)
        matrix = None if change.matrix is None else to_arrays(change.matrix, self._dtype)
        mx.eval([] if matrix is None else [a for a in vars(matrix).values() if isinstance(a, mx.array)])
        if change.magnitude is not None:
            apply = self._make_dora(name, change, matrix)
        elif matrix is None:
            apply = None
        else:
            factor = scale * change.factor

            def apply(layer: nn.Module, x: mx.array, output: mx.array) -> mx.array:
                return times(matrix, x) * factor

        def branch(layer: nn.Module, x: mx.array, output: mx.array) -> mx.array:
            added = 0 if apply is None else apply(layer, x, output)
            return (added if bias is None else added + bias).astype(output.dtype)

        return branch

    def _make_dora(self, name: str, change: Change, matrix: Matrix) -> Branch:
        """scale * (W' - W) x with W' = V * magnitude / |V|, V = W + factor * matrix: the layer's own output
        serves as W x, so that no W' is kept."""
        factor, scale = change.factor, self._scale
        values = to_array(change.magnitude.values, mx.float32)
        if change.magnitude.by_column:
            ratio = (values / self._column_lengths(change.magnitude.modules)).astype(self._dtype)  # (in,)
            mx.eval(ratio)

            def by_column(layer: nn.Module, x: mx.array, output: mx.array) -> mx.array:
                turned = x * ratio
                return scale * (layer(turned) + factor * times(matrix, turned) - output)

            return by_column
        ratio = (values / mx.linalg.norm(self._changed_weight(name), axis=1)).astype(self._dtype)  # (out,)
        layer = self._whole(name)
        bias = layer.bias if "bias" in layer else mx.zeros(1, self._dtype)
        mx.eval(ratio, bias)

        def by_row(layer: nn.Module, x: mx.array, output: mx.array) -> mx.array:
            own = output - bias
            return scale * (ratio * (own + factor * times(matrix, x)) - own)

        return by_row

    def _column_lengths(self, modules: tuple[str, ...]) -> mx.array:
        if modules not in self._columns:
            squares = sum(mx.square(self._changed_weight(name)).sum(axis=0) for name in modules)
            self._columns[modules] = mx.sqrt(squares)  # (in,)
        return self._columns[modules]

    def _changed_weight(self, name: str) -> mx.array:
        """W + factor * matrix in float32 (out, in), for its lengths alone."""
        layer, change = self._whole(name), self._changes[name]
        matrix = multiplied_out(to_arrays(change.matrix, mx.float32))
        return whole_weight(layer).astype(mx.float32) + change.factor * matrix


def embed_controls(controls: Iterable[ControlPicture]) -> mx.array | None:
    """What control LoRAs add to x_embedder's output, float32 (1, L, D); None where there are none."""
    terms = [c.factor * times(to_arrays(c.matrix, mx.float32), c.latents) for c in controls]
    return sum(terms) if terms else None


def times(matrix: Matrix, x: mx.array) -> mx.array:
    """The change, as a linear layer without bias, on x (..., in)."""
    if isinstance(matrix, LowRank):
        return (x @ matrix.down.T) @ matrix.up.T
    if isinstance(matrix, Kronecker):  # without the product: x (..., c1 c2) -> (..., r1 r2)
        folded = x.reshape(*x.shape[:-1], matrix.w1.shape[1], matrix.w2.shape[1])
        y = (matrix.w1 @ (folded @ matrix.w2.T)).flatten(-2)
        return y if matrix.rows is None else take_rows(y.T, matrix.rows).T
    return x @ multiplied_out(matrix).T


def multiplied_out(matrix: Matrix) -> mx.array:
    """The change as one array, shaped as the weight."""
    if isinstance(matrix, LowRank):
        return matrix.up @ matrix.down
    if isinstance(matrix, Kronecker):
        y = mx.kron(matrix.w1, matrix.w2)
        return y if matrix.rows is None else take_rows(y, matrix.rows)
    if isinstance(matrix, Hadamard):
        return (matrix.w1_a @ matrix.w1_b) * (matrix.w2_a @ matrix.w2_b)
    return matrix.values


def take_rows(array: mx.array, rows: Rows) -> mx.array:
    parts = [array[part] for part in rows]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def to_arrays(matrix: Matrix, dtype: mx.Dtype) -> Matrix:
    """The same form, its numpy arrays as MLX's."""
    values = {k: to_array(v, dtype) if isinstance(v, np.ndarray) else v for k, v in vars(matrix).items()}
    return type(matrix)(**values)


def to_array(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    wide = array.dtype in (np.float64, ml_dtypes.bfloat16)  # what MLX does not take from numpy
    return mx.array(array.astype(np.float32) if wide else array).astype(dtype)


LINEAR = (nn.Linear, nn.QuantizedLinear, CompressedLinear, Streamed)


def whole(layer: nn.Module) -> nn.Module:
    """A layer with its weights, read from its file where it is streamed."""
    return layer.fill(layer.make()) if isinstance(layer, Streamed) else layer


def whole_weight(layer: nn.Module) -> mx.array:
    """A linear layer's weight (out, in), however it is kept."""
    if isinstance(layer, CompressedLinear):
        return layer.dequantise(mx.float32)
    if isinstance(layer, nn.QuantizedLinear):
        scheme = dict(group_size=layer.group_size, bits=layer.bits)
        return mx.dequantize(layer.weight, layer.scales, layer.biases, **scheme)
    return layer.weight


def weight_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Module name -> the shape of its weight: linear layers (quantised, streamed or plain), norms,
    embeddings."""
    shapes = {}
    for name, module in network.named_modules():
        if isinstance(module, Streamed | CompressedLinear):
            shapes[name] = module.shape
        elif isinstance(module, nn.QuantizedLinear):
            shapes[name] = (module.weight.shape[0], module.weight.shape[1] * 32 // module.bits)
        elif isinstance(module, nn.Linear | nn.RMSNorm | nn.LayerNorm | nn.Embedding):
            shapes[name] = module.weight.shape
    return shapes
