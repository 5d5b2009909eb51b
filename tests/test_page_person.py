"""The page's three questions about the person, in a real browser: whose face, how like, at which angle."""

from types import SimpleNamespace

import pytest
from browsing import field_value, open_fold, set_field, visited
from playwright.sync_api import Browser, expect
from serving import Server

from page.likeness import STOPS, describe, stop_at


@pytest.mark.parametrize(
    "versions", [None, ("aes_stage2", "sim_stage1", "mine"), ("aes_stage2",), ("sim_stage1",)]
)
def test_the_likeness_slider_only_asks_for_versions_that_are_there(versions):
    chosen = [stop_at(level, versions) for level in range(len(STOPS))]
    assert {stop.model_version for stop in chosen} <= set(versions or ("aes_stage2", "sim_stage1"))
    order = [STOPS.index(stop) for stop in chosen]
    assert order == sorted(order)  # never more like the photograph on the way to freedom
    assert versions is not None and len(versions) == 1 or order == list(range(len(STOPS)))


def test_the_likeness_slider_says_what_it_set_and_when_it_does_not_stand_for_it():
    visitor = SimpleNamespace(headers={"accept-language": "en"})
    level, line = describe(4, "sim_stage1", 1, 0.1, visitor)
    assert level == 1 and "sim_stage1, strength 1, from 10% of the steps" in line
    level, line = describe(2, "<b>mine", 1, 0, visitor)
    assert not isinstance(level, int) and "Own values:</b> &lt;b&gt;mine" in line


def test_the_likeness_slider_and_the_settings_move_one_another(browser: Browser, server: Server):
    with visited(browser, server) as page:
        slider, line = page.locator("#likeness_level input[type=range]"), page.locator("#likeness_set")
        expect(line).to_contain_text("aes_stage2, strength 1, from 0% of the steps")
        slider.focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        expect(line).to_contain_text("aes_stage2, strength 0.9, from 10% of the steps")
        for _ in range(4):
            page.keyboard.press("ArrowLeft")
        expect(line).to_contain_text("sim_stage1, strength 1, from 0% of the steps")
        open_fold(page)
        expect(page.locator("#model_version input")).to_have_value("Likeness (sim_stage1)")
        assert field_value(page, "infusenet_conditioning_scale") == 1
        set_field(page, "infusenet_conditioning_scale", 0.6)
        expect(line).to_contain_text("Own values: sim_stage1, strength 0.6, from 0% of the steps")
        set_field(page, "infusenet_guidance_start", 0.1)
        set_field(page, "infusenet_conditioning_scale", 1)
        expect(line).not_to_contain_text("Own values")
        expect(slider).to_have_value("1")
