"""Styles and shapes: the templates and the sizes by themselves, and what a visitor does with them."""

import re
from pathlib import Path

import pytest
from browsing import PATIENCE, drop, expect_ready, field_value, open_fold, set_field, upload, visited
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving import Server

from infu.metadata import read_picture
from page.layout import DEFAULTS
from page.size import SHAPES, make_size
from page.wishes import PLAIN, STYLES, make_prompt, split_prompt


@pytest.mark.parametrize("style", STYLES)
def test_a_style_keeps_the_sentence_and_the_face_and_comes_apart_again(style: str):
    final = make_prompt("A cook, 50 years old, in {a} kitchen.", style)
    assert "A cook, 50 years old, in {a} kitchen" in final and ".." not in final
    assert re.search("face|skin", final)
    assert split_prompt(final) == ("A cook, 50 years old, in {a} kitchen", style)
    assert make_prompt(final, style) == final


def test_without_a_style_the_sentence_is_untouched():
    assert make_prompt("a cook. ", PLAIN) == make_prompt("a cook. ", None) == "a cook. "
    assert split_prompt("a cook. ") == ("a cook. ", PLAIN)


@pytest.mark.parametrize("default", [(864, 1152), (128, 160), (1024, 1024)])
@pytest.mark.parametrize("ratio", [*SHAPES.values(), 0.01, 1 / 3, 2.4, 100])
def test_a_shape_has_the_models_area_and_whole_tokens(default: tuple[int, int], ratio: float):
    width, height = make_size(ratio, *default)
    assert width % 16 == height % 16 == 0
    assert width * height == pytest.approx(default[0] * default[1], rel=0.07)  # 8 pixels of 80 and of 240
    assert width / height == pytest.approx(min(max(ratio, 1 / 3), 3), rel=0.07)


def test_portrait_is_the_released_size():
    assert make_size(SHAPES["portrait"], 864, 1152) == (DEFAULTS.width, DEFAULTS.height)


def expect_size(page: Page, width: int, height: int, shape: str | None) -> None:
    expect(page.locator("#numbers")).to_contain_text(f"{width} × {height}", timeout=PATIENCE)
    chosen = page.locator("#shape label.selected")
    expect(chosen).to_have_text([shape] if shape else [])
    assert (field_value(page, "width"), field_value(page, "height")) == (width, height)


def test_a_visitor_chooses_shape_and_style_and_finds_them_again_in_the_picture(
    browser: Browser, server: Server, photo: Path, tmp_path: Path
):
    with visited(browser, server) as page:
        open_fold(page)
        expect_size(page, 128, 160, "Portrait")
        page.get_by_label("Like my photo").check()
        expect(page.get_by_test_id("toast-body")).to_contain_text("Give a photo first")
        upload(page, photo)  # square: 512 x 512
        expect_size(page, 144, 144, "Like my photo")
        page.get_by_label("Wide", exact=True).check()
        expect_size(page, 192, 112, "Wide")
        page.locator("#swap").click()
        expect_size(page, 112, 192, "Tall")
        set_field(page, "width", 96)
        expect_size(page, 96, 192, None)

        page.locator("#prompt textarea").fill("a <b>cook</b>")
        expect(page.locator("#final_prompt p")).to_have_count(0)
        page.locator("#style input").click()
        page.get_by_role("option", name="Watercolour").click()
        final = (
            "Watercolour painting: a <b>cook</b>. Loose washes on rough paper, the face drawn true to life"
        )
        expect(page.locator("#final_prompt q")).to_have_text(final, timeout=PATIENCE)
        set_field(page, "num_steps", 2)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
        expect_ready(page)
        with page.expect_download() as download:
            page.locator("#download").click()
        path = tmp_path / "picture.png"
        download.value.save_as(path)
        made = read_picture(path)
        assert (made["prompt"], made["width"], made["height"]) == (final, 96, 192)
        with Image.open(path) as picture:
            assert picture.size == (96, 192)

    with visited(browser, server) as page:
        open_fold(page)
        page.locator("#style input").click()
        page.get_by_role("option", name="Comic").click()
        drop(page, "#source", path)
        expect(page.locator("#prompt textarea")).to_have_value("a <b>cook</b>", timeout=PATIENCE)
        expect(page.locator("#style input")).to_have_value("Watercolour")
        expect(page.locator("#final_prompt q")).to_have_text(final, timeout=PATIENCE)
        expect_size(page, 96, 192, None)
