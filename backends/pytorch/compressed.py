"""Weights that stay in memory as their file has them, in fp8 or GGUF's blocks, and become numbers layer by
layer as they are used: a model needs about its file's size.
"""

import warnings
from abc import ABC, abstractmethod
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.pytorch.tensors import to_tensor
from infu.weights.checkpoint import Blocks, Fp8


class CompressedLinear(nn.Module, ABC):
    """y = x W' + b. A subclass keeps `stored` and says what W is."""

    def __init__(self, stored: Tensor, columns: int, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = len(stored), columns
        self.register_buffer("stored", stored)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize(x.dtype), self.bias)

    @abstractmethod
    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as it is used."""

    @property
    def weight(self) -> Tensor:
        """What is stored, as int8: transformers' T5 asks for it, to learn that it need not cast its input."""
        return self.stored.view(torch.int8)


class Fp8Linear(CompressedLinear):
    """`stored` (out, in) in 8-bit floats, times `scale`, () or (out, 1) float32."""

    def __init__(self, stored: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__(stored, stored.shape[1], bias)
        self.register_buffer("scale", scale)
        self.scaled = bool((scale != 1).any())

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        if not self.scaled:
            return self.stored.to(dtype)  # exact in bfloat16 and in float32
        return (self.stored.float() * self.scale).to(dtype)


class GgufLinear(CompressedLinear):
    """`stored` uint8 (out, bytes of a row) in one of GGUF's types. Computed in float32: half precision, the
    default of diffusers, whose functions these are, moves latents by 9e-4."""

    def __init__(self, stored: Tensor, kind: str, columns: int, bias: Tensor | None):
        super().__init__(stored, columns, bias)
        self.kind = kind

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        functions, sizes = gguf_functions()
        block, size = sizes[self.kind]
        numbers = functions[self.kind](self.stored.reshape(-1, size), block, size, dtype=torch.float32)
        return numbers.reshape(self.out_features, self.in_features).to(dtype)


def compress(packed: Fp8 | Blocks | None, columns: int, bias: Tensor | None, device: str) -> nn.Module | None:
    """The layer for a weight as it is stored; None where it has to be made whole."""
    if isinstance(packed, Fp8):
        return Fp8Linear(to_tensor(packed.values).to(device), to_tensor(packed.scale).to(device), bias)
    if isinstance(packed, Blocks) and packed.kind in gguf_functions()[0]:
        return GgufLinear(to_tensor(packed.values).to(device), packed.kind, columns, bias)
    return None


@cache  # asked for by every layer of every step
def gguf_functions() -> tuple[dict, dict]:
    """Type -> diffusers' function from blocks to numbers; type -> (numbers, bytes) of a block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, dequantize_functions

    return (
        {kind.name: function for kind, function in dequantize_functions.items()},
        {kind.name: size for kind, size in GGML_QUANT_SIZES.items()},
    )
