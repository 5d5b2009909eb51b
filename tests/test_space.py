"""The Space: its configuration, its environment, what its page costs and what it refuses to strangers."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import yaml
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from serving import ROOT, Server, served

from infu import GenerationRequest
from infu.models import BASE, INFINITE_YOU, VERSIONS, infinite_you_patterns
from infu.space import choose_model, is_public
from page.quota import LARGE, asked_for, seconds_needed, seconds_of_work

README = (ROOT / "README.md").read_text(encoding="utf-8")
HEAD = yaml.safe_load(README.split("---\n")[1])
REQUIREMENTS = {
    wanted.name: wanted.specifier
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if not line.startswith("#")
    for wanted in [Requirement(line)]
}
# https://huggingface.co/docs/hub/spaces-config-reference
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
TEXTS = ("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file")
FURTHER = ("suggested_hardware", "startup_duration_timeout", "short_description", "license")
LISTS = ("models", "preload_from_hub", "tags")
# https://huggingface.co/docs/hub/spaces-zerogpu
ZERO_PYTHON, ZERO_TORCH = {"3.10.13", "3.12.12"}, {"2.8.0", "2.9.1", "2.10.0", "2.11.0"}
QUOTA = (2 * 60, 5 * 60, 40 * 60)  # seconds a day: anonymous, free, PRO


def test_the_head_of_readme_is_a_spaces_configuration():
    assert set(HEAD) == {*TEXTS, *FURTHER, *LISTS}
    assert all(isinstance(HEAD[name], str) and HEAD[name] for name in (*TEXTS, *FURTHER))
    assert {HEAD["colorFrom"], HEAD["colorTo"]} <= COLOURS and len(HEAD["short_description"]) <= 60
    assert (
        not re.search(r"\w", HEAD["emoji"])
        and HEAD["sdk"] == "gradio"
        and (ROOT / HEAD["app_file"]).is_file()
    )
    assert HEAD["suggested_hardware"] == SpaceHardware.ZERO_A10G.value
    assert re.fullmatch(r"\d+[hm]", HEAD["startup_duration_timeout"])
    assert HEAD["models"] == [BASE, INFINITE_YOU]


def test_python_gradio_and_torch_are_versions_that_zerogpu_has_and_our_ranges_allow():
    project = (ROOT / "pyproject.toml").read_text()
    python = SpecifierSet(re.search(r'^requires-python = "(.*)"', project, re.MULTILINE)[1])
    assert HEAD["python_version"] in ZERO_PYTHON and python.contains(HEAD["python_version"])
    assert REQUIREMENTS["gradio"].contains(HEAD["sdk_version"])
    (torch,) = REQUIREMENTS["torch"]
    ours = SpecifierSet(re.search(r'"torch(>=[^"]*)"', project)[1])
    assert torch.operator == "==" and torch.version in ZERO_TORCH and ours.contains(torch.version)


def test_what_is_preloaded_is_what_one_version_needs_and_needs_no_token():
    (entry,) = HEAD["preload_from_hub"]
    repo, files = entry.split()
    files, patterns = files.split(","), infinite_you_patterns(VERSIONS[0])
    assert repo == INFINITE_YOU  # FLUX.1-dev is gated: the build has no secret
    for name in files:
        assert any(fnmatch(name, pattern) for pattern in patterns), name
    for pattern in patterns:
        assert any(fnmatch(name, pattern) for name in files), pattern


def test_the_requirements_exist_together_for_linux_and_the_spaces_python(tmp_path: Path):
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(17, 37)]  # Debian 12 has glibc 2.36
    options = ["--only-binary=:all:", "--target", str(tmp_path / "nothing"), "--quiet"]
    for tag in (*tags, "manylinux2014_x86_64", "linux_x86_64"):
        options += ["--platform", tag]
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--report", str(report), *options]
    command += ["--python-version", HEAD["python_version"], "-r", str(ROOT / "requirements.txt")]
    command += [f"gradio[oauth,mcp]=={HEAD['sdk_version']}"]  # what a Space installs besides
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = {
        item["metadata"]["name"]: item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    assert Version(found["gradio"]) == Version(HEAD["sdk_version"])
    for name, versions in REQUIREMENTS.items():
        assert versions.contains(found.get(name) or found[name.replace("-", "_")]), name


def rows() -> list[str]:
    """The lines of docs/space.md's table."""
    cases = {
        "864 x 1152, 30 steps": {},
        "864 x 1152, 20 steps": {"num_steps": 20},
        "864 x 1152, 8 steps (with a LoRA made for that)": {"num_steps": 8},
        "1024 x 1024, 30 steps": {"width": 1024, "height": 1024},
        "four of 864 x 1152, 30 steps": {"num_images": 4},
        "864 x 1152, 30 steps, with a negative prompt": {"negative_prompt": "x", "true_cfg_scale": 2.0},
    }
    lines = []
    for name, changes in cases.items():
        request = GenerationRequest("x", id_embedding=np.ones(512, np.float32), **changes)
        used = seconds_of_work(request)
        asked = LARGE * asked_for(seconds_needed(request))  # must be left before the last one too
        days = [
            f"{int((day - asked) / used + 1) * request.num_images if day > asked else 0}" for day in QUOTA
        ]
        lines.append(" | ".join((f"| {name}", f"{used:.0f} s", f"{asked:.0f} s", *days)) + " |")
    return lines


