"""Trigger words out of files as trainers write them, and a visitor's LoRAs on the page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browsing import PATIENCE, expect_ready, open_fold, set_field, upload, visited
from playwright.sync_api import Browser, expect
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from serving import Server

from infu.inspect import describe_file, draw_file
from infu.metadata import read_picture
from infu.models import MINI
from infu.weights.triggers import find_triggers

LORA = MINI / "InfiniteYou/supports/optional_loras/flux_realism_lora.safetensors"
TAGS = {"10_ohwx": {"ohwx woman": 20, "smile": 19, "garden": 4}, "bad": 3}


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({}, []),
        ({"modelspec.trigger_phrase": "ohwx  woman, in ink"}, ["ohwx woman", "in ink"]),
        ({"ss_trigger_words": '["a b", "c"]', "ss_tag_frequency": json.dumps(TAGS)}, ["a b", "c"]),
        ({"trainedWords": "x", "instance_prompt": "x"}, ["x"]),
        ({"ss_tag_frequency": json.dumps(TAGS)}, ["ohwx woman", "smile"]),
        ({"ss_tag_frequency": json.dumps({"a": {"b": "many", "once": 1}})}, []),
        ({"ss_tag_frequency": "[" * 100_000, "trigger_word": "y" * 81}, []),
        ({"trigger_words": json.dumps(list(range(20)))}, [str(k) for k in range(8)]),
        ({"ss_trigger_words_note": "no", "title": "no"}, []),
    ],
)
def test_trigger_words_are_read_as_each_trainer_writes_them(metadata: dict[str, str], words: list[str]):
    assert find_triggers(metadata) == words


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """The mini's LoRA with a trigger word that is HTML too."""
    path = tmp_path_factory.mktemp("loras") / "ink.safetensors"
    with safe_open(LORA, "numpy") as file:
        metadata = file.metadata() or {}
    save_file(load_file(LORA), path, metadata | {"modelspec.trigger_phrase": "<b>inkwash</b>"})
    return path


def test_inspect_says_the_trigger_words(named: Path):
    assert "trigger words: <b>inkwash</b>" in draw_file(describe_file(named))


def test_a_visitor_sees_what_a_lora_does_adds_its_word_and_gives_each_its_strength(
    browser: Browser, server: Server, photo: Path, named: Path
):
    with visited(browser, server) as page:
        upload(page, photo)
        page.locator("#lora > button").click()
        page.set_input_files("#loras input[type=file]", [named, LORA])
        report = page.locator("#lora_report")
        expect(report.locator("section")).to_have_count(2, timeout=PATIENCE)
        expect(report).to_contain_text(re.compile(r"Changes [1-9]\d* layers of the model\."))
        expect(page.locator("#lora_picture")).to_have_count(0)
        page.locator("#prompt textarea").fill("a cook")
        for _ in range(2):
            report.get_by_role("button", name="+ <b>inkwash</b>").click()
            expect(page.locator("#prompt textarea")).to_have_value("a cook, <b>inkwash</b>", timeout=PATIENCE)
        report.get_by_label("Strength of ink.safetensors").fill("0.5")
        set_field(page, "lora_scale", 1.5)
        open_fold(page)
        set_field(page, "num_steps", 2)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
        expect_ready(page)
        with page.expect_download() as download:
            page.locator("#download").click()
        made = read_picture(download.value.path())
        assert made["prompt"] == "a cook, <b>inkwash</b>"
        used = [(plugin["lora"], plugin["scale"]) for plugin in made["plugins"]]
        assert used == [("ink.safetensors", 0.75), (LORA.name, 1.5)]


def test_a_lora_for_few_steps_sets_its_steps_and_strength(
    browser: Browser, server: Server, photo: Path, tmp_path: Path
):
    hyper = shutil.copy(LORA, tmp_path / "Hyper-FLUX.1-dev-3steps-lora.safetensors")
    with visited(browser, server) as page:
        upload(page, photo)
        open_fold(page)
        page.locator("#lora > button").click()
        page.set_input_files("#loras input[type=file]", hyper)
        told = "Made for 3 steps, guidance 3.5 and strength 0.125, which are now set."
        expect(page.locator("#lora_report")).to_contain_text(told, timeout=PATIENCE)
        expect(page.locator("#num_steps input")).to_have_value("3", timeout=PATIENCE)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
        with page.expect_download() as download:
            page.locator("#download").click()
        made = read_picture(download.value.path())
        assert made["num_steps"] == 3
        assert made["plugins"] == [{"lora": hyper.name, "scale": 0.125}]


def test_a_control_lora_asks_for_its_picture_and_follows_it(
    browser: Browser, server: Server, photo: Path, tmp_path: Path
):
    """BFL's kind: `img_in` reads 64 more channels, the picture's."""
    with safe_open(MINI / "base/transformer/diffusion_pytorch_model.safetensors", "numpy") as weights:
        width, channels = weights.get_slice("x_embedder.weight").get_shape()
    noise = np.random.default_rng(0)
    down = noise.normal(size=(4, 2 * channels)).astype(np.float32)
    up = noise.normal(size=(width, 4)).astype(np.float32)
    path = tmp_path / "edges.safetensors"
    save_file({"img_in.lora_A.weight": down, "img_in.lora_B.weight": up}, path)
    with visited(browser, server) as page:
        upload(page, photo)
        open_fold(page)
        set_field(page, "num_steps", 2)
        page.locator("#lora > button").click()
        page.set_input_files("#loras input[type=file]", path)
        picture = page.locator("#lora_picture")
        expect(picture).to_be_visible(timeout=PATIENCE)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("edges.safetensors", timeout=PATIENCE)
        expect_ready(page)
        picture.locator("input[type=file]").set_input_files(photo)
        expect(picture.locator("img")).to_be_visible(timeout=PATIENCE)
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("Done in", timeout=PATIENCE)
        with page.expect_download() as download:
            page.locator("#download").click()
        made = read_picture(download.value.path())["plugins"]
        assert made == [{"lora": path.name, "scale": 1.0, "control_photo": True}]
