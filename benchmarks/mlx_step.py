"""A step of our MLX networks against mflux 0.24's, same random weights: `python -m benchmarks.mlx_step`.

Wants `pip install --no-deps mflux==0.24.0 platformdirs` beside `mlx[cpu]`. FLUX's width, 1 + 2 blocks, 16
image and 16 text tokens, bfloat16; both in one process, alternating; the median of the pairs' ratios. torch's
float32 step of diffusers' network is for information. Prints the table that stands in docs/measurements.md.
"""

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from backends.mlx import dit, infusenet
from benchmarks.pipeline import commit, describe_machine, row, timed

SIZES = dict(
    attention_head_dim=128, num_attention_heads=24, joint_attention_dim=4096, pooled_projection_dim=768
)
CONFIG = dit.FluxConfig(
    in_channels=64,
    num_layers=1,
    num_single_layers=2,
    guidance_embeds=True,
    axes_dims_rope=(16, 56, 56),
    **SIZES,
)
WIDTH = HEIGHT = 64  # 16 image tokens
TEXT, IDENTITY, STEPS = 16, 8, 30
SIGMAS = [1 - i / STEPS for i in range(STEPS)] + [0.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    network, side = randomised(dit.DiT(CONFIG)), randomised(infusenet.InfuseNet(CONFIG))
    states, identity = normal(1, TEXT, 4096), normal(1, IDENTITY, 4096)
    pooled, latents, control = normal(1, 768), normal(1, 16, 64), normal(1, 16, 64)

    make = lambda: dit.make_constants(network, SIGMAS, WIDTH, HEIGHT, states, pooled, 3.5)  # noqa: E731
    constants = make()
    side_constants = infusenet.make_infuse_constants(side, SIGMAS, WIDTH, HEIGHT, identity, pooled, control)
    mx.eval(constants, side_constants)
    velocity, infuse = (
        mx.compile(lambda *inputs: network(*inputs)),
        mx.compile(lambda *inputs: side(*inputs, 1.0)),
    )
    runs = {
        "ours": lambda: velocity(latents, constants.at(3)),
        "mflux": mflux_step(network, latents, states, pooled, step=3),
        "constants": make,
        "infuse": lambda: infuse(latents, side_constants.at(3)),
    }
    difference = relative(runs["ours"](), runs["mflux"]())
    mx.reset_peak_memory()
    mx.eval(runs["ours"]())
    peak, weights = mx.get_peak_memory(), sum(nbytes(net) for net in (network, side))
    times = {name: [] for name in (*runs, "picture")}
    for pair in range(pairs + 1):  # the first one warms up
        for name, run in runs.items():
            seconds = timed(lambda run=run: mx.eval(run()))
            times[name] += [seconds] if pair else []
    times["picture"] = [a + b / STEPS for a, b in zip(times["ours"], times["constants"], strict=True)]
    print(f"\n{time.strftime('%Y-%m-%d')}, {describe_machine()}, mlx {mx.__version__},", end=" ")
    print(f"commit {commit()}, {pairs} pairs\n")
    print("| 1 + 2 blocks, 16 + 16 tokens, bfloat16 | ours | against | ratio |\n|---|---|---|---|")
    products = f"{infuse_share():.2f}"
    torch_times = torch_step(network, latents, states, pooled, pairs)
    rows = [
        (f"a step with its 1/{STEPS} of the picture's constants; mflux", times["picture"], times["mflux"]),
        ("a step alone; mflux", times["ours"], times["mflux"]),
        (f"InfuseNet's step; the DiT's ({products} by its products)", times["infuse"], times["ours"]),
        ("a step; diffusers in torch, float32", times["ours"], torch_times),
    ]
    for what, ours, against in rows:
        print("| " + " | ".join(row(what, ours, against)) + " |")
    sizes = f"{peak / 1e6:.0f} MB | {weights / 1e6:.0f} MB | {peak / weights:.2f}"
    print(f"| peak memory of a step; the weights of both networks | {sizes} |")
    print(f"\nThe velocities differ by {difference:.1e} (mflux has another GELU and norm eps).")


def normal(*shape: int) -> mx.array:
    return mx.random.normal(shape).astype(mx.bfloat16)


def randomised(network: nn.Module) -> nn.Module:
    """Weights about as large as trained ones are, bfloat16."""
    weights = []
    for name, array in tree_flatten(network.parameters()):
        values = mx.random.normal(array.shape) * (0.5 / array.shape[-1] ** 0.5 if array.ndim > 1 else 0.1)
        is_norm = array.shape == (CONFIG.attention_head_dim,)
        weights.append((name, (values + 1 if is_norm else values).astype(mx.bfloat16)))
    network.update(tree_unflatten(weights))
    mx.eval(network.parameters())
    return network


def mflux_step(network: dit.DiT, latents, states, pooled, step: int) -> Callable[[], mx.array]:
    """mflux's network on the very arrays of ours."""
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.models.flux.model.flux_transformer.transformer import Transformer

    theirs = Transformer(ModelConfig.dev(), CONFIG.num_layers, CONFIG.num_single_layers)
    names = {"net.0.proj": "linear1", "net.2": "linear2"}
    weights = []
    for name, array in tree_flatten(network.parameters()):
        for ours, other in names.items():
            name = name.replace(ours, other)
        weights.append((name, array))
    theirs.load_weights(weights)
    config = SimpleNamespace(
        scheduler=SimpleNamespace(sigmas=mx.array(SIGMAS)),
        num_train_steps=1000,
        guidance=3.5,
        precision=mx.bfloat16,
        width=WIDTH,
        height=HEIGHT,
    )
    return lambda: theirs(step, config, latents, states, pooled)


def torch_step(network: dit.DiT, latents, states, pooled, pairs: int) -> list[float]:
    """Seconds of diffusers' network on the same weights in float32."""
    import numpy as np
    import torch
    from diffusers import FluxTransformer2DModel

    to_torch = lambda array: torch.from_numpy(np.array(array.astype(mx.float32)))  # noqa: E731
    with torch.device("meta"):
        theirs = FluxTransformer2DModel(**{**vars(CONFIG), "patch_size": 1})
    weights = {name: to_torch(array) for name, array in tree_flatten(network.parameters())}
    theirs.load_state_dict(weights, assign=True)
    ids = torch.zeros(16, 3)
    ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    inputs = dict(hidden_states=to_torch(latents), encoder_hidden_states=to_torch(states), img_ids=ids)
    inputs |= dict(pooled_projections=to_torch(pooled), txt_ids=torch.zeros(TEXT, 3))
    inputs |= dict(timestep=torch.tensor([SIGMAS[3]]), guidance=torch.tensor([3.5]))
    with torch.inference_mode():
        return [timed(lambda: theirs(**inputs)) for _ in range(pairs + 1)][1:]


def infuse_share() -> float:
    """InfuseNet's products of matrices over the DiT's, in a step: 8 tokens in place of the text, and a layer
    more for every block. Counted in tokens times D squared; every kind of block has 12."""
    image, depth = WIDTH * HEIGHT // 256, CONFIG.num_layers + CONFIG.num_single_layers
    return (12 * (image + IDENTITY) * depth + image * depth) / (12 * (image + TEXT) * depth)


def relative(x: mx.array, y: mx.array) -> float:
    x, y = x.astype(mx.float32), y.astype(mx.float32)
    return (mx.linalg.norm(x - y) / mx.linalg.norm(y)).item()


def nbytes(network: nn.Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(network.parameters()))


if __name__ == "__main__":
    main()
