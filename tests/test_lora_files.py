"""LoRA files of every layout: the pictures they must make, or the words they are refused with.

Expected latents come from a diffusers reference with the change of every weight made in float64
(tests/golden/lora/README.md).
"""

import functools
import json
import shutil

import numpy as np
import pytest
from golden import FOLDERS, GOLDEN, read_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from backends import load_backend
from infu import InfuError, Lora, generate
from infu.inspect import read_model_shapes
from infu.weights.lora import read_lora

LORAS = GOLDEN / "lora"
EXPECTED = np.load(LORAS / "expected.npz")
TOLERANCE = {
    "pytorch": 1e-5,
    "mlx": 1e-4,
}  # of latents of size 4; leaving out one module of a file moves them by 2e-3
GROUPS = {  # files of a group carry the same change of weights
    "one": "one_*", "two": "two_*", "extras": "extras_*", "final_linear_only": "final_linear_only_*",
    "xlabs": "xlabs*", "xlabs_double_only": "xlabs_double_only", "lokr": "lokr_[!f]*",
    "lokr_fused": "lokr_fused_*", "lokr_dora": "lokr_dora_*", "loha": "loha_*", "dora_out": "dora_out_*",
    "dora_in": "dora_in_*", "three": "three_*", "diff": "diff_comfy*", "diff_no_norms": "diff_kohya_no_norms",
    "peft_bias_alpha": "peft_bias_alpha", "clip": "clip_[!a]*", "clip_and_three": "clip_and_three_*",
    "clip_extracted": "clip_comfy_extracted", "t5_and_three": "t5_*",
}  # fmt: skip
OTHERS = {"xlabs": "xlabs_double_only", "lokr": "lokr_dora_kohya", "clip": "clip_comfy_extracted"}
CASES = [
    (path.stem, key)
    for group, pattern in GROUPS.items()
    for path in sorted(LORAS.glob(f"{pattern}.safetensors"))
    for key in EXPECTED
    if key.split("@")[0] == group and key.count("@") == 1 and OTHERS.get(group) != path.stem
    if not key.endswith("_convention")  # what LyCORIS and PEFT mean by a strength of 0.5: not what we mean
]


FEWER = list({stem.split("_")[0] + key: (stem, key) for stem, key in CASES if "@1" in key}.values())
EACH = [("pytorch", *case) for case in CASES] + [("mlx", *case) for case in FEWER]  # slow on a CPU


@pytest.fixture(scope="module")
def loaded():
    """Backends by name, each loaded once."""
    return functools.cache(lambda name: load_backend(name, **FOLDERS, dtype="float32"))


@pytest.fixture
def backend(loaded):
    return loaded("pytorch")


def run(backend, *loras, request=None):
    golden = read_golden("plain")
    plugins = [Lora(LORAS / f"{name}.safetensors", scale) for name, scale in loras]
    return generate((request or golden.request).replace(plugins=plugins), backend, noise=golden.noise)


def assert_expected(backend, result, key):
    np.testing.assert_allclose(result.latents, EXPECTED[key], rtol=0, atol=TOLERANCE[backend.name])


def test_every_file_and_every_expectation_is_tried():
    assert {stem for stem, _ in CASES} == {path.stem for path in LORAS.glob("*.safetensors")}
    keys = {key for key in EXPECTED if not key.endswith("_convention")}
    others = {"plain", "one@1.0+two@0.6", "clip_pooled@1.0", "up_missing@1.0_rest_applied"}
    assert keys - {key for _, key in CASES} == others


@pytest.mark.parametrize(("name", "stem", "key"), EACH)
def test_latents_are_the_references(loaded, name, stem, key):
    backend, strength = loaded(name), float(key.split("@")[1].split("_")[0])
    result = run(backend, (stem, strength))
    assert_expected(backend, result, key)
    left_out = {"clip_and_three_kohya": "text_projection", "three_peft_and_kohya": "another spelling"}
    assert [left_out.get(stem, "") in note for note in result.notes] == [True] * (stem in left_out)


@pytest.mark.parametrize("first", ["one_kohya", "one_peft", "one_comfy"])
@pytest.mark.parametrize("second", ["two_peft", "two_kohya_sparse"])
def test_two_at_once_in_either_order(backend, first, second):
    for order in (((first, 1.0), (second, 0.6)), ((second, 0.6), (first, 1.0))):
        assert_expected(backend, run(backend, *order), "one@1.0+two@0.6")


def test_the_same_file_twice_adds_up(backend):
    assert_expected(backend, run(backend, ("one_kohya", 0.4), ("one_kohya", 0.4)), "one@0.8")
    halves = run(backend, ("loha_kohya", 0.5), ("loha_kohya", 0.5))
    assert_expected(backend, halves, "loha@1.0")


