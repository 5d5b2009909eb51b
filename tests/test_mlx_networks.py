"""Every MLX network against diffusers or transformers on the same random weights, in float32."""

import json
import math
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel
from mlx.utils import tree_flatten
from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel
from transformers import T5Config as HFT5Config

from backends.mlx import clip, dit, infusenet, projection, t5, vae
from backends.mlx.load import (
    find_places,
    load_projection,
    load_vae,
    load_weights,
    read_config,
    to_array,
)
from infu.errors import BrokenFile
from infu.flow import Scheduler, make_sigmas
from infu.hooks import NOTHING, Additions

MANIFESTS = Path(__file__).parent / "manifests"
GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5  # of the largest number: float32 sums in two orders; a wrong eps alone gives more than that

SMALL = dit.FluxConfig(
    in_channels=64,
    num_layers=3,
    num_single_layers=4,
    attention_head_dim=16,
    num_attention_heads=3,
    joint_attention_dim=40,
    pooled_projection_dim=24,
    guidance_embeds=True,
    axes_dims_rope=(4, 6, 6),
)
SCHNELL = dit.FluxConfig(**{**vars(SMALL), "guidance_embeds": False, "num_layers": 1, "num_single_layers": 2})
FLUX_SHIFT = Scheduler(True, 3.0, 0.5, 1.15, 256, 4096)


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that matter everywhere, also where diffusers starts at 0 or 1 (biases, norms, last layers)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight") or "norm" in name and parameter.ndim == 1 and "weight" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
                parameter.copy_(noise / math.sqrt(fan_in))
    return module.eval()


QUIET = ("to_q", "to_k", "add_q_proj", "add_k_proj", "x_embedder", "context_embedder")


