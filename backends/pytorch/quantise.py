"""Weight-only quantisation: a Linear that keeps 8 or 4 bits a weight and unpacks them where it is used.

Affine in groups along the input axis, scale and offset in float16: w = q * scale + offset, the scheme of
MLX's `mx.quantize`, so both backends round alike. torchao 0.18 packs 4 bits on CUDA only (on a CPU it holds
them in 8), and optimum-quanto compiles kernels at run time; this runs wherever torch does.
"""

import torch
from torch import Tensor, nn

from backends.pytorch.compressed import CompressedLinear

GROUPS = (64, 32, 16)  # the largest that divides the row; real networks take 64: 8.5 and 4.5 bits a weight


class QuantizedLinear(CompressedLinear):
    """`stored` uint8 (out, in * bits / 8), `scale` and `offset` float16 (out, in / group). Made by
    `quantize_linear`."""

    def __init__(self, stored: Tensor, scale: Tensor, offset: Tensor, bits: int, bias: Tensor | None):
        super().__init__(stored, stored.shape[1] * 8 // bits, bias)
        self.bits = bits
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        values = self.stored
        if self.bits == 4:
            values = torch.stack([values & 15, values >> 4], dim=-1).flatten(-2)  # (out, in)
        values = values.to(dtype).unflatten(-1, (self.scale.shape[1], -1))  # (out, groups, group)
        scale, offset = self.scale.to(dtype)[..., None], self.offset.to(dtype)[..., None]
        return torch.addcmul(offset, values, scale).flatten(1)


def quantize_linear(weight: Tensor, bias: Tensor | None, bits: int) -> QuantizedLinear:
    """weight (out, in) -> the same layer in `bits` (8 or 4). `in` must be divisible by a group size."""
    group = next(size for size in GROUPS if weight.shape[1] % size == 0)
    grouped = weight.float().unflatten(-1, (-1, group))  # (out, groups, group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    offset = low.to(torch.float16)
    scale = ((high - low) / (2**bits - 1)).to(torch.float16)  # rounded first, so that q makes up for it
    step = scale.float()[..., None].clamp_min(torch.finfo(torch.float16).tiny)  # a constant group has scale 0
    values = ((grouped - offset.float()[..., None]) / step).round_().clamp_(0, 2**bits - 1)
    values = values.to(torch.uint8).flatten(1)  # (out, in)
    packed = values[:, ::2] | values[:, 1::2] << 4 if bits == 4 else values
    return QuantizedLinear(packed, scale, offset, bits, bias)


def quantizable(name: str, module: nn.Module) -> bool:
    """Linear layers inside the blocks; the first and last layers are small and matter most."""
    return isinstance(module, nn.Linear) and "block" in name and module.in_features % GROUPS[-1] == 0
