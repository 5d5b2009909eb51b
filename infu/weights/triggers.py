"""The words that call a LoRA, as far as its file's metadata tell them: each trainer has its own keys."""

import json
import re
from collections.abc import Mapping
from typing import Any

# modelspec (Stability AI), kohya, ai-toolkit, diffusers' scripts, Civitai
NAMED = re.compile(
    r"(modelspec\.|ss_)?(trigger_?(phrase|words?)|trained_?words?|instance_prompt)", re.IGNORECASE
)
TAGS = "ss_tag_frequency"  # kohya: {"folder of pictures": {"tag": how many captions have it}}
SHARE = 0.9  # a tag that stands in so many of a folder's captions as its most frequent one
MOST, LONGEST = 8, 80  # words shown, characters of one


def find_triggers(metadata: Mapping[str, str]) -> list[str]:
    """A file's metadata -> its trigger words, those that are named first, then the tags that stand in nearly
    every caption of a training set. Metadata are anyone's: what is malformed is passed over."""
    named = [word for key, text in metadata.items() if NAMED.fullmatch(key) for word in split_words(text)]
    words = (" ".join(word.split()) for word in named or list_tags(metadata.get(TAGS, "")))
    return list(dict.fromkeys(word for word in words if 0 < len(word) <= LONGEST))[:MOST]


def split_words(text: str) -> list[str]:
    """A JSON list, or words with commas between."""
    values = read_json(text)
    return [str(value) for value in values] if isinstance(values, list) else text.split(",")


def list_tags(text: str) -> list[str]:
    folders, tags = read_json(text), []
    for counts in folders.values() if isinstance(folders, dict) else ():
        known = counts.items() if isinstance(counts, dict) else ()
        known = [(tag, count) for tag, count in known if isinstance(count, int | float)]
        most = max((count for _, count in known), default=0)
        tags += [tag for tag, count in sorted(known, key=lambda tag: -tag[1]) if count >= SHARE * most > 1]
    return tags


def read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
