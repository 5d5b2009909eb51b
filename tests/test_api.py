"""The API that other people's code calls, through gradio_client, with the server in another process."""

import base64
import io
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from golden import GOLDEN
from gradio_client import Client, handle_file
from gradio_client.client import Job
from gradio_client.exceptions import AppError
from PIL import Image, ImageOps
from serving import ROOT, Server, served
from skimage.data import astronaut, brick

from backends import load_backend
from infu import GenerationRequest, Person, generate
from infu.hints import make_hint
from infu.metadata import read_picture
from infu.models import MINI

# The released Space's, in its order: code written for it calls by position.
RELEASED = [
    "input_image",
    "control_image",
    "prompt",
    "seed",
    "width",
    "height",
    "guidance_scale",
    "num_steps",
    "infusenet_conditioning_scale",
    "infusenet_guidance_start",
    "infusenet_guidance_end",
    "enable_realism",
    "enable_anti_blur",
    "model_version",
]
FURTHER = [
    *("id_image", "id_images", "negative_prompt", "true_cfg_scale", "num_images"),
    *("loras", "lora_scale", "plugins", "id_mask"),
]
SMALL = {"prompt": "a portrait", "seed": 7, "width": 128, "height": 160, "num_steps": 3}
ERRORS = [  # what is sent, the settings, what the client is told
    ("nothing", {}, "Give a photograph of a face."),
    ("text", {}, "The file 'a.jpg' is text, not a picture. Give a JPEG, PNG, WebP, HEIC or AVIF file."),
    ("face", {"width": 3}, "width must be a whole number from 64 to 2048, not 3."),
    ("face", {"num_steps": 1000}, "num_steps must be a whole number from 1 to 200, not 1000."),
    ("face", {"prompt": "x" * 20_001}, "prompt has 20001 characters; 20000 are allowed."),
    (  # the page renders it as HTML
        "face",
        {"model_version": "<b>"},
        "There is no model version called '&lt;b&gt;'. Choose one of aes_stage2, sim_stage1.",
    ),
    (
        "face",
        {"model_version": [7]},
        "There is no model version called '[7]'. Choose one of aes_stage2, sim_stage1.",
    ),
]


@pytest.fixture(scope="module")
def client(server: Server):
    return Client(server.url, verbose=False)


def make(client: Client, photo: Path | None, **changes) -> dict:
    sent = handle_file(photo) if photo else None
    return client.predict(input_image=sent, **(SMALL | changes), api_name="/generate_image")


def pixels(result: dict) -> np.ndarray:
    return np.asarray(Image.open(result["value"]))


def test_the_endpoints_take_the_released_names_in_the_released_order(client: Client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/generate_image", "/generate", "/hint"}
    released, further = (endpoints[name]["parameters"] for name in ("/generate_image", "/generate"))
    assert [parameter["parameter_name"] for parameter in released] == RELEASED
    assert {parameter["parameter_name"] for parameter in further} == {*RELEASED, *FURTHER} - {"input_image"}
    assert all(parameter["parameter_has_default"] for parameter in released + further)
    assert len(endpoints["/generate_image"]["returns"]) == 1


def test_fourteen_positional_arguments_make_the_picture_that_the_library_makes(client: Client, photo: Path):
    asked = ("a portrait", 7, 128, 160, 3.5, 3, 1.0, 0.0, 1.0, False, False, "aes_stage2")
    result = client.predict(handle_file(photo), handle_file(photo), *asked, api_name="/generate_image")
    path = result.pop("value")
    assert result == {"label": "Generated Image, seed = 7", "__type__": "update"}
    made = generate(GenerationRequest(id_image=photo, control_image=photo, **SMALL), load_backend())
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(made.image))
    assert read_picture(path) == json.loads(json.dumps(made.metadata))


