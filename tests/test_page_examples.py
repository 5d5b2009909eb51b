"""The examples: their pictures are made by the loaded model, wait for everybody else, and are kept."""

import json
import shutil
from pathlib import Path

import pytest
from browsing import PATIENCE, visited
from playwright.sync_api import Browser, expect
from serving import served
from transformers import PreTrainedTokenizerFast

from infu.models import MINI
from infu.pipeline import Result
from page.examples import EXAMPLES as SETS
from page.examples import examples_of, find_folder, make_picture
from page.studio import Studio

EXAMPLES = SETS["flux"]
OPTIONS = {"name": "pytorch", "model_version": "aes_stage2", "model_dir": str(MINI / "InfiniteYou")}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The mini model, made for small pictures in a few steps."""
    folder = tmp_path_factory.mktemp("models") / "base"
    shutil.copytree(MINI / "base", folder)
    (folder / "generation_defaults.json").write_text(json.dumps({"width": 96, "height": 128, "num_steps": 4}))
    return folder


def test_the_mini_model_has_examples_in_its_own_words(small: Path):
    mini, other = (
        Studio(public=False, name="pytorch"),
        Studio(public=False, base_model_path=str(small), **OPTIONS),
    )
    assert examples_of(mini) == SETS["mini"] and examples_of(other) == EXAMPLES
    tokenize = PreTrainedTokenizerFast.from_pretrained(MINI / "base" / "tokenizer_2").tokenize
    for sentence in (*SETS["mini"].values(), mini.defaults.prompt):
        pieces = [piece.strip("▁") for piece in tokenize(sentence)]
        assert all(len(piece) > 1 or piece in ("", "a", ",") for piece in pieces), sentence  # none is spelled


def test_an_example_gives_the_device_to_whoever_comes(small: Path):
    studio = Studio(public=False, base_model_path=str(small), **OPTIONS)
    making = make_picture(studio, "example_baker")
    assert next(making) is None  # after its first step
    asked = {"prompt": "a cook", "seed": 1, "width": 64, "height": 64, "num_steps": 2}
    with studio.turns.shared():  # somebody has come
        assert next(making) is None and studio.turns.inside == 1  # it has let go, and waits
        assert next(making) is None and studio.turns.inside == 1
    *_, result = studio.events("aes_stage2", False, False, (), **asked)
    assert isinstance(result, Result)
    *_, picture = making
    assert picture.startswith(b"\xff\xd8")


def test_another_model_has_other_pictures(small: Path):
    folders = {
        find_folder(Studio(public=False, **OPTIONS, base_model_path=str(base)))
        for base in (small, MINI / "base")
    }
    assert len(folders) == 2


def test_opening_the_fold_makes_the_pictures_once_and_a_click_takes_the_sentence(
    browser: Browser, small: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("INFU_CACHE", str(tmp_path / "cache"))
    paths = ("--base_model_path", str(small), "--model_dir", str(MINI / "InfiniteYou"))
    with served(tmp_path, *paths) as server:
        with visited(browser, server, mini=False) as page:
            assert not (tmp_path / "cache/examples").exists()  # nothing before it is asked for
            page.locator("#examples > button").click()
            cards = page.locator("#example_cards button")
            expect(cards).to_have_count(len(EXAMPLES), timeout=PATIENCE)
            expect(cards.locator("img")).to_have_count(len(EXAMPLES), timeout=2 * PATIENCE)
            page.get_by_role("button", name="In the bakery").click()
            expect(page.locator("#prompt textarea")).to_have_value(
                EXAMPLES["example_baker"], timeout=PATIENCE
            )
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/examples").rglob("*.jpg")}
        assert {path.stem for path in kept} == set(EXAMPLES)
        with visited(browser, server, mini=False) as page:
            page.locator("#examples > button").click()
            expect(page.locator("#example_cards img")).to_have_count(len(EXAMPLES), timeout=PATIENCE)
        assert kept == {path: path.stat().st_mtime_ns for path in kept}
