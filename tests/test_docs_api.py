"""docs/api.md's examples run as they stand there, against a running page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import PATIENCE
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser
from serving import ROOT, Server, started
from web import web

from infu.metadata import read_picture

TEXT = (ROOT / "docs/api.md").read_text(encoding="utf-8")
CLIENT = ROOT / "tests/vendor/gradio_client.min.js"  # npm's @gradio/client 2.7.0
ASKED = {
    "prompt": "A woman in a garden, oil painting",
    "seed": 1,
    "width": 256,
    "height": 320,
    "num_steps": 8,
}


def example(server: Server, kind: str, heading: str) -> str:
    """The first block of this kind after a heading or a word in bold, for this server."""
    [code] = re.findall(rf"\b{heading}\b.*?^```{kind}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[:1]
    assert "http://127.0.0.1:7860/" in code
    return code.replace("http://127.0.0.1:7860/", server.url)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_python(server: Server, heading: str, folder: Path) -> str:
    said = run([sys.executable, "-c", example(server, "python", heading)], folder)
    return said.removeprefix(f"Loaded as API: {server.url}\n")


def test_every_example_is_run_here():
    kinds = re.findall(r"^```(\w.*)$", TEXT, re.MULTILINE)
    assert kinds == [*["python"] * 5, "js", "bash", "json", "python", "html", "python page"]


def test_python_makes_the_picture(server: Server, here: Path):
    said, path = run_python(server, "Python", here).splitlines()
    assert said == "Generated Image, seed = 1"
    assert {name: read_picture(path)[name] for name in ASKED} == ASKED


def test_python_hears_of_every_step(server: Server, here: Path):
    said = re.findall(r"Step \d of 8|Generated Image", run_python(server, "Progress", here))
    assert said == [*(f"Step {k} of 8" for k in range(1, 9)), "Generated Image"]


def test_python_cancels(server: Server, here: Path):
    said = run_python(server, "Cancelling", here)
    assert 1 <= int(re.search(r"after (\d+) steps", said)[1]) < 200


def test_python_makes_several_pictures(server: Server, here: Path):
    made = [line.rsplit(maxsplit=1) for line in run_python(server, "Several pictures", here).splitlines()]
    assert [seed for _, seed in made] == ["1", "2"]
    assert [read_picture(path)["seed"] for path, _ in made] == [1, 2]


def test_python_reads_errors(server: Server, here: Path):
    said = run_python(server, "Errors", here)
    assert said.strip() == "width must be a whole number from 64 to 2048, not 3."
    assert f'# "{said.strip()}"' in TEXT


def test_javascript_makes_the_picture(browser: Browser, server: Server, here: Path):
    (here / "client.js").write_bytes(CLIENT.read_bytes())
    (here / "index.html").write_text(
        '<link rel="icon" href="data:,">'
        '<script type="importmap">{"imports": {"@gradio/client": "./client.js"}}</script>'
        f'<script type="module">{example(server, "js", "JavaScript")}console.log("end");</script>'
    )
    with web(here) as address:
        page = browser.new_page()
        lines = []
        page.on("console", lambda line: lines.append(line.text))
        page.on("pageerror", lambda error: lines.append(str(error)))
        with page.expect_console_message(lambda line: line.text == "end", timeout=PATIENCE):
            page.goto(address)
        *steps, last, _ = dict.fromkeys(lines)  # the client hears the picture twice
        label, url = last.rsplit(maxsplit=1)
        picture = page.request.get(url).body()
        page.close()
    assert [re.match(r"Step \d", step)[0] for step in steps] == [f"Step {k}" for k in range(1, 9)]
    assert label == "Generated Image, seed = 1"
    (here / "picture.png").write_bytes(picture)
    assert {name: read_picture(here / "picture.png")[name] for name in ASKED} == ASKED


def test_curl_makes_the_picture(server: Server, here: Path):
    said = run(["bash", "-euc", example(server, "bash", "curl")], here)
    assert said.count("event: generating") >= 8 and "event: complete" in said
    assert {name: read_picture(here / "picture.png")[name] for name in ASKED} == ASKED


def test_an_assistant_makes_the_picture(server: Server, here: Path):
    said = run_python(server, "From Python", here)
    assert said.startswith("image/png Image URL: http") and "infiniteyou-seed-1.png" in said


def test_another_gradio_page_makes_the_picture(server: Server, here: Path, photo: Path):
    code = example(server, "python page", "As a function")
    with started(here, [sys.executable, "-c", code], here) as page:
        painted = Client(page.url, verbose=False).predict(handle_file(photo), api_name="/paint")
    with Image.open(painted) as picture:
        assert picture.size == (128, 160)
