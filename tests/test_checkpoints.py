"""Base checkpoints of every kind: the pictures they must make, or the words they are refused with.

Expected latents and tensors come from a diffusers reference on dequantised float32 weights
(tests/golden/checkpoints/README.md).
"""

import hashlib
import json
import math
import shutil
from pathlib import Path

import ml_dtypes  # noqa: F401 (gives numpy its fp8 types by name)
import mlx.core as mx
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from golden import FOLDERS, GOLDEN, read_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file

from backends import load_backend
from backends.mlx import compressed
from backends.mlx.save import save_quantised
from backends.pytorch.compressed import compress
from infu import GenerationRequest, InfuError, Lora, generate
from infu.errors import BrokenFile
from infu.models import locate
from infu.weights.checkpoint import Blocks, Fp8, open_part
from infu.weights.config import make_config
from infu.weights.files import open_weights
from infu.weights.gguf import HALVES, all_finite
from infu.weights.names import BLOCKS, OUTSIDE, SWAPPED, bfl_targets

CHECKPOINTS = GOLDEN / "checkpoints"
REFUSED = CHECKPOINTS / "refused"
EXPECTED = np.load(CHECKPOINTS / "expected.npz")
TENSORS = json.loads((CHECKPOINTS / "expected.json").read_text())
TOLERANCE = {"pytorch": 1e-5, "mlx": 1e-4}  # of latents of size 4; a wrong schedule is off by .08 and more
CASES = [case for case in EXPECTED if case != "golden_base"]


def load(name, case, **options):
    """The golden model with one of the files in place of its part."""
    path = CHECKPOINTS / case.split("/")[0]
    part = "infusenet_path" if case.startswith("infusenet") else "transformer_path"
    paths = {part: path}
    if case.endswith("everything"):
        paths |= dict.fromkeys(("vae_path", "text_encoder_path", "text_encoder_2_path"), path)
    return load_backend(name, **FOLDERS, **paths, **{"dtype": "float32"} | options)


def run(backend, case="", plugins=()):
    golden = read_golden("plain")
    request = golden.request.replace(plugins=plugins)
    if case.endswith("infusenet_scale_0"):  # InfuseNet is wider than that base
        request = request.replace(infusenet_conditioning_scale=0.0)
    return generate(request, backend, noise=golden.noise)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TOLERANCE)
def test_latents_are_the_references(name, case):
    result = run(load(name, case), case)
    np.testing.assert_allclose(result.latents, EXPECTED[case], rtol=0, atol=TOLERANCE[name])


@pytest.mark.parametrize("file", TENSORS)
def test_every_tensor_is_the_expected_one(file):
    """The numbers themselves, to the bit, put back under the file's own names."""
    part = "infusenet" if file.startswith("infusenet") else "transformer"
    folder = CHECKPOINTS / file
    checkpoint = open_part(folder / "transformer" if folder.is_dir() else folder, part)
    tensors = {name: checkpoint.read(name).astype(np.float32) for name in checkpoint}
    if part == "transformer" and not folder.is_dir():
        tensors = to_bfl(tensors)
    expected = TENSORS[file]["tensors"]
    assert tensors.keys() == expected.keys()
    for name, (shape, *_, digest) in expected.items():
        assert list(tensors[name].shape) == shape, name
        assert hashlib.sha256(np.ascontiguousarray(tensors[name], "<f4").tobytes()).hexdigest()[:16] == digest


def to_bfl(tensors):
    """diffusers' names -> BFL's, parts joined again."""
    made, names = {}, {}
    for bfl, ours in OUTSIDE.items():
        names[bfl] = (ours,)
    for bfl_blocks, our_blocks, table in BLOCKS:
        for i in range(4):
            names |= {
                f"{bfl_blocks}.{i}.{k}": [f"{our_blocks}.{i}.{v}" for v in vs] for k, vs in table.items()
            }
    for bfl, ours in names.items():
        for leaf in ("weight", "bias"):
            if all(f"{name}.{leaf}" in tensors for name in ours):
                array = np.concatenate([tensors[f"{name}.{leaf}"] for name in ours])
                if ours[0] in SWAPPED:
                    array = np.concatenate(np.split(array, 2)[::-1])
                made[f"{bfl}.scale" if bfl.endswith("_norm") else f"{bfl}.{leaf}"] = array
    return made


