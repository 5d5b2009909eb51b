"""Shared by all tests: where the repository's root is, quiet threads, a server, a browser, a photograph."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
collect_ignore = [] if importlib.util.find_spec("atheris") else ["test_fuzz.py"]  # for Linux alone
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page with the mini model. At the end: no fault of our own in all of the module's tests."""
    from serving import served

    with served(tmp_path_factory.mktemp("server")) as server:
        yield server
        assert "A request failed." not in server.printed()


@pytest.fixture(scope="module")
def browser():
    from browsing import FLAGS
    from playwright.sync_api import sync_playwright

    installed = shutil.which("chromium") or shutil.which("google-chrome")  # else Playwright's own
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """A real photograph of one person, 512 x 512, as a PNG file."""
    from PIL import Image
    from skimage.data import astronaut

    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(astronaut()).save(path)
    return path
