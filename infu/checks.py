"""A user's values, checked: each function returns the value as it is used, or raises `InvalidRequest`."""

from numbers import Real
from typing import Any

import numpy as np

from infu.errors import InvalidRequest
from infu.pose import check_pose

MAX_FACES = 1000  # in one photograph
MAX_PROMPT = 20_000  # characters: far beyond what 512 T5 tokens hold; stops a megabyte of text at the door


def check_number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # NaN fails too
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}, not {shown(value)}.")
    return float(value)


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    whole = isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high
    if not whole or int(value) != value:  # 30.0 is what a browser sends for 30
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {shown(value)}.")
    return int(value)


def check_text(name: str, value: Any, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text, not {shown(value)}.")
    if len(value) > MAX_PROMPT:
        raise InvalidRequest(f"{name} has {len(value)} characters; {MAX_PROMPT} are allowed.")


def check_list(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple | None):  # a text would be taken letter by letter
        raise InvalidRequest(f"{name} must be a list, not {shown(value)}.")
    return tuple(value or ())


def check_array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float32).reshape(shape)
    except (ValueError, TypeError):
        count = "a row of" if shape == (-1,) else " x ".join(map(str, shape))
        raise InvalidRequest(f"{name} must be {count} numbers.") from None
    if not np.isfinite(array).all():
        raise InvalidRequest(f"{name} must hold finite numbers only.")
    return array


def shown(value: Any) -> str:
    """A user's value, short enough for one line of an error."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."


def check_window(what: str, start: str, end: str, values: Any) -> None:
    """Two fields of `values`, shares of the steps from 0 to 1, the first not above the second."""
    for name in (start, end):
        object.__setattr__(values, name, check_number(name, getattr(values, name), 0.0, 1.0))
    low, high = getattr(values, start), getattr(values, end)
    if low > high:
        raise InvalidRequest(f"{what}{start} must not be larger than {end} ({low} is larger than {high}).")


def check_person(values: Any) -> None:
    """The fields `id_…`, `control_…` and `pose` of a frozen dataclass, which are the same for everyone in a
    picture; arrays and tuples are put in their place."""
    for name in ("id_images", "id_faces"):
        object.__setattr__(values, name, check_list(name, getattr(values, name)))
    if (values.id_image is not None) + bool(values.id_images) + (values.id_embedding is not None) > 1:
        raise InvalidRequest("Give one of id_image, id_images and id_embedding, not several.")
    faces = tuple(check_integer("id_faces", face, 0, MAX_FACES - 1) for face in values.id_faces)
    object.__setattr__(values, "id_faces", faces)
    if len(faces) > len(values.photos):
        raise InvalidRequest(
            f"id_faces names the faces of {len(faces)} photographs; there are {len(values.photos)}."
        )
    controls = (values.control_image, values.control_keypoints, values.pose)
    if sum(control is not None for control in controls) > 1:
        raise InvalidRequest("Give one of control_image, control_keypoints and pose, not several.")
    if values.pose is not None:
        check_pose(values.pose)
    if values.control_keypoints is not None:
        points = check_array("control_keypoints", values.control_keypoints, (5, 2))
        object.__setattr__(values, "control_keypoints", points)
    if values.id_embedding is not None:
        vector = check_array("id_embedding", values.id_embedding, (-1,))
        object.__setattr__(values, "id_embedding", vector)
