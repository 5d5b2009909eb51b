"""Weights that stay in memory as their file has them, in fp8 or GGUF's blocks: a model needs about its file's
size. Q8_0 and Q4_0 are MLX's own scheme and are multiplied as they are; the others become numbers layer by
layer as they are used.

The blocks are those of github.com/ggml-org/ggml, `ggml-quants.c`; `gguf.quants` is the same in numpy.
"""

from collections.abc import Callable

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx.layers import replace_module
from infu.weights.checkpoint import Blocks, Checkpoint, Fp8

AFFINE_GROUP = 32
AFFINE = {"Q8_0": (8, 128), "Q4_0": (4, 8)}  # weights of scale * (q - zero): bits of a q, and zero
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class CompressedLinear(nn.Module):
    """y = x W' + b; `weight` is what the file has, of W (out, in) = `shape`."""

    def __init__(self, shape: tuple[int, int], has_bias: bool):
        super().__init__()
        self.shape = shape
        self.weight = mx.zeros((shape[0], 1), mx.uint8)  # replaced by `keep`
        self._scale: mx.array | None = None
        self._kind = ""
        if has_bias:
            self.bias = mx.zeros(shape[0])

    def keep(self, packed: Fp8 | Blocks) -> None:
        """Take a weight as it is stored."""
        if isinstance(packed, Blocks):
            self._kind, self.weight = packed.kind, mx.array(packed.values)
            if packed.kind in AFFINE:
                self.weight, self._scale = (mx.array(array) for array in repack(packed))
                mx.eval(self._scale)
        else:
            self._kind = "e4m3" if packed.values.dtype == ml_dtypes.float8_e4m3fn else "e5m2"
            self.weight = mx.array(packed.values.view(np.uint8))
            self._scale = mx.array(packed.scale) if (packed.scale != 1).any() else None
        mx.eval(self.weight)

    def __call__(self, x: mx.array) -> mx.array:
        if self._kind in AFFINE:  # in float32: bfloat16 has no room for the scales' 11 bits
            y = mx.quantized_matmul(x.astype(mx.float32), *self._affine(), **self._scheme).astype(x.dtype)
        else:
            y = x @ self.dequantise(x.dtype).T
        return y + self.bias if "bias" in self else y

    @property
    def _scheme(self) -> dict[str, int]:
        return {"group_size": AFFINE_GROUP, "bits": AFFINE[self._kind][0]}

    def _affine(self) -> tuple[mx.array, mx.array, mx.array]:
        """What MLX multiplies: q, and float32 scales and offsets of each group. The offsets, which the scales
        tell, are not kept."""
        scales = self._scale.astype(mx.float32)
        return self.weight, scales, -AFFINE[self._kind][1] * scales

    def dequantise(self, dtype: mx.Dtype) -> mx.array:
        """The weight (out, in) as it is used; computed in float32."""
        if self._kind in AFFINE:
            return mx.dequantize(*self._affine(), **self._scheme).astype(dtype)
        if self._kind in GGUF:
            size = BLOCK_BYTES[self._kind]
            return GGUF[self._kind](self.weight.reshape(-1, size)).reshape(self.shape).astype(dtype)
        if self._kind == "e4m3":
            weight = mx.from_fp8(self.weight, mx.float32)
        else:  # the upper byte of a float16
            weight = (self.weight.astype(mx.uint16) << 8).view(mx.float16).astype(mx.float32)
        return (weight if self._scale is None else weight * self._scale).astype(dtype)