def quiet_before_norms(module: torch.nn.Module) -> torch.nn.Module:
    """Numbers near 0.05 before the first norms: there an eps of 1e-5 in place of 1e-6 shows."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(part in QUIET for part in name.split(".")):
                parameter.mul_(0.03)
    return module


def assert_close(got: mx.array, expected: np.ndarray | torch.Tensor | mx.array) -> None:
    got, expected = (x.numpy() if isinstance(x, torch.Tensor) else np.array(x) for x in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def randn(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def flux_kwargs(config: dit.FluxConfig) -> dict:
    return {**vars(config), "patch_size": 1}


def ids_of(num_text: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = height // 16, width // 16
    img_ids = torch.zeros(rows, columns, 3)
    img_ids[..., 1] += torch.arange(rows)[:, None]
    img_ids[..., 2] += torch.arange(columns)
    return torch.zeros(num_text, 3), img_ids.reshape(-1, 3)


SIZES = [
    (48, 80, 7, 1),
    (96, 64, 8, 2),
    (16, 16, 1, 1),
    (80, 112, 33, 2),
]  # width, height, text tokens, batch


@pytest.mark.parametrize("width, height, num_text, batch", SIZES)
@pytest.mark.parametrize("config", [SMALL, SCHNELL], ids=["dev", "schnell"])
@pytest.mark.parametrize("samples", [(0, 0), (2, 3)], ids=["plain", "residuals"])
def test_dit_is_diffusers_at_every_step(config, samples, width, height, num_text, batch):
    theirs = quiet_before_norms(randomised(FluxTransformer2DModel(**flux_kwargs(config))))
    ours = load_weights(dit.DiT(config), state(theirs), mx.float32)
    L = width // 16 * (height // 16)
    latents, states = randn(batch, L, 64), randn(batch, num_text, config.joint_attention_dim, seed=2)
    pooled = randn(batch, config.pooled_projection_dim, seed=3)
    doubles = [randn(batch, L, config.width, seed=10 + i) for i in range(samples[0])]
    singles = [randn(batch, L, config.width, seed=20 + i) for i in range(samples[1])]
    sigmas = make_sigmas(3, L, FLUX_SHIFT)

    constants = dit.make_constants(ours, sigmas, width, height, mx.array(states), mx.array(pooled), 3.5)
    residuals = dit.Residuals([mx.array(x) for x in doubles], [mx.array(x) for x in singles])
    additions = Additions(residuals=(residuals,))
    txt_ids, img_ids = ids_of(num_text, width, height)
    for step, sigma in enumerate(sigmas[:-1]):
        with torch.inference_mode():
            expected = theirs(
                hidden_states=torch.from_numpy(latents),
                encoder_hidden_states=torch.from_numpy(states),
                pooled_projections=torch.from_numpy(pooled),
                timestep=torch.full((batch,), sigma * 1000) / 1000,
                guidance=torch.full((batch,), 3.5) if config.guidance_embeds else None,
                txt_ids=txt_ids,
                img_ids=img_ids,
                controlnet_block_samples=[torch.from_numpy(x) for x in doubles] or None,
                controlnet_single_block_samples=[torch.from_numpy(x) for x in singles] or None,
            ).sample
        velocity = ours(mx.array(latents), constants.at(step), additions if samples[0] else NOTHING)
        assert_close(velocity, expected)


def test_residual_of_a_block_follows_the_released_rule():
    shares = [dit.sample_for(range(4), i, 19) for i in range(19)]
    assert shares == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 4  # formats.md: doubles 0-4, 5-9, 10-14, 15-18
    assert [dit.sample_for(range(10), i, 38) for i in range(38)] == [i // 4 for i in range(38)]
    assert [dit.sample_for(range(6), i, 19) for i in range(19)] == [
        i // 4 for i in range(19)
    ]  # the sixth: never


@pytest.mark.filterwarnings(
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning"
)  # diffusers' own import of it
@pytest.mark.parametrize("width, height, num_text, batch", SIZES)
def test_infusenet_is_diffusers(width, height, num_text, batch):
    config = SMALL
    theirs = quiet_before_norms(randomised(FluxControlNetModel(**flux_kwargs(config))))
    ours = load_weights(infusenet.InfuseNet(config), state(theirs), mx.float32)
    L = width // 16 * (height // 16)
    latents, control = randn(batch, L, 64), randn(batch, L, 64, seed=4)
    identity = randn(batch, num_text, config.joint_attention_dim, seed=2)
    pooled = randn(batch, config.pooled_projection_dim, seed=3)
    txt_ids, img_ids = ids_of(num_text, width, height)
    with torch.inference_mode():
        doubles, singles = theirs(
            hidden_states=torch.from_numpy(latents),
            controlnet_cond=torch.from_numpy(control),
            encoder_hidden_states=torch.from_numpy(identity),
            pooled_projections=torch.from_numpy(pooled),
            timestep=torch.full((batch,), 0.7),
            guidance=torch.ones(batch),
            txt_ids=txt_ids,
            img_ids=img_ids,
            conditioning_scale=0.8,
            return_dict=False,
        )
    arrays = [mx.array(x) for x in (identity, pooled, control)]
    constants = infusenet.make_infuse_constants(ours, [0.7, 0.0], width, height, *arrays)
    residuals = ours(mx.array(latents), constants.at(0), 0.8)
    assert (len(residuals.doubles), len(residuals.singles)) == (3, 4)
    for got, expected in zip([*residuals.doubles, *residuals.singles], [*doubles, *singles], strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("sigma", [1.0, 0.9372, 0.5, 0.031])
def test_bfloat16_timesteps_are_rounded_as_released(sigma):
    """Cast, divided and multiplied again in bfloat16: 0.031 becomes another timestep than 31."""
    rounded = (
        torch.tensor(sigma * 1000).bfloat16() / 1000
    )  # the released pipeline; * 1000 is diffusers' network
    expected = (rounded * 1000).float().item()
    assert dit.scaled_timesteps([sigma], mx.bfloat16).astype(mx.float32).item() == expected


VAES = {
    "golden": json.loads((GOLDEN / "base/vae/config.json").read_text()),
    "three levels": {"block_out_channels": [12, 24, 36], "layers_per_block": 2, "norm_num_groups": 6},
}


def make_vae(kind: str) -> tuple[AutoencoderKL, vae.VAE]:
    values = {**VAES["golden"], **VAES[kind]}
    for name, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        values[name] = [block] * len(values["block_out_channels"])
    theirs = randomised(AutoencoderKL.from_config(values))
    config = vae.VAEConfig(**{name: values[name] for name in vae.VAEConfig.__dataclass_fields__})
    return theirs, load_weights(vae.VAE(config), state(theirs), mx.float32)


@pytest.mark.parametrize("kind", VAES)
@pytest.mark.parametrize("width, height, batch", [(48, 80, 1), (16, 16, 2), (112, 48, 2)])
def test_vae_is_diffusers_both_ways(kind, width, height, batch):
    theirs, ours = make_vae(kind)
    scaling, shift = ours.config.scaling_factor, ours.config.shift_factor
    pixels = np.clip(randn(batch, 3, height, width), -1, 1)
    with torch.inference_mode():
        mean = theirs.encode(torch.from_numpy(pixels)).latent_dist.mean
        expected = ((mean - shift) * scaling).permute(0, 2, 3, 1)
        decoded = theirs.decode(mean).sample.permute(0, 2, 3, 1)
    latents = ours.encode(mx.array(pixels.transpose(0, 2, 3, 1)))
    assert_close(latents, expected)
    assert_close(ours.decode(mx.array(expected.numpy())), decoded)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("max_band", [1, 16 * 64, 24 * 64])  # 1, 2 or 3 of 10 latent rows, 64 pixels wide
def test_vae_in_bands_makes_the_same_picture_to_the_bit(max_band, dtype):
    """On a CPU. Where convolutions of another height round otherwise, that rounding remains, and no seam."""
    folder = GOLDEN / "base/vae"
    ours = load_vae(folder, folder, dtype)
    pixels = mx.array(np.clip(randn(1, 80, 64, 3), -1, 1))
    latents = mx.array(randn(1, 10, 8, 16))
    assert mx.array_equal(ours.decode(latents, max_band), ours.decode(latents))
    assert mx.array_equal(ours.encode(pixels, max_band), ours.encode(pixels))


def test_vae_attention_in_parts_is_the_whole(monkeypatch):
    _, ours = make_vae("golden")
    latents = mx.array(randn(1, 9, 7, 16))
    whole = ours.decode(latents)
    monkeypatch.setattr(vae, "MAX_SCORES", 10 * 63)  # ten queries at a time
    assert_close(ours.decode(latents), whole)


@pytest.mark.parametrize("length, batch", [(1, 1), (17, 2), (160, 1), (512, 1)])
def test_t5_is_transformers(length, batch):
    values = json.loads((GOLDEN / "base/text_encoder_2/config.json").read_text())
    theirs = randomised(T5EncoderModel(HFT5Config(**values)))
    with torch.no_grad():
        theirs.shared.weight.mul_(3)
        for block in theirs.encoder.block:  # T5 does not scale its scores: its queries are born small instead
            block.layer[0].SelfAttention.q.weight.mul_(values["d_kv"] ** -0.5)
    config = read_config(t5.T5Config, GOLDEN / "base/text_encoder_2/config.json")
    ours = load_weights(t5.T5(config), state(theirs), mx.float32, t5.TIED)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, length))
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
    assert_close(ours(mx.array(ids)), expected)


@pytest.mark.parametrize("names", [["shared.weight"], ["encoder.embed_tokens.weight"]])
def test_t5_embedding_may_have_either_name(names):
    config = read_config(t5.T5Config, GOLDEN / "base/text_encoder_2/config.json")
    weights = random_weights(t5.T5(config))
    table = weights.pop("shared.weight")
    ours = load_weights(t5.T5(config), {**weights, **dict.fromkeys(names, table)}, mx.float32, t5.TIED)
    np.testing.assert_array_equal(np.array(ours.shared.weight), table)


def test_t5_keeps_its_residual_stream_in_float32():
    """Growing to 2e4 and back: bfloat16 there would leave nothing of the small difference at the end."""
    config = read_config(t5.T5Config, GOLDEN / "base/text_encoder_2/config.json")
    weights = random_weights(t5.T5(config))
    ids = mx.array(np.arange(12)[None])
    exact = load_weights(t5.T5(config), weights, mx.float32, t5.TIED)(ids)
    half = load_weights(t5.T5(config), weights, mx.bfloat16, t5.TIED)
    assert (
        half.encoder.block[0](half.shared(ids).astype(mx.float32), mx.zeros((4, 12, 12))).dtype == mx.float32
    )
    error = np.abs(np.array(half(ids) - exact)).mean() / np.abs(np.array(exact)).mean()
    assert error < 0.01  # 3 layers of weights rounded to 8 bits (2^-9 each)


@pytest.mark.parametrize("eos, act", [(2, "quick_gelu"), (49, "quick_gelu"), (49, "gelu")])
@pytest.mark.parametrize("length", [77, 9])
def test_clip_is_transformers(eos, act, length):
    values = json.loads((GOLDEN / "base/text_encoder/config.json").read_text())
    values |= {"eos_token_id": eos, "hidden_act": act, "vocab_size": 50}
    theirs = randomised(CLIPTextModel(CLIPTextConfig(**values)))
    config = clip.CLIPConfig(**{name: values[name] for name in clip.CLIPConfig.__dataclass_fields__})
    weights = {
        f"text_model.{name}": value for name, value in state(theirs).items()
    }  # transformers 5 dropped it
    ours = load_weights(clip.CLIP(config), weights, mx.float32)
    ids = np.random.default_rng(0).integers(3, 49, (2, length))
    ids[0, 4:], ids[1, 7:] = 49, 49  # padding is the end token: the first one counts
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(ids)).pooler_output.numpy()
    assert_close(ours(mx.array(ids)), expected)


def test_projection_makes_the_golden_tokens():
    golden = np.load(GOLDEN / "plain.npz")
    ours = load_projection(GOLDEN / "InfiniteYou/infu_flux_v1.0/aes_stage2/image_proj_model.bin", mx.float32)
    tokens = ours(mx.array(golden["embedding"][None]))
    assert_close(tokens, golden["tokens"])


def test_projection_of_several_faces_is_each_alone():
    shapes = {name: shape for name, shape in json.loads((MANIFESTS / "image_proj.json").read_text()).items()}
    shapes = {name: [min(n, 128) if n > 8 else n for n in shape] for name, shape in shapes.items()}
    shapes |= {name: [256, 128] for name in shapes if name.endswith("to_kv.weight")}
    weights = {name: randn(*shape, seed=i) / 8 for i, (name, shape) in enumerate(shapes.items())}
    ours = load_weights(projection.Projection(shapes), weights, mx.float32)
    faces = mx.array(randn(2, 128))
    together = ours(faces)
    assert together.shape == (2, 8, 128)
    assert_close(together[1], ours(faces[1:])[0])


FLUX_DEV = dit.FluxConfig(64, 19, 38, 128, 24, 4096, 768, True, (16, 56, 56))
FULL_SIZE = {  # the released config.json of each
    "flux1_dev_transformer": lambda shapes: dit.DiT(FLUX_DEV),
    "flux1_schnell_transformer": lambda shapes: dit.DiT(
        dit.FluxConfig(64, 19, 38, 128, 24, 4096, 768, False, ())
    ),
    "infusenet": lambda shapes: infusenet.InfuseNet(dit.FluxConfig(64, 4, 10, 128, 24, 4096, 768, True, ())),
    "image_proj": projection.Projection,
    "vae": lambda shapes: vae.VAE(vae.VAEConfig(3, 3, 16, (128, 256, 512, 512), 2, 32, 0.3611, 0.1159)),
    "clip_l": lambda shapes: clip.CLIP(clip.CLIPConfig(49408, 768, 3072, 12, 12, 77, 1e-5, "quick_gelu", 2)),
    "t5_xxl": lambda shapes: t5.T5(t5.T5Config(32128, 4096, 64, 10240, 24, 64, 32, 128, 1e-6)),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_released_layout_is_met_at_full_size_without_memory(name):
    manifest = {
        key: tuple(shape) for key, shape in json.loads((MANIFESTS / f"{name}.json").read_text()).items()
    }
    before = mx.get_active_memory()
    network = FULL_SIZE[name](manifest)
    places = {key: place.shape for key, place in find_places(network).items()}
    if name == "t5_xxl":
        manifest.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    assert places == manifest
    assert mx.get_active_memory() - before < 20e6  # the largest has 24e9 bytes


def random_weights(network) -> dict[str, np.ndarray]:
    places = find_places(network)
    return {
        name: randn(*place.shape, seed=i) / math.sqrt(place.shape[-1])
        for i, (name, place) in enumerate(places.items())
    }


def test_every_fault_of_a_file_is_named_at_once_and_folded():
    weights = random_weights(dit.DiT(SMALL))
    for block in range(3):
        del weights[f"transformer_blocks.{block}.attn.to_q.weight"]
    weights["single_transformer_blocks.1.proj_mlp.bias"] = randn(7)
    weights["distilled_guidance_layer.weight"] = randn(3, 3)
    with pytest.raises(BrokenFile) as fault:
        load_weights(dit.DiT(SMALL), weights, mx.float32)
    message = str(fault.value)
    assert "missing transformer_blocks.{0...2}.attn.to_q.weight" in message
    assert "not known distilled_guidance_layer.weight" in message
    assert "of another shape single_transformer_blocks.1.proj_mlp.bias" in message


@pytest.mark.parametrize(
    "stored", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float16, ml_dtypes.bfloat16]
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_narrow_files_are_cast_on_load(stored, dtype):
    exact = random_weights(infusenet.InfuseNet(SMALL))
    narrow = {name: array.astype(stored) for name, array in exact.items()}
    network = load_weights(infusenet.InfuseNet(SMALL), narrow, dtype)
    for name, array in tree_flatten(network.parameters()):
        assert array.dtype == dtype
        if array.ndim < 4:
            expected = mx.array(narrow[name].astype(np.float32)).astype(dtype)
            assert mx.array_equal(array, expected), name


def test_all_256_values_of_both_kinds_of_fp8_are_read():
    bits = np.arange(256, dtype=np.uint8)
    for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        values = bits.view(kind)
        got = np.array(to_array(values).astype(mx.float32))
        np.testing.assert_array_equal(got, values.astype(np.float32))
