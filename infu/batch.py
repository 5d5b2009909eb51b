"""A file of requests, one JSON object a line -> requests; what is wrong with a line is said of that line.

Keys are `GenerationRequest`'s fields; files are named relative to the folder of the file they stand in.
`"plugins": [{"lora": "style.safetensors", "scale": 0.8}]`, as infu/plugin_json.py says. A missing seed, or
null, is a random one.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from infu.checks import shown
from infu.errors import InfuError, InvalidRequest, MissingFile, UnknownName
from infu.options import check_lora, check_photos, find_file
from infu.plugin_json import MASK, read_plugin, read_value
from infu.plugins import Lora
from infu.request import GenerationRequest

KEYS = {f.name for f in fields(GenerationRequest) if f.init}
ONE_FILE = ("id_image", "control_image")


def read_batch(path: Path) -> Iterator[tuple[int, GenerationRequest | InfuError]]:
    """Line number (from 1) and the request on it, or what is wrong with it; empty lines are passed over.

    Raises `MissingFile` where there is no such file.
    """
    if not path.is_file():
        raise MissingFile(f"There is no file {path.name!r}. Check its name and folder.")
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                yield number, read_line(line, path.parent)
            except InfuError as error:
                yield number, error


def read_line(line: bytes, folder: Path) -> GenerationRequest:
    """One line -> its request, checked, its files looked at. Raises `InfuError`."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InvalidRequest("The line is not UTF-8 text. Save the file as UTF-8.") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(
            'The line is not JSON. Write one object a line, as {"prompt": "A man"}.'
        ) from None
    if not isinstance(values, dict) or "prompt" not in values:
        raise InvalidRequest('The line is not an object with a prompt. Write it as {"prompt": "A man"}.')
    for key in values.keys() - KEYS:
        raise UnknownName("setting", key, KEYS)
    for key in ONE_FILE:
        if values.get(key) is not None:
            values[key] = find(key, values[key], folder)
    values["id_images"] = [find("id_images", name, folder) for name in read_list(values, "id_images")]
    look = partial(find_file, folder)
    values["id_mask"] = read_value(MASK, values.get("id_mask"), look)
    plugins = [read_plugin(plugin, look) for plugin in read_list(values, "plugins")]
    values["plugins"] = [check_lora(plugin) if isinstance(plugin, Lora) else plugin for plugin in plugins]
    return check_photos(GenerationRequest(**values))


def read_list(values: dict[str, Any], key: str) -> list[Any]:
    found = values.get(key) or []
    if not isinstance(found, list):
        raise InvalidRequest(f"{key} must be a list, not {shown(found)}.")
    return found


def find(key: str, name: Any, folder: Path) -> Path:
    if not isinstance(name, str):
        raise InvalidRequest(f"{key} must name a file, not {shown(name)}.")
    return folder / Path(name).expanduser()
