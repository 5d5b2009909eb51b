"""What a request accepts, and what it says about the rest."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infu import GenerationRequest, InfuError, Lora


def test_import_infu_loads_no_framework():
    names = ("torch", "mlx", "gradio", "transformers", "diffusers")
    code = f"import infu, sys; print([name for name in {names} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


BAD = [
    ("width", 63, "from 64 to 2048"),
    ("height", 2049, "from 64 to 2048"),
    ("width", 100.5, "whole number"),
    ("seed", -1, "from 0 to 4294967295"),
    ("seed", 2**32, "from 0 to 4294967295"),
    ("num_steps", 0, "from 1 to 200"),
    ("num_images", 0, "from 1 to 64"),
    ("guidance_scale", float("nan"), "from 0 to 100"),
    ("infusenet_conditioning_scale", -0.1, "from 0 to 10"),
    ("infusenet_guidance_start", 1.1, "from 0 to 1"),
    ("prompt", 3, "must be text"),
    ("prompt", "x" * 20_001, "20001 characters"),
    ("max_sequence_length", 0, "from 1 to 512"),
    ("num_steps", True, "whole number"),
    ("plugins", ("file.safetensors",), "knows Lora"),
    ("control_keypoints", np.zeros((4, 2)), "5 x 2"),
    ("control_keypoints", np.full((5, 2), np.inf), "finite"),
    ("id_embedding", [["a"]], "numbers"),
    ("id_embedding", [[1, 2], [3]], "numbers"),
    ("id_images", "photo.jpg", "must be a list"),
    ("id_images", np.zeros((2, 64, 64, 3), np.uint8), "must be a list"),
    ("plugins", Lora("file.safetensors"), "must be a list"),
]


@pytest.mark.parametrize(("name", "value", "says"), BAD)
def test_a_value_out_of_range_is_refused_with_the_range(name, value, says):
    with pytest.raises(InfuError, match=says) as error:
        GenerationRequest(**({"prompt": "a"} | {name: value}))
    assert name in str(error.value)


@given(st.integers(64, 2048), st.integers(64, 2048))
def test_the_run_is_made_at_the_next_multiple_of_16(width, height):
    w, h = GenerationRequest("a", width=width, height=height).run_size
    assert w % 16 == h % 16 == 0 and 0 <= w - width < 16 and 0 <= h - height < 16


@pytest.mark.parametrize("path", [None, 5, b"a"])
def test_a_lora_without_a_path_is_refused(path):
    with pytest.raises(InfuError, match="is the path of a file"):
        Lora(path)


def test_whole_numbers_are_kept_as_such():
    request = GenerationRequest("a", num_steps=30.0, seed=7.0, max_sequence_length=128.0)  # as JSON has them
    assert all(type(n) is int for n in (request.num_steps, request.seed, request.max_sequence_length))


def test_a_window_that_ends_before_it_starts_is_refused():
    with pytest.raises(InfuError, match="must not be larger"):
        GenerationRequest("a", infusenet_guidance_start=0.5, infusenet_guidance_end=0.4)


def test_infusenet_runs_in_the_steps_of_its_window():
    request = GenerationRequest(
        "a", id_embedding=np.ones(4), num_steps=10, infusenet_guidance_start=0.1, infusenet_guidance_end=0.6
    )
    assert [step for step in range(10) if request.infuses(step)] == [1, 2, 3, 4, 5]
    assert not request.replace(infusenet_conditioning_scale=0).infuses(2)


def test_no_seed_is_a_random_one_and_the_pictures_of_a_batch_count_on():
    assert GenerationRequest("a").seed != GenerationRequest("a").seed
    assert GenerationRequest("a", seed=2**32 - 1, num_images=2).seeds == (2**32 - 1, 0)


def test_settings_hold_no_face():
    lora = Lora("/home/me/style.safetensors", 0.5)
    request = GenerationRequest("a", id_embedding=np.ones(4), plugins=[lora])
    assert "id_embedding" not in request.settings() and "/home" not in str(request.settings())
