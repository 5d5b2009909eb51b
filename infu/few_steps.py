"""Models made for few steps, and the settings each was made for: FLUX.1-schnell, told by its base's files,
and LoRAs that distil FLUX.1-dev, told by their file's name or header. `settle` fills in what a request left
open."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infu.flow import read_flow
from infu.models import read_made_for
from infu.plugins import Lora, Plugin

if TYPE_CHECKING:
    from backends.base import Backend
    from infu.models import ModelFiles
    from infu.request import GenerationRequest


@dataclass(frozen=True)
class Recipe:
    """What a model was made for. `guidance_scale` 0: it takes none; `max_sequence_length`: T5 tokens, None
    for the base's own; `scale`: of a LoRA."""

    name: str
    num_steps: int
    guidance_scale: float = 3.5
    max_sequence_length: int | None = None
    scale: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a request."""
        names = ("num_steps", "guidance_scale", "max_sequence_length")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def report(self) -> dict[str, Any]:
        return asdict(self)


SCHNELL = Recipe("FLUX.1-schnell", 4, guidance_scale=0.0, max_sequence_length=256)
LORAS = (  # how one is called, and a number in its name is its steps; its authors' settings
    (
        r"hyper[-_. ]?flux(?:.*?(\d+)[-_ ]?steps?)?",
        Recipe("Hyper-FLUX", 8, scale=0.125),
    ),  # ByteDance/Hyper-SD
    (r"turbo[-_. ]?alpha", Recipe("FLUX.1-Turbo-Alpha", 8)),  # alimama-creative
)
TITLES = ("modelspec.title", "ss_output_name")  # of a header
NAMELESS = (
    "diffusion_pytorch_model",
    "pytorch_lora_weights",
    "adapter_model",
)  # their folder's name says more
FOLDERS = 3  # above a file: the hub's cache keeps models--OWNER--NAME/snapshots/COMMIT/FILE


def read_base_recipe(files: ModelFiles) -> Recipe | None:
    """What a base was made for, by its configs and headers: one that takes no guidance and whose schedule is
    not shifted is schnell. Raises `BrokenFile`."""
    scheduler, guidance = read_flow(files)
    return None if guidance or scheduler.use_dynamic_shifting or scheduler.shift != 1.0 else SCHNELL


def find_lora_recipe(path: Path, metadata: Mapping[str, str]) -> Recipe | None:
    """What a LoRA file was made for; None where it is not known as one for few steps."""
    names = [path.stem, *(metadata.get(key, "") for key in TITLES)]
    if path.stem in NAMELESS:
        names += [folder.name for folder in path.absolute().parents[:FOLDERS]]
    for pattern, recipe in LORAS:
        for found in filter(None, (re.search(pattern, name, re.IGNORECASE) for name in names)):
            steps = [int(number) for number in found.groups() if number]
            return replace(recipe, num_steps=steps[0]) if steps and 1 <= steps[0] <= 50 else recipe
    return None


def settle(request: GenerationRequest, backend: Backend) -> tuple[GenerationRequest, list[str]]:
    """The request with what it left open filled in as its base and LoRAs were made for, and what the user
    should know of that. Where both a base and a LoRA are for few steps, the base counts."""
    plugins = tuple(give_scale(plugin, backend) for plugin in request.plugins)
    if any(new is not old for new, old in zip(plugins, request.plugins, strict=True)):
        request = request.replace(plugins=plugins)
    recipe = choose_recipe(request, backend)
    if recipe is None:
        steps = read_made_for(backend.files.base).get("num_steps")
        return request.replace(num_steps=steps) if steps and "num_steps" in request.unset else request, []
    left_open = {name: value for name, value in recipe.settings.items() if name in request.unset}
    others = {
        name: value
        for name, value in recipe.settings.items()
        if name not in left_open and value not in (0.0, getattr(request, name))
    }
    notes = []
    if left_open:
        notes.append(f"{recipe.name} is made for few steps. Where nothing was asked for: {tell(left_open)}.")
    if others:
        notes.append(f"{recipe.name} is made for {tell(others)}, but something else was asked for.")
    return request.replace(**left_open), notes


def choose_recipe(request: GenerationRequest, backend: Backend) -> Recipe | None:
    recipes = (backend.recipe, *(backend.read_lora(lora.path).recipe for lora in request.loras))
    return next((recipe for recipe in recipes if recipe is not None), None)


def give_scale(plugin: Plugin, backend: Backend) -> Plugin:
    """A LoRA whose strength was left open, with the one it was made for."""
    if not isinstance(plugin, Lora) or not plugin.unset:
        return plugin
    recipe = backend.read_lora(plugin.path).recipe
    return plugin if recipe is None else replace(plugin, scale=recipe.scale)


def tell(settings: Mapping[str, Any]) -> str:
    words = {
        "num_steps": "{} steps",
        "guidance_scale": "guidance {:g}" if settings.get("guidance_scale") else "no guidance",
        "max_sequence_length": "{} T5 tokens",
    }
    return ", ".join(words[name].format(value) for name, value in settings.items())
