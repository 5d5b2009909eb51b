"""PuLID-FLUX does what its released code does (tests/golden/pulid/README.md), on both backends."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden import GOLDEN
from safetensors.numpy import load_file, save_file

from infu.errors import BrokenFile, MissingFile
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
        from backends.pytorch.plugins import pulid

        kind, to_array, from_array, options = (
            torch.Tensor,
            torch.from_numpy,
            torch.Tensor.numpy,
            (torch.float32, "cpu"),
        )
    else:
        import mlx.core as mx

        from backends.mlx.plugins import pulid

        kind, to_array, from_array, options = mx.array, mx.array, np.array, (mx.float32,)

    def convert(value, kind, change):
        return change(value) if isinstance(value, kind) else [convert(item, kind, change) for item in value]

    @torch.inference_mode()
    def call(network, *inputs):
        return convert(network(*convert(inputs, np.ndarray, to_array)), kind, from_array)

    file = read_pulid(checkpoint)
    return SimpleNamespace(
        call=call,
        encoder=pulid.load_encoder(file, *options),
        attentions=pulid.load_attentions(file, *options),
        eva=pulid.load_eva(read_eva(TOWER), *options),
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

        cos, sin = (table.numpy()[rows] for table in make_rope(24, 64, 16, "cpu"))
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
    file.check_base(5, 5, 64)
    with pytest.raises(
        BrokenFile, match="made for another base model: it has 5 cross-attentions of width 64"
    ):
        file.check_base(19, 38, 3072)
