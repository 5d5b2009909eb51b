"""PuLID-FLUX does what its released code does (tests/golden/pulid/README.md), on both backends."""

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden import FOLDERS, GOLDEN, read_golden
from safetensors.numpy import load_file, save_file

from backends import load_backend
from infu import Cancelled, GenerationRequest, PuLID, generate
from infu.errors import BrokenFile, InvalidRequest, MissingFile
from infu.weights.pulid import EVA, read_eva, read_pulid

FIXTURE = GOLDEN / "pulid"
CHECKPOINT, TOWER = FIXTURE / "checkpoint" / "pulid_flux_v0.9.1.safetensors", FIXTURE / "eva" / EVA
MANIFESTS = GOLDEN.parent / "manifests"
BACKENDS = ["pytorch", "mlx"]
# Both ways of computing are float32; a second implementation differed from the released code by 1e-5.
NETWORK = {"rtol": 0, "atol": 1e-4}


def load_networks(name: str, checkpoint: Path = CHECKPOINT) -> SimpleNamespace:
    """The fixture's networks of one backend, and `call`: arrays in, arrays out."""
    if name == "pytorch":
        from backends.pytorch.load import load_by_shapes
        from backends.pytorch.plugins import pulid

        kind, to_array, from_array = torch.Tensor, torch.from_numpy, torch.Tensor.numpy
        options = (torch.float32, "cpu")
    else:
        import mlx.core as mx

        from backends.mlx.load import load_by_shapes
        from backends.mlx.plugins import pulid

        kind, to_array, from_array, options = mx.array, mx.array, np.array, (mx.float32,)

    def convert(value, kind, change):
        return change(value) if isinstance(value, kind) else [convert(item, kind, change) for item in value]

    @torch.inference_mode()
    def call(network, *inputs):
        return convert(network(*convert(inputs, np.ndarray, to_array)), kind, from_array)

    def load(build, sizes, tensors, name):
        return load_by_shapes(lambda shapes: build(shapes, *sizes), tensors, name, *options)

    file, eva = read_pulid(checkpoint), read_eva(TOWER)
    return SimpleNamespace(
        call=call,
        encode=pulid.encode_face,
        encoder=load(pulid.IdFormer, (file.encoder_head,), file.encoder, file.name),
        attentions=[
            load(pulid.CrossAttention, (file.attention_head,), own, file.name) for own in file.attentions
        ],
        eva=load(pulid.EvaTower, (eva.head, eva.span), eva.tensors, eva.name),
    )


@pytest.fixture(scope="module", params=BACKENDS)
def networks(request) -> SimpleNamespace:
    return load_networks(request.param)


def read(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURE / f"{name}.npz"))


def test_image_encoder_is_the_released_one(networks):
    arrays = read("eva")
    states, pooled = networks.call(networks.eva, arrays["image"])
    for i, state in enumerate(states):
        np.testing.assert_allclose(state, arrays[f"hidden_{i}"], **NETWORK)
    np.testing.assert_allclose(pooled, arrays["pooled"], **NETWORK)


def test_identity_tokens_are_the_released_ones(networks):
    arrays = read("idformer")
    states = [arrays[f"vit_{i}"] for i in range(5)]
    np.testing.assert_allclose(
        networks.call(networks.encoder, arrays["id_cond"], states), arrays["tokens"], **NETWORK
    )
    for count, name in ((17, "uncond_tokens"), (34, "uncond_tokens_2n")):
        empty = [np.zeros((1, count, 32), np.float32)] * 5
        tokens = networks.call(networks.encoder, np.zeros((1, 1280), np.float32), empty)
        np.testing.assert_allclose(tokens, arrays[name], **NETWORK)
    joined = [state.reshape(1, 34, 32) for state in states]
    tokens = networks.call(networks.encoder, arrays["multi_id_cond"], joined)
    np.testing.assert_allclose(tokens, arrays["multi_tokens"], **NETWORK)


def test_cross_attentions_are_the_released_ones(networks):
    arrays = read("ca")
    assert len(networks.attentions) == len(arrays["out"]) == 5
    for attention, expected in zip(networks.attentions, arrays["out"], strict=True):
        added = networks.call(
            lambda tokens, img, ca=attention: ca(ca.read_identity(tokens), img), arrays["id"], arrays["image"]
        )
        np.testing.assert_allclose(added, expected, **NETWORK)


