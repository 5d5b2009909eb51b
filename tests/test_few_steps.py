"""Models for few steps: what is left open is what they were made for, and what is asked for stays."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from golden import FOLDERS, GOLDEN, PEFT, read_golden
from safetensors.numpy import load_file, save_file

from backends import load_backend
from infu import GenerationRequest, Lora, generate
from infu.batch import read_line
from infu.few_steps import find_lora_recipe
from infu.inspect import describe_file, draw_file
from infu.metadata import read_picture, save_picture
from infu.models import MINI
from infu.options import PictureOptions

SCHNELL = GOLDEN / "checkpoints/schnell_like_fp8_e5m2.safetensors"
SMALL = GenerationRequest("A man, portrait", width=64, height=80, seed=3)


@pytest.fixture(scope="module")
def backend():
    return load_backend("pytorch", **FOLDERS, dtype="float32")


@pytest.fixture
def hyper(tmp_path: Path) -> Path:
    """The golden LoRA under the name of ByteDance's."""
    return Path(shutil.copy(PEFT, tmp_path / "Hyper-FLUX.1-dev-8steps-lora.safetensors"))


@pytest.mark.parametrize(
    ("file", "metadata", "found"),
    [
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", {}, ("Hyper-FLUX", 8, 3.5, 0.125)),
        ("Hyper-FLUX.1-dev-16steps-lora.safetensors", {}, ("Hyper-FLUX", 16, 3.5, 0.125)),
        ("hyper_flux_fp16.safetensors", {}, ("Hyper-FLUX", 8, 3.5, 0.125)),
        ("FLUX.1-Turbo-Alpha.safetensors", {}, ("FLUX.1-Turbo-Alpha", 8, 3.5, 1.0)),
        ("flux_turbo_alpha.safetensors", {}, ("FLUX.1-Turbo-Alpha", 8, 3.5, 1.0)),
        (
            "models--alimama-creative--FLUX.1-Turbo-Alpha/snapshots/0a1b/diffusion_pytorch_model.safetensors",
            {},
            ("FLUX.1-Turbo-Alpha", 8, 3.5, 1.0),
        ),
        (
            "mine.safetensors",
            {"modelspec.title": "Hyper-FLUX.1-dev 16 steps"},
            ("Hyper-FLUX", 16, 3.5, 0.125),
        ),
        ("flux_realism_lora.safetensors", {"modelspec.title": "turbo charged"}, None),
        ("Hyper-FLUX experiments/ink.safetensors", {}, None),
        ("hyperrealism_flux.safetensors", {}, None),
    ],
)
def test_a_lora_for_few_steps_is_known_by_its_name_or_header(file: str, metadata: dict, found: tuple | None):
    recipe = find_lora_recipe(Path("/models") / file, metadata)
    assert (recipe and (recipe.name, recipe.num_steps, recipe.guidance_scale, recipe.scale)) == found


def test_what_is_left_open_is_what_the_lora_was_made_for_and_is_told(backend, hyper: Path, tmp_path: Path):
    result = generate(SMALL.replace(plugins=[Lora(hyper)]), backend)
    asked = SMALL.replace(num_steps=8, guidance_scale=3.5, plugins=[Lora(PEFT, 0.125)])
    np.testing.assert_array_equal(result.latents, generate(asked, backend).latents)
    assert result.notes == (
        "Hyper-FLUX is made for few steps. Where nothing was asked for: 8 steps, guidance 3.5.",
    )
    save_picture(result.image, tmp_path / "picture.png", result.metadata)
    told = read_picture(tmp_path / "picture.png")
    assert (told["num_steps"], told["guidance_scale"]) == (8, 3.5)
    assert told["plugins"] == [{"lora": hyper.name, "scale": 0.125}]
    assert told["few_steps"] == told["loras"][0]["few_steps"]
    assert told["few_steps"]["name"] == "Hyper-FLUX"


def test_what_is_asked_for_stays_and_is_said_to_be_something_else(backend, hyper: Path):
    request = SMALL.replace(num_steps=2, guidance_scale=1.0, plugins=[Lora(hyper, 1.0)])
    result = generate(request, backend)
    plain = generate(request.replace(plugins=[Lora(PEFT, 1.0)]), backend)
    np.testing.assert_array_equal(result.latents, plain.latents)
    assert result.notes == (
        "Hyper-FLUX is made for 8 steps, guidance 3.5, but something else was asked for.",
    )
    assert result.metadata["num_steps"] == 2 and plain.notes == ()


def test_a_lora_at_scale_0_and_a_changed_request_leave_30_steps():
    request = GenerationRequest("A man", plugins=[Lora("Hyper-FLUX.1-dev-8steps-lora.safetensors", 0)])
    assert (request.num_steps, request.guidance_scale) == (30, 3.5) and request.loras == ()
    assert request.replace(num_steps=30).unset == {"guidance_scale", "max_sequence_length"}
    assert (
        request.replace(seed=1).unset == request.unset == {"num_steps", *request.replace(num_steps=30).unset}
    )


def test_the_mini_model_runs_the_steps_that_its_base_says():
    steps = json.loads((MINI / "base/generation_defaults.json").read_text())["num_steps"]
    result = generate(GenerationRequest("A man", width=64, height=64), load_backend("pytorch"))
    assert result.metadata["num_steps"] == steps and result.notes == ()


@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_schnell_with_a_face_takes_four_steps_no_guidance_and_256_tokens(name: str, hyper: Path):
    backend = load_backend(name, **FOLDERS, transformer_path=SCHNELL, dtype="float32")
    request = SMALL.replace(id_embedding=read_golden("plain").request.id_embedding, plugins=[Lora(hyper, 0)])
    steps = []
    result = generate(request, backend, on_step=lambda step, num_steps, preview: steps.append(num_steps))
    assert steps == [4] * 4
    told = result.metadata
    assert (told["num_steps"], told["guidance_scale"], told["max_sequence_length"]) == (4, 0.0, 256)
    assert told["few_steps"]["name"] == "FLUX.1-schnell" and result.notes == (
        "FLUX.1-schnell is made for few steps. "
        "Where nothing was asked for: 4 steps, no guidance, 256 T5 tokens.",
    )
    asked = request.replace(num_steps=4, guidance_scale=7.0, max_sequence_length=256)  # it takes no guidance
    np.testing.assert_array_equal(generate(asked, backend).latents, result.latents)
    faceless = generate(asked.replace(infusenet_conditioning_scale=0), backend)
    assert np.abs(faceless.latents - result.latents).max() > 1e-3


def test_the_command_line_and_a_batch_leave_open_what_is_not_written(hyper: Path):
    request = PictureOptions(lora=[str(hyper)]).request()
    assert {"num_steps", "guidance_scale"} < request.unset and request.plugins[0].unset
    written = PictureOptions(lora=[f"{hyper}:0.5"], num_steps=6).request()
    assert "num_steps" not in written.unset and not written.plugins[0].unset
    line = json.dumps({"prompt": "A man", "plugins": [{"lora": hyper.name}]}).encode()
    assert read_line(line, hyper.parent).plugins[0].unset


def test_inspect_says_what_a_lora_was_made_for(backend, tmp_path: Path):
    save_file(
        load_file(GOLDEN / "lora/one_kohya.safetensors"),
        tmp_path / "a.safetensors",
        {"ss_output_name": "turbo_alpha"},
    )
    text = draw_file(describe_file(tmp_path / "a.safetensors", backend.module_shapes))
    assert "for few steps (FLUX.1-Turbo-Alpha): 8, with guidance 3.5 and a strength of 1" in text
