"""What a user asks for: `GenerationRequest` and its plug-ins, checked once, where they are made."""

import secrets
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from infu.errors import InvalidRequest
from infu.pose import check_pose

MIN_SIZE, MAX_SIZE = 64, 2048
MAX_SEED = 2**32 - 1
MAX_FACES = 1000  # in one photograph
MAX_PROMPT = 20_000  # characters: far beyond what 512 T5 tokens hold; stops a megabyte of text at the door


@dataclass(frozen=True)
class Lora:
    """A LoRA on the base model. `path`: a safetensors file; `scale` may be 0 (as if absent) or negative.
    `image`: what a control LoRA follows (its edges or depth, as the LoRA was made for), a photograph in any
    form that `id_image` takes; cut to the output's shape about its middle.

    Raises `InvalidRequest` when `path` is no path, or `scale` not a number from -10 to 10.
    """

    path: str | Path
    scale: float = 1.0
    image: Any = field(default=None, repr=False, hash=False)

    def __post_init__(self):
        if not isinstance(self.path, str | Path):
            raise InvalidRequest(f"A LoRA is the path of a file, not {shown(self.path)}.")
        check_number("LoRA scale", self.scale, -10.0, 10.0)


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One request, with the released names.

    Photographs (`id_image`, `control_image`, each of `id_images`) are a path, bytes or a PIL picture.
    `id_faces` says which face of each photograph is meant, counted from 0 in the order of `find_faces`; a
    photograph without a number: its first.
    `id_embedding` is (E,) float, the face encoder's vector, E as the model's projection expects (512 for
    InfU); `control_keypoints` is (5, 2) float, x and y in pixels of the output, in the order eye at the
    image's left, eye at its right, nose, mouth corner left, right. `pose` names a head angle (infu/pose.py)
    that places these points. `width`, `height`: 64 to 2048 pixels, any number. `seed`: 0 to 2**32 - 1, None
    for a random one; picture k of `num_images` has seed + k.
    `guidance_scale` is FLUX's distilled guidance; with `true_cfg_scale` above 1 a negative pass runs as well,
    from step `true_cfg_start_step` on. `max_sequence_length` None is the model's own T5 length.
    InfuseNet runs in step i of N when i / N >= start and (i + 1) / N <= end.

    Raises `InvalidRequest` with the allowed range for every value outside it.
    """

    prompt: str
    id_image: Any = None
    id_images: tuple[Any, ...] = ()
    id_faces: tuple[int, ...] = ()
    id_embedding: np.ndarray | None = None
    control_image: Any = None
    control_keypoints: np.ndarray | None = None
    pose: str | None = None
    width: int = 864
    height: int = 1152
    seed: int | None = None
    num_images: int = 1
    num_steps: int = 30
    guidance_scale: float = 3.5
    negative_prompt: str | None = None
    true_cfg_scale: float = 1.0
    true_cfg_start_step: int = 0
    max_sequence_length: int | None = None
    infusenet_conditioning_scale: float = 1.0
    infusenet_guidance_start: float = 0.0
    infusenet_guidance_end: float = 1.0
    plugins: tuple[Lora, ...] = ()

    def __post_init__(self):
        for name in ("prompt", "negative_prompt"):
            check_text(name, getattr(self, name), optional=name != "prompt")
        for name, low, high in INTEGERS:
            object.__setattr__(self, name, check_integer(name, getattr(self, name), low, high))
        for name, low, high in NUMBERS:
            object.__setattr__(self, name, check_number(name, getattr(self, name), low, high))
        if self.max_sequence_length is not None:
            length = check_integer("max_sequence_length", self.max_sequence_length, 1, 512)
            object.__setattr__(self, "max_sequence_length", length)
        seed = secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed
        object.__setattr__(self, "seed", check_integer("seed", seed, 0, MAX_SEED))
        if self.infusenet_guidance_start > self.infusenet_guidance_end:
            raise InvalidRequest(
                "infusenet_guidance_start must not be larger than infusenet_guidance_end "
                f"({self.infusenet_guidance_start} is larger than {self.infusenet_guidance_end})."
            )
        for name in ("id_images", "id_faces", "plugins"):
            object.__setattr__(self, name, check_list(name, getattr(self, name)))
        for plugin in self.plugins:
            if not isinstance(plugin, Lora):
                raise InvalidRequest(f"plugins holds a {type(plugin).__name__}; this version knows Lora.")
        if (self.id_image is not None) + bool(self.id_images) + (self.id_embedding is not None) > 1:
            raise InvalidRequest("Give one of id_image, id_images and id_embedding, not several.")
        faces = tuple(check_integer("id_faces", face, 0, MAX_FACES - 1) for face in self.id_faces)
        object.__setattr__(self, "id_faces", faces)
        if len(faces) > len(self.photos):
            raise InvalidRequest(
                f"id_faces names the faces of {len(faces)} photographs; there are {len(self.photos)}."
            )
        controls = (self.control_image, self.control_keypoints, self.pose)
        if sum(control is not None for control in controls) > 1:
            raise InvalidRequest("Give one of control_image, control_keypoints and pose, not several.")
        if self.pose is not None:
            check_pose(self.pose)
        if self.control_keypoints is not None:
            points = check_array("control_keypoints", self.control_keypoints, (5, 2))
            object.__setattr__(self, "control_keypoints", points)
        if self.id_embedding is not None:
            vector = check_array("id_embedding", self.id_embedding, (-1,))
            object.__setattr__(self, "id_embedding", vector)

    @property
    def photos(self) -> tuple[Any, ...]:
        """The photographs of the person: none, one or several."""
        return self.id_images if self.id_image is None else (self.id_image,)

    @property
    def loras(self) -> tuple[Lora, ...]:
        """Those that count: a LoRA of scale 0 is as if absent."""
        return tuple(plugin for plugin in self.plugins if plugin.scale != 0)

    @property
    def has_identity(self) -> bool:
        return bool(self.photos) or self.id_embedding is not None

    @property
    def run_size(self) -> tuple[int, int]:
        """Width and height of the run: the next multiples of 16 (8 of the VAE times 2 of the packing)."""
        return -(-self.width // 16) * 16, -(-self.height // 16) * 16

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple((self.seed + k) % (MAX_SEED + 1) for k in range(self.num_images))

    def infuses(self, step: int) -> bool:
        """Whether InfuseNet runs in this step (0-based): a pair of inclusive bounds, as released."""
        start, end = self.infusenet_guidance_start, self.infusenet_guidance_end
        inside = step / self.num_steps >= start and (step + 1) / self.num_steps <= end
        return inside and self.has_identity and self.infusenet_conditioning_scale != 0

    def settings(self) -> dict[str, Any]:
        """Everything but the pictures and the identity, as plain JSON values (see metadata.py)."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in PRIVATE}
        values["plugins"] = [
            {"lora": Path(p.path).name, "scale": p.scale}
            | ({} if p.image is None else {"control_photo": True})
            for p in self.plugins
        ]
        if self.control_keypoints is not None:
            values["control_keypoints"] = self.control_keypoints.tolist()
        return values

    def replace(self, **changes: Any) -> "GenerationRequest":
        """The same request with some values changed, checked again."""
        return replace(self, **changes)


PRIVATE = {
    "id_image",
    "id_images",
    "id_faces",
    "id_embedding",
    "control_image",
}  # a face never leaves with the picture

INTEGERS = (
    ("width", MIN_SIZE, MAX_SIZE),
    ("height", MIN_SIZE, MAX_SIZE),
    ("num_images", 1, 64),
    ("num_steps", 1, 200),
    ("true_cfg_start_step", 0, 200),
)
NUMBERS = (
    ("guidance_scale", 0.0, 100.0),
    ("true_cfg_scale", 0.0, 100.0),
    ("infusenet_conditioning_scale", 0.0, 10.0),
    ("infusenet_guidance_start", 0.0, 1.0),
    ("infusenet_guidance_end", 0.0, 1.0),
)


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
