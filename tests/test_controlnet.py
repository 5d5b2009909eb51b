"""ControlNets beside InfuseNet, on both backends: the released latents, files, windows, modes, refusals."""

import json

import numpy as np
import pytest
import torch
from golden import FOLDERS, GOLDEN
from plugin_cases import NETWORKS, PLUGINS, read_case
from safetensors.numpy import load_file, save_file

from backends import load_backend
from infu import Cancelled, ControlNet, GenerationRequest, generate
from infu.errors import BrokenFile, InvalidRequest, MissingFile, UnknownName
from infu.weights.checkpoint import list_parts, open_part
from infu.weights.controlnet import MODES, make_controlnet_config, read_controlnet
from infu.weights.files import open_weights

CASES = ["union", "union_cfg", "pro2", "xlabs", "xlabs_cfg", "infu_union", "infu_pro2", "infu_xlabs"]
XLABS = PLUGINS / NETWORKS["xlabs"]


@pytest.fixture(scope="module", params=["pytorch", "mlx"])
def backend(request):
    return load_backend(request.param, **FOLDERS, dtype="float32")


@pytest.mark.parametrize("case", CASES)
def test_latents_are_the_released_codes(backend, case):
    request, golden = read_case(case)
    result = generate(request, backend, noise=golden["noise"])
    # float32, latents of size 4; the mildest mistake of golden/plugins/README.md is 0.027.
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(result.pixels[0], golden["image"], rtol=0, atol=1e-4)


def test_scale_0_is_bit_for_bit_as_if_absent(backend):
    request, golden = read_case("infu_union")
    without = generate(request.replace(plugins=()), backend, noise=golden["noise"])
    absent = ControlNet("no such file", golden["hint"], scale=0, mode="depth")
    result = generate(request.replace(plugins=[absent]), backend, noise=golden["noise"])
    np.testing.assert_array_equal(result.latents, without.latents)


def test_two_at_once_add_up_in_either_order(backend):
    """Half of one network twice is that network once; the order of two networks is seen by rounding alone."""
    request, golden = read_case("union")
    (union,) = request.plugins
    half = ControlNet(union.path, union.image, union.scale / 2, mode=union.mode)
    result = generate(request.replace(plugins=[half, half]), backend, noise=golden["noise"])
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)
    pair = [union, ControlNet(XLABS, union.image, 0.5)]
    one, other = (generate(request.replace(plugins=p), backend, golden["noise"]) for p in (pair, pair[::-1]))
    np.testing.assert_allclose(one.latents, other.latents, rtol=0, atol=1e-4)
    assert np.abs(one.latents - golden["latents"]).max() > 0.1


def test_the_mode_is_a_number_a_name_or_that_of_the_hint_made(backend):
    request, golden = read_case("union")
    (union,) = request.plugins
    named = ControlNet(union.path, union.image, union.scale, mode="depth")
    result = generate(request.replace(plugins=[named]), backend, noise=golden["noise"])
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)
    edges, canny = (
        ControlNet(union.path, golden["hint"], hint="canny", **mode)
        for mode in ({}, {"mode": MODES["canny"]})
    )
    one, other = (generate(request.replace(plugins=[p]), backend, golden["noise"]) for p in (edges, canny))
    np.testing.assert_array_equal(one.latents, other.latents)


def test_an_odd_size_and_a_batch_are_the_single_runs(backend):
    hint = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    plugins = [ControlNet(XLABS, hint, 0.7), ControlNet(PLUGINS / "pro2", hint, 0.7, 0.0, 0.5)]
    request = GenerationRequest(
        prompt="x", width=70, height=90, seed=3, num_steps=2, num_images=2, plugins=plugins
    )
    batch = generate(request, backend)
    assert batch.pixels.shape == (2, 90, 70, 3)
    for k in range(2):
        alone = generate(request.replace(seed=3 + k, num_images=1), backend)
        np.testing.assert_array_equal(batch.latents[k], alone.latents[0])


def test_cancelling_midway_leaves_no_trace(backend):
    request, golden = read_case("infu_xlabs")
    before = generate(request.replace(plugins=()), backend, noise=golden["noise"])

    def stop(*_):
        raise Cancelled

    with pytest.raises(Cancelled):
        generate(request, backend, golden["noise"], stop)
    after = generate(request.replace(plugins=()), backend, noise=golden["noise"])
    np.testing.assert_array_equal(after.latents, before.latents)


def test_a_network_is_loaded_once_and_shared_until_dropped(backend):
    request, golden = read_case("pro2")
    (plugin,) = request.plugins
    generate(request, backend, golden["noise"])
    load, loaded = backend.network, []

    def watched(kind, path, make):
        return load(kind, path, lambda: loaded.append(path) or make())

    backend.network = watched
    try:
        generate(request, backend, golden["noise"])
        assert not loaded
        backend.drop_networks()
        result = generate(request, backend, golden["noise"])
        assert loaded == [plugin.path]
    finally:
        del backend.network
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_a_quantised_model_quantises_its_controlnets(name):
    """8 bits: half a percent of each layer's output."""
    request, golden = read_case("infu_union")
    result = generate(request, load_backend(name, **FOLDERS, dtype="float32", quantize=8), golden["noise"])
    assert 1e-5 < np.abs(result.latents - golden["latents"]).max() < 0.2


