"""What the page looks like: its texts, its components as a visitor reads them, its theme. No event, no model.

The wiring is `app.py`'s; the style sheet is `layout.css`. Nothing here is loaded from another host.
"""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from infu.models import OPTIONAL_LORAS, VERSIONS
from infu.request import MAX_SEED, MAX_SIZE, MIN_SIZE, GenerationRequest

TITLE = "InfiniteYou"
LEAD = "One photograph of a face and one sentence in, a new picture of that person out."
REAL = "python app.py --base_model_path black-forest-labs/FLUX.1-dev --model_dir ByteDance/InfiniteYou"
MINI_NOTICE = (
    "This is the mini model, an untrained stand-in: it shows how everything works, not a likeness. "
    f"The real one: <code><span>{REAL.replace(' ', '</span> <span>')}</span></code>"
)
PROMPT = "Portrait, 4K, high quality, cinematic"  # the released Space's
READY = "Give a photograph and a sentence, then press Generate."
WAITING = "Waiting for the device …"
STOPPING, STOPPED = "Stopping after this step …", "Stopped."
VERSION_LABELS = {"aes_stage2": "Prompt and beauty (aes_stage2)", "sim_stage1": "Likeness (sim_stage1)"}
DEFAULTS = GenerationRequest(prompt=PROMPT, seed=0)
RESTORED = (  # what a picture gives back as it is, in the API's order; the LoRAs and the version come after
    "prompt",
    "seed",
    "width",
    "height",
    "guidance_scale",
    "num_steps",
    "infusenet_conditioning_scale",
    "infusenet_guidance_start",
    "infusenet_guidance_end",
)
NOT_ON_PAGE = {
    "control_photo": "the photograph of the pose",
    "control_keypoints": "the five points of the pose",
    "negative_prompt": "the negative prompt",
    "max_sequence_length": "the limit of the prompt's tokens",
}
CSS = Path(__file__).with_suffix(".css")


def draw_head(notice: str) -> gr.HTML:
    gr.HTML(f"<h1>{TITLE}</h1><p>{LEAD}</p>", elem_id="head")
    return gr.HTML(notice, elem_id="notice")


def draw_question() -> tuple[gr.Image, gr.Textbox, gr.Button, gr.Button]:
    """Photograph, prompt, Generate, Stop."""
    photo = gr.Image(label="Photograph", elem_id="photo", height=420, buttons=[], alt_text="Your photograph")
    prompt = gr.Textbox(PROMPT, label="Prompt", lines=3, max_lines=8, elem_id="prompt")
    with gr.Row():
        generate = gr.Button("Generate", variant="primary", scale=3, min_width=120, elem_id="generate")
        stop = gr.Button("Stop", interactive=False, scale=1, min_width=80, elem_id="stop")
    return photo, prompt, generate, stop


def draw_answer() -> tuple[gr.HTML, gr.Image, gr.Textbox, gr.DownloadButton]:
    """Progress, picture, the seed used, the file."""
    progress = gr.HTML(draw_progress(READY), elem_id="progress")
    picture = gr.Image(
        label="Picture",
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        alt_text="The picture that was made",
        elem_id="picture",
    )
    with gr.Row(equal_height=True):
        seed_used = gr.Textbox(label="Seed used", interactive=False, buttons=["copy"], elem_id="seed_used")
        download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
    return progress, picture, seed_used, download


def draw_advanced(
    model_version: str, defaults: GenerationRequest
) -> tuple[gr.Image, gr.File, tuple[gr.components.Component, ...]]:
    """The fold: pose photograph, a picture to take settings from, and the settings in the API's order."""
    with gr.Row(equal_height=True):
        control = gr.Image(
            label="Pose: a photograph to copy it from", elem_id="control", height=240, buttons=[]
        )
        source = gr.File(
            label="Settings: drop a PNG that was made here", file_types=[".png"], height=240, elem_id="source"
        )
    versions = [(VERSION_LABELS.get(name, name), name) for name in dict.fromkeys((*VERSIONS, model_version))]
    with gr.Row():
        version = gr.Dropdown(
            versions,
            value=model_version,
            label="Model version",
            scale=2,
            min_width=270,
            elem_id="model_version",
        )
        width = draw_number(defaults, "width", "Width", MIN_SIZE, MAX_SIZE, 16)
        height = draw_number(defaults, "height", "Height", MIN_SIZE, MAX_SIZE, 16)
    with gr.Row():
        seed = draw_number(defaults, "seed", "Seed (0 = random)", 0, MAX_SEED)
        steps = draw_number(defaults, "num_steps", "Steps", 1, 200)
        guidance = draw_number(defaults, "guidance_scale", "Guidance", 0.0, 100.0, 0.5)
    with gr.Row():
        scale = draw_slider(
            defaults, "infusenet_conditioning_scale", "Likeness strength (InfuseNet scale)", 2.0
        )
        start = draw_slider(defaults, "infusenet_guidance_start", "InfuseNet starts at", 1.0)
        end = draw_slider(defaults, "infusenet_guidance_end", "InfuseNet ends at", 1.0)
    with gr.Row():
        realism = gr.Checkbox(False, label="Realism LoRA", elem_id="enable_realism")
        anti_blur = gr.Checkbox(False, label="Anti-blur LoRA", elem_id="enable_anti_blur")
    settings = (seed, width, height, guidance, steps, scale, start, end, realism, anti_blur, version)
    return control, source, settings


