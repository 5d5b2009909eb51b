"""The app on ZeroGPU: with a stand-in for `spaces` that keeps its promises (tests/stand_in), a hub that
refuses FLUX.1-dev, and, for the loading, the real `spaces` with its own emulation of CUDA."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDEN
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hub_server import Hub
from PIL import Image
from safetensors.numpy import load_file, save_file
from serving import ROOT, Server, served
from skimage.data import brick

from backends import load_backend
from infu import ControlNet, GenerationRequest, Lora, OminiControl, generate
from infu.memory import RELEASED, read_networks
from infu.metadata import read_picture
from infu.models import BASE, INFINITE_YOU, MINI, locate
from page.quota import asked_for, operations, seconds_needed

SMALL = {"prompt": "a portrait", "seed": 7, "width": 128, "height": 160, "num_steps": 3}
REALISM = MINI / "InfiniteYou/supports/optional_loras/flux_realism_lora.safetensors"


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    """The environment of a ZeroGPU Space whose owner may not read FLUX.1-dev."""
    hub = Hub()
    hub.repos, hub.gated = {BASE: {"model_index.json": b"{}"}, INFINITE_YOU: {}}, {BASE}
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "PYTHONPATH": str(ROOT / "tests/stand_in"),
            "SPACES_ZERO_GPU": "true",
            "SPACE_ID": "someone/infinite-you",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "INFU_CACHE": str(home),
        }.items():
            patch.setenv(name, value)
        patch.delenv("HF_TOKEN", raising=False)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub
    hub.close()


@pytest.fixture(scope="module")
def server(zero, tmp_path_factory):
    with served(tmp_path_factory.mktemp("server")) as server:
        yield server
        assert "A request failed." not in server.printed()


@pytest.fixture(scope="module")
def client(server: Server):
    return Client(server.url, verbose=False)


def asked(server: Server) -> list[int]:
    """The seconds for which a GPU was asked, so far."""
    return [int(seconds) for seconds in re.findall(r"GPU asked for (\d+) s", server.printed())]


def make(client: Client, photo: Path, **changes) -> dict:
    return client.predict(input_image=handle_file(photo), **(SMALL | changes), api_name="/generate_image")


def test_pictures_of_the_other_process_are_the_librarys_with_the_same_settings_inside(
    server: Server, client: Client, photo: Path
):
    changes = {"control_image": handle_file(photo), "model_version": "sim_stage1", "enable_realism": True}
    picture = make(client, photo, **changes)["value"]
    request = GenerationRequest(id_image=photo, control_image=photo, plugins=[Lora(REALISM)], **SMALL)
    backend = load_backend(model_version="sim_stage1")
    made = generate(request, backend)
    difference = np.asarray(Image.open(picture), np.int16) - np.asarray(made.image, np.int16)
    assert np.abs(difference).max() <= 1  # another number of threads rounds otherwise
    assert read_picture(picture) == json.loads(json.dumps(made.metadata))
    assert read_picture(picture)["control_photo"] is True
    first = read_picture(make(client, photo)["value"])
    assert (first["model_version"], first["loras"]) == ("aes_stage2", [])
    assert len(set(re.findall(r"GPU process (\d+) of (\d+)", server.printed()))) == 1  # kept, not forked anew


def test_steps_come_with_their_previews_and_a_cancelled_job_frees_the_gpu(
    server: Server, client: Client, photo: Path
):
    many = SMALL | {"width": 384, "height": 512, "num_steps": 200}
    job = client.submit(handle_file(photo), **many, api_name="/generate_image")
    end = time.monotonic() + 120
    while len(job.outputs()) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    job.cancel()
    assert make(client, photo)["label"] == "Generated Image, seed = 7"
    assert "GPU stopped" in server.printed() and len(job.outputs()) < 200
    assert any("value" in update for update in job.outputs())


def test_what_is_wrong_is_told_before_a_gpu_is_asked_for(
    server: Server, client: Client, photo: Path, tmp_path: Path
):
    Image.fromarray(brick()).save(tmp_path / "wall.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    sdxl = {"loras": [handle_file(GOLDEN / "lora/foreign/sdxl_kohya.safetensors")]}
    before = asked(server)
    for sent, changes, told in (
        ("wall.png", {}, "[Nn]o face"),
        ("text.jpg", {}, "is text"),
        (photo, {"num_steps": 1000}, "num_steps"),
        (photo, {"control_image": handle_file(tmp_path / "wall.png")}, "control image"),
        (photo, {"model_version": "../../other"}, "no model version"),
    ):
        with pytest.raises(AppError, match=told):
            make(client, tmp_path / sent, **changes)
    with pytest.raises(AppError, match="Stable Diffusion XL"):
        client.predict(id_image=handle_file(photo), **sdxl, **SMALL, api_name="/generate")
    assert asked(server) == before


def test_an_error_of_the_other_process_reaches_the_client_as_our_sentence(
    client: Client, photo: Path, tmp_path: Path
):
    huge = {name: np.full(tensor.shape, 3e38, np.float32) for name, tensor in load_file(REALISM).items()}
    save_file(huge, tmp_path / "huge.safetensors")
    sent = {"id_image": handle_file(photo), "loras": [handle_file(tmp_path / "huge.safetensors")]}
    with pytest.raises(AppError, match="not finite"):
        client.predict(**sent, **SMALL, api_name="/generate")


def test_what_zerogpu_itself_says_reaches_the_client(client: Client, photo: Path):
    large = SMALL | {"width": 2048, "height": 2048, "num_steps": 200, "num_images": 64}
    with pytest.raises(AppError, match="exceeded your ZeroGPU quota"):
        client.predict(id_image=handle_file(photo), **large, api_name="/generate")


def test_a_space_without_the_gated_model_says_so_and_runs_the_mini_one(
    zero: Hub, server: Server, client: Client
):
    assert any(BASE in path for _, path, _ in zero.seen)
    assert "behind a licence" in server.printed()
    notices = [
        c["props"].get("value") for c in client.config["components"] if c["props"].get("elem_id") == "notice"
    ]
    assert len(notices) == 1 and f"huggingface.co/{BASE}" in notices[0] and "HF_TOKEN" in notices[0]


SCRIPT = """
import itertools, sys, tempfile, torch
from page.studio import Studio
from infu.pipeline import Result
studio = Studio(name="pytorch")
backend = studio.load()
try:
    backend.encode_prompt("x")