def test_a_hint_can_be_had_before_the_run(client: Client, photo: Path):
    asked = dict(image=handle_file(photo), width=128, height=160, api_name="/hint")
    hint = np.asarray(Image.open(client.predict(kind="canny", **asked)))
    np.testing.assert_array_equal(hint, make_hint("canny", photo, 128, 160))
    with pytest.raises(AppError, match="Did you mean 'canny'"):
        client.predict(kind="cany", **asked)


def test_a_seed_repeats_its_picture_and_zero_is_random(client: Client, photo: Path):
    np.testing.assert_array_equal(pixels(make(client, photo)), pixels(make(client, photo)))
    labels = {make(client, photo, seed=0)["label"] for _ in range(2)}
    assert len(labels) == 2 and "Generated Image, seed = 0" not in labels


@pytest.mark.parametrize(
    "change", [{"model_version": "sim_stage1"}, {"enable_realism": True}, {"enable_anti_blur": True}]
)
def test_a_version_or_lora_of_one_request_is_gone_in_the_next(client: Client, photo: Path, change: dict):
    before, changed, after = (pixels(make(client, photo, **with_it)) for with_it in ({}, change, {}))
    assert (changed != before).any()
    np.testing.assert_array_equal(after, before)


def test_a_lora_that_a_client_sends_is_used_and_what_was_used_of_it_is_told(client: Client, photo: Path):
    def further(*loras: Path, **changes) -> tuple[np.ndarray, dict]:
        sent = {"id_image": handle_file(photo), "loras": [handle_file(lora) for lora in loras]}
        gallery, (made,) = client.predict(**(SMALL | sent | changes), api_name="/generate")
        return np.asarray(Image.open(gallery[0]["image"])), made

    own = MINI / "InfiniteYou/supports/optional_loras/flux_realism_lora.safetensors"
    plain, without = further()
    changed, told = further(own)
    assert without["loras"] == [] and told["plugins"] == [{"lora": own.name, "scale": 1.0}]
    assert told["loras"][0]["matched"]["transformer"] > 0 and told["loras"][0]["unused"] is None
    assert (changed != plain).any()
    np.testing.assert_array_equal(further(own, lora_scale=0)[0], plain)
    foreign = GOLDEN / "lora/foreign/sdxl_kohya.safetensors"
    with pytest.raises(AppError, match="Stable Diffusion XL"):
        further(foreign)


def test_what_a_client_leaves_open_is_what_a_lora_for_few_steps_was_made_for(client: Client, tmp_path: Path):
    own = MINI / "InfiniteYou/supports/optional_loras/flux_realism_lora.safetensors"
    hyper = shutil.copy(own, tmp_path / "Hyper-FLUX.1-dev-5steps-lora.safetensors")
    asked = {"prompt": "a portrait", "width": 64, "height": 64, "loras": [handle_file(hyper)]}
    _, (made,) = client.predict(**asked, api_name="/generate")
    assert (made["num_steps"], made["guidance_scale"], made["plugins"][0]["scale"]) == (5, 3.5, 0.125)
    _, (made,) = client.predict(**asked, num_steps=2, lora_scale=1, api_name="/generate")
    assert (made["num_steps"], made["plugins"][0]["scale"]) == (2, 1.0)


def test_a_plugin_that_a_client_sends_is_used_and_no_file_of_the_server_is(client: Client, photo: Path):
    def further(**plugin) -> dict:
        return client.predict(**SMALL, plugins=[plugin], api_name="/generate")[1][0]

    own = MINI / "InfiniteYou/supports/optional_loras/flux_realism_lora.safetensors"
    assert further(lora=handle_file(own), scale=0.5)["plugins"] == [{"lora": own.name, "scale": 0.5}]
    tiny = GOLDEN / "pulid/checkpoint/pulid_flux_v0.9.1.safetensors"
    tokens = np.zeros((8, 32)).tolist()
    with pytest.raises(
        AppError, match=rf"{tiny.name} has an attention of width 32"
    ):  # its config is not sent
        further(pulid=handle_file(tiny), id_tokens=tokens)
    with pytest.raises(AppError, match="path must be an upload"):
        further(pulid=str(tiny), id_tokens=tokens)
    with pytest.raises(AppError, match="image must be an upload"):
        further(pulid="0.9.1", image=str(photo))


