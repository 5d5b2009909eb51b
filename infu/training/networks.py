"""The networks that train: InfuseNet, or a ControlNet, made from the base's own blocks, the projection; and
the folders they are saved to, in InfiniteYou's released layout, or in that of diffusers' ControlNets."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from backends.pytorch.load import build_infusenet, load_network, load_projection
from backends.pytorch.projection import HEAD, Projection
from infu.models import APPEARANCE, RELEASE
from infu.whole import write_whole

COPIED = ("x_embedder.", "context_embedder.", "time_text_embed.")  # what stands before the blocks
SHARED = (  # of the base's config, InfuseNet has the same
    "patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
    "pooled_projection_dim", "guidance_embeds", "axes_dims_rope",
)  # fmt: skip


def make_infusenet(base: nn.Module, blocks_per_residual: tuple[int, int]) -> nn.Module:
    """InfuseNet beside `base` (a FluxTransformer2DModel), float32, on the CPU, its outputs zero.

    `blocks_per_residual`: how many double and how many single blocks of the base share one residual, the
    paper's multiplication factor i: InfuseNet has ceil(blocks / i) of each, none where i is 0. Block j starts
    as the first of those that it will serve.
    """
    depths = (base.config.num_layers, base.config.num_single_layers)
    shares = zip(depths, blocks_per_residual, strict=True)
    counts = [math.ceil(depth / share) if share else 0 for depth, share in shares]
    config = {name: base.config[name] for name in SHARED}
    network = build_infusenet(config | {"num_layers": counts[0], "num_single_layers": counts[1]})
    sources = dict(base.state_dict())
    state = {name: tensor for name, tensor in sources.items() if name.startswith(COPIED)}
    kinds = ("transformer_blocks", "single_transformer_blocks")
    for kind, depth, count in zip(kinds, depths, counts, strict=True):
        for j in range(count):
            group = math.ceil(depth / count)
            start = f"{kind}.{j * group}."
            block = {name: tensor for name, tensor in sources.items() if name.startswith(start)}
            state |= {f"{kind}.{j}.{name.removeprefix(start)}": tensor for name, tensor in block.items()}
    missing, unknown = network.load_state_dict(state, strict=False)
    assert not unknown and all(name.startswith("controlnet_") for name in missing), (missing, unknown)
    for module in (
        network.controlnet_x_embedder,
        *network.controlnet_blocks,
        *network.controlnet_single_blocks,
    ):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    if counts[1] == 0:  # nobody reads the last text: several processes would wait for gradients of its layers
        last = network.transformer_blocks[-1]
        for module in (last.attn.to_add_out, last.ff_context):
            module.requires_grad_(False)
    return network.float()


def make_projection(
    embedding_size: int, out: int, width: int, depth: int, num_heads: int, num_tokens: int, seed: int
) -> Projection:
    """An untrained projection, float32: embedding (B, E) -> identity tokens (B, num_tokens, out).

    Started as IP-Adapter's resampler is (tencent-ailab/IP-Adapter, `resampler.py`), its first layer aside.
    """
    inner, hidden = num_heads * HEAD, 4 * width
    shapes = {
        "latents": (1, num_tokens, width),
        "proj_in.weight": (width, embedding_size),
        "proj_out.weight": (out, width),
        "layers.0.0.to_q.weight": (inner, width),
        "layers.0.1.1.weight": (hidden, width),
        f"layers.{depth - 1}.0.to_out.weight": (width, inner),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = Projection(shapes)
        nn.init.normal_(projection.latents, std=width**-0.5)
        # A face has a vector of unit length, not of unit deviations. Started as usual, what tells people
        # apart drowns in the bias, and the first hundred steps unlearn it (measured on the mini base).
        nn.init.normal_(projection.proj_in.weight)
        nn.init.zeros_(projection.proj_in.bias)
    return projection


def load_trained(folder: Path) -> tuple[nn.Module, Projection]:
    """InfuseNet and projection of a version's folder, float32 and trainable: what stage 2 starts from."""
    path = folder / "InfuseNetModel"
    infusenet = load_network("infusenet", path, path, torch.float32, "cpu")
    projection = load_projection(folder / "image_proj_model.bin", torch.float32, "cpu")
    return infusenet.requires_grad_(True), projection.requires_grad_(True)


def save_release(
    model_dir: Path,
    version: str,
    state: Mapping[str, Tensor],
    config: Mapping[str, object],
    dtype: torch.dtype,
) -> None:
    """The state of an `InfuseLoss` -> `model_dir` in InfiniteYou's layout, each file whole or not at all.

    `config`: InfuseNet's. The released face encoder's files are the user's to put into `supports/`.
    """
    folder = model_dir / RELEASE / version
    save_side_network(folder / "InfuseNetModel", take_part(state, "infusenet", dtype), config)
    projection = take_part(state, "projection", dtype)
    write_whole(folder / "image_proj_model.bin", lambda path: torch.save({"image_proj": projection}, path))


def take_part(state: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one network, of the state of the loss that it trains in."""
    return {
        key.removeprefix(f"{name}."): value.detach().to("cpu", dtype).contiguous()
        for key, value in state.items()
        if key.startswith(f"{name}.")
    }


def save_side_network(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
    """InfuseNet or a ControlNet -> a folder of diffusers' `FluxControlNetModel`."""
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    text = json.dumps({"_class_name": "FluxControlNetModel"} | values, indent=2) + "\n"
    write_whole(folder / "config.json", lambda path: path.write_text(text))
    write_whole(
        folder / "diffusion_pytorch_model.safetensors",
        lambda path: save_file(dict(tensors), path, {"format": "pt"}),
    )


def save_embedded_faces(model_dir: Path, appearance: Path) -> None:
    """A file that says that the model was trained on the embedded recogniser's vectors, and the appearance
    part, where it was trained with one."""
    supports = model_dir / "supports"
    text = json.dumps({"stack": "embedded"}) + "\n"
    write_whole(supports / "face_stack.json", lambda path: path.write_text(text))
    if appearance.is_file():
        write_whole(supports / APPEARANCE, lambda path: shutil.copy(appearance, path))