def draw_loras() -> tuple[gr.File, gr.Slider, gr.HTML]:
    """A visitor's own LoRA files, their scale, and what they are."""
    with gr.Row(equal_height=True):
        files = gr.File(
            label="LoRA: .safetensors files, any layout",
            file_count="multiple",
            file_types=[".safetensors"],
            height=160,
            elem_id="loras",
        )
        scale = gr.Slider(-2.0, 2.0, 1.0, step=0.05, label="LoRA scale", min_width=220, elem_id="lora_scale")
    return files, scale, gr.HTML("", elem_id="lora_report")


def draw_report(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>" if text else ""


def draw_api_only() -> tuple[gr.components.Component, ...]:
    """What only the endpoint `/generate` takes and answers; the page does not show it."""
    with gr.Column(visible=False):
        return (
            gr.File(label="Several photographs of the person", file_count="multiple"),
            gr.Textbox(label="Negative prompt"),
            gr.Number(DEFAULTS.true_cfg_scale, label="True guidance scale"),
            gr.Number(DEFAULTS.num_images, label="Number of pictures", precision=0),
            gr.Gallery(label="Pictures", format="png"),
            gr.JSON(label="Settings of each picture"),
        )


def draw_number(
    defaults: GenerationRequest, name: str, label: str, low: float, high: float, step: float = 1
) -> gr.Number:
    precision = 0 if isinstance(low, int) else None
    value = getattr(defaults, name)
    return gr.Number(
        value,
        label=label,
        minimum=low,
        maximum=high,
        step=step,
        precision=precision,
        min_width=120,
        elem_id=name,
    )


def draw_slider(defaults: GenerationRequest, name: str, label: str, high: float) -> gr.Slider:
    return gr.Slider(0.0, high, getattr(defaults, name), step=0.05, label=label, min_width=220, elem_id=name)


def draw_progress(text: str, share: float = 0.0, notes: tuple[str, ...] = ()) -> str:
    """The lines above the picture, as HTML: a bar filled to `share`, a sentence, and notes for the user."""
    return (
        "<div role='progressbar' aria-label='Progress' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{100 * share:.0f}'><div style='width: {100 * share:.1f}%'></div></div>"
        f"<p role='status'>{html.escape(text)}</p>"
        + "".join(f"<p class='note'>{html.escape(note)}</p>" for note in notes)
    )


def control_values(settings: dict[str, Any]) -> tuple[Any, ...]:
    """The settings inside a picture -> values for the prompt and the fold's controls, in the API's order;
    what is not in it stays. A file is not to be trusted: raises `InvalidRequest`, as for any request."""
    known = {name: settings[name] for name in RESTORED if name in settings}
    request = GenerationRequest(**known)
    plugins = settings.get("plugins")
    used = [p.get("lora") for p in plugins if isinstance(p, dict)] if isinstance(plugins, list) else []
    version = settings.get("model_version")
    return (
        *(getattr(request, name) if name in known else gr.skip() for name in RESTORED),
        *(OPTIONAL_LORAS[name] in used for name in ("realism", "anti_blur")),
        version if version in VERSIONS else gr.skip(),
    )


def restored(settings: dict[str, Any]) -> str:
    """What the visitor is told when a picture's settings are back: what is not, too."""
    lost = ["the photograph"]
    lost += [words for name, words in NOT_ON_PAGE.items() if settings.get(name)]
    lost += ["the seed 0, which on the page is a random one"] if settings.get("seed") == 0 else []
    plugins = settings.get("plugins")
    files = [str(p.get("lora")) for p in plugins if isinstance(p, dict)] if isinstance(plugins, list) else []
    lost += [f"the LoRA {file}" for file in files if file not in OPTIONAL_LORAS.values()]
    return f"The settings are back. Not among them: {', '.join(lost)}."


def ready() -> tuple[Any, Any]:
    """Generate and Stop between two runs."""
    return gr.update(interactive=True), gr.update(interactive=False)


def busy() -> tuple[Any, ...]:
    """Progress, file, Generate and Stop from the click on: no file to download yet."""
    off = gr.update(interactive=False)
    return draw_progress(WAITING), off, off, gr.update(interactive=True)


def stopping() -> tuple[Any, Any]:
    """Progress and Stop from the click on Stop until the step is done, within which a run cannot end."""
    return draw_progress(STOPPING), gr.update(interactive=False)


def make_theme() -> gr.themes.Base:
    """Quiet greys, one accent, the system's own fonts."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_600",  # 7 : 1
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",  # white on it is 5.5 : 1
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        color_accent="*primary_600",
        slider_color="*primary_600",
        block_border_width="1px",
    )