@pytest.mark.parametrize("model", ["flux1_dev", "flux1_schnell"])
def test_the_released_checkpoints_names_and_shapes_are_all_known(tmp_path, model):
    """At full size: a header of BFL's 780 tensors (776 of schnell) over a file of holes, 24 GB that are not
    there."""
    path = Path(__file__).parent / f"manifests/{model}_transformer.json"
    manifest = {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    headers, end = {}, 0
    for bfl, target in bfl_targets({name.rpartition(".")[0] for name in manifest}).items():
        for leaf in ("weight", "bias"):
            shapes = [manifest.get(f"{module}.{leaf}") for module in target.modules]
            if None not in shapes:
                shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
                start, end = end, end + 2 * math.prod(shape)
                name = f"{bfl}.scale" if bfl.endswith("_norm") else f"{bfl}.{leaf}"
                headers[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(headers).encode()
    with (tmp_path / "flux.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    checkpoint = open_part(tmp_path / "flux.safetensors", "transformer")
    assert len(headers) == (780 if model == "flux1_dev" else 776)
    assert {name: entry.shape for name, entry in checkpoint.items()} == manifest
    config = make_config({}, checkpoint)
    assert (config["num_layers"], config["num_single_layers"], config["num_attention_heads"]) == (19, 38, 24)
    assert config["guidance_embeds"] == (model == "flux1_dev")


def test_a_schnell_file_in_a_dev_folder_is_not_shifted_and_reads_256_tokens():
    backend = load("pytorch", "schnell_like_fp8_e5m2.safetensors")
    assert not backend.scheduler.use_dynamic_shifting and backend.scheduler.shift == 1.0
    assert backend.tokenizers.t5_length == 256


def test_a_schnell_file_saved_quantised_is_still_a_schnell(tmp_path):
    path = CHECKPOINTS / "schnell_like_fp8_e5m2.safetensors"
    base = FOLDERS["base_model_path"]
    save_quantised(locate(base_model_path=base, transformer_path=path), tmp_path / "saved", 8, "float32")
    saved = load_backend("mlx", base_model_path=tmp_path / "saved/base", dtype="float32")
    straight = load_backend("mlx", base_model_path=base, transformer_path=path, dtype="float32", quantize=8)
    assert saved.scheduler == straight.scheduler and not saved.scheduler.use_dynamic_shifting
    request = GenerationRequest("a lake", width=64, height=64, num_steps=2, seed=1)
    assert np.array_equal(generate(request, saved).latents, generate(request, straight).latents)


# Compressed in memory.

COMPRESSED = {"fp8_e4m3fn.safetensors": 1.05, "fp8_scaled_scale_weight.safetensors": 1.1,
              "schnell_like_fp8_e5m2.safetensors": 1.05, "prefixed_no_architecture.gguf": 1.15}  # fmt: skip


@pytest.mark.parametrize("file", COMPRESSED)
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_compressed_file_takes_its_own_size_in_memory(name, file):
    network = load(name, file)._dit
    if name == "mlx":
        held = sum(array.nbytes for _, array in tree_flatten(network.parameters()))
        layers = (layer for layer in network.modules() if isinstance(layer, compressed.CompressedLinear))
        held += sum(layer._scale.nbytes for layer in layers if layer._scale is not None)
    else:
        held = network.nbytes
    assert held < COMPRESSED[file] * (CHECKPOINTS / file).stat().st_size


@pytest.mark.parametrize("file", ["fp8_scaled_comfy_quant.safetensors", "prefixed_no_architecture.gguf"])
@pytest.mark.parametrize("options", [{"offload": "model"}, {"offload": "sequential"}])
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_compressed_file_goes_with_offloading(name, file, options):
    result = run(load(name, file, **options))
    np.testing.assert_allclose(result.latents, EXPECTED[file], rtol=0, atol=TOLERANCE[name])


@pytest.mark.parametrize("kind", compressed.BLOCK_BYTES)
def test_mlx_and_torch_make_the_numbers_of_ggufs_blocks_that_the_gguf_package_makes(kind):
    """Random bytes; blocks whose scale is then not a plain number are left out."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    raw = np.random.default_rng(0).integers(0, 256, (200, size), np.uint8)
    with np.errstate(all="ignore"):
        theirs = dequantize(raw, GGMLQuantizationType[kind])
    plain = np.isfinite(theirs).all(axis=1)
    assert plain.sum() > 100
    raw, theirs = raw[plain], theirs[plain]
    layer = compressed.CompressedLinear(theirs.shape, has_bias=False)
    layer.keep(Blocks(raw, kind))
    assert np.array_equal(np.array(layer.dequantise(mx.float32)), theirs)
    ours = compress(Blocks(raw, kind), theirs.shape[1], None, "cpu").dequantize(torch.float32)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0)  # another order of two products


@pytest.mark.parametrize("kind", HALVES)
def test_a_gguf_block_that_is_not_finite_is_told_by_its_scales(kind):
    """As the `gguf` package's numbers tell."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    raw = np.random.default_rng(0).integers(1, 100, (3, 2 * size), np.uint8)  # upper bytes below 0x7c: finite
    assert np.isfinite(dequantize(raw, GGMLQuantizationType[kind])).all() and all_finite(raw, kind)
    for at in HALVES[kind]:
        for bits in (0x7C00, 0xFC00, 0x7E01):  # infinity, minus infinity, NaN
            bad = raw.copy()
            bad[1, size + at : size + at + 2] = np.frombuffer(np.uint16(bits).tobytes(), np.uint8)
            with np.errstate(all="ignore"):
                assert not np.isfinite(dequantize(bad, GGMLQuantizationType[kind])).all()
            assert not all_finite(bad, kind)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float8_e4m3fn", 0xFF), ("float8_e5m2", 0x7C), ("float8_e5m2", 0xFE)]
)
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_compressed_matrix_that_is_not_finite_is_refused_on_loading(tmp_path, name, dtype, bits):
    key = "double_blocks.0.img_mlp.0.weight"
    tensors = load_file(CHECKPOINTS / "fp8_e4m3fn.safetensors")
    stored = tensors[key].to(getattr(torch, dtype)).view(torch.uint8).clone()
    stored[3, 5] = bits
    assert not stored.view(getattr(torch, dtype)).float().isfinite().all()  # torch's own word
    save_file(tensors | {key: stored.view(getattr(torch, dtype))}, tmp_path / "a.safetensors")
    with pytest.raises(BrokenFile, match=f"a.safetensors: {key} has numbers that are not finite"):
        load_backend(name, **FOLDERS, transformer_path=tmp_path / "a.safetensors", dtype="float32")


@pytest.mark.parametrize("kind", compressed.AFFINE)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_mlx_multiplies_q8_0_and_q4_0_as_they_are(kind, dtype):
    """By its own quantised product, in the file's own size, as exactly as the layer's dtype allows."""
    weight = np.random.default_rng(1).standard_normal((64, 96)).astype(np.float32)
    blocks = quantize(weight, GGMLQuantizationType[kind])
    layer = compressed.CompressedLinear(weight.shape, has_bias=True)
    layer.keep(Blocks(blocks, kind))
    layer.bias = mx.arange(64).astype(dtype)
    assert layer.weight.nbytes + layer._scale.nbytes == blocks.nbytes
    x = mx.array(np.random.default_rng(2).standard_normal((2, 5, 96)).astype(np.float32)).astype(dtype)
    exact = np.array(x.astype(mx.float32), np.float64) @ dequantize(blocks, GGMLQuantizationType[kind]).T
    error = np.abs(np.array(layer(x).astype(mx.float32)) - (exact + np.arange(64)))
    assert error.max() < (1e-4 if dtype == mx.float32 else 0.5)  # bfloat16 rounds numbers near 64 to 0.25


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_every_fp8_number_is_the_same_in_numpy_mlx_and_torch(dtype):
    values = np.arange(256, dtype=np.uint8).view(dtype).reshape(16, 16)
    scale = np.arange(1, 17, dtype=np.float32).reshape(16, 1)  # of each row
    theirs = values.astype(np.float32) * scale
    layer = compressed.CompressedLinear((16, 16), has_bias=False)
    layer.keep(Fp8(values, scale))
    ours = compress(Fp8(values, scale), 16, None, "cpu").dequantize(torch.float32)
    finite = np.isfinite(theirs)
    assert np.array_equal(np.array(layer.dequantise(mx.float32))[finite], theirs[finite])
    assert np.array_equal(ours.numpy()[finite], theirs[finite]) and finite.sum() > 245


def test_a_compressed_file_can_be_quantised_further():
    file = "fp8_scaled_comfy_quant.safetensors"
    error = np.abs(run(load("pytorch", file, quantize=8)).latents - EXPECTED[file]).max()
    assert 1e-4 < error < 0.2  # rounding twice; a wrong scale gives numbers that are not finite


@pytest.mark.parametrize("name", TOLERANCE)
def test_loras_change_a_compressed_base_as_they_change_the_same_base_in_full(tmp_path, name):
    """DoRA needs the weights themselves; everything else only what layers put out."""
    file = CHECKPOINTS / "fp8_e4m3fn.safetensors"
    whole = {name: tensor.float() for name, tensor in load_file(file).items()}
    save_file(whole, tmp_path / "whole.safetensors")
    for stem in ("dora_in_kohya", "lokr_fused_kohya"):
        save_file(
            only_first_blocks(load_file(GOLDEN / f"lora/{stem}.safetensors")), tmp_path / "a.safetensors"
        )
        plugins = [Lora(tmp_path / "a.safetensors", 0.7)]
        full = load_backend(
            "pytorch", **FOLDERS, transformer_path=tmp_path / "whole.safetensors", dtype="float32"
        )
        compressed = run(load("pytorch", file.name), plugins=plugins).latents
        np.testing.assert_allclose(compressed, run(full, plugins=plugins).latents, rtol=0, atol=1e-5)
        assert np.abs(compressed - EXPECTED[file.name]).max() > 1e-3


def only_first_blocks(tensors):
    return {n: t for n, t in tensors.items() if "blocks_0_" in n or "blocks_1_" in n or "blocks" not in n}


# The other networks as single files.


def test_a_vae_in_bfls_names_decodes_alike(tmp_path):
    """`ae.safetensors`: cut out of the all-in-one; the same numbers as diffusers' own conversion of it."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    tensors = load_file(CHECKPOINTS / "all_in_one_fp8.safetensors")
    tensors = {n.removeprefix("vae."): t for n, t in tensors.items() if n.startswith("vae.")}
    save_file(tensors, tmp_path / "ae.safetensors")
    config = json.loads((GOLDEN / "base/vae/config.json").read_text())
    theirs = convert_ldm_vae_checkpoint(dict(tensors), config)
    ours = open_part(tmp_path / "ae.safetensors", "vae")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert np.array_equal(ours.read(name).astype(np.float32), tensor.float().numpy()), name


def test_a_t5_gguf_is_the_same_encoder(tmp_path):
    """In llama.cpp's names, written by the `gguf` package's own writer."""
    path = tmp_path / "t5-encoder.gguf"
    write_t5_gguf(path)
    golden = read_golden("plain")
    plain = load_backend("pytorch", **FOLDERS, dtype="float32").encode_prompt(golden.request.prompt)
    backend = load_backend("pytorch", **FOLDERS, text_encoder_2_path=path, dtype="float32")
    states = backend.encode_prompt(golden.request.prompt).states
    np.testing.assert_allclose(states, plain.states, rtol=0, atol=1e-5)


T5_NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_o", "wi_0": "ffn_gate", "wi_1": "ffn_up",
            "wo": "ffn_down", "relative_attention_bias": "attn_rel_b"}  # fmt: skip


def write_t5_gguf(path):
    from gguf import GGUFWriter

    weights = open_weights(FOLDERS["base_model_path"] / "text_encoder_2")
    writer = GGUFWriter(path, "t5encoder")
    for name in weights:
        parts = name.split(".")
        if parts[0] == "shared":
            new = "token_embd.weight"
        elif parts[1] == "final_layer_norm":
            new = "enc.output_norm.weight"
        elif parts[1] == "embed_tokens":
            continue
        elif parts[5] == "layer_norm":
            new = f"enc.blk.{parts[2]}.{'attn_norm' if parts[4] == '0' else 'ffn_norm'}.weight"
        else:
            new = f"enc.blk.{parts[2]}.{T5_NAMES[parts[6]]}.weight"
        writer.add_tensor(new, weights.read(name).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_an_encoder_as_a_single_file_encodes_alike(tmp_path, part):
    """`clip_l.safetensors` has a projection besides, which FLUX does not use."""
    weights = open_weights(FOLDERS["base_model_path"] / part)
    tensors = {name: torch.from_numpy(np.array(weights.read(name))) for name in weights}
    tensors["text_projection.weight"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "encoder.safetensors")
    prompt = read_golden("plain").request.prompt
    plain = load_backend("pytorch", **FOLDERS, dtype="float32").encode_prompt(prompt)
    paths = {f"{part}_path": tmp_path / "encoder.safetensors"}
    text = load_backend("pytorch", **FOLDERS, **paths, dtype="float32").encode_prompt(prompt)
    assert torch.equal(text.states, plain.states) and torch.equal(text.pooled, plain.pooled)


# Refused.

SAYS = {
    "architecture_qwen_image.gguf": "qwen_image", "architecture_sdxl.gguf": "sdxl",
    "bnb_nf4.safetensors": "bitsandbytes", "chroma_like.safetensors": "Chroma",
    "comfy_int8_convrot.safetensors": "int8", "comfy_nvfp4.safetensors": "nvfp4",
    "depth_like.safetensors": "Canny or Depth", "fill_like.gguf": "FLUX.1 Fill",
    "fill_like.safetensors": "FLUX.1 Fill", "fill_like_fp8_prefixed.safetensors": "FLUX.1 Fill",
    "fill_folder": "FLUX.1 Fill", "kontext_folder": "Kontext", "flux1-kontext-dev.safetensors": "Kontext",
    "flux2_folder": "FLUX.2", "flux2_like.safetensors": "FLUX.2",
    "flux2_like_diffusers.safetensors": "FLUX.2",
    "first_block_missing.safetensors": r"double_blocks\.0\.", "lora_given_as_base.safetensors": "is a LoRA",
    "nan_weights.safetensors": r"double_blocks\.0\.img_mlp\.0\.weight.*not finite",
    "one_tensor_missing.safetensors": r"single_blocks\.0\.linear2\.weight",
    "one_wrong_shape.safetensors": r"another shape double_blocks\.0\.img_mlp\.0\.weight",
    "quanto_qint8_diffusers.safetensors": "quanto", "redux_like.safetensors": "Redux",
    "sd3_like.safetensors": "Stable Diffusion 3", "sdxl_like.safetensors": "Stable Diffusion XL",
    "svdquant_nunchaku.safetensors": "SVDQuant",
    "type_iq2_xxs.gguf": r"time_in\.in_layer\.weight in the type IQ2_XXS",
    "diffusers_missing_shard": "interrupted.*00002-of-00003", "html_page.gguf": "web page",
    "lfs_pointer.gguf": "Git-LFS pointer", "lfs_pointer.safetensors": "Git-LFS pointer",
    "truncated.gguf": "truncated", "truncated_data.safetensors": "truncated",
}  # fmt: skip


def test_every_refused_file_is_tried():
    assert SAYS.keys() == {path.name for path in REFUSED.iterdir()}


@pytest.mark.parametrize("file", SAYS)
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_file_that_does_not_belong_is_refused_by_name(name, file):
    with pytest.raises(InfuError, match=SAYS[file]) as error:
        load_backend(name, **FOLDERS, transformer_path=REFUSED / file, dtype="float32")
    assert str(REFUSED) not in str(error.value)


@pytest.mark.parametrize("file", ["fill_folder", "kontext_folder", "flux2_folder"])
def test_a_folder_that_does_not_belong_is_refused_as_a_base_too(file):
    with pytest.raises(InfuError, match=SAYS[file]):
        load_backend("pytorch", base_model_path=REFUSED / file, dtype="float32")


def test_a_part_that_a_file_does_not_hold_is_named():
    with pytest.raises(BrokenFile, match="holds no VAE"):
        open_part(CHECKPOINTS / "bfl_bf16.safetensors", "vae")


def test_a_torch_file_is_read_without_unpickling(tmp_path):
    """`.ckpt` and `.bin` of training scripts: a state dict, perhaps inside another."""
    tensors = {n: t.float() for n, t in load_file(CHECKPOINTS / "bfl_bf16.safetensors").items()}
    torch.save({"state_dict": tensors, "step": 3}, tmp_path / "flux.ckpt")
    checkpoint = open_part(tmp_path / "flux.ckpt", "transformer")
    other = open_part(CHECKPOINTS / "bfl_bf16.safetensors", "transformer")
    assert all(np.array_equal(checkpoint.read(n), other.read(n).astype(np.float32)) for n in other)
    assert checkpoint.keys() == other.keys()


# Damage.


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_in_a_gguf_is_read_or_refused(tmp_path_factory, data):
    raw = bytearray((REFUSED / "fill_like.gguf").read_bytes())
    header = min(len(raw), 400)
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    read_or_refuse(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_in_a_scaled_file_is_read_or_refused(tmp_path_factory, data):
    raw = bytearray((CHECKPOINTS / "fp8_scaled_comfy_quant.safetensors").read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(raw)
    read_or_refuse(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("double_blocks.0.img_attn.qkv.bias", []), ("img_in.weight", [64 * 64]), ("txt_in.scale_weight", [3])],
)
def test_shapes_that_fuzzing_found_are_refused_in_words(tmp_path, name, shape):
    tensors = load_file(CHECKPOINTS / "fp8_scaled_scale_weight.safetensors")
    tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(BrokenFile, match=f"is damaged: {name}"):
        open_part(tmp_path / "a.safetensors", "transformer")


def read_or_refuse(path):
    try:
        checkpoint = open_part(path, "transformer")
        for name in checkpoint:
            checkpoint.read(name)
    except InfuError as error:
        assert str(path.parent) not in str(error)


def test_a_gguf_whose_counts_lie_is_refused_at_once(tmp_path):
    raw = bytearray((REFUSED / "fill_like.gguf").read_bytes())
    shutil.copy(REFUSED / "fill_like.gguf", tmp_path / "a.gguf")
    for at in (8, 16):  # the number of tensors, that of entries
        lying = bytearray(raw)
        lying[at : at + 8] = (1 << 60).to_bytes(8, "little")
        (tmp_path / "a.gguf").write_bytes(lying)
        with pytest.raises(BrokenFile, match="damaged header"):
            open_weights(tmp_path / "a.gguf")
