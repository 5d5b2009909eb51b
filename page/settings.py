"""The settings with the released names, and how a picture gives them back."""

import html
import io
from collections.abc import Iterator
from typing import Any

import gradio as gr

from infu.metadata import read_picture
from infu.models import OPTIONAL_LORAS, VERSIONS
from infu.request import MAX_SEED, MAX_SIZE, MIN_SIZE, GenerationRequest
from page.events import QUIET, RAW
from page.plugins import list_plugins, name_lost, restore_plugins
from page.pose import restore_pose
from page.texts import label, say
from page.told import told
from page.uploads import read_upload

# The API's order, after `input_image, control_image, prompt`; tests/test_api.py holds it.
SETTINGS = (
    "seed",
    "width",
    "height",
    "guidance_scale",
    "num_steps",
    "infusenet_conditioning_scale",
    "infusenet_guidance_start",
    "infusenet_guidance_end",
    "enable_realism",
    "enable_anti_blur",
    "model_version",
)
RESTORED = ("prompt", *SETTINGS[:8])  # what a picture gives back as it is; the LoRAs and the version after
NOT_ON_PAGE = {
    "control_photo": "lost_pose",
    "negative_prompt": "lost_negative",
    "max_sequence_length": "lost_tokens",
}


def draw_settings(
    model_version: str, defaults: GenerationRequest
) -> tuple[gr.File, dict[str, gr.components.Component]]:
    """A drop zone for a picture to take settings from, and the settings by name, in the API's order."""
    made: dict[str, gr.components.Component] = {}
    source = gr.File(label=label("settings_source"), file_types=[".png"], height=120, elem_id="source")
    with gr.Row():
        made["model_version"] = gr.Dropdown(
            list_choices(model_version),
            value=model_version,
            label=label("model_version"),
            scale=2,
            min_width=270,
            elem_id="model_version",
        )
        made["width"] = draw_number(defaults, "width", MIN_SIZE, MAX_SIZE, 16)
        made["height"] = draw_number(defaults, "height", MIN_SIZE, MAX_SIZE, 16)
    with gr.Row():
        made["seed"] = draw_number(defaults, "seed", 0, MAX_SEED)
        made["num_steps"] = draw_number(defaults, "num_steps", 1, 200)
        made["guidance_scale"] = draw_number(defaults, "guidance_scale", 0.0, 100.0, 0.5)
    with gr.Row():
        made["infusenet_conditioning_scale"] = draw_slider(defaults, "infusenet_conditioning_scale", 2.0)
        made["infusenet_guidance_start"] = draw_slider(defaults, "infusenet_guidance_start", 1.0)
        made["infusenet_guidance_end"] = draw_slider(defaults, "infusenet_guidance_end", 1.0)
    with gr.Row():
        for name in ("enable_realism", "enable_anti_blur"):
            made[name] = gr.Checkbox(False, label=label(name), elem_id=name)
    return source, {name: made[name] for name in SETTINGS}


def list_choices(model_version: str) -> list[tuple[Any, str]]:
    """The released versions, and the one in use where that is a user's own."""
    names = dict.fromkeys((*VERSIONS, model_version))
    return [(label(name) if name in VERSIONS else name, name) for name in names]


def draw_number(
    defaults: GenerationRequest, name: str, low: float, high: float, step: float = 1
) -> gr.Number:
    return gr.Number(
        getattr(defaults, name),
        label=label(name),
        minimum=low,
        maximum=high,
        step=step,
        precision=0 if isinstance(low, int) else None,
        min_width=120,
        elem_id=name,
    )


def draw_slider(defaults: GenerationRequest, name: str, high: float) -> gr.Slider:
    value = getattr(defaults, name)
    return gr.Slider(0.0, high, value, step=0.05, label=label(name), min_width=220, elem_id=name)


def wire_settings(source: gr.File, controls: list[gr.components.Component]) -> gr.events.Dependency:
    """`controls`: those that `give_back` fills. Returns the event after which a picture's settings
    are back."""
    return source.upload(restore, source, [source, *controls], **RAW, **QUIET)


@told
def restore(file: dict | None, visitor: gr.Request) -> Iterator[tuple[Any, ...]]:
    """The settings inside a picture -> the drop zone emptied, and the controls from the prompt on."""
    source = read_upload(file)
    if source is None:
        return
    settings = read_picture(io.BytesIO(source) if isinstance(source, bytes) else source)
    values = give_back(settings, visitor)
    gr.Info(html.escape(restored(settings, visitor)))
    yield None, *values


def give_back(settings: dict[str, Any], visitor: gr.Request) -> tuple[Any, ...]:
    """The settings inside a picture -> values for the prompt, the settings, the pose and the plug-ins. A file
    is not to be trusted: raises `InvalidRequest`, as for any request."""
    return *control_values(settings), restore_pose(settings, visitor), *restore_plugins(settings, visitor)


def control_values(settings: dict[str, Any]) -> tuple[Any, ...]:
    """The settings inside a picture -> values for the prompt and the fold's controls, in the API's order;
    what is not in it stays. Raises `InvalidRequest`."""
    known = {name: settings[name] for name in RESTORED if name in settings}
    request = GenerationRequest(**({"prompt": ""} | known))
    used = list_loras(settings)
    version = settings.get("model_version")
    return (
        *(getattr(request, name) if name in known else gr.skip() for name in RESTORED),
        *(OPTIONAL_LORAS[name] in used for name in ("realism", "anti_blur")),
        version if version in VERSIONS else gr.skip(),
    )


def restored(settings: dict[str, Any], visitor: gr.Request | str) -> str:
    """What the visitor is told when a picture's settings are back: what is not, too."""
    lost = [say(visitor, "lost_photo")]
    lost += [say(visitor, key) for name, key in NOT_ON_PAGE.items() if settings.get(name)]
    lost += [say(visitor, "lost_seed")] if settings.get("seed") == 0 else []
    files = [file for file in list_loras(settings) if file not in OPTIONAL_LORAS.values()]
    lost += [f"LoRA {file}" for file in files]
    lost += name_lost(settings, visitor)
    return say(visitor, "restored", lost=", ".join(lost))


def list_loras(settings: dict[str, Any]) -> list[str]:
    return [str(plugin["lora"]) for plugin in list_plugins(settings) if "lora" in plugin]
