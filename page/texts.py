"""The page's texts in six languages, one JSON file in `texts/` per part of the page: key -> language -> text.

`label` gives a text that Gradio translates in the browser; `say` one that the server fills in, in the
language that the visitor's browser asks for. A toast (`gr.Info`) is not translated: it takes `say`.
"""

import json
import re
from pathlib import Path

import gradio as gr
from gradio.i18n import I18nData

LANGUAGES = ("en", "zh", "de", "es", "fr", "ja")
TEXTS: dict[str, dict[str, str]] = {
    key: texts
    for path in sorted(Path(__file__).with_suffix("").glob("*.json"))
    for key, texts in json.loads(path.read_text(encoding="utf-8")).items()
}
# Gradio translates every value that is a key, as "aes_stage2" was in the menu of versions: none begins so.
OURS = "infu_text_"
# Gradio asks for the browser's whole locale first; its own texts have zh-CN, so ours must too.
I18N = gr.I18n(
    **{
        locale: {OURS + key: texts[name] for key, texts in TEXTS.items()}
        for locale, name in [*zip(LANGUAGES, LANGUAGES, strict=True), ("zh-CN", "zh")]
    }
)


def label(key: str) -> I18nData:
    """The text `key` for a label, a placeholder, a value or HTML (there as `str`). Raises `KeyError`."""
    TEXTS[key]
    return I18N(OURS + key)


def say(visitor: gr.Request | str | None, key: str, **values: object) -> str:
    """The text `key` with its values, for a visitor, or in a language of LANGUAGES."""
    language = visitor if isinstance(visitor, str) else language_of(visitor)
    return TEXTS[key][language].format(**values)


def language_of(visitor: gr.Request | None) -> str:
    """The first language of LANGUAGES that the visitor's browser names; English for all others."""
    headers = getattr(visitor, "headers", None) or {}
    for part in headers.get("accept-language", "").split(","):
        code = re.match(r"\s*([a-z]{2})\b", part.lower())
        if code and code[1] in LANGUAGES:
            return code[1]
    return "en"
