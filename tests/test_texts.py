"""The page's texts: every one in every language, with the same values to fill in."""

import re
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

import pytest

from infu.models import VERSIONS
from infu.pose import POSES
from page.pose import FREE, OWN, PHOTO
from page.texts import I18N, LANGUAGES, TEXTS, language_of, say
from page.wishes import STYLES

PAGE = Path(__file__).parents[1] / "page"


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_stands_in_every_language_with_the_same_values(key: str):
    assert tuple(TEXTS[key]) == LANGUAGES and all(TEXTS[key].values())
    values = {
        name: {field for _, field, _, _ in Formatter().parse(t) if field} for name, t in TEXTS[key].items()
    }
    assert len(set(map(frozenset, values.values()))) == 1, values


def test_no_text_is_left_that_nothing_shows():
    code = "\n".join(
        path.read_text() for path in [*PAGE.glob("*.py"), *PAGE.glob("*.json"), PAGE.parent / "app.py"]
    )
    poses = [f"pose_{name}" for name in (FREE, *POSES, PHOTO, OWN)]
    code += str([f'"{name}"' for name in (*VERSIONS, *poses)])
    assert [key for key in TEXTS if not re.search(rf"[\"']{key}[\"']", code)] == []


@pytest.mark.parametrize(
    "asked, language",
    [
        ("de-DE,de;q=0.9,en;q=0.8", "de"),
        ("zh-TW", "zh"),
        ("it,fr;q=0.5", "fr"),
        ("", "en"),
        ("den", "en"),
        ("<", "en"),
    ],
)
def test_the_browser_chooses_the_language(asked: str, language: str):
    assert language_of(SimpleNamespace(headers={"accept-language": asked})) == language


def test_a_text_is_filled_in_in_its_language():
    assert say("de", "step", step=2, num_steps=8) == "Schritt 2 von 8"
    assert say(None, "step", step=2, num_steps=8) == "Step 2 of 8"


def test_no_value_of_a_menu_is_the_key_of_a_text():
    """Gradio would translate the value itself, now and then, and the server not know it again."""
    keys = I18N.translations_dict["en"]
    assert len(keys) == len(TEXTS) and not {*VERSIONS, *STYLES, *TEXTS} & set(keys)
