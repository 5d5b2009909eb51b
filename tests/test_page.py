"""The page in a real browser: what a visitor does, from the photograph to the settings out of the picture."""

import re
import time
from pathlib import Path

import pillow_heif
import pytest
from browsing import (
    DESK,
    PATIENCE,
    PHONE,
    drop,
    expect_ready,
    field_value,
    open_fold,
    set_field,
    step_of,
    upload,
    visited,
)
from golden import GOLDEN
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, expect
from serving import Server, served
from skimage.data import astronaut

from infu.metadata import read_picture
from infu.models import MINI
from page.settings import restored

PROMPT = "an astronaut, watercolour"
PREVIEW = re.compile("^data:image/jpeg;base64,")


def test_a_visitor_makes_stops_downloads_and_brings_back_a_picture(
    browser: Browser, server: Server, photo: Path, tmp_path: Path
):
    with visited(browser, server) as page:
        upload(page, photo)
        page.locator("#prompt textarea").fill(PROMPT)
        open_fold(page)
        for name, value in {"width": 256, "height": 328, "num_steps": 200}.items():
            set_field(page, name, value)

        page.locator("#generate").click()
        expect(page.locator("#stop")).to_be_enabled()
        expect(page.locator("#generate")).to_be_disabled()
        preview = page.locator("#picture img")
        expect(preview).to_have_attribute("src", PREVIEW, timeout=PATIENCE)
        seen = set()
        while len(seen) < 3:  # the first, and two changes
            seen.add(preview.get_attribute("src"))
            page.wait_for_timeout(50)
        expect(page.locator("#progress")).to_contain_text(re.compile(r"Step \d+ of 200"))
        page.locator("#stop").click()
        expect(page.locator("#progress")).to_contain_text("Stopped.")
        expect_ready(page)
        page.wait_for_timeout(2000)  # what comes late from the stopped run must not change that
        expect(page.locator("#progress")).to_contain_text("Stopped.")
        expect_ready(page)

        set_field(page, "num_steps", 8)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
        expect_ready(page)
        seed = int(page.locator("#seed_used input, #seed_used textarea").input_value())
        with page.expect_download() as download:
            page.locator("#download").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("PNG", (256, 328))
        made = read_picture(path)
        asked = {"prompt": PROMPT, "seed": seed, "width": 256, "height": 328, "num_steps": 8}
        assert {name: made[name] for name in asked} == asked

        page.locator("#prompt textarea").fill("something else")
        changes = {"width": 512, "height": 512, "num_steps": 3, "seed": 1, "guidance_scale": 2}
        for name, value in changes.items():
            set_field(page, name, value)
        set_field(page, "infusenet_guidance_end", 0.5)
        page.get_by_label("Realism LoRA").check()
        page.locator("#model_version input").click()
        page.get_by_role("option", name="sim_stage1").click()
        drop(page, "#source", path)
        expect(page.locator("#prompt textarea")).to_have_value(asked["prompt"])
        for name in (*changes, "infusenet_guidance_end"):
            assert field_value(page, name) == made[name]
        expect(page.get_by_label("Realism LoRA")).not_to_be_checked()
        expect(page.locator("#model_version input")).to_have_value(re.compile("aes_stage2"))


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_is_wider_than_the_screen(browser: Browser, server: Server, photo: Path, viewport: dict):
    with visited(browser, server, viewport) as page:
        upload(page, photo)
        open_fold(page)
        for name in ("photo", "prompt", "generate", "picture", "download", "model_version", "num_steps"):
            box = page.locator(f"#{name}").bounding_box()
            assert 0 <= box["x"] and box["x"] + box["width"] <= viewport["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_a_file_that_is_no_photograph_is_told_at_once(browser: Browser, server: Server, tmp_path: Path):
    (tmp_path / "a.jpg").write_text("not a picture")
    with visited(browser, server) as page:
        page.locator("#photo input[type=file]").set_input_files(tmp_path / "a.jpg")
        toast = page.get_by_test_id("toast-body")
        expect(toast).to_contain_text("The file 'a.jpg' is text, not a picture.", timeout=PATIENCE)
        expect(page.locator("#photo img")).to_have_count(0)
        page.locator("#generate").click()
        expect(page.locator("body")).to_contain_text("Give a photograph of a face.", timeout=PATIENCE)
        expect(page.locator("#progress")).to_contain_text("Give a photograph of a face.")
        expect_ready(page)


def test_a_lora_is_told_what_it_is_as_soon_as_it_is_there(browser: Browser, server: Server):
    own = MINI / "InfiniteYou/supports/optional_loras/flux_realism_lora.safetensors"
    with visited(browser, server) as page:
        page.click("#lora > button")
        page.set_input_files("#loras input[type=file]", own)
        expect(page.locator("#lora_report")).to_contain_text("layers of the model")
        expect(page.locator("#lora_report")).to_contain_text("flux_realism_lora.safetensors")
    with visited(browser, server) as page:
        page.click("#lora > button")
        page.set_input_files("#loras input[type=file]", GOLDEN / "lora/foreign/sdxl_kohya.safetensors")
        expect(page.locator(".toast-body")).to_contain_text("Stable Diffusion XL")
        expect(page.locator("#lora_report section")).to_have_count(0)


def test_a_photograph_that_the_browser_cannot_show_is_shown(browser: Browser, server: Server, tmp_path: Path):
    path = tmp_path / "phone.heic"
    pillow_heif.from_pillow(Image.fromarray(astronaut())).save(path, quality=90)
    with visited(browser, server) as page:
        page.locator("#photo input[type=file]").set_input_files(path)
        shown = page.locator("#photo img")
        expect(shown).to_have_attribute("src", re.compile(r"\.png$"), timeout=PATIENCE)
        page.wait_for_function("document.querySelector('#photo img').naturalWidth === 512")


def test_a_visitor_who_leaves_frees_the_device(browser: Browser, server: Server, photo: Path):
    with visited(browser, server) as page:
        upload(page, photo)
        open_fold(page)
        for name, value in {"width": 384, "height": 512, "num_steps": 200}.items():
            set_field(page, name, value)
        page.locator("#generate").click()
        first = step_of(page)
        page.wait_for_timeout(2000)
        step_seconds = 2 / (step_of(page) - first)
    left = time.monotonic()
    client = Client(server.url, verbose=False)
    client.predict(handle_file(photo), width=128, height=128, num_steps=1, api_name="/generate_image")
    assert time.monotonic() - left < 100 * step_seconds + 5  # a run that went on had some 180 steps to go


def test_page_and_client_make_the_same_picture_on_mlx(browser: Browser, photo: Path, tmp_path: Path):
    asked = {"width": 128, "height": 160, "num_steps": 3, "seed": 11}
    with served(tmp_path, "--backend", "mlx") as server, visited(browser, server) as page:
        upload(page, photo)
        open_fold(page)
        for name, value in asked.items():
            set_field(page, name, value)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
        with page.expect_download() as download:
            page.locator("#download").click()
        client = Client(server.url, verbose=False)
        again = client.predict(handle_file(photo), **asked, api_name="/generate_image")["value"]
        assert read_picture(download.value.path()) == read_picture(again)
        assert read_picture(again)["backend"] == "mlx"
        assert Path(download.value.path()).read_bytes() == Path(again).read_bytes()


def test_what_a_picture_cannot_give_back_is_named():
    assert restored({"plugins": [{"lora": "flux_realism_lora.safetensors"}]}, "en") == (
        "The settings are back. Not among them: the photograph."
    )
    said = restored({"negative_prompt": "blur", "plugins": [{"lora": "style.safetensors"}, 3]}, "en")
    assert said.endswith("the photograph, the negative prompt, LoRA style.safetensors.")
    said = restored({"control_photo": True, "max_sequence_length": 64, "seed": 0}, "en")
    lost = ("the photograph of the pose", "the limit of the prompt's tokens", "the seed 0")
    assert said.endswith(f"the photograph, {', '.join(lost)}, which on the page is a random one.")
