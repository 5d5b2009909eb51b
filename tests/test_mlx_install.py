"""What a Mac installs: the project with MLX, without torch and diffusers, in an environment of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

ROOT = Path(__file__).parents[1]
INSTALLED = ("app.py", "backends", "infu", "page", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a fresh environment that holds the project and what `[mlx]` needs."""
    folder = tmp_path_factory.mktemp("mac")
    source = folder / "source"
    source.mkdir()
    for name in INSTALLED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    interpreter = folder / "venv/bin/python"
    pip = [interpreter, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"{source}[mlx]"], check=True)
    headless = ["--force-reinstall", "--no-deps", "opencv-python-headless"]  # as the Makefile does: no libGL
    subprocess.run([*pip, *headless], check=True)
    return interpreter


def test_a_picture_is_made_where_torch_is_not_installed(python, tmp_path):
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
    )
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert names.isdisjoint({"torch", "diffusers", "transformers", "accelerate"}) and "mlx" in names
    Image.fromarray(astronaut()).save(tmp_path / "face.jpg")
    options = "--backend mlx --id_image face.jpg --width 128 --height 128 --num_steps 2 --seed 5 --json"
    command = [python, "-m", "infu", "generate", *options.split(), "--out_results_dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["settings"]["backend"] == "mlx" and result["settings"]["identity"]
    picture = np.asarray(Image.open(tmp_path / result["file"]))
    assert picture.shape == (128, 128, 3) and picture.std() > 1


def test_the_page_is_built_where_torch_is_not_installed(python, tmp_path):
    code = (
        "import app; studio = app.Studio(name='mlx', model_version='aes_stage2');"
        "print(type(app.build_page(studio)).__name__, studio.load().name)"
    )
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "Blocks mlx", done.stderr
