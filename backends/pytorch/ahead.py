"""Blocks compiled ahead of time, for ZeroGPU, where torch.compile cannot be used (`spaces.aoti_*`).

One package for each kind of block, for any number of tokens; the DiT's and InfuseNet's blocks share it, since
`spaces` hands a package the weights of the block that is called.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import spaces
import torch
from torch import Tensor, nn

from backends.pytorch.dit import Modulation, double_block, single_block

IMAGE = torch.export.Dim("image", min=16, max=16384)  # tokens: 64 x 64 to 2048 x 2048 pixels
TEXT = torch.export.Dim("text", min=2, max=512)
BOTH = torch.export.Dim("both", min=18, max=16384 + 512)


class Double(nn.Module):
    """`double_block` with plain tensors in and out: `modulation` is 12 of (1, D), `image_rope` and
    `text_rope` the cos and sin of each stream, (L, 1, d / 2) and (T, 1, d / 2)."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        modulation: list[Tensor],
        image_rope: list[Tensor],
        text_rope: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        img_attn, img_mlp, txt_attn, txt_mlp = (Modulation(*modulation[k : k + 3]) for k in range(0, 12, 3))
        rope = [torch.cat(pair) for pair in zip(text_rope, image_rope, strict=True)]
        return double_block(self.block, img, txt, ((img_attn, img_mlp), (txt_attn, txt_mlp)), 0, rope)


class Single(nn.Module):
    """`single_block` likewise: `modulation` is 3 of (1, D), `rope` cos and sin (T + L, 1, d / 2)."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, modulation: list[Tensor], rope: list[Tensor]) -> Tensor:
        return single_block(self.block, x, Modulation(*modulation), 0, rope)


class Ahead(nn.Module):
    """A network's blocks, to be called as `dit.run` calls them; compiled once `load` was called."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.doubles = nn.ModuleList(map(Double, network.transformer_blocks))
        self.singles = nn.ModuleList(map(Single, network.single_transformer_blocks))
        self._of = {wrapped.block: wrapped for wrapped in (*self.doubles, *self.singles)}

    def load(self, folder: Path) -> None:
        """Take the packages that `compile_blocks` wrote."""
        spaces.aoti_load_from_package_dir(self, folder)

    def run(self, kind: Callable, block: nn.Module, *inputs: Any) -> Any:
        """One block. A LoRA hangs on its layers, which a package does not have: then as it is."""
        if any(module._forward_hooks for module in block.modules()) or inputs[0].shape[0] != 1:
            return kind(block, *inputs)
        if kind is single_block:
            x, modulation, step, rope = inputs
            return self._of[block](x, at(step, modulation), list(rope))
        img, txt, (of_image, of_text), step, rope = inputs
        T = txt.shape[1]
        if T < 2:
            return kind(block, *inputs)
        modulation = at(step, *of_image, *of_text)
        return self._of[block](img, txt, modulation, [r[T:] for r in rope], [r[:T] for r in rope])


def at(step: int, *modulations: Modulation) -> list[Tensor]:
    """Shift, scale and gate of a step, (1, D) each."""
    tables = [table for m in modulations for table in (m.shift, m.scale, m.gate)]
    return [table[step : step + 1] for table in tables]


def export_blocks(network: nn.Module) -> Iterator[tuple[str, torch.export.ExportedProgram]]:
    """A DiT's first block of each kind, by its name in `Ahead`, for any number of tokens."""
    heads, size = network.config.num_attention_heads, network.config.attention_head_dim
    new = dict(device=network.device, dtype=network.dtype)

    def states(tokens: int) -> Tensor:
        return torch.randn(1, tokens, heads * size, **new)

    def rope(tokens: int) -> list[Tensor]:
        return [torch.randn(tokens, 1, size // 2, device=network.device) for _ in range(2)]

    def modulation(count: int) -> list[Tensor]:
        return [torch.randn(1, heads * size, **new) for _ in range(count)]

    ahead = Ahead(network)
    double = (states(64), states(32), modulation(12), rope(64), rope(32))
    single = (states(96), modulation(3), rope(96))
    of_double = ({1: IMAGE}, {1: TEXT}, [None] * 12, [{0: IMAGE}] * 2, [{0: TEXT}] * 2)
    of_single = ({1: BOTH}, [None] * 3, [{0: BOTH}] * 2)
    with torch.no_grad():
        yield "doubles", torch.export.export(ahead.doubles[0], double, dynamic_shapes=of_double)
        yield "singles", torch.export.export(ahead.singles[0], single, dynamic_shapes=of_single)


def compile_blocks(network: nn.Module, folder: Path) -> None:
    """Write a package of each kind of a DiT's blocks into `folder`, for the device that the network is on."""
    for name, exported in export_blocks(network):
        spaces.aoti_compile_and_save(folder, exported, submodule=name)
