"""The released pipeline's pictures, from every backend and from the command line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from golden import FOLDERS, GOLDEN, LORA_CASES, read_golden
from PIL import Image
from plugin_cases import read_case

from backends import load_backend
from infu import generate
from infu.pipeline import Step, stream

CASES = ["plain", "control", *LORA_CASES]
# Per backend: the largest difference of a float image. A wrong block or tokenizer shows as 1e-3 or more.
TOLERANCE = {"pytorch": 1e-5, "mlx": 1e-4}


@pytest.fixture(scope="module", params=TOLERANCE)
def backend(request):
    return load_backend(request.param, **FOLDERS, dtype="float32")


@pytest.mark.parametrize("case", CASES)
def test_picture_is_the_released_pipelines(backend, case):
    golden = read_golden(case)
    result = generate(golden.request, backend, noise=golden.noise)
    np.testing.assert_allclose(result.pixels[0], golden.image, rtol=0, atol=TOLERANCE[backend.name])
    levels = np.asarray(result.image).astype(int)
    assert np.abs(levels - golden.image * 255).max() <= 1  # half of it is the rounding to 8 bits


@pytest.mark.parametrize("case", ["plain", "control"])
def test_identity_tokens_and_latents_are_the_released_ones(backend, case):
    golden = read_golden(case)
    tokens = backend.numpy(backend.project_identity(golden.request.id_embedding))
    np.testing.assert_allclose(tokens, golden.arrays["tokens"], rtol=0, atol=1e-5)
    result = generate(golden.request, backend, noise=golden.noise)
    np.testing.assert_allclose(result.latents, golden.arrays["latents"], rtol=0, atol=1e-4)  # of size 4


@pytest.mark.parametrize("case", ["infu_cfg", "batch"])
def test_true_guidance_and_a_batch_are_the_released_ones(backend, case):
    request, arrays = read_case(case)
    result = generate(request, backend, noise=arrays["noise"])
    np.testing.assert_allclose(result.latents, arrays["latents"], rtol=0, atol=1e-4)  # of size 4
    images = arrays["images"] if case == "batch" else arrays["image"][None]
    np.testing.assert_allclose(result.pixels, images, rtol=0, atol=TOLERANCE[backend.name])


def test_a_run_ended_early_keeps_the_picture_that_its_last_step_foresees(backend):
    """After the first step that is the picture of a run of one step, from sigma 1 to 0."""
    golden = read_golden("plain")
    request = golden.request.replace(num_images=2, seed=7)
    *steps, picture = stream(request, backend, enough=lambda: True)
    assert [(type(step), step.step) for step in steps] == [(Step, 1)]
    alone = generate(request.replace(num_images=1, num_steps=1), backend)
    # Two sums of the same numbers, in another order: latents of size 4, float32.
    np.testing.assert_allclose(picture.latents, alone.latents, rtol=0, atol=1e-4)
    np.testing.assert_allclose(picture.pixels, alone.pixels, rtol=0, atol=1e-4)
    assert picture.metadata == alone.metadata | {"num_steps": request.num_steps, "partial": 1}

    asked = iter([False] * request.num_steps + [True])  # with the first picture just finished: no second one
    first = [
        event for event in stream(request, backend, enough=lambda: next(asked)) if hasattr(event, "seeds")
    ]
    assert [picture.seeds for picture in first] == [(7,)] and "partial" not in first[0].metadata


@pytest.mark.parametrize("case", CASES)
def test_the_command_line_makes_the_released_picture(tmp_path, case):
    golden = read_golden(case)
    files = {"id_embedding": golden.request.id_embedding, "noise": golden.noise}
    if golden.request.control_keypoints is not None:
        files["control_keypoints"] = golden.request.control_keypoints
    values = {name: getattr(golden.request, name) for name in FLAGS} | FOLDERS
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
        values[name] = tmp_path / f"{name}.npy"
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    for lora in golden.request.plugins:
        flags += ["--lora", f"{lora.path}:{lora.scale}"]
    command = [sys.executable, "-m", "infu", "generate", "--backend", "pytorch", "--dtype", "float32", *flags]
    run = subprocess.run([*command, "--out_results_dir", tmp_path / "out"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (file,) = (tmp_path / "out").iterdir()
    with Image.open(file) as picture:
        assert np.abs(np.asarray(picture).astype(int) - golden.image * 255).max() <= 1


FLAGS = (
    "prompt",
    "width",
    "height",
    "num_steps",
    "guidance_scale",
    "infusenet_conditioning_scale",
    "infusenet_guidance_start",
    "infusenet_guidance_end",
)


@pytest.fixture(scope="module", params=["plain", "control"])
def model_with_faces(request, tmp_path_factory):
    """The golden model with the released face stack's files: the stand-in detector, and an IR-SE50 that sees
    the case's embedding in every face (its last layer's weights are 0, its bias is the embedding)."""
    folder = tmp_path_factory.mktemp("InfiniteYou")
    shutil.copytree(FOLDERS["model_dir"], folder, dirs_exist_ok=True)
    shutil.copytree(GOLDEN / "scrfd/antelopev2", folder / "supports/insightface/models/antelopev2")
    manifest = json.loads((GOLDEN / "arcface/manifest.json").read_text())
    state = {name: torch.zeros(shape) for name, shape in manifest.items()}
    for name in state:
        if name.endswith("running_var") or name == "output_layer.4.weight":
            state[name] += 1
    state["output_layer.3.bias"] = torch.from_numpy(read_golden(request.param).request.id_embedding)
    (folder / "supports/facexlib").mkdir()
    torch.save(state, folder / "supports/facexlib/recognition_arcface_ir_se50.pth")
    return folder, [request.param] if request.param == "control" else ["plain", *LORA_CASES]


def test_a_photograph_in_place_of_the_embedding_makes_the_same_picture(model_with_faces, monkeypatch):
    folder, cases = model_with_faces
    monkeypatch.setenv("INFU_CACHE", str(folder / "cache"))
    backend = load_backend("pytorch", **FOLDERS | {"model_dir": folder}, dtype="float32")
    for case in cases:
        golden = read_golden(case)
        request = golden.request.replace(id_embedding=None, id_image=GOLDEN / "scrfd/pictures/one.png")
        result = generate(request, backend, noise=golden.noise)
        np.testing.assert_allclose(result.pixels[0], golden.image, rtol=0, atol=1e-5)
