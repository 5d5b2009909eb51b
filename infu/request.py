"""What a user asks for: `GenerationRequest`, checked once, where it is made. Its plug-ins: plugins.py."""

import secrets
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

import numpy as np

from infu.checks import check_integer, check_list, check_number, check_person, check_text, check_window
from infu.errors import InvalidRequest
from infu.flow import in_window
from infu.plugins import Lora, Person, Plugin

MIN_SIZE, MAX_SIZE = 64, 2048
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One request, with the released names.

    Photographs (`id_image`, `control_image`, each of `id_images`) are a path, bytes or a PIL picture.
    `id_faces` says which face of each photograph is meant, counted from 0 in the order of `find_faces`; a
    photograph without a number: its first.
    `id_embedding` is (E,) float, the face encoder's vector, E as the model's projection expects (512 for
    InfU); `control_keypoints` is (5, 2) float, x and y in pixels of the output, in the order eye at the
    image's left, eye at its right, nose, mouth corner left, right. `pose` names a head angle (infu/pose.py)
    that places these points. `id_mask` is where the person may be, as `Person.mask`, None for anywhere: it is
    for pictures of several people, the others being `Person`s among `plugins`. `width`, `height`: 64 to 2048
    pixels, any number. `seed`: 0 to 2**32 - 1, None for a random one; picture k of `num_images` has seed + k.
    `guidance_scale` is FLUX's distilled guidance; with `true_cfg_scale` above 1 a negative pass runs as well,
    from step `true_cfg_start_step` on. `num_steps`, `guidance_scale`, `max_sequence_length` (of T5) None:
    what the model was made for, 30 steps and 3.5, or others for one that needs few (infu/few_steps.py);
    `unset` names those that were left open.
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
    id_mask: Any = None
    width: int = 864
    height: int = 1152
    seed: int | None = None
    num_images: int = 1
    num_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    true_cfg_scale: float = 1.0
    true_cfg_start_step: int = 0
    max_sequence_length: int | None = None
    infusenet_conditioning_scale: float = 1.0
    infusenet_guidance_start: float = 0.0
    infusenet_guidance_end: float = 1.0
    plugins: tuple[Plugin, ...] = ()
    unset: frozenset[str] = field(default=frozenset(), init=False, repr=False)

    def __post_init__(self):
        unset = frozenset(name for name in OPEN if getattr(self, name) is None)
        object.__setattr__(self, "unset", unset)
        for name in unset:
            object.__setattr__(self, name, OPEN[name])
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
        check_window("", "infusenet_guidance_start", "infusenet_guidance_end", self)
        object.__setattr__(self, "plugins", check_list("plugins", self.plugins))
        for plugin in self.plugins:
            if not isinstance(plugin, Plugin):
                known = ", ".join(kind.__name__ for kind in get_args(Plugin))
                raise InvalidRequest(f"plugins holds a {type(plugin).__name__}; this version knows {known}.")
        check_person(self)

    @property
    def photos(self) -> tuple[Any, ...]:
        """The photographs of the person: none, one or several."""
        return self.id_images if self.id_image is None else (self.id_image,)

    @property
    def loras(self) -> tuple[Lora, ...]:
        """Those that count: a LoRA of scale 0 is as if absent."""
        return tuple(plugin for plugin in self.plugins if isinstance(plugin, Lora) and plugin.counts)

    @property
    def networks(self) -> tuple[Plugin, ...]:
        """The plug-ins that count and are a network beside the DiT, other than InfuseNet."""
        return tuple(
            plugin for plugin in self.plugins if not isinstance(plugin, Lora | Person) and plugin.counts
        )

    @property
    def people(self) -> tuple[Person, ...]:
        """Everyone for whom InfuseNet runs, the request's own person first."""
        further = tuple(plugin for plugin in self.plugins if isinstance(plugin, Person) and plugin.counts)
        if not self.has_identity or self.infusenet_conditioning_scale == 0:
            return further
        values = {name: getattr(self, name) for name in OF_A_PERSON}
        mask = "whole" if self.id_mask is None else self.id_mask
        return (Person(mask=mask, scale=self.infusenet_conditioning_scale, **values), *further)

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
        window = (self.infusenet_guidance_start, self.infusenet_guidance_end)
        return in_window(step, self.num_steps, *window) and bool(self.people)

    def settings(self) -> dict[str, Any]:
        """Everything but the pictures and the identity, as plain JSON values (see metadata.py)."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in PRIVATE}
        values["plugins"] = [plugin.settings() for plugin in self.plugins]
        if self.control_keypoints is not None:
            values["control_keypoints"] = self.control_keypoints.tolist()
        return values

    def replace(self, **changes: Any) -> "GenerationRequest":
        """The same request with some values changed, checked again."""
        return replace(self, **dict.fromkeys(self.unset) | changes)


PRIVATE = {
    "id_image",
    "id_images",
    "id_faces",
    "id_embedding",
    "id_mask",
    "control_image",
    "unset",
}  # a face never leaves with the picture
OPEN = {"num_steps": 30, "guidance_scale": 3.5, "max_sequence_length": None}  # what FLUX.1-dev is asked for
OF_A_PERSON = (
    "id_image",
    "id_images",
    "id_faces",
    "id_embedding",
    "control_image",
    "control_keypoints",
    "pose",
)

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
)
