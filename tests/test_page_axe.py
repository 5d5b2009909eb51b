"""The page for everyone: axe's WCAG 2 A and AA rules, the keyboard alone, and six languages."""

import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import DESK, PATIENCE, PHONE, expect_ready, open_fold, set_field, upload, visited
from playwright.sync_api import Browser, Page, expect
from serving import Server

from page.texts import LANGUAGES, TEXTS

RULES = {"runOnly": ["wcag2a", "wcag2aa"], "resultTypes": ["violations"]}
GRADIOS = {  # what Gradio writes, which we cannot change: rule, and what the element contains
    ("aria-prohibited-attr", 'aria-label="Empty value"'),  # an empty picture is a div with a name and no role
}
FOCUS = """() => {
    const element = document.activeElement;
    const { outlineStyle, outlineWidth } = getComputedStyle(element);
    return {
        part: element.closest("[id]:not(.gradio-container, [id^=component])")?.id,
        tag: element.tagName.toLowerCase(),
        seen: outlineStyle === "solid" && parseFloat(outlineWidth) >= 2,
    };
}"""


def violations(page: Page) -> list[str]:
    """What axe finds that is ours, a line for each element."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:300]} {node['failureSummary']}"
        for rule in found
        for node in rule["nodes"]
        if not any(rule["id"] == name and part in node["html"] for name, part in GRADIOS)
    ]


def open_folds(page: Page) -> None:
    closed = page.locator("button.label-wrap:not(.open):visible")
    while closed.count():
        closed.first.click()
    page.wait_for_timeout(1000)  # as in open_fold


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(browser: Browser, server: Server, photo: Path, viewport: dict, colours: str):
    with visited(browser, server, viewport, color_scheme=colours) as page:
        assert page.evaluate("document.body.classList.contains('dark')") == (colours == "dark")
        open_folds(page)
        assert violations(page) == []
        upload(page, photo)
        for name, value in {"width": 64, "height": 64, "num_steps": 1}.items():
            set_field(page, name, value)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
        expect_ready(page)
        page.wait_for_timeout(500)  # colours fade
        assert violations(page) == []


def tab_to(page: Page, part: str) -> list[dict[str, Any]]:
    """Tab until the focus is within the part -> what had the focus on the way."""
    passed = []
    while not passed or passed[-1]["part"] != part:
        page.keyboard.press("Tab")
        passed.append(page.evaluate(FOCUS))
        assert len(passed) < 80, f"{part} is not reached: {passed}"
    return passed


def test_the_keyboard_alone_makes_and_stops_a_picture(browser: Browser, server: Server, photo: Path):
    with visited(browser, server) as page:
        open_fold(page)
        set_field(page, "num_steps", 200)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.locator("#head").click()  # from here the tabs begin
        passed = tab_to(page, "photo")
        choosers = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))
        for _ in range(20):  # on a busy machine Gradio's button does not always hear the first time
            page.keyboard.press("Enter")
            page.wait_for_timeout(1000)
            if choosers:
                break
        choosers[0].set_files(photo)
        expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
        passed += tab_to(page, "prompt")
        page.keyboard.press("Control+A")
        page.keyboard.type("an astronaut, watercolour")
        passed += tab_to(page, "generate")
        page.keyboard.press("Enter")
        expect(page.locator("#stop")).to_be_enabled(timeout=PATIENCE)
        expect(page.locator("#progress")).to_contain_text(re.compile(r"Step \d+ of 200"), timeout=PATIENCE)
        passed += tab_to(page, "stop")
        page.keyboard.press("Enter")
        expect(page.locator("#progress")).to_contain_text("Stopped.", timeout=PATIENCE)
        expect_ready(page)
        passed += tab_to(page, "num_steps")
        assert [focus for focus in passed if not focus["seen"]] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_speaks_the_browsers_language(browser: Browser, server: Server, language: str):
    locale = {"en": "en-GB", "zh": "zh-CN", "de": "de-DE", "es": "es-ES", "fr": "fr-FR", "ja": "ja-JP"}[
        language
    ]
    with visited(browser, server, locale=locale) as page:
        expect(page.locator("#generate")).to_have_text(TEXTS["generate"][language])
        expect(page.locator("#prompt")).to_contain_text(TEXTS["prompt"][language])
        expect(page.locator("html")).to_have_attribute("lang", language)
        page.locator("#generate").click()  # what the server says, too
        expect(page.locator("#progress")).not_to_contain_text(TEXTS["ready"][language])
