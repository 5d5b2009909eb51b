"""The page inside other people's pages and programs."""

import re
import subprocess
import sys
from pathlib import Path

from browsing import PATIENCE
from playwright.sync_api import Browser, expect
from serving import ROOT, Server
from web import web

HEAVY = ["torch", "mlx", "diffusers", "transformers", "accelerate", "insightface"]


def test_a_frame_in_another_sites_page_makes_a_picture(
    browser: Browser, server: Server, photo: Path, tmp_path: Path
):
    [frame] = re.findall(r"^<iframe.*</iframe>$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    frame = frame.replace("http://127.0.0.1:7860/", server.url)
    (tmp_path / "index.html").write_text(
        f'<!doctype html><link rel="icon" href="data:,"><h1>A blog</h1>{frame}'
    )
    with web(tmp_path) as address:
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(address.replace("127.0.0.1", "localhost"))  # another site, not only another port
        inner = page.frame_locator("iframe")
        inner.locator("#photo input[type=file]").set_input_files(photo)
        expect(inner.locator("#photo img")).to_be_visible(timeout=PATIENCE)
        inner.locator("#generate").click()
        expect(inner.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
        expect(inner.locator("#picture img")).to_have_js_property("complete", True)
        page.close()
    assert errors == []


def test_building_the_page_imports_no_framework_and_opens_no_network():
    code = f"""
import sys
import onnxruntime
def opened(*_, **__): raise AssertionError("a network was opened")
onnxruntime.InferenceSession.__init__ = opened
from app import build_page
from infu.options import ModelOptions
from page.studio import Studio
studio = Studio(**ModelOptions().loading())
build_page(studio)
print(set({HEAVY}) & set(sys.modules), studio.backend)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set() None", done.stderr
