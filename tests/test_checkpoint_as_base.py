"""A checkpoint file as the base itself: what it holds comes from it, the rest from FLUX.1-dev's folder.

The hub is one on this machine, over real HTTP (hub_server.py); the cache it fills is then used without it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from golden import FOLDERS, GOLDEN, read_golden
from hub_server import Hub
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from backends import load_backend
from infu import InfuError, generate
from infu.models import BASE, locate

ALL_IN_ONE = GOLDEN / "checkpoints/all_in_one_fp8.safetensors"
TRANSFORMER = GOLDEN / "checkpoints/bfl_bf16.safetensors"
EXPECTED = np.load(GOLDEN / "checkpoints/expected.npz")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server, folder = Hub(), GOLDEN / "base"
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    server.repos = {BASE: files}
    yield server
    server.close()


def run(hub: Hub, home: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "INFU_"))}
    return subprocess.run(
        [sys.executable, "-m", "infu", *map(str, command)],
        env=environment | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's cache with what `download` fetches beside the all-in-one file: no weights at all."""
    home = tmp_path_factory.mktemp("home")
    answer = run(hub, home, "download", "--base_model_path", ALL_IN_ONE, "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {"name": "all_in_one_fp8", "model_version": None}
    assert "tokenizer_2/tokenizer.json" in hub.fetched()
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    return home


@pytest.fixture
def cached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(("name", "tolerance"), [("pytorch", 1e-5), ("mlx", 1e-4)])
def test_every_network_comes_from_the_file(cached, name: str, tolerance: float):
    golden = read_golden("plain")
    paths = {"base_model_path": ALL_IN_ONE, "model_dir": FOLDERS["model_dir"]}
    backend = load_backend(name, **paths, dtype="float32")
    result = generate(golden.request, backend, noise=golden.noise)
    expected = EXPECTED["all_in_one_fp8.safetensors/everything"]
    np.testing.assert_allclose(result.latents, expected, rtol=0, atol=tolerance)
    assert result.metadata["model"] == "all_in_one_fp8 + InfiniteYou"


def test_a_part_named_beside_it_comes_from_there(cached):
    files = locate(ALL_IN_ONE, vae_path=GOLDEN / "base/vae")
    assert files.vae == GOLDEN / "base/vae" and files.transformer == files.text_encoder == ALL_IN_ONE
    assert files.base.parent.name == "snapshots"


def test_the_command_line_and_inspect_take_it_too(hub: Hub, home: Path, tmp_path: Path):
    small = ("--prompt", "a lake", "--width", "64", "--height", "64", "--num_steps", "1", "--seed", "1")
    out = ("--out_results_dir", tmp_path, "--json")
    asked = len(hub.seen)
    answer = run(hub, home, "generate", "--base_model_path", ALL_IN_ONE, *small, *out)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["settings"]["model"] == "all_in_one_fp8"
    lora = GOLDEN / "lora/clip_and_three_kohya.safetensors"
    answer = run(hub, home, "inspect", lora, "--base_model_path", ALL_IN_ONE, "--json")
    assert json.loads(answer.stdout)["matched"]["text_encoder"] == 7, answer.stderr
    assert len(hub.seen) == asked


def test_what_a_file_lacks_is_named_where_it_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InfuError) as error:
        locate(TRANSFORMER, fetch=False)
    said = str(error.value)
    assert said.startswith(
        "bfl_bf16.safetensors holds FLUX transformer. Its configs and tokenizers, and VAE, "
    )
    assert "CLIP text encoder, T5 encoder" in said and BASE in said and "as transformer_path" in said
    with pytest.raises(InfuError, match="Its configs and tokenizers come from"):
        locate(ALL_IN_ONE, fetch=False)


def test_a_file_without_a_transformer_is_no_base(tmp_path: Path):
    tensors = {n: t for n, t in load_file(ALL_IN_ONE).items() if n.startswith("vae.")}
    save_file(tensors, tmp_path / "ae.safetensors")
    with pytest.raises(InfuError, match="ae.safetensors holds VAE but no FLUX transformer.*vae_path"):
        locate(tmp_path / "ae.safetensors")
    with pytest.raises(InfuError, match="holds InfuseNet but no FLUX transformer"):
        locate(GOLDEN / "checkpoints/infusenet_aes_bf16.safetensors")


@pytest.mark.parametrize("file", ["fill_like.gguf", "sdxl_like.safetensors", "bnb_nf4.safetensors"])
def test_what_is_no_flux_is_refused_before_anything_is_fetched(hub: Hub, tmp_path: Path, file: str):
    asked = len(hub.seen)
    answer = run(hub, tmp_path, "download", "--base_model_path", GOLDEN / "checkpoints/refused" / file)
    assert answer.returncode == 1 and "InfiniteYou needs FLUX.1-dev" in answer.stderr
    answer = run(hub, tmp_path, "download", "--transformer_path", GOLDEN / "checkpoints/refused" / file)
    assert answer.returncode == 1 and "InfiniteYou needs FLUX.1-dev" in answer.stderr
    assert len(hub.seen) == asked
