"""The PyTorch backend: sizes of the real model, precision, memory, and what a failure leaves behind."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden import FOLDERS, GOLDEN, PEFT, read_golden
from plugin_cases import read_case
from safetensors.torch import load_file, save_file

from backends import load_backend
from backends.pytorch import load
from backends.pytorch.projection import Projection
from backends.pytorch.quantise import quantize_linear
from benchmarks.plain_way import PlainWay
from infu import Cancelled, GenerationRequest, InfuError, Lora, generate
from infu.errors import BrokenFile, NonFiniteError, NotEnoughMemory

MANIFESTS = Path(__file__).parent / "manifests"
FLUX = {  # FLUX.1-dev's `transformer/config.json`
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
VAE = json.loads((GOLDEN / "base/vae/config.json").read_text()) | {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "vocab_size": 49408}
T5 = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
}
NETWORKS = {
    "flux1_dev_transformer": (load.build_transformer, FLUX),
    "flux1_schnell_transformer": (load.build_transformer, FLUX | {"guidance_embeds": False}),
    "infusenet": (load.build_infusenet, FLUX | {"num_layers": 4, "num_single_layers": 10}),
    "vae": (load.build_vae, VAE),
    "clip_l": (load.build_clip, CLIP),
    "t5_xxl": (load.build_t5, T5),
}


def read_manifest(name: str) -> dict[str, SimpleNamespace]:
    shapes = json.loads((MANIFESTS / f"{name}.json").read_text())
    return {tensor: SimpleNamespace(shape=tuple(shape)) for tensor, shape in shapes.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_released_files_fit_at_full_size_nothing_missing_nothing_left_over(name):
    build, config = NETWORKS[name]
    manifest = read_manifest(name)
    network = load.build_empty(build, config)
    places = load.match(network, manifest)
    assert all(p.device.type == "meta" for p in network.parameters())
    assert set(places.values()) | {load.T5_EMBEDDING} >= set(manifest)
    for change in ({"one.too.many": SimpleNamespace(shape=(1,))}, None):
        damaged = manifest | change if change else dict(list(manifest.items())[1:-1])
        with pytest.raises(BrokenFile, match="not known one.too.many" if change else "missing"):
            load.match(network, damaged)


def test_the_released_projection_fits_at_full_size():
    manifest = read_manifest("image_proj")
    network = load.build_empty(Projection, {name: tensor.shape for name, tensor in manifest.items()})
    assert set(load.match(network, manifest)) == set(manifest)


@pytest.fixture(scope="module")
def backend():
    return load_backend("pytorch", **FOLDERS, dtype="float32")


@pytest.fixture(scope="module")
def plain(backend):
    golden = read_golden("plain")
    return golden, generate(golden.request, backend, noise=golden.noise).pixels


# Precision.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_as_near_the_golden_picture_as_diffusers_own_forward(dtype):
    golden = read_golden("plain")
    backend = load_backend("pytorch", **FOLDERS, dtype=dtype)
    ours = generate(golden.request, backend, noise=golden.noise).pixels[0]
    theirs = PlainWay(backend).generate(golden.request, golden.arrays["control"], golden.noise)
    error, released = (np.abs(pixels - golden.image).mean() for pixels in (ours, theirs))
    assert released > 0 and error < 1.1 * released  # measured: 1.001 and 1.004; .024 and .00075 of 0..1


@pytest.mark.parametrize(("bits", "error"), [(8, 0.007), (4, 0.11)])
def test_quantised_layers_have_the_error_of_their_bits(bits, error):
    torch.manual_seed(0)
    weight, x = torch.randn(96, 256) * 0.02, torch.randn(5, 256)
    exact = x @ weight.T
    layer = quantize_linear(weight, None, bits)
    assert ((layer(x) - exact).norm() / exact.norm()) < error  # performance.md, 4: .6 % and 9.6 %
    bytes_per_weight = sum(b.nbytes for b in layer.buffers()) / weight.numel()
    assert bytes_per_weight * 8 == bits + 0.5  # float16 scale and offset in groups of 64


def test_a_constant_group_quantises_to_itself():
    weight = torch.full((2, 64), 0.25)
    assert torch.equal(quantize_linear(weight, None, 4).dequantize(torch.float32), weight)


@pytest.mark.parametrize(("bits", "mean"), [(8, 0.01), (4, 0.12)])
def test_quantised_models_stay_near_the_golden_picture(bits, mean):
    golden = read_golden("plain")
    small = load_backend("pytorch", **FOLDERS, dtype="float32", quantize=bits)
    assert small._dit.nbytes < {8: 0.5, 4: 0.35}[bits] * 1.25e6 * 4
    pixels = generate(golden.request, small, noise=golden.noise).pixels
    assert np.abs(pixels[0] - golden.image).mean() < mean


@pytest.mark.parametrize("quantize", [None, 8])
@pytest.mark.parametrize("offload", ["model", "sequential"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_offloading_changes_no_number(offload, quantize, dtype):
    golden = read_golden("peft")
    options = dict(**FOLDERS, dtype=dtype, quantize=quantize)
    if offload == "sequential" and quantize:
        with pytest.raises(InfuError, match="Choose one of them"):
            load_backend("pytorch", **options, offload=offload)
        return
    resident = generate(golden.request, load_backend("pytorch", **options), noise=golden.noise)
    offloaded = load_backend("pytorch", **options, offload=offload)
    for _ in range(2):
        result = generate(golden.request, offloaded, noise=golden.noise)
        assert np.array_equal(result.pixels, resident.pixels)
    assert offloaded._dit.nbytes == offloaded._t5.nbytes == 0


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_files_of_other_precision_are_cast_on_load(tmp_path, stored):
    shutil.copytree(FOLDERS["base_model_path"], tmp_path / "base")
    file = tmp_path / "base/transformer/diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.to(stored) for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    network = load_backend("pytorch", base_model_path=tmp_path / "base", dtype="float32")._dit.arrive()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, tensors[name].float())


# One request after another.


def test_a_true_guidance_of_1_or_less_is_none_as_released(backend, plain):
    golden, pixels = plain
    request = golden.request.replace(negative_prompt="blurred", true_cfg_scale=0.5)
    np.testing.assert_array_equal(generate(request, backend, noise=golden.noise).pixels, pixels)


def test_each_picture_of_a_batch_is_the_single_run_of_its_seed(backend):
    request, _ = read_case("batch")
    ours = generate(request.replace(seed=7), backend)
    alone = generate(request.replace(seed=8, num_images=1), backend)
    assert ours.seeds == (7, 8) and np.array_equal(ours.latents[1:], alone.latents)


def test_odd_sizes_are_run_larger_and_cropped(backend, plain):
    golden, pixels = plain
    request = golden.request.replace(width=golden.request.width - 7, height=golden.request.height - 1)
    cropped = generate(request, backend, noise=golden.noise)
    assert np.array_equal(cropped.pixels, pixels[:, :-1, :-7])
    assert cropped.image.size == (request.width, request.height)


def test_scale_zero_of_infusenet_is_plain_flux(backend):
    golden = read_golden("plain")
    without = load_backend("pytorch", base_model_path=FOLDERS["base_model_path"], dtype="float32")
    off = generate(golden.request.replace(infusenet_conditioning_scale=0), backend, noise=golden.noise)
    plain_flux = generate(golden.request.replace(id_embedding=None), without, noise=golden.noise)
    assert np.array_equal(off.pixels, plain_flux.pixels)
    with pytest.raises(InfuError, match="without InfiniteYou"):
        generate(golden.request, without)


def test_infusenet_runs_only_inside_its_window(backend):
    golden = read_golden("control")  # 6 steps, window .2 to .7: steps 2 and 3
    calls = []
    network = backend._infusenet.arrive()
    handle = network.x_embedder.register_forward_hook(lambda *_: calls.append(1))
    generate(golden.request, backend, noise=golden.noise)
    handle.remove()
    assert len(calls) == 2


def test_a_second_picture_of_the_same_face_and_prompt_runs_no_encoder(backend):
    golden = read_golden("control")
    generate(golden.request, backend, noise=golden.noise)
    networks = [
        backend._clip.arrive(),
        backend._t5.arrive(),
        backend._vae.arrive().encoder,
        backend._projection,
    ]
    calls = []
    handles = [n.register_forward_hook(lambda module, *_: calls.append(module)) for n in networks]
    generate(golden.request.replace(seed=1), backend)
    assert calls == []
    generate(golden.request.replace(prompt="Another sentence"), backend)
    assert calls == networks[:2]
    for handle in handles:
        handle.remove()


def test_removing_a_lora_restores_every_bit(backend, plain):
    golden, pixels = plain
    with_lora = generate(golden.request.replace(plugins=[Lora(PEFT, 1.0)]), backend, noise=golden.noise)
    again = generate(golden.request, backend, noise=golden.noise)
    zero = generate(golden.request.replace(plugins=[Lora(PEFT, 0)]), backend, noise=golden.noise)
    assert not np.array_equal(with_lora.pixels, pixels)
    assert np.array_equal(again.pixels, pixels) and np.array_equal(zero.pixels, pixels)


def test_a_stopped_run_leaves_the_backend_as_it_was(backend, plain):
    golden, pixels = plain

    def stop(step, num_steps, preview):
        assert preview().size == (golden.request.width // 8, golden.request.height // 8)
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate(golden.request.replace(plugins=[Lora(PEFT)]), backend, noise=golden.noise, on_step=stop)
    assert np.array_equal(generate(golden.request, backend, noise=golden.noise).pixels, pixels)


def test_numbers_that_are_not_finite_raise_and_make_no_black_picture(backend, plain, tmp_path):
    golden, pixels = plain
    noise = golden.noise.copy()
    noise[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="no picture"):
        generate(golden.request, backend, noise=noise)
    state = {"transformer.x_embedder.lora_A.weight": torch.full((1, 64), 1e38)}
    state["transformer.x_embedder.lora_B.weight"] = torch.full((64, 1), 1e38)
    save_file(state, tmp_path / "huge.safetensors")
    with pytest.raises(NonFiniteError):
        generate(golden.request.replace(plugins=[Lora(tmp_path / "huge.safetensors")]), backend)
    assert np.array_equal(generate(golden.request, backend, noise=golden.noise).pixels, pixels)


def test_a_full_device_is_told_in_words_and_leaves_the_backend_usable(backend, plain):
    golden, pixels = plain

    def fill(*_):  # what CUDA raises; a machine without a card cannot run out of its memory
        raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = backend._dit.arrive().x_embedder.register_forward_hook(fill)
    with pytest.raises(NotEnoughMemory, match="quantize=8"):
        generate(golden.request, backend, noise=golden.noise)
    handle.remove()
    assert np.array_equal(generate(golden.request, backend, noise=golden.noise).pixels, pixels)


# Failures of loading.


def copy_model(folder: Path) -> dict[str, Path]:
    for name, source in (("base", "base_model_path"), ("InfiniteYou", "model_dir")):
        shutil.copytree(FOLDERS[source], folder / name)
    release = folder / "InfiniteYou/infu_flux_v1.0"
    shutil.copytree(release / "aes_stage2", release / "sim_stage1")
    return {"base_model_path": folder / "base", "model_dir": folder / "InfiniteYou"}


def test_a_failed_switch_leaves_the_working_version(tmp_path, plain):
    golden, pixels = plain
    folders = copy_model(tmp_path)
    broken = (
        tmp_path / "InfiniteYou/infu_flux_v1.0/sim_stage1/InfuseNetModel/diffusion_pytorch_model.safetensors"
    )
    whole = broken.read_bytes()
    backend = load_backend("pytorch", **folders, dtype="float32")
    assert set(backend.model_versions) == {"aes_stage2", "sim_stage1"}
    network = backend._dit.arrive()
    for damage in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\n", b""):
        broken.write_bytes(damage)
        with pytest.raises(InfuError) as error:
            backend.use_version("sim_stage1")
        assert str(tmp_path) not in str(error.value)
        assert backend.model_version == "aes_stage2"
        assert np.array_equal(generate(golden.request, backend, noise=golden.noise).pixels, pixels)
    tensors = load_file(Path(str(broken).replace("sim_stage1", "aes_stage2")))
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, broken)
    backend.use_version("sim_stage1")
    assert backend.model_version == "sim_stage1" and backend._dit.arrive() is network  # the DiT stays
    assert not np.array_equal(generate(golden.request, backend, noise=golden.noise).pixels, pixels)
    with pytest.raises(InfuError, match="Did you mean 'aes_stage2'"):
        backend.use_version("aes_stage_2")


def test_the_face_embedding_must_have_the_models_length(backend):
    with pytest.raises(InfuError, match="has 192 numbers; this model's projection reads 512"):
        generate(GenerationRequest("a", id_embedding=np.ones(192), width=64, height=64), backend)


@pytest.mark.parametrize("noise", ["x", [[1], [2, 3]], np.zeros((1, 16, 8, 9))])
def test_noise_that_does_not_fit_is_refused_in_words(backend, noise):
    with pytest.raises(InfuError, match="^noise "):
        generate(GenerationRequest("a", width=64, height=64, num_steps=1), backend, noise=noise)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "torch"}, "Did you mean 'pytorch'"),
        ({"name": None}, "backend called 'None'"),
        ({"dtype": "int8"}, "dtype"),
        ({"offload": "disk"}, "offload"),
        ({"quantize": 5}, "8 or 4"),
        ({"base_model_path": "/nowhere/at/all"}, "'all'"),
    ],
)
def test_unusable_options_are_refused_in_words(options, says):
    with pytest.raises(InfuError, match=says):
        load_backend(**({"name": "pytorch"} | options))
