"""`python -m infu inspect`, and the document about files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from golden import FOLDERS, GOLDEN
from safetensors.torch import load_file, save_file

from backends.mlx.save import save_quantised
from infu import InfuError
from infu.inspect import describe_file, draw_file, read_model_shapes
from infu.models import locate
from infu.weights.document import make_document

CHECKPOINTS, LORAS = GOLDEN / "checkpoints", GOLDEN / "lora"


def run(*arguments):
    command = [sys.executable, "-m", "infu", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_file_of_several_networks_is_told_apart():
    values = describe_file(CHECKPOINTS / "all_in_one_fp8.safetensors")
    assert list(values["networks"]) == ["transformer", "vae", "text_encoder", "text_encoder_2"]
    dit = values["networks"]["transformer"]
    assert (dit["double_blocks"], dit["single_blocks"], dit["width"], dit["guidance"]) == (1, 1, 64, True)
    assert values["tensors"] == 313 and "FLUX.1-dev" in values["what"]
    assert len(draw_file(values).splitlines()) < 25  # one screen


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("checkpoints/schnell_like_fp8_e5m2.safetensors", "FLUX.1-schnell"),
        ("checkpoints/mixed.gguf", "FLUX.1-dev"),
        ("checkpoints/diffusers_sharded/transformer", "FLUX.1-dev"),
        ("checkpoints/infusenet_aes_bf16.safetensors", "InfuseNet"),
        ("base/vae", "VAE"),
        ("base/text_encoder_2", "T5 encoder"),
        ("InfiniteYou/infu_flux_v1.0/aes_stage2/image_proj_model.bin", "projection of the face"),
        ("lora/one_lycoris.safetensors", "LoRA"),
    ],
)
def test_a_file_is_named(file, what):
    values = describe_file(GOLDEN / file)
    assert what in values["what"] and json.loads(json.dumps(values)) == values


def test_memory_is_that_of_the_network_in_memory():
    """bfloat16 takes 2 bytes a number; fp8 and GGUF about the file's size."""
    plain = describe_file(CHECKPOINTS / "bfl_bf16.safetensors")["networks"]["transformer"]
    assert plain["memory"] == plain["bytes"]
    fp8 = describe_file(CHECKPOINTS / "fp8_e4m3fn.safetensors")["networks"]["transformer"]
    assert fp8["bytes"] < fp8["memory"] < 1.02 * fp8["bytes"]  # vectors are widened
    gguf = describe_file(CHECKPOINTS / "prefixed_no_architecture.gguf")["networks"]["transformer"]
    assert abs(gguf["memory"] / gguf["bytes"] - 1) < 0.1


@pytest.mark.parametrize("bits", [4, 6])
def test_what_mlx_packed_is_told_with_its_bits_and_groups(tmp_path, bits):
    save_quantised(locate(base_model_path=FOLDERS["base_model_path"]), tmp_path / "saved", bits, "bfloat16")
    folder = tmp_path / "saved/base/transformer"
    for path in (folder, folder / "model.safetensors"):
        values = describe_file(path)
        assert values["packed"] == {"for": "MLX", "bits": bits, "group": 64}  # golden's rows are 64 long
        assert f"packed for MLX: {bits} bits, a scale and an offset for each 64" in draw_file(values)
    memory = values["networks"]["transformer"]["memory"]
    assert memory == values["networks"]["transformer"]["bytes"]  # as it is in the file
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, tmp_path / "a.safetensors")  # no header, and no config beside it
    assert "packed for MLX: its config.json is not beside it" in draw_file(
        describe_file(tmp_path / "a.safetensors")
    )


def test_a_whole_folder_is_told_part_by_part():
    values = describe_file(GOLDEN / "base")
    assert list(values["networks"]) == ["transformer", "vae", "text_encoder", "text_encoder_2"]
    parts = [describe_file(GOLDEN / "base" / part) for part in values["networks"]]
    for total in ("bytes", "tensors"):
        assert values[total] == sum(part[total] for part in parts)
    assert len(draw_file(values).splitlines()) == 6 and json.loads(json.dumps(values)) == values
    with pytest.raises(InfuError, match="Kontext"):
        describe_file(CHECKPOINTS / "refused/kontext_folder")


def test_a_lora_is_held_against_a_model():
    shapes = read_model_shapes(FOLDERS["base_model_path"])
    values = describe_file(LORAS / "clip_and_three_kohya.safetensors", shapes)
    assert values["matched"] == {"transformer": 6, "text_encoder": 7}
    assert values["written_by"] == ["kohya, TheLastBen (lora_unet_)", "kohya, OneTrainer (lora_te1_)"]
    text = draw_file(values)
    assert "6 modules of the base, 7 modules of CLIP" in text and "text_projection" in text


def test_the_command_prints_one_screen_or_json():
    path = LORAS / "broken/stray_tensors_among_good.safetensors"
    text = run(path, "--base_model_path", FOLDERS["base_model_path"])
    assert text.returncode == 0 and "changes 6 modules of the base" in text.stdout
    assert "not used (1 tensors): note_to_self" in text.stdout and str(LORAS) not in text.stdout
    values = run(path, "--base_model_path", FOLDERS["base_model_path"], "--json")
    assert json.loads(values.stdout)["unused"]["count"] == 1


def test_the_command_refuses_with_the_reason():
    refused = run(CHECKPOINTS / "refused/fill_like.safetensors")
    assert refused.returncode == 1 and "FLUX.1 Fill" in refused.stderr and refused.stdout == ""


REFUSED = sorted([*(CHECKPOINTS / "refused").glob("*.*"), *LORAS.glob("foreign/*"), *LORAS.glob("broken/*")])


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_whatever_the_file_it_is_described_or_refused_in_words(path):
    shapes = read_model_shapes(FOLDERS["base_model_path"])
    try:
        assert draw_file(describe_file(path, shapes))
    except InfuError as error:
        assert str(path.parent) not in str(error)


def test_the_document_is_up_to_date():
    """`python -m infu.weights.document > docs/files.md` writes it."""
    path = Path(__file__).parents[1] / "docs/files.md"
    assert path.read_text() == make_document()
