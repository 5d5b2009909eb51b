"""A model of any size with random weights in the released layout, for benchmarks and tests.

`python -m benchmarks.random_model infu/mini` made the mini model's first edition: untrained.
"""

import json
import shutil
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from backends.pytorch.projection import Projection

TOKENIZERS = Path(__file__).parents[1] / "infu" / "mini" / "base"  # small vocabularies, made for this project
SCHEDULER = {  # FLUX.1-dev's
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


@dataclass(frozen=True)
class Sizes:
    """Widths and depths. The defaults are the mini model's."""

    heads: int = 4
    head: int = 16
    rope: tuple[int, int, int] = (4, 6, 6)
    doubles: int = 3
    singles: int = 6
    infuse_doubles: int = 1
    infuse_singles: int = 2
    joint: int = 48  # T5's width
    pooled: int = 32  # CLIP's width
    t5_layers: int = 2
    t5_hidden: int = 96
    clip_layers: int = 2
    vae: tuple[int, ...] = (16, 16, 32, 32)
    embedding: int = 192  # the embedded recogniser's
    projection: int = 64
    dtype: torch.dtype = torch.bfloat16


MINI = Sizes()
MIDDLE = replace(  # performance.md's "bench config": large enough that networks, not Python, take the time
    MINI,
    heads=6,
    head=64,
    rope=(16, 24, 24),
    doubles=4,
    singles=8,
    joint=512,
    pooled=128,
    t5_layers=6,
    t5_hidden=1280,
    clip_layers=4,
    vae=(32, 64, 64, 64),
    projection=256,
    dtype=torch.float32,
)


def make_model(
    folder: Path, sizes: Sizes = MINI, seed: int = 0, versions=("aes_stage2", "sim_stage1")
) -> None:
    """Write `folder/base` and `folder/InfiniteYou`; `folder/base` may be the one the tokenizers are in."""
    torch.manual_seed(seed)
    base, release = folder / "base", folder / "InfiniteYou" / "infu_flux_v1.0"
    flux = dict(
        num_layers=sizes.doubles,
        num_single_layers=sizes.singles,
        attention_head_dim=sizes.head,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.joint,
        pooled_projection_dim=sizes.pooled,
        guidance_embeds=True,
        axes_dims_rope=sizes.rope,
    )
    transformer = FluxTransformer2DModel(**flux)
    save_network(transformer, base / "transformer", sizes.dtype)
    vae = make_vae(sizes)
    save_network(vae, base / "vae", sizes.dtype)
    save_json(base / "vae" / "latent_colours.json", fit_colours(vae))
    save_texts(base, sizes)
    for version in versions:
        with warnings.catch_warnings():  # diffusers 0.42 warns about an import of its own
            warnings.simplefilter("ignore", FutureWarning)
            depth = dict(num_layers=sizes.infuse_doubles, num_single_layers=sizes.infuse_singles)
            network = FluxControlNetModel(**(flux | depth))
        for layer in (
            *network.controlnet_blocks,
            *network.controlnet_single_blocks,
            network.controlnet_x_embedder,
        ):
            layer.reset_parameters()  # diffusers starts them at zero, which would do nothing
        save_network(network, release / version / "InfuseNetModel", sizes.dtype)
        save_projection(release / version / "image_proj_model.bin", sizes)
    save_supports(folder / "InfiniteYou" / "supports", transformer)


def make_vae(sizes: Sizes) -> nn.Module:
    n = len(sizes.vae)
    return AutoencoderKL(
        block_out_channels=sizes.vae,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def save_texts(base: Path, sizes: Sizes) -> None:
    """Text encoders, tokenizers and scheduler."""
    for name in ("tokenizer", "tokenizer_2"):
        if base.resolve() != TOKENIZERS:
            shutil.copytree(TOKENIZERS / name, base / name, dirs_exist_ok=True)
    clip_vocabulary = json.loads((base / "tokenizer" / "vocab.json").read_text())
    t5_vocabulary = json.loads((base / "tokenizer_2" / "tokenizer.json").read_text())["model"]["vocab"]
    clip = CLIPTextConfig(
        vocab_size=len(clip_vocabulary),
        hidden_size=sizes.pooled,
        intermediate_size=2 * sizes.pooled,
        projection_dim=sizes.pooled,
        num_hidden_layers=sizes.clip_layers,
        num_attention_heads=4,
        bos_token_id=clip_vocabulary["<|startoftext|>"],
        eos_token_id=clip_vocabulary["<|endoftext|>"],
    )
    t5 = T5Config(
        vocab_size=len(t5_vocabulary),
        d_model=sizes.joint,
        d_ff=sizes.t5_hidden,
        d_kv=sizes.joint // 4,
        num_heads=4,
        num_layers=sizes.t5_layers,
        feed_forward_proj="gated-gelu",
    )
    save_network(CLIPTextModel(clip), base / "text_encoder", sizes.dtype, "text_model.")
    save_network(T5EncoderModel(t5), base / "text_encoder_2", sizes.dtype)
    save_json(base / "scheduler" / "scheduler_config.json", SCHEDULER)
    save_json(base / "model_index.json", {"_class_name": "FluxPipeline"})
    save_json(base / "generation_defaults.json", {"width": 320, "height": 416, "num_steps": 20})


def save_network(network: nn.Module, folder: Path, dtype: torch.dtype, prefix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = network.config
    values = (
        config.to_dict() if hasattr(config, "to_dict") else {k: v for k, v in config.items() if k[0] != "_"}
    )
    save_json(folder / "config.json", values)
    state = {prefix + name: tensor.to(dtype).contiguous() for name, tensor in network.named_parameters()}
    name = (
        "model" if hasattr(config, "to_dict") else "diffusion_pytorch_model"
    )  # transformers' and diffusers' names
    save_file(state, folder / f"{name}.safetensors", metadata={"format": "pt"})


def save_projection(path: Path, sizes: Sizes) -> None:
    width, inner = sizes.projection, 64
    shapes = {
        "proj_in.weight": (width, sizes.embedding),
        "latents": (1, 8, width),
        "proj_out.weight": (sizes.joint, width),
        "layers.0.0.to_q.weight": (inner, width),
        "layers.0.1.1.weight": (4 * width, width),
        "layers.1.": (),
    }
    projection = Projection(shapes)
    nn.init.normal_(projection.latents, std=width**-0.5)
    torch.save({"image_proj": projection.state_dict()}, path)


def save_supports(folder: Path, transformer: nn.Module) -> None:
    """Which faces it was made for, and the two optional LoRAs, random and weak."""
    save_json(folder / "face_stack.json", {"stack": "embedded"})
    layers = {name: layer for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
    shapes = {name: layer.weight.shape for name, layer in layers.items() if ".attn.to_" in name}
    for name in ("realism", "anti_blur"):
        state: dict[str, Tensor] = {}
        for module, (out, columns) in shapes.items():
            state[f"transformer.{module}.lora_A.weight"] = torch.randn(4, columns) * columns**-0.5
            state[f"transformer.{module}.lora_B.weight"] = torch.randn(out, 4) * 0.1
        (folder / "optional_loras").mkdir(parents=True, exist_ok=True)
        state = {key: tensor.to(torch.bfloat16) for key, tensor in state.items()}
        save_file(state, folder / "optional_loras" / f"flux_{name}_lora.safetensors")


@torch.no_grad()
def fit_colours(vae: nn.Module) -> dict[str, list]:
    """The linear map from a latent pixel to its picture's mean colour, by least squares on random latents."""
    latents = torch.randn(8, 16, 16, 16)
    pictures = vae.decode(
        latents / vae.config.scaling_factor + vae.config.shift_factor
    ).sample  # (8, 3, 128, 128)
    colours = nn.functional.avg_pool2d(pictures, 8).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    rows = latents.permute(0, 2, 3, 1).reshape(-1, 16).numpy()
    solution = np.linalg.lstsq(np.c_[rows, np.ones(len(rows))], colours, rcond=None)[0]
    return {"factors": solution[:16].round(4).tolist(), "bias": solution[16].round(4).tolist()}


def save_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
