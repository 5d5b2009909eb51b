"""What each way of quantising costs: `python -m benchmarks.mlx_quantise`. Prints two tables for
docs/measurements.md: layers of FLUX's true widths, and the mini model's picture and folder.
"""

import math
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends import load_backend
from backends.mlx.load import load_weights
from backends.mlx.quantise import BITS, quantise_layers
from backends.mlx.save import save_quantised
from benchmarks.pipeline import commit, describe_machine
from infu import GenerationRequest, generate
from infu.models import locate

LAYERS = {
    "to_q": (3072, 3072),
    "ff.net.2": (12288, 3072),
    "single proj_out": (15360, 3072),
    "T5 wi": (4096, 10240),
}


class Holder(nn.Module):
    """One layer, under a name that counts as inside a block."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.block = nn.Linear(inputs, outputs, bias=False)


def main() -> None:
    print(f"\n{time.strftime('%Y-%m-%d')}, {describe_machine()}, mlx {mx.__version__}, commit {commit()}\n")
    print(
        "| error of a layer's output (normal weights, bfloat16) | 8 bits | 6 | 4 | 3 |\n|---|---|---|---|---|"
    )
    for name, (inputs, outputs) in LAYERS.items():
        errors = [f"{layer_error(inputs, outputs, bits):.2%}" for bits in BITS]
        print(f"| {name}, {inputs} to {outputs} | {' | '.join(errors)} |", flush=True)
    sizes = [f"{bits_per_weight(bits):.1f}" for bits in BITS]
    print(f"| bits per weight, scales included | {' | '.join(sizes)} |")
    print("\n| mini model, 256 x 256, 8 steps | transformer's file | mean difference of the picture | PSNR |")
    print("|---|---|---|---|")
    exact = picture(load_backend("mlx", dtype="bfloat16"))
    for bits in BITS:
        with tempfile.TemporaryDirectory() as scratch:
            save_quantised(locate(), Path(scratch) / "saved", bits)
            size = (Path(scratch) / "saved/base/transformer/model.safetensors").stat().st_size
        error = picture(load_backend("mlx", dtype="bfloat16", quantize=bits)) - exact
        psnr = -10 * math.log10(np.square(error).mean())
        print(
            f"| {bits} bits | {size / 1e3:.0f} kB | {np.abs(error).mean() * 255:.2f} of 255 | {psnr:.1f} dB |"
        )


def layer_error(inputs: int, outputs: int, bits: int) -> float:
    weight = mx.random.normal((outputs, inputs)).astype(mx.bfloat16) / math.sqrt(inputs)
    x = mx.random.normal((8, inputs)).astype(mx.bfloat16)
    holder = quantise_layers(Holder(inputs, outputs), bits)
    load_weights(holder, {"block.weight": np.array(weight.astype(mx.float32))}, mx.bfloat16)
    exact = x.astype(mx.float32) @ weight.astype(mx.float32).T
    error = holder.block(x).astype(mx.float32) - exact
    return (mx.linalg.norm(error) / mx.linalg.norm(exact)).item()


def bits_per_weight(bits: int) -> float:
    layer = nn.QuantizedLinear(4096, 64, bias=False, bits=bits)
    return (layer.weight.nbytes * 8 + 2 * layer.scales.size * 16) / (4096 * 64)


def picture(backend) -> np.ndarray:
    embedding = np.random.default_rng(0).standard_normal(192)  # the mini model's face encoder
    request = GenerationRequest("A man", id_embedding=embedding, width=256, height=256, seed=1, num_steps=8)
    return generate(request, backend).pixels[0]


if __name__ == "__main__":
    main()