except RuntimeError as error:
    print(error)
else:
    print("a network ran here")
counted = itertools.count()
asked = dict(model_version=None, enable_realism=False, enable_anti_blur=False, loras=(), prompt="x", seed=1)
size = dict(width=128, height=128, num_steps=200, num_images=3)
events = list(studio.events(**asked, **size, enough=lambda: next(counted) > 2))
results = [event for event in events if isinstance(event, Result)]
print(len(results), results[0].metadata["partial"] < 200, results[0].image.size)
"""


def test_a_run_ends_early_with_its_picture_and_no_network_runs_outside(zero: Hub):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == "CUDA or a network was used outside @spaces.GPU"
    assert last == "1 True (128, 128)"


EMULATED = """
import threading, torch
if torch.version.cuda is None:  # what `spaces` looks up, and a build of torch without CUDA lacks
    torch.version.cuda = "12.8"
    torch._C._cuda_init, torch.cuda._is_in_bad_fork = (lambda: None), bool
import spaces
from spaces.zero.torch import pack
from backends import load_backend
backend = load_backend("pytorch", dtype="bfloat16")
residents = (backend._clip, backend._t5, backend._vae, backend._dit, backend._infusenet)
networks = [resident.arrive() for resident in residents] + [backend._projection]
tensors = {id(t): t for network in networks for t in (*network.parameters(), *network.buffers())}.values()
print(backend.device, {t.device.type for t in tensors}, sum(t.nbytes for t in tensors) == pack())
thread = threading.Thread(target=lambda: print(sum(map(len, backend.module_shapes.values())) > 50))
thread.start(); thread.join()
"""


def test_the_real_emulation_takes_every_weight_for_cuda_and_packs_it(monkeypatch, tmp_path: Path):
    for name, value in {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9",  # asked at a launch, which does not happen here
        "ZEROGPU_OFFLOAD_DIR": str(tmp_path / "tensors"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # not the stand-in
    command = [sys.executable, "-c", EMULATED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["cuda {'cuda'} True", "True"]


def test_operations_at_the_size_they_were_counted_at_are_the_counted_ones():
    request = GenerationRequest("x", id_embedding=np.ones(512), width=1024, height=1024, num_steps=1)
    assert operations(request) == pytest.approx((74.38 + 17.00) * 1e12, rel=1e-3)


def test_the_duration_follows_steps_size_pictures_and_passes():
    def seconds(**changes) -> float:
        embedding = {"id_embedding": np.ones(512, np.float32)}
        return seconds_needed(GenerationRequest("x", **(embedding | changes)))

    rest = seconds(num_steps=10) - (seconds(num_steps=20) - seconds(num_steps=10))
    assert seconds(num_steps=30) == pytest.approx(rest + 3 * (seconds(num_steps=10) - rest))
    assert seconds(num_images=3) - seconds(num_images=2) == pytest.approx(seconds(num_images=2) - seconds())
    assert seconds(width=1728) > 1.9 * seconds() - rest
    plain, infused = seconds(id_embedding=None), seconds()
    assert plain < seconds(infusenet_guidance_end=0.5) < infused
    opposed = {"negative_prompt": "x", "true_cfg_scale": 2.0}
    assert infused < seconds(**opposed, true_cfg_start_step=15) < seconds(**opposed)
    edges, cup = ControlNet("union-pro-2", "x.png"), OminiControl("subject_512", "x.png")
    assert infused < seconds(plugins=[edges]) < seconds(plugins=[edges, cup])
    assert seconds() > 0 and seconds_needed(GenerationRequest("x"), switched=True) > seconds_needed(
        GenerationRequest("x")
    )


def test_the_mini_model_asks_for_seconds_and_the_real_one_for_less_than_an_anonymous_visitor_has():
    mini, real = read_networks(locate()), RELEASED
    request = GenerationRequest("x", id_embedding=np.ones(512, np.float32))
    assert (
        asked_for(seconds_needed(request, mini)) < 10 < asked_for(seconds_needed(request, real)) < 120 / 1.5
    )
