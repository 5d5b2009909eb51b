"""A plug-in as a JSON object -> its value: how a batch's line, `--plugin` and `/generate` write one.

`{"pulid": "pulid_flux_v0.9.1.safetensors", "image": "face.jpg", "id_weight": 0.8}`: the kind's name with its
file, and the fields of its dataclass (infu/plugins.py). A further person has no file: `{"person": true, …}`.
"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from infu.checks import shown
from infu.errors import BrokenFile, InvalidRequest, MissingFile, UnknownName
from infu.plugins import ControlNet, IPAdapter, Lora, OminiControl, Person, Plugin, PuLID

KINDS = {
    "lora": Lora,
    "controlnet": ControlNet,
    "ip_adapter": IPAdapter,
    "pulid": PuLID,
    "ominicontrol": OminiControl,
    "person": Person,
}
PICTURES = ("image", "id_image", "id_images", "control_image")
MASK = "mask"  # a picture, the name of a region, or rows of numbers
PLACES = ("encoders", "image_encoder", "hint_model")  # files or folders of networks, or names of known ones
ARRAYS = (  # numbers, or an .npy file of them
    "control_keypoints", "id_embedding", "id_tokens", "image_embeds", "negative_image_embeds",
    "uncond_id_tokens",
)  # fmt: skip

Find = Callable[
    [str, Any], Any
]  # a field's name and what stands there -> a file, a picture's bytes, or itself


def read_plugin(values: Any, find: Find) -> Plugin:
    """One object -> its plug-in, checked. `find(field, value)` gives what a file or picture named there is.
    Raises `InvalidRequest`, `UnknownName`, and what `find` raises."""
    kinds = [kind for kind in KINDS if kind in values] if isinstance(values, dict) else []
    if len(kinds) != 1:
        raise InvalidRequest(
            f'A plugin is written as {{"lora": "FILE", "scale": 1.0}}, with one of {", ".join(KINDS)}, '
            f"not as {shown(values)}."
        )
    kind, given = KINDS[kinds[0]], {name: value for name, value in values.items() if name != kinds[0]}
    known = [f.name for f in fields(kind) if f.init and f.name != "path"]
    for name in given.keys() - set(known):
        raise UnknownName(f"setting of {kinds[0]}", name, known)
    if kind is not Person:
        given["path"] = values[kinds[0]]
    return kind(**{name: read_value(name, value, find) for name, value in given.items()})


def read_value(name: str, value: Any, find: Find) -> Any:
    if name in PICTURES and isinstance(value, list):
        return [find(name, one) for one in value]
    if name in ARRAYS:
        return read_numbers(name, find(name, value)) if isinstance(value, str) else value
    if (
        value is None
        or name not in ("path", *PICTURES, *PLACES)
        and (name != MASK or isinstance(value, list))
    ):
        return value
    return find(name, value)


def read_numbers(name: str, path: str | Path) -> np.ndarray:
    """The numbers of an `.npy` file. Raises `MissingFile`, `BrokenFile`."""
    path = Path(path)
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise MissingFile(f"There is no file {path.name!r} ({name}). Check its name and folder.") from None
    except (OSError, ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise BrokenFile(f"{path.name!r} ({name}) is not an .npy file of numbers. Write it with numpy.save.")
    return array
