"""Another model: who may change it when, what is refused, and what a visitor sees of it."""

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browsing import PATIENCE, field_value, open_fold, set_field, upload, visited
from gradio_client import Client, handle_file
from playwright.sync_api import Browser, expect
from serving import ROOT, Server

from backends.pytorch.backend import PytorchBackend
from infu.errors import InfuError, MissingFile, NotEnoughMemory
from infu.info import RELEASED
from infu.metadata import read_picture
from infu.models import MINI
from infu.pipeline import Result, Step
from page.studio import Studio
from page.switch import put_in_place, switch
from page.turns import Turns

ASKED = {"prompt": "a cook", "seed": 1, "width": 64, "height": 64, "num_steps": 2}


@pytest.fixture(scope="module")
def garden(tmp_path_factory) -> Path:
    """A base of another name, made for another size."""
    folder = tmp_path_factory.mktemp("models") / "garden"
    shutil.copytree(MINI / "base", folder)
    defaults = {"width": 192, "height": 256, "num_steps": 3}
    (folder / "generation_defaults.json").write_text(json.dumps(defaults))
    return folder


def run(studio: Studio) -> list[Step | Result]:
    return list(studio.events("aes_stage2", False, False, (), **ASKED))


def test_a_change_waits_for_runs_and_runs_wait_for_a_change():
    turns, log = Turns(), []
    inside, waiting = threading.Event(), threading.Event()

    def change() -> None:
        waiting.set()
        with turns.alone():
            log.append(f"changed with {turns.inside} inside")

    def enter() -> None:
        with turns.shared():
            log.append("second run")

    def first() -> None:
        with turns.shared():
            inside.set()
            assert waiting.wait(60)
            log.append("first run")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert inside.wait(60)
    threads.append(threading.Thread(target=change))
    threads[1].start()
    for thread in threads:
        thread.join(60)
    enter()
    assert log == ["first run", "changed with 0 inside", "second run"]


def test_a_switch_during_a_run_lets_it_end_with_its_own_model(garden: Path):
    studio = Studio(public=False, name="pytorch", model_version="aes_stage2")
    other = studio.options | {"base_model_path": str(garden), "model_dir": str(MINI / "InfiniteYou")}
    stages: list[str] = []
    events = studio.events("aes_stage2", False, False, (), **ASKED)
    next(events)
    thread = threading.Thread(target=switch, args=(studio, other, stages.append))
    thread.start()
    *_, result = events
    thread.join(120)
    assert stages == ["model_reading", "model_loading"]
    assert (result.metadata["model"], studio.backend.model_name) == ("mini", "garden + InfiniteYou")
    assert run(studio)[-1].metadata["model"] == "garden + InfiniteYou"


def test_a_failed_switch_keeps_the_old_model_in_memory_or_loads_it_again(tmp_path: Path):
    studio = Studio(public=False, name="pytorch", model_version="aes_stage2")
    before, old = run(studio)[-1], studio.backend
    wrong = studio.options | {"base_model_path": str(tmp_path), "model_dir": str(MINI / "InfiniteYou")}
    with pytest.raises(MissingFile):
        switch(studio, wrong, lambda stage: None)
    assert studio.backend is old and not studio.switching.locked()
    with pytest.raises(InfuError), studio.turns.alone():  # as where two models do not fit side by side
        put_in_place(studio, wrong)
    assert isinstance(studio.backend, PytorchBackend) and studio.backend is not old
    assert (run(studio)[-1].latents == before.latents).all()


def test_a_model_that_does_not_fit_is_refused_before_anything_is_fetched(monkeypatch):
    studio = Studio(public=False, name="pytorch", model_version="aes_stage2")
    small = {
        "memory": 8 << 30,
        "usable": 8 << 30,
        "available": 4 << 30,
        "device": None,
        "device_memory": None,
    }
    monkeypatch.setattr("page.switch.read_machine", lambda: small)
    asked = studio.options | RELEASED | {"quantize": 4, "dtype": "bfloat16"}
    with pytest.raises(NotEnoughMemory, match=r"needs 14\.5 GB of memory; this machine has 8\.6 GB"):
        switch(studio, asked, lambda stage: None)


def test_a_public_page_offers_no_switch():
    code = """
import app, json
for public in (False, True):
    page = app.build_page(app.Studio(public, name="pytorch", model_version="aes_stage2"))
    print(json.dumps([block.elem_id for block in page.blocks.values()]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    local, public = (set(json.loads(line)) for line in done.stdout.splitlines())
    switches = {"which_model", "base_model_path", "load_model"}
    assert switches <= local and not switches & public


def test_a_visitor_switches_and_a_failure_is_told_and_keeps_the_model(
    browser: Browser, server: Server, photo: Path, garden: Path
):
    with visited(browser, server) as page:
        page.locator("#which_model > button").click()
        state, files, way = (page.locator(f"#{name}") for name in ("model_state", "model_files", "way"))
        expect(files).to_contain_text("Its files are here.", timeout=PATIENCE)
        expect(way).to_contain_text(re.compile(r"bit, all of it in memory: [\d.]+ MB, fits here"))
        page.get_by_label("FLUX.1-dev + InfiniteYou").check()
        expect(files).to_contain_text("Its files are not here", timeout=PATIENCE)
        expect(files).to_contain_text(re.compile(r"(39\.9|40\.0) GB"))  # the released files in bfloat16
        expect(way).to_contain_text(re.compile(r"4 bit, all of it in memory: 1\d\.\d GB"))

        page.get_by_label("My own files").check()
        expect(page.locator("#base_model_path")).to_be_visible()
        page.locator("#base_model_path input, #base_model_path textarea").fill(str(garden / "nowhere"))
        page.locator("#load_model").click()
        expect(state).to_contain_text("('nowhere') does not exist", timeout=PATIENCE)
        expect(state).to_contain_text("Still in use: mini.")

        page.locator("#base_model_path input, #base_model_path textarea").fill(str(garden))
        page.locator("#model_dir input, #model_dir textarea").fill(str(MINI / "InfiniteYou"))
        page.locator("#model_dir input, #model_dir textarea").press("Enter")
        expect(files).to_contain_text("Its files are here.", timeout=PATIENCE)
        way.locator("label", has_text="8 bit, all of it").click()
        page.locator("#load_model").click()
        expect(state).to_contain_text("Loaded: garden + InfiniteYou.", timeout=PATIENCE)
        expect(page.locator("#notice p")).to_have_count(0)
        open_fold(page)
        assert [field_value(page, name) for name in ("width", "height", "num_steps")] == [192, 256, 3]
        expect(page.locator("#numbers")).to_contain_text("192 × 256", timeout=PATIENCE)

        client = Client(server.url, verbose=False)
        made = client.predict(handle_file(photo), **ASKED, api_name="/generate_image")["value"]
        assert read_picture(made)["model"] == "garden + InfiniteYou"

        page.reload()  # a page opened after the switch
        open_fold(page)
        expect(page.locator("#width input")).to_have_value("192", timeout=PATIENCE)
        page.locator("#which_model > button").click()
        page.get_by_label("mini").check()
        page.locator("#load_model").click()
        expect(state).to_contain_text("Loaded: mini.", timeout=PATIENCE)
        expect(page.locator("#notice")).to_contain_text("the mini model, a thousandth")
        upload(page, photo)
        set_field(page, "num_steps", 2)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