def repack(packed: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of Q8_0 or Q4_0 (out, bytes of a row) -> MLX's uint32 (out, words) and float16 scales (out,
    groups): the same bits in another order."""
    blocks = packed.values.reshape(len(packed.values), -1, BLOCK_BYTES[packed.kind])  # (out, groups, bytes)
    scales, q = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0], blocks[..., 2:]
    if packed.kind == "Q8_0":
        q = q ^ 128  # int8 + 128
    else:  # Q4_0: 16 lower halves, then 16 upper ones -> neighbours share a byte
        q = np.concatenate([q & 15, q >> 4], axis=-1)
        q = q[..., ::2] | q[..., 1::2] << 4
    return np.ascontiguousarray(q).reshape(len(blocks), -1).view(np.uint32), scales


def compress_layers(network: nn.Module, weights: Checkpoint) -> nn.Module:
    """Exchange the layers of an empty network whose weights are stored in fp8 or in a type known here; what
    they keep comes with `load_weights`."""
    for name, layer in network.named_modules():
        weight = f"{name}.weight"
        if isinstance(layer, nn.Linear) and weight in weights and weights.is_packed(weight):
            if weights.kind(weight) in (*AFFINE, *GGUF, "fp8"):
                replace_module(network, name, CompressedLinear(layer.weight.shape, "bias" in layer))
    return network


# GGUF's blocks, uint8 (n, bytes) -> float32 (n, numbers).


def half(two_bytes: mx.array) -> mx.array:
    """float16 (n, 1) as float32."""
    return mx.contiguous(two_bytes).view(mx.float16).astype(mx.float32)


def nibbles(q: mx.array, run: int) -> mx.array:
    """Per `run` bytes first the lower halves, then the upper ones: (n, 2 bytes)."""
    q = q.reshape(len(q), -1, 1, run)
    return mx.concatenate([q & 15, q >> 4], axis=2).reshape(len(q), -1)


def bits(q: mx.array, run: int, shifts: tuple[int, ...], mask: int) -> mx.array:
    """Per `run` bytes their lowest bits, then the next ones, ...: (n, len(shifts) bytes)."""
    q = q.reshape(len(q), -1, 1, run)
    return mx.concatenate([(q >> shift) & mask for shift in shifts], axis=2).reshape(len(q), -1)


def fifth_bits(four_bytes: mx.array) -> mx.array:
    """(n, 4) -> the 32 bits, as 0 or 16."""
    word = mx.contiguous(four_bytes).view(mx.uint32)  # (n, 1)
    return ((word >> mx.arange(32, dtype=mx.uint32)) & 1).astype(mx.uint8) << 4


def spread(scales: mx.array, q: mx.array) -> mx.array:
    """scales (n, groups) times q (n, numbers), each for its group."""
    return (scales[..., None] * q.reshape(*scales.shape, -1).astype(mx.float32)).reshape(len(q), -1)


def scales_and_mins(packed: mx.array) -> tuple[mx.array, mx.array]:
    """Q4_K's and Q5_K's 12 bytes -> eight scales and eight minima of 6 bits."""
    d, m, both = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = mx.concatenate([d & 63, (both & 15) | ((d >> 2) & 48)], axis=1)
    mins = mx.concatenate([m & 63, (both >> 4) | ((m >> 2) & 48)], axis=1)
    return scales.astype(mx.float32), mins.astype(mx.float32)


def q4_1(b: mx.array) -> mx.array:
    return half(b[:, :2]) * nibbles(b[:, 4:], 16).astype(mx.float32) + half(b[:, 2:4])


def q5_0(b: mx.array) -> mx.array:
    return half(b[:, :2]) * ((nibbles(b[:, 6:], 16) | fifth_bits(b[:, 2:6])).astype(mx.float32) - 16)


def q5_1(b: mx.array) -> mx.array:
    q = nibbles(b[:, 8:], 16) | fifth_bits(b[:, 4:8])
    return half(b[:, :2]) * q.astype(mx.float32) + half(b[:, 2:4])


def q2_k(b: mx.array) -> mx.array:
    scales, q = b[:, :16], bits(b[:, 16:80], 32, (0, 2, 4, 6), 3)
    low = half(b[:, 82:84]) * (scales >> 4).astype(mx.float32)
    return spread(half(b[:, 80:82]) * (scales & 15).astype(mx.float32), q) - mx.repeat(low, 16, axis=1)


def q3_k(b: mx.array) -> mx.array:
    high = bits(b[:, :32], 32, tuple(range(8)), 1) ^ 1  # the offset is there where the bit is not
    q = bits(b[:, 32:96], 32, (0, 2, 4, 6), 3).astype(mx.float32) - (high << 2).astype(mx.float32)
    low, upper = nibbles(b[:, 96:104], 8), bits(b[:, 104:108], 4, (0, 2, 4, 6), 3)
    return spread(half(b[:, 108:110]) * ((low | upper << 4).astype(mx.float32) - 32), q)


def q4_k(b: mx.array) -> mx.array:
    scales, mins = scales_and_mins(b[:, 4:16])
    low = mx.repeat(half(b[:, 2:4]) * mins, 32, axis=1)
    return spread(half(b[:, :2]) * scales, nibbles(b[:, 16:], 32)) - low


def q5_k(b: mx.array) -> mx.array:
    scales, mins = scales_and_mins(b[:, 4:16])
    q = nibbles(b[:, 48:], 32) | bits(b[:, 16:48], 32, tuple(range(8)), 1) << 4
    return spread(half(b[:, :2]) * scales, q) - mx.repeat(half(b[:, 2:4]) * mins, 32, axis=1)


def q6_k(b: mx.array) -> mx.array:
    q = nibbles(b[:, :128], 64) | bits(b[:, 128:192], 32, (0, 2, 4, 6), 3) << 4
    scales = mx.contiguous(b[:, 192:208]).view(mx.int8).astype(mx.float32)
    return spread(half(b[:, 208:210]) * scales, q.astype(mx.float32) - 32)


def iq4_nl(b: mx.array) -> mx.array:
    return half(b[:, :2]) * mx.array(IQ4_VALUES, mx.float32)[nibbles(b[:, 2:], 16)]


def iq4_xs(b: mx.array) -> mx.array:
    low, word = b[:, 4:8], mx.contiguous(b[:, 2:4]).view(mx.uint16)  # (n, 1)
    low = mx.stack([low & 15, low >> 4], axis=-1).reshape(len(b), 8)
    upper = ((word >> mx.arange(0, 16, 2).astype(mx.uint16)) & 3).astype(mx.uint8)
    scales = half(b[:, :2]) * ((low | upper << 4).astype(mx.float32) - 32)
    return spread(scales, mx.array(IQ4_VALUES, mx.float32)[nibbles(b[:, 8:], 16)])


GGUF: dict[str, Callable[[mx.array], mx.array]] = {
    "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q2_K": q2_k, "Q3_K": q3_k,
    "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "IQ4_NL": iq4_nl, "IQ4_XS": iq4_xs,
}  # fmt: skip
BLOCK_BYTES = {
    "Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q2_K": 84, "Q3_K": 110, "Q4_K": 144,
    "Q5_K": 176, "Q6_K": 210, "IQ4_NL": 18, "IQ4_XS": 136,
}  # fmt: skip