def test_two_people_in_one_picture_are_what_the_library_makes_of_them(client: Client, photo: Path, tmp_path):
    mirrored, mask = tmp_path / "mirrored.png", tmp_path / "mask.png"
    ImageOps.mirror(Image.open(photo)).save(mirrored)
    white = np.zeros((160, 128), np.uint8)
    white[:, :64] = 255
    Image.fromarray(white).save(mask)
    person = {"person": True, "mask": "right", "id_image": handle_file(mirrored)}
    asked = SMALL | {"id_image": handle_file(photo), "plugins": [person], "api_name": "/generate"}
    made = [
        np.asarray(Image.open(client.predict(**asked, **where)[0][0]["image"]))
        for where in (
            {"id_mask": "left"},
            {"id_mask": [0, 0, 0.5, 1]},
            {"id_mask": (white // 255).tolist()},
            {"id_mask": handle_file(mask)},
            {},
        )
    ]
    request = GenerationRequest(id_image=photo, plugins=[Person("right", mirrored)], **SMALL)
    backend = load_backend()
    expected = [generate(request.replace(id_mask=where), backend).image for where in ("left", None)]
    for i, picture in enumerate(made):
        np.testing.assert_array_equal(picture, np.asarray(expected[i == 4]), err_msg=str(i))
    assert (made[0] != made[-1]).any()
    for wrong, told in {"lefft": "Did you mean 'left'", str(mask): "mask must be an upload"}.items():
        with pytest.raises(AppError, match=told):
            client.predict(**asked, id_mask=wrong)


@pytest.mark.parametrize("sent, changes, sentence", ERRORS)
def test_an_error_reaches_the_client_as_our_sentence(
    client: Client, photo: Path, tmp_path: Path, sent: str, changes: dict, sentence: str
):
    text = tmp_path / "a.jpg"
    text.write_text("not a picture")
    with pytest.raises(AppError) as error:
        make(client, {"nothing": None, "text": text, "face": photo}[sent], **changes)
    assert str(error.value) == sentence
    assert make(client, photo)["label"] == "Generated Image, seed = 7"  # and the model still works


def test_a_photograph_without_a_face_is_an_error(client: Client, tmp_path: Path):
    Image.fromarray(brick()).save(tmp_path / "wall.png")
    with pytest.raises(AppError, match="[Nn]o face"):
        make(client, tmp_path / "wall.png")


def test_a_photograph_arrives_as_it_was_sent(client: Client, photo: Path, tmp_path: Path):
    """Gradio would clip 16 bits to white, and fail on HEIC."""
    cv2.imwrite(str(tmp_path / "deep.png"), astronaut()[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(pixels(make(client, tmp_path / "deep.png")), pixels(make(client, photo)))
    pillow_heif.from_pillow(Image.fromarray(astronaut())).save(tmp_path / "phone.heic", quality=90)
    assert make(client, tmp_path / "phone.heic")["label"] == "Generated Image, seed = 7"


def post(server: Server, picture: dict) -> str:
    """A request without gradio_client -> everything that is answered."""
    data = [picture, None, "x", 1, 64, 64, 3.5, 1, 1, 0, 1, False, False, None]
    url = f"{server.url}gradio_api/call/generate_image"
    body = json.dumps({"data": data}).encode()
    call = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as answer:
        return answer.read().decode()


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_a_file_of_the_server_cannot_be_named(server: Server, photo: Path, meta: dict):
    told = post(server, {"path": str(photo)} | meta)
    assert "event: error" in told and "event: complete" not in told and photo.name not in told


def test_a_picture_may_be_sent_inside_the_request(server: Server, photo: Path):
    sent = {"url": "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()}
    assert "Generated Image, seed = 1" in post(server, sent)
    assert "not base64" in post(server, {"url": "data:image/png;base64,A"})


def test_previews_come_while_the_picture_is_made(client: Client, photo: Path):
    started = time.monotonic()
    asked = SMALL | {"width": 256, "height": 320, "num_steps": 40}
    job = client.submit(handle_file(photo), **asked, api_name="/generate_image")
    job.result()
    seconds = time.monotonic() - started
    updates = [update for update in job.outputs()[:-1] if "label" in update]
    assert [update["label"] for update in updates] == [f"Step {k} of 40" for k in range(1, 41)]
    previews = [update["value"]["url"] for update in updates if "value" in update]
    assert 2 <= len(set(previews)) and len(previews) <= 4 * seconds + 1
    picture = Image.open(io.BytesIO(base64.b64decode(previews[-1].partition("base64,")[2])))
    assert (picture.format, picture.size) == ("JPEG", (32, 40))


def wait_for_answers(job: Job, count: int) -> float:
    """Wait until a job has answered so often -> the time then."""
    while len(job.outputs()) < count:
        assert not job.done()
        time.sleep(0.02)
    return time.monotonic()


def test_a_cancelled_job_frees_the_device(client: Client, photo: Path):
    asked = SMALL | {"width": 384, "height": 512, "num_steps": 200}
    job = client.submit(handle_file(photo), **asked, api_name="/generate_image")
    begun = wait_for_answers(job, 4)
    step_seconds = (wait_for_answers(job, 12) - begun) / 8
    job.cancel()
    cancelled = time.monotonic()
    assert make(client, photo)["label"] == "Generated Image, seed = 7"
    assert time.monotonic() - cancelled < 100 * step_seconds + 2  # not cancelled, it had 188 steps to go
    assert len(job.outputs()) < 100


def test_two_jobs_at_once_both_finish_each_with_its_own_picture(server: Server, client: Client, photo: Path):
    other = Client(server.url, verbose=False)
    jobs = {
        seed: asked.submit(handle_file(photo), **(SMALL | {"seed": seed}), api_name="/generate_image")
        for seed, asked in ((21, client), (22, other))
    }
    for seed, job in jobs.items():
        result = job.result(timeout=120)
        assert result["label"] == f"Generated Image, seed = {seed}"
        assert read_picture(result["value"])["seed"] == seed


def test_generate_answers_with_several_pictures_and_the_settings_of_each(client: Client, photo: Path):
    asked = SMALL | {"negative_prompt": "blurred", "true_cfg_scale": 2.0, "num_images": 2}
    photos = [handle_file(photo), handle_file(photo)]
    gallery, settings = client.predict(id_images=photos, **asked, api_name="/generate")
    assert [read_picture(entry["image"]) for entry in gallery] == settings
    assert [entry["seed"] for entry in settings] == [7, 8]
    assert {name: settings[0][name] for name in asked} == asked | {"num_images": 1}
    asked |= {"num_images": 1, "seed": 8}
    alone, _ = client.predict(id_images=photos, **asked, api_name="/generate")
    second = [np.asarray(Image.open(entry["image"])) for entry in (gallery[1], alone[0])]
    np.testing.assert_array_equal(*second)


def test_a_failed_load_is_tried_again_and_nothing_is_left_when_the_server_ends(photo: Path, tmp_path: Path):
    base = tmp_path / "base"
    paths = ("--base_model_path", str(base), "--model_dir", str(MINI / "InfiniteYou"))
    with served(tmp_path, *paths) as server:
        client = Client(server.url, verbose=False)
        for _ in range(2):
            with pytest.raises(AppError, match=r"base_model_path names \('base'\) does not exist") as error:
                make(client, photo)
            assert str(tmp_path) not in str(error.value)
        base.symlink_to(MINI / "base")
        assert make(client, photo)["label"] == "Generated Image, seed = 7"
        assert list(server.files.rglob("*.png"))
    assert not [path for path in server.files.rglob("*") if path.is_file()]


def test_importing_the_app_imports_no_framework():
    code = "import app, sys; print({'torch', 'mlx', 'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