@pytest.mark.parametrize("name", BACKENDS)
def test_positions_of_the_real_size_are_the_released_tables(name):
    arrays = read("eva")
    rows = arrays["rope336_rows"]
    if name == "pytorch":
        from backends.pytorch.plugins.eva import make_rope

        cos, sin = (np.repeat(table.numpy()[rows], 2, axis=1) for table in make_rope(24, 64, 16, "cpu"))
    else:
        from backends.mlx.plugins.eva import make_rope

        table = np.repeat(np.array(make_rope(24, 64, 16))[rows], 2, axis=1)
        cos, sin = table.real, table.imag
    # Angles reach 16; in float32 they differ by 1e-6 between two ways of computing them.
    np.testing.assert_allclose(cos, arrays["rope336_cos"], rtol=0, atol=3e-6)
    np.testing.assert_allclose(sin, arrays["rope336_sin"], rtol=0, atol=3e-6)


def read_manifest(name: str) -> dict[str, SimpleNamespace]:
    """Names and shapes of a file at its full size."""
    shapes = json.loads((MANIFESTS / f"{name}.json").read_text())
    return {key: SimpleNamespace(shape=tuple(shape)) for key, shape in shapes.items()}


def shapes_of(tensors: dict) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def inside(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", BACKENDS)
def test_networks_meet_the_released_files_at_full_size(name):
    pulid = read_manifest("pulid_flux_v0.9.1")  # 0.9.0 has the same names and shapes
    visual = inside(read_manifest("eva02_clip_l_336_visual"), "visual.")
    tables = re.compile(r"rope\.freqs")
    visual = {key: tensor for key, tensor in visual.items() if not tables.search(key)}
    if name == "pytorch":
        from backends.pytorch.load import build_empty, match
        from backends.pytorch.plugins.eva import EvaTower
        from backends.pytorch.plugins.pulid import CrossAttention, IdFormer

        def check(kind, tensors, *sizes):
            match(build_empty(lambda shapes: kind(shapes, *sizes), shapes_of(tensors)), tensors)
    else:
        from backends.mlx.load import check as check_names
        from backends.mlx.load import find_places
        from backends.mlx.plugins.eva import EvaTower
        from backends.mlx.plugins.pulid import CrossAttention, IdFormer

        def check(kind, tensors, *sizes):
            check_names(
                "", find_places(kind(shapes_of(tensors), *sizes)), tensors, {key: key for key in tensors}
            )

    check(EvaTower, visual, 64, 16)
    check(IdFormer, inside(pulid, "pulid_encoder."), 64)
    for i in range(20):
        check(CrossAttention, inside(pulid, f"pulid_ca.{i}."), 128)
    assert len(inside(pulid, "pulid_ca.")) == 20 * 7


FOREIGN = {
    "a LoRA": GOLDEN / "lora_peft.safetensors",
    "a whole model": GOLDEN / "base" / "transformer" / "diffusion_pytorch_model.safetensors",
    "InfiniteYou's projection": next((GOLDEN / "InfiniteYou").rglob("image_proj_model.bin")),
    "an IP-Adapter": next((GOLDEN / "instantx_ip_adapter").rglob("*.bin")),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("read_file", [read_pulid, read_eva])
def test_foreign_file_is_refused_by_name(read_file, what):
    with pytest.raises(BrokenFile, match=rf"^{FOREIGN[what].name} is {what}.*Give "):
        read_file(FOREIGN[what])


def test_one_given_for_the_other_is_refused_by_name():
    with pytest.raises(BrokenFile, match="is PuLID: it has no such visual tower"):
        read_eva(CHECKPOINT)
    with pytest.raises(BrokenFile, match="is EVA02-CLIP, PuLID's image encoder: it has no pulid_encoder"):
        read_pulid(TOWER)


def test_absent_file_is_named(tmp_path):
    with pytest.raises(MissingFile, match=EVA):
        read_eva(tmp_path)
    with pytest.raises(MissingFile, match=r"no file 'pulid\.safetensors'"):
        read_pulid(tmp_path / "pulid.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"strange.weight": np.zeros(3, np.float32)}, "does not have: strange.weight"),
        (
            lambda t: {n: v for n, v in t.items() if not n.startswith("pulid_ca.2.")},
            "lacks some of its cross",
        ),
        (
            lambda t: {n: v for n, v in t.items() if n != "pulid_encoder.latents"},
            "lacks pulid_encoder.latents",
        ),
        (lambda t: {n: v for n, v in t.items() if n != "pulid_ca.1.to_out.weight"}, "missing to_out.weight"),
    ],
)
@pytest.mark.parametrize("name", BACKENDS)
def test_damaged_checkpoint_is_refused(tmp_path, name, change, message):
    tensors = {key: value.astype(np.float32) for key, value in load_file(CHECKPOINT).items()}
    save_file(change(tensors), tmp_path / "pulid.safetensors")
    (tmp_path / "config.json").write_bytes((CHECKPOINT.parent / "config.json").read_bytes())
    with pytest.raises(BrokenFile, match=re.escape(message)):
        load_networks(name, tmp_path / "pulid.safetensors")


def test_checkpoint_for_another_base_is_refused():
    file = read_pulid(CHECKPOINT)
    tiny = {"x_embedder": (64, 64)} | {
        f"{kind}transformer_blocks.{i}.attn.to_q": (64, 64) for kind in ("", "single_") for i in range(5)
    }
    assert file.find_blocks(tiny) == [0, 2, 4, 5, 9]
    with pytest.raises(BrokenFile, match="another base model: it has 5 cross-attentions of width 64"):
        file.find_blocks(tiny | {"transformer_blocks.18.attn.to_q": (64, 64)})
    with pytest.raises(BrokenFile, match="the loaded one takes 5 of width 3072"):
        file.find_blocks(tiny | {"x_embedder": (3072, 64)})


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    """The fixture's base, without InfiniteYou."""
    return load_backend(request.param, base_model_path=GOLDEN / "base", dtype="float32")


CASES = json.loads((FIXTURE / "cases.json").read_text())
# As the README of the fixture says; a mistake moves a picture by 4e-3 at least.
LATENTS = {"rtol": 0, "atol": 1e-4}


def make_request(case: str, arrays: dict[str, np.ndarray], **changes) -> GenerationRequest:
    values = CASES[case]
    guided = values["true_cfg"] > 1
    plugin = PuLID(
        CHECKPOINT,
        id_weight=values["id_weight"],
        start_step=values["start_step"],
        id_tokens=arrays["id_tokens"],
        uncond_id_tokens=arrays.get("uncond_tokens"),
    )
    return GenerationRequest(
        prompt=values["prompt"],
        negative_prompt=values["negative"] if guided else None,
        true_cfg_scale=values["true_cfg"],
        true_cfg_start_step=values["timestep_to_start_cfg"],
        guidance_scale=values["guidance"],
        max_sequence_length=values["t5_length"],
        width=values["w"],
        height=values["h"],
        num_steps=values["steps"],
        seed=0,
        plugins=[plugin],
    ).replace(**changes)


@pytest.mark.parametrize("case", CASES)
def test_picture_is_the_released_one(backend, case):
    arrays = read(case)
    result = generate(make_request(case, arrays), backend, noise=arrays["noise"])
    np.testing.assert_allclose(result.latents, arrays["latents"], **LATENTS)
    np.testing.assert_allclose(result.pixels[0], arrays["image"], **LATENTS)
    assert result.metadata["plugins"] == [
        {
            "pulid": CHECKPOINT.name,
            "id_weight": CASES[case]["id_weight"],
            "start_step": CASES[case]["start_step"],
        }
    ]


def test_weight_0_is_bit_for_bit_as_if_absent(backend, tmp_path):
    arrays = read("plain")
    plain = make_request("plain", arrays, plugins=[])
    absent = PuLID(tmp_path / "not there", id_weight=0, id_tokens=arrays["id_tokens"])
    bare, zero = (
        generate(request, backend, noise=arrays["noise"]).latents
        for request in (plain, plain.replace(plugins=[absent]))
    )
    np.testing.assert_array_equal(zero, bare)
    np.testing.assert_allclose(bare, arrays["latents_no_id"], **LATENTS)


def test_start_after_the_last_step_is_no_identity(backend):
    arrays = read("plain")
    late = PuLID(CHECKPOINT, start_step=4, id_tokens=arrays["id_tokens"])
    request = make_request("plain", arrays, plugins=[late])
    made = generate(request, backend, noise=arrays["noise"]).latents
    np.testing.assert_allclose(made, arrays["latents_no_id"], **LATENTS)


def test_second_picture_of_a_batch_is_the_single_run_of_its_seed_at_an_odd_size(backend):
    arrays = read("plain")
    odd = {"width": 90, "height": 101, "num_steps": 2}
    both = generate(make_request("plain", arrays, num_images=2, seed=5, **odd), backend)
    second = generate(make_request("plain", arrays, seed=6, **odd), backend)
    assert both.pixels.shape == (2, 101, 90, 3)
    np.testing.assert_array_equal(both.latents[1:], second.latents)


def test_stopping_midway_leaves_no_trace(backend):
    arrays = read("plain")

    def stop(step, *_):
        raise Cancelled

    with pytest.raises(Cancelled):
        generate(make_request("plain", arrays), backend, on_step=stop)
    bare = generate(make_request("plain", arrays, plugins=[]), backend, noise=arrays["noise"])
    np.testing.assert_allclose(bare.latents, arrays["latents_no_id"], **LATENTS)
    again = generate(make_request("plain", arrays), backend, noise=arrays["noise"])
    np.testing.assert_allclose(again.latents, arrays["latents"], **LATENTS)


def test_networks_are_loaded_once_and_again_when_dropped(backend):
    request = make_request("plain", read("plain"), num_steps=1)
    generate(request, backend)
    loaded = backend.network("pulid attentions", CHECKPOINT, list)
    generate(request, backend)
    assert backend.network("pulid attentions", CHECKPOINT, list) is loaded != []
    backend.drop_networks()
    generate(request, backend)
    assert backend.network("pulid attentions", CHECKPOINT, list) is not loaded


def test_negative_pass_needs_tokens_of_nobody(backend):
    arrays = read("cfg")
    request = make_request("cfg", {"id_tokens": arrays["id_tokens"]})
    with pytest.raises(InvalidRequest, match="give uncond_id_tokens with id_tokens"):
        generate(request, backend)


def test_tokens_of_another_width_are_refused(backend):
    request = make_request("plain", {"id_tokens": np.zeros((8, 2048), np.float32)})
    with pytest.raises(InvalidRequest, match="id_tokens are rows of 2048 numbers;.* reads rows of 32"):
        generate(request, backend)


@pytest.mark.parametrize("name", BACKENDS)
def test_quantised_base_takes_it(name):
    arrays = read("plain")
    backend = load_backend(name, base_model_path=GOLDEN / "base", dtype="float32", quantize=8)
    made = generate(make_request("plain", arrays), backend, noise=arrays["noise"]).latents
    # 8 bits move the latents by 1e-2; no identity by 1.
    assert np.abs(made - arrays["latents"]).max() < 0.2
    assert np.abs(arrays["latents_no_id"] - arrays["latents"]).max() > 0.5


def test_both_act_with_infiniteyou_in_one_request():
    golden, arrays = read_golden("control"), read("plain")
    pulid = PuLID(CHECKPOINT, id_tokens=arrays["id_tokens"])
    made = {}
    for name in BACKENDS:
        backend = load_backend(name, **FOLDERS, dtype="float32")
        for which, plugins, scale in (("both", [pulid], 1.0), ("infu", [], 1.0), ("pulid", [pulid], 0.0)):
            request = golden.request.replace(plugins=plugins, infusenet_conditioning_scale=scale)
            made[name, which] = generate(request, backend, noise=golden.noise).latents
    np.testing.assert_allclose(made["mlx", "both"], made["pytorch", "both"], **LATENTS)
    for alone in ("infu", "pulid"):
        assert np.abs(made["pytorch", "both"] - made["pytorch", alone]).max() > 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either image or id_tokens"),
        ({"image": "face.png", "id_tokens": np.zeros((8, 32))}, "give either image or id_tokens"),
        ({"id_tokens": np.zeros(32)}, "id_tokens must be rows of numbers"),
        ({"id_tokens": np.full((8, 32), np.nan)}, "finite"),
        ({"image": "face.png", "id_weight": -1}, "id_weight must be a number from 0 to 10"),
        ({"image": "face.png", "start_step": 1.5}, "start_step must be a whole number"),
    ],
)
def test_values_out_of_range_are_told(values, message):
    with pytest.raises(InvalidRequest, match=message):
        PuLID(CHECKPOINT, **values)


def test_identity_of_a_photograph_is_the_released_one(networks):
    """From the recogniser's vector and EVA's input to tokens: the join, the norm, and nobody's."""
    arrays = read("identity")
    for way in ("antialias", "noantialias"):
        encode = functools.partial(networks.encode, networks.encoder, networks.eva)
        tokens, nobody = networks.call(encode, arrays["embedding"][None], arrays[f"input_{way}"])
        np.testing.assert_allclose(tokens, arrays[f"tokens_{way}"], **NETWORK)
        np.testing.assert_allclose(nobody, arrays["uncond_tokens"], **NETWORK)