EVERY_KIND = ("one_kohya", "lokr_fused_kohya", "loha_lycoris", "dora_in_kohya", "dora_out_peft", "diff_comfy",
              "clip_comfy_extracted", "t5_kohya_and_three")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "stem"),
    [*(("pytorch", stem) for stem in EVERY_KIND), ("mlx", "diff_comfy"), ("mlx", "dora_in_kohya")],
)
def test_a_removed_lora_leaves_no_trace(loaded, name, stem):
    backend = loaded(name)
    before = run(backend).latents
    assert np.array_equal(run(backend, (stem, 0.0)).latents, before)
    assert not np.array_equal(run(backend, (stem, 1.0)).latents, before)
    assert np.array_equal(run(backend).latents, before)


def test_clip_is_changed_for_this_prompt_and_not_for_the_next_request(backend):
    prompt = read_golden("plain").request.prompt
    plain = backend.numpy(backend.encode_prompt(prompt).pooled)
    with backend.plugged([Lora(LORAS / "clip_peft.safetensors", 1.0)]):
        pooled = backend.numpy(backend.encode_prompt(prompt).pooled)
    np.testing.assert_allclose(pooled, EXPECTED["clip_pooled@1.0"], rtol=0, atol=1e-5)
    assert np.array_equal(backend.numpy(backend.encode_prompt(prompt).pooled), plain)


def test_a_changed_scale_reads_no_file(backend, tmp_path):
    path = tmp_path / "my 風格 v1.5 'final'.safetensors"
    shutil.copy(LORAS / "one_kohya.safetensors", path)
    golden = read_golden("plain")
    first = generate(golden.request.replace(plugins=[Lora(path, 1.0)]), backend, noise=golden.noise)
    assert_expected(backend, first, "one@1.0")
    second = golden.request.replace(plugins=[Lora(path, -0.5)])
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infu.weights.lora.open_weights", opened.append)
        assert_expected(backend, generate(second, backend, noise=golden.noise), "one@-0.5")
    assert opened == []


# Refused, or used in part and said.

FOREIGN = {
    "sdxl_kohya": "Stable Diffusion XL", "sdxl_diffusers": "Stable Diffusion XL",
    "sd15_kohya": "Stable Diffusion 1", "sd3_kohya": "Stable Diffusion 3", "flux2_diffusers": "FLUX.2",
    "flux2_bfl": "FLUX.2", "flux2_bfl_blocks_only": "FLUX.2", "wan": "Wan", "qwen_image": "Qwen-Image",
    "bfl_control": "is a control LoRA: it needs a picture", "oft_kohya": "OFT", "glora_kohya": "GLoRA",
    "xlabs_ip_adapter": "IP-Adapter", "controlnet": "ControlNet", "flux_checkpoint": "a whole model",
    "textual_inversion": "textual inversion",
}  # fmt: skip
BROKEN = {
    "lfs_pointer": "Git-LFS pointer", "html_page": "web page", "empty": "is empty",
    "truncated_header": "truncated", "truncated_data": "truncated", "header_length_huge": "not a safetensors",
    "json_garbage": "damaged header", "pickle_named": "pickle", "no_tensors": "no tensors",
    "nothing_matches": "0 of its modules.*mystery", "shape_mismatch": "_0_img_attn_proj is 96 x 96",
    "one_wrong_shape_among_good": "_0_img_attn_proj is 96 x 96",
    "up_missing": "half a pair for lora_unet_double_blocks_4_txt_mlp_2",
    "rank_mismatch": "contradicts itself at lora_unet_double_blocks_4_txt_mlp_2",
    "dora_scale_wrong_shape": "magnitudes of lora_unet_double_blocks_4_img_attn_proj",
    "nan_weights": "not finite in lora_unet_double_blocks_4_img_attn_proj",
    "inf_weights": "not finite in lora_unet_double_blocks_4_img_attn_proj",
    "nan_alpha": "not finite in lora_unet_double_blocks_4_img_attn_proj.alpha",
}  # fmt: skip
IN_PART = {
    "foreign_module_among_good": "nonsense_layer_7", "stray_tensors_among_good": "note_to_self",
    "block_out_of_range_among_good": "double_blocks_99",
}  # fmt: skip
KINDS = [*(f"foreign/{name}" for name in FOREIGN), *(f"broken/{name}" for name in BROKEN)]