def test_the_costs_in_the_document_are_those_that_the_page_asks_for():
    text = (ROOT / "docs/space.md").read_text(encoding="utf-8")
    assert [line for line in rows() if line not in text] == []
    for variable in re.findall(r"`(INFU_\w+)`", text):
        told = (
            "".join(path.read_text() for path in ROOT.glob("[aip]*/**/*.py")) + (ROOT / "app.py").read_text()
        )
        assert variable in told or f"    {variable.removeprefix('INFU_').lower()}: " in told, variable


@pytest.mark.parametrize(
    "environment, public", [({}, False), ({"SPACE_ID": "a/b"}, True), ({"INFU_PUBLIC": "1"}, True)]
)
def test_who_the_page_is_for(monkeypatch, environment: dict, public: bool):
    for name in ("SPACE_ID", "INFU_PUBLIC", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_public() is public
    monkeypatch.setenv("INFU_PUBLIC", "0")
    assert is_public() is False


def test_only_a_space_with_a_gpu_takes_the_real_model_by_itself(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert choose_model({}) == {}
    monkeypatch.setenv("SPACE_ID", "a/b")
    assert choose_model({}) == {"base_model_path": BASE, "model_dir": INFINITE_YOU}
    assert choose_model({"base_model_path": "other"}) == {"base_model_path": "other"}


# A public page with the mini model, and strangers.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFU_PUBLIC", "1")
        patch.setenv("INFU_MODEL_VERSION", "sim_stage1")  # options by the environment, as on a Space
        with served(tmp_path_factory.mktemp("server")) as server:
            yield server
            assert "A request failed." not in server.printed()


def call(server: Server, name: str, data: list) -> str:
    """A request without gradio_client -> everything that is answered."""
    url = f"{server.url}gradio_api/call/{name}"
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}", timeout=120) as answer:
        return answer.read().decode()


def photographs(server: Server, photo: Path) -> list:
    """What a stranger may send in a photograph's place."""
    inside = server.files / "nothing.png"
    return [
        {"path": str(photo)},
        {"path": str(inside / ".." / ".." / photo.name)},
        {"path": str(server.files)},
        {"path": "/proc/self/environ", "meta": {"_type": "gradio.FileData"}},
        {"path": f"{photo}\0.png"},
        {"path": "file://" + str(photo)},
        {"path": [str(photo)]},
        {"path": 7},
        {"url": "file://" + str(photo)},
        {"url": f"{server.url}gradio_api/file={photo}", "path": ""},
        {"path": f"{server.url}gradio_api/file={photo}"},
        {"path": "x" * 5000},
        str(photo),
        [str(photo)],
        7,
    ]


def test_no_path_that_a_stranger_sends_is_opened(server: Server, photo: Path):
    rest = [None, "x", 1, 64, 64, 3.5, 1, 1, 0, 1, False, False, None]
    for sent in photographs(server, photo):
        told = call(server, "generate_image", [sent, *rest])
        assert "event: error" in told and "event: complete" not in told, sent
        assert str(photo.parent) not in told and "Traceback" not in told, sent


def test_a_lora_or_a_version_cannot_be_a_path_or_a_hub_id(server: Server, photo: Path):
    client = Client(server.url, verbose=False)
    lora = str(ROOT / "infu/mini/InfiniteYou/supports/optional_loras/flux_realism_lora.safetensors")
    small = {"id_image": handle_file(photo), "width": 64, "height": 64, "num_steps": 1, "seed": 1}
    for changes in (
        {"loras": [{"path": lora}]},
        {"loras": [{"path": "someone/lora"}]},
        {"loras": lora},
        {"loras": [lora]},
        {"loras": 7},
        {"id_images": lora, "id_image": None},
        {"model_version": "../../InfiniteYou/infu_flux_v1.0/aes_stage2"},
        {"model_version": "ByteDance/InfiniteYou"},
        {"model_version": "/etc"},
        {"model_version": {"path": "/etc"}},
    ):
        with pytest.raises(AppError) as error:
            client.predict(**(small | changes), api_name="/generate")
        assert "log says why" not in str(error.value) and str(ROOT) not in str(error.value), changes
    made = client.predict(**small, model_version=None, api_name="/generate")[1]
    assert made[0]["model_version"] == "sim_stage1"


def test_files_are_given_out_by_their_whole_secret_names_alone(server: Server, photo: Path):
    client = Client(server.url, verbose=False)
    client.predict(handle_file(photo), width=64, height=64, num_steps=1, seed=3, api_name="/generate_image")
    kept = [path for path in server.files.rglob("*.png") if path.is_file()]
    assert {"astronaut.png", "infiniteyou-seed-3.png"} <= {path.name for path in kept}
    for path in kept:
        assert re.fullmatch("[0-9a-f]{32,64}", path.parent.name)  # 128 bits and more
        assert fetch(server, path) == path.read_bytes()
    for path in (
        kept[0].parent,
        server.files,
        ROOT / "app.py",
        photo,
        "/etc/passwd",
        f"{kept[0].parent}/../..",
    ):
        assert fetch(server, path) is None, path


def fetch(server: Server, path: Path | str) -> bytes | None:
    try:
        with urllib.request.urlopen(f"{server.url}gradio_api/file={path}", timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        assert error.code in (403, 404)
        return None
