"""README's commands run as they stand there; those that need the hub say what is not here."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import served

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The code blocks with this info string."""
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(kind: str) -> list[str]:
    """The commands of the shell blocks, continuation lines joined, comments cut."""
    lines = "".join(blocks(kind)).replace("\\\n", " ").splitlines()
    return [line.split(" # ")[0].strip() for line in lines]


@pytest.fixture
def here(tmp_path):
    """A folder that looks like the repository, so that what a command writes stays out of it."""
    for name in ("app.py", "page", "infu", "backends", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    command = re.sub(r"^python ", f"{sys.executable} ", command)
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_two_first_commands_are_the_makefiles():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [command for command in commands("bash") if command.startswith("make ")]
    assert made == ["make run", "make test"] and {"run", "test"} <= set(targets)


@pytest.mark.parametrize("command", [c for c in commands("bash") if not c.startswith("make ")])
def test_command_runs(command, here):
    done = run(command, here)
    assert done.returncode == 0, done.stderr
    if "out_results_dir" in command:
        assert list((here / "results").glob("*.png"))


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    """No hub, and nothing kept of it."""
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": "hub", "INFU_CACHE": "cache"}.items():
        monkeypatch.setenv(name, value if name == "HF_HUB_OFFLINE" else str(tmp_path / value))


@pytest.mark.parametrize("command", [c for c in commands("bash hub") if " app.py " not in c])
def test_command_for_the_hub_says_what_is_not_here(command, here, nothing_here):
    done = run(command, here)
    assert done.returncode == 1
    assert "black-forest-labs/FLUX.1-dev" in done.stderr and "Traceback" not in done.stderr


def test_the_page_for_the_hub_comes_up_and_says_what_is_not_here(tmp_path, nothing_here):
    (command,) = [c for c in commands("bash hub") if " app.py " in c]
    with served(tmp_path, *command.split()[2:]) as server:
        end = time.monotonic() + 60
        while "could not be loaded" not in server.printed() and time.monotonic() < end:
            time.sleep(0.2)
        assert "black-forest-labs/FLUX.1-dev" in server.printed() and "Traceback" not in server.printed()


def test_python_example_runs(here):
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "8 of 8" in done.stdout and (here / "picture.png").is_file()


def test_api_example_runs(here, tmp_path_factory):
    (code,) = blocks("python api")
    with served(tmp_path_factory.mktemp("server")) as server:
        code = code.replace("http://127.0.0.1:7860/", server.url)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    assert "Generated Image, seed = 1" in done.stdout


def test_every_picture_and_file_that_readme_names_is_there():
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
    tree = README.split("## Map of the code")[1].split("```")[1]
    for name in re.findall(r"\b[a-z_]+\.py\b", tree):
        assert list(ROOT.glob(f"**/{name}")), name