@pytest.mark.parametrize("offload", ["model", "sequential"])
@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_offload_changes_no_latent(name, offload):
    request, golden = read_case("infu_xlabs")
    backend = load_backend(name, **FOLDERS, dtype="float32", offload=offload)
    result = generate(request, backend, golden["noise"])
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)


def test_folder_single_file_and_diffusers_names_are_one_network(backend, tmp_path):
    """XLabs' original again under diffusers' names, as XLabs' `…-diffusers` repositories have it; the union's
    file without its folder."""
    original = open_part(XLABS, "controlnet")
    save_file({name: original.read(name) for name in original}, tmp_path / "renamed.safetensors")
    file = PLUGINS / "union/diffusion_pytorch_model.safetensors"
    for case, path in (("xlabs", tmp_path / "renamed.safetensors"), ("union", file)):
        request, golden = read_case(case)
        (plugin,) = request.plugins
        moved = ControlNet(path, plugin.image, plugin.scale, mode=plugin.mode)
        result = generate(request.replace(plugins=[moved]), backend, noise=golden["noise"])
        np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)


# Files.


def test_a_file_is_known_by_its_tensors():
    found = {name: list_parts(name, open_weights(PLUGINS / path)) for name, path in NETWORKS.items()}
    assert found == {
        "union": ["controlnet"],
        "xlabs": ["controlnet"],
        "pro2": ["infusenet"],
    }  # its very names
    files = {name: read_controlnet(PLUGINS / path) for name, path in NETWORKS.items()}
    assert {name: (f.num_modes, f.reads_pixels) for name, f in files.items()} == {
        "union": (10, False), "xlabs": (0, True), "pro2": (0, False),
    }  # fmt: skip


@pytest.mark.parametrize("double, single, modes", [(5, 10, 10), (6, 0, 0), (2, 0, 0)])
def test_the_released_sizes_are_met_without_a_config(tmp_path, double, single, modes):
    """InstantX' and Shakker's unions, Pro-2.0, XLabs', by the shapes of the full-size networks alone."""
    from accelerate import init_empty_weights

    from backends.pytorch.load import build_infusenet, match

    base = json.loads((GOLDEN / "base/transformer/config.json").read_text()) | {
        "axes_dims_rope": [16, 56, 56]
    }
    sizes = {
        "num_layers": double, "num_single_layers": single, "attention_head_dim": 128, "in_channels": 64,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
        "guidance_embeds": True, "num_mode": modes or None,
        "conditioning_embedding_channels": 16 if double == 2 else None,
    }  # fmt: skip
    with init_empty_weights():
        network = build_infusenet(base | sizes)
        shapes = dict(network.state_dict())
        config = make_controlnet_config(base, tmp_path, shapes)
        assert {name: config[name] for name in sizes} == sizes
        match(build_infusenet(config), shapes)


def test_foreign_files_are_refused_by_name(tmp_path, backend):
    hint = np.zeros((64, 64, 3), np.uint8)

    def run(path):
        plugins = [ControlNet(path, hint, mode="canny")]
        generate(GenerationRequest("x", width=64, height=64, num_steps=1, plugins=plugins), backend)

    def written(name, tensors):
        save_file({key: np.zeros(2, np.float32) for key in tensors}, tmp_path / name)
        return tmp_path / name

    infusenet = FOLDERS["model_dir"] / "infu_flux_v1.0/aes_stage2/InfuseNetModel"
    for path, told in (
        (GOLDEN / "lora_peft.safetensors", "is a LoRA"),
        (GOLDEN / "base/transformer", "holds no ControlNet"),
        (infusenet, "InfuseNet, which reads a face"),
        (written("sdxl.safetensors", ["controlnet_down_blocks.0.weight", "add_embedding.linear_1.weight"]),
         "is Stable Diffusion XL"),
        (written("cut.safetensors", ["input_hint_block.0.weight", "double_blocks.0.img_mlp.0.weight"]),
         "is not whole"),
    ):  # fmt: skip
        with pytest.raises(BrokenFile, match=told):
            run(path)
    tensors = load_file(PLUGINS / "pro2/diffusion_pytorch_model.safetensors")
    save_file(
        tensors | {"x_embedder.weight": np.zeros((32, 64), np.float32)}, tmp_path / "narrow.safetensors"
    )
    with pytest.raises(BrokenFile, match="made for another base model"):
        run(tmp_path / "narrow.safetensors")
    with pytest.raises(MissingFile, match="'nothing.safetensors'"):
        run(tmp_path / "nothing.safetensors")
    with pytest.raises(UnknownName, match="Did you mean 'union-pro'"):
        run("union-prp")


def test_a_mode_is_asked_for_where_it_is_needed_and_told_where_it_is_not(backend):
    request, golden = read_case("union")
    with pytest.raises(InvalidRequest, match="say by `mode`"):
        generate(request.replace(plugins=[ControlNet(PLUGINS / "union", golden["hint"])]), backend)
    with pytest.raises(UnknownName, match="Did you mean 'depth'"):
        generate(
            request.replace(plugins=[ControlNet(PLUGINS / "union", golden["hint"], mode="dept")]), backend
        )
    plugins = [ControlNet(PLUGINS / "pro2", golden["hint"], mode="depth")]
    result = generate(request.replace(plugins=plugins, num_steps=1), backend)
    assert any("its mode was not used" in note for note in result.notes)
    assert torch.isfinite(torch.from_numpy(result.latents)).all()