def test_every_foreign_and_broken_file_is_tried():
    tried = {f"{kind}.safetensors" for kind in KINDS} | {f"broken/{name}.safetensors" for name in IN_PART}
    there = {f"{path.parent.name}/{path.name}" for path in LORAS.glob("*/*")}
    assert there == tried | {"broken/zero_up.safetensors", "broken/legacy.pt"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_does_not_belong_is_refused_by_name(backend, kind):
    says = (FOREIGN | BROKEN)[kind.split("/")[1]]
    with pytest.raises(InfuError, match=says) as error:
        run(backend, (kind, 1.0))
    assert str(LORAS) not in str(error.value)


def test_a_pickle_is_refused_without_running_it(backend):
    with pytest.raises(InfuError, match="legacy.pt"), backend.plugged([Lora(LORAS / "broken/legacy.pt")]):
        pass


@pytest.mark.parametrize("name", IN_PART)
def test_a_foreign_part_is_named_and_the_good_part_is_used(backend, name):
    result = run(backend, (f"broken/{name}", 1.0))
    assert_expected(backend, result, "three@1.0")
    assert IN_PART[name] in result.notes[-1] and "6 modules" in result.notes[-1]
    (report,) = result.metadata["loras"]
    assert report["matched"] == {"transformer": 6} and report["file"] == f"{name}.safetensors"


def test_a_lora_of_zeros_changes_nothing(backend):
    assert_expected(backend, run(backend, ("broken/zero_up", 1.0)), "plain")


# On networks that are not whole in memory.


HARD = (("dora_in_kohya", "dora_in@1.0"), ("dora_out_peft", "dora_out@1.0"), ("diff_comfy", "diff@1.0"),
        ("lokr_fused_bfl", "lokr_fused@1.0"))  # fmt: skip
OPTIONS = [("pytorch", {"quantize": 8}, HARD), ("pytorch", {"offload": "model"}, HARD),
           ("pytorch", {"offload": "sequential"}, HARD), ("mlx", {"quantize": 8}, HARD[:1]),
           ("mlx", {"offload": "sequential"}, HARD[:2])]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "files"), OPTIONS)
def test_loras_change_quantised_and_offloaded_bases(name, options, files):
    """Not the very change (a quantised base is another base), but one of that size and direction."""
    backend = load_backend(name, **FOLDERS, dtype="float32", **options)
    before = run(backend).latents
    for stem, key in files:
        change, expected = run(backend, (stem, 1.0)).latents - before, EXPECTED[key] - EXPECTED["plain"]
        error = np.linalg.norm(change - expected) / np.linalg.norm(expected)
        assert error < (0.2 if "quantize" in options else 1e-4), stem
    assert np.array_equal(run(backend).latents, before)


# Alpha in the header.


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({}, 1.0),
        ({"ss_network_alpha": "1"}, 1 / 2),
        ({"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 4, "transformer.r": 2})}, 2.0),
        ({"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 4, "transformer.use_rslora": True})},
         4 / 2**0.5),
        ({"lora_adapter_metadata": json.dumps(
            {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"attn.to_q": 1}})}, 1 / 2),
        ({"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 4})}, 1.0),
        ({"lora_adapter_metadata": "[[["}, 1.0),
    ],
)  # fmt: skip
def test_alpha_may_stand_in_the_files_header(tmp_path, metadata, factor):
    tensors = load_file(LORAS / "one_peft.safetensors")
    module = "transformer.transformer_blocks.1.attn.to_q"
    own = {key: tensor[..., :2].contiguous() if "lora_B" in key else tensor[:2].contiguous()
           for key, tensor in tensors.items() if key.startswith(f"{module}.")}  # fmt: skip
    save_file(own, tmp_path / "a.safetensors", metadata)
    name = module.removeprefix("transformer.")
    lora = read_lora(tmp_path / "a.safetensors", {"transformer": {name: (64, 64)}})
    assert lora.changes["transformer"][name].factor == pytest.approx(factor)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_in_a_lora_is_read_or_refused(tmp_path_factory, data):
    shapes = read_model_shapes(FOLDERS["base_model_path"])
    raw = bytearray((LORAS / f"{data.draw(st.sampled_from(EVERY_KIND))}.safetensors").read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(8, header - 1))] = data.draw(st.sampled_from(b'0123456789[],"{}.ab_'))
    path = tmp_path_factory.mktemp("fuzz") / "lora.safetensors"
    path.write_bytes(raw)
    try:
        assert any(read_lora(path, shapes).changes.values())
    except InfuError as error:
        assert str(path.parent) not in str(error)


def test_a_report_counts_what_was_matched_and_what_was_not():
    path = LORAS / "broken/stray_tensors_among_good.safetensors"
    report = read_lora(path, read_model_shapes(FOLDERS["base_model_path"])).report
    assert report["matched"] == {"transformer": 6} and report["unused"]["count"] == 1
    assert json.loads(json.dumps(report)) == report
