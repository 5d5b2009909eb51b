"""What a run makes, in a real browser: pictures one by one, two ways to stop, a visitor's history."""

import re
import time
import zipfile
from pathlib import Path

import pytest
from browsing import DESK, PATIENCE, PHONE, expect_ready, field_value, open_fold, set_field, upload, visited
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving import Server
from test_page_axe import violations

from infu.errors import PhotoError
from infu.metadata import read_picture
from infu.pipeline import Step
from page.progress import Pace, draw_time

PROMPT = "an astronaut, watercolour"
BLOB = re.compile("^blob:")


def options(page: Page):
    return page.locator("#history [role=option]")


def seed_of(page: Page) -> str:
    return page.locator("#seed_used input, #seed_used textarea").input_value()


def shown(page: Page) -> str:
    expect(page.locator("#picture button img, #picture .image-frame img").first).to_have_attribute(
        "src", BLOB
    )
    return page.locator("#picture img").first.get_attribute("src")


def download(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as started:
        page.locator(f"#{button}").click()
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def make(page: Page, number: int) -> None:
    """Generate, until there are so many pictures in the strip and the page is ready for the next."""
    page.locator("#generate").click()
    expect(options(page)).to_have_count(number, timeout=PATIENCE)
    expect_ready(page)


def start_long_run(page: Page) -> None:
    set_field(page, "num_steps", 200)
    page.locator("#generate").click()
    expect(page.locator("#progress")).to_contain_text(re.compile(r"\d:\d\d left"), timeout=PATIENCE)


def test_a_visitors_pictures(browser: Browser, server: Server, photo: Path, tmp_path: Path):
    with visited(browser, server, DESK) as page:
        upload(page, photo)
        page.locator("#prompt textarea").fill(PROMPT)
        open_fold(page)
        for name, value in {"width": 128, "height": 160, "num_steps": 8, "num_images": 2}.items():
            set_field(page, name, value)
        expect(page.locator("#past")).to_be_hidden()
        make(page, 2)
        expect(page.locator("#progress")).to_contain_text("Done in")

        # Each picture is chosen in the strip, with the keys too, and has its own seed, settings and file.
        newest = shown(page)
        last = int(seed_of(page))
        options(page).first.focus()
        page.keyboard.press("ArrowRight")
        expect(options(page).nth(1)).to_be_focused()
        expect(page.locator("#seed_used input, #seed_used textarea")).to_have_value(str((last - 1) % 2**32))
        expect(page.locator("#history dl")).to_contain_text(f"Sentence{PROMPT}")
        expect(page.locator("#history dl")).to_contain_text("Size128 × 160")
        assert shown(page) != newest
        made = read_picture(download(page, "download", tmp_path))
        assert (made["seed"], made["num_images"], made["prompt"]) == ((last - 1) % 2**32, 1, PROMPT)

        with zipfile.ZipFile(download(page, "download_all", tmp_path)) as files:
            assert files.testzip() is None
            seeds = [read_picture(files.open(name))["seed"] for name in sorted(files.namelist())]
        assert seeds == [made["seed"], last]

        # Two over one another.
        page.locator("#compare").click()
        pair = page.locator(".pair")
        under, over = (pair.locator("img").nth(k).get_attribute("src") for k in (0, 1))
        assert under == shown(page) and over == newest
        expect(page.locator("#compare")).to_have_attribute("aria-pressed", "true")
        slider = page.get_by_role("slider", name="Compare two")
        for key, covered in {"Home": "0%", "End": "100%"}.items():
            slider.press(key)
            clip = pair.locator("img").nth(1).evaluate("image => getComputedStyle(image).clipPath")
            assert clip.endswith(f" {covered})")
        page.locator("#compare").click()
        expect(pair).to_be_hidden()

        # Stop: the picture of before is back. Stop and keep: what was there is a picture.
        set_field(page, "num_images", 1)
        before = shown(page)
        start_long_run(page)
        page.locator("#stop").click()
        expect(page.locator("#progress")).to_contain_text("Stopped.", timeout=PATIENCE)
        expect_ready(page)
        assert shown(page) == before and options(page).count() == 2
        start_long_run(page)
        page.locator("#keep").click()
        expect(page.locator("#progress")).to_contain_text(
            re.compile(r"Stopped after step \d+ of 200;"), timeout=PATIENCE
        )
        expect(options(page)).to_have_count(3)
        expect_ready(page)
        path = download(page, "download", tmp_path)
        kept = read_picture(path)
        assert 2 <= kept["partial"] < kept["num_steps"] == 200
        with Image.open(path) as picture:
            assert picture.size == (128, 160)

        # It is all there after a reload, and nothing of it on the page of anybody else.
        page.reload()
        expect(options(page)).to_have_count(3, timeout=PATIENCE)
        expect(page.locator("#history dl")).to_contain_text(f"Ended after step{kept['partial']}")
        shown(page)
        assert read_picture(download(page, "download", tmp_path)) == kept
        with visited(browser, server) as other:
            expect(options(other)).to_have_count(0)

        # Settings back into the controls; the same with another seed.
        upload(page, photo)
        open_fold(page)
        options(page).nth(2).click()
        page.locator("#use").click()
        expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
        for name in ("width", "height", "num_steps", "seed"):
            expect(page.locator(f"#{name} input[type=number]")).to_have_value(str(made[name]))
        page.locator("#prompt textarea").fill("something else")
        page.locator("#again").click()
        expect(options(page)).to_have_count(4, timeout=PATIENCE)
        expect_ready(page)
        again = read_picture(download(page, "download", tmp_path))
        assert again.pop("seed") != made["seed"]
        assert again == {name: value for name, value in made.items() if name != "seed"}
        assert field_value(page, "seed") == 0

        # Without settings: none in the file, its name, or the history.
        page.get_by_label("Leave the settings out of the file").check()
        make(page, 5)
        path = download(page, "download", tmp_path)
        assert path.name == "infiniteyou.png" and seed_of(page) == ""
        with pytest.raises(PhotoError, match="no InfU settings"):
            read_picture(path)
        expect(page.locator("#history dl dt")).to_have_count(0)
        expect(page.locator("#use")).to_be_disabled()
        expect(page.locator("#again")).to_be_disabled()

        page.once("dialog", lambda dialog: dialog.accept())
        page.locator("#clear_history").click()
        expect(page.locator("#past")).to_be_hidden()
        expect(page.locator("#picture img")).to_have_count(0)
        expect(page.locator("#download")).to_be_disabled()
        page.reload()
        expect(page.locator("#generate")).to_be_enabled()
        page.wait_for_timeout(2000)
        expect(options(page)).to_have_count(0)


def test_a_browser_that_may_keep_nothing_keeps_until_the_page_is_closed(
    browser: Browser, server: Server, photo: Path, tmp_path: Path
):
    with visited(browser, server) as page:
        page.add_init_script("indexedDB.open = () => { throw new DOMException('', 'SecurityError'); }")
        page.reload()
        upload(page, photo)
        open_fold(page)
        for name, value in {"width": 64, "height": 64, "num_steps": 1, "num_images": 2}.items():
            set_field(page, name, value)
        make(page, 2)
        shown(page)
        assert read_picture(download(page, "download", tmp_path))["seed"] == int(seed_of(page))
        page.reload()
        expect(page.locator("#generate")).to_be_enabled()
        expect(options(page)).to_have_count(0)


def test_a_strip_of_many_pictures_stays_on_a_phones_screen(browser: Browser, server: Server, photo: Path):
    with visited(browser, server, PHONE) as page:
        upload(page, photo)
        open_fold(page)
        for name, value in {"width": 64, "height": 64, "num_steps": 1, "num_images": 6}.items():
            set_field(page, name, value)
        make(page, 6)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        strip = page.locator("#history [role=listbox]")
        assert strip.evaluate("strip => strip.scrollWidth > strip.clientWidth")
        page.locator("#compare").click()
        assert violations(page) == []


def test_the_time_left_is_that_of_the_steps_measured(monkeypatch):
    """Loading and reading, before the first step, do not count: 3 steps of 20 s after it, 36 to go."""
    clock = iter([0.0, 500.0, 520.0, 540.0, 560.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pace = Pace()
    told = [pace.describe(Step(step, 40, None), 2, "en") for step in (1, 2, 3, 4)]
    assert told[0] == "Step 1 of 40 · picture 1 of 2"
    assert told[3] == "Step 4 of 40 · picture 1 of 2 · 12:00 left"
    assert [draw_time(seconds) for seconds in (0.4, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
