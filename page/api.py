"""The public endpoints `/generate_image` (the released Space's), `/generate`, `/hint`, and the tool of MCP.

Generators over Gradio's raw values (`uploads.py` says why raw). Names and order are the API: test_api.py and
test_mcp.py hold them, docs/api.md tells of them.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from infu.checks import check_list
from infu.errors import PhotoError
from infu.hints import make_hint
from infu.models import VERSIONS
from infu.pipeline import Step
from page.events import ON_DEVICE, RAW
from page.layout import DEFAULTS, PROMPT
from page.studio import Studio
from page.told import told
from page.uploads import (
    read_address,
    read_loras,
    read_plugins,
    read_region,
    read_upload,
    save_hint_file,
    save_picture_file,
    with_previews,
)

TOOL = "make_picture"


def wire_api(
    studio: Studio,
    released: dict[str, gr.components.Component],
    loras: gr.File,
) -> None:
    """`released`: the controls of the released Space's 14 arguments, in its order."""
    photo, control, prompt, *_ = released.values()
    with gr.Column(visible=False):  # what only the API takes and answers; the page does not show it
        photos = gr.File(label="Several photographs of the person", file_count="multiple")
        negative = gr.Textbox(label="Negative prompt")
        true_cfg = gr.Number(DEFAULTS.true_cfg_scale, label="True guidance scale")
        count = gr.Number(DEFAULTS.num_images, label="Number of pictures", precision=0)
        plugins = gr.JSON(label="Plug-ins")
        # Left out, each is what the model, or a LoRA for few steps, was made for; the page's never is.
        left_open = {
            "guidance_scale": gr.Number(None, label="Guidance scale"),
            "num_steps": gr.Number(None, label="Steps", precision=0),
        }
        own_scale = gr.Number(None, label="Strength of the LoRAs")
        region = gr.JSON(label="Where the person is")
        address = gr.Textbox(label="Address of the photograph")
        kind = gr.Textbox("canny", label="Kind of the hint")
        picture = gr.Image(label="Picture", format="png")
        gallery = gr.Gallery(label="Pictures", format="png")
        made = gr.JSON(label="Settings of each picture")
    endpoints = Endpoints(studio)
    settings = [left_open.get(name, made) for name, made in [*released.items()][3:]]
    asked = [
        photo,
        photos,
        control,
        prompt,
        negative,
        true_cfg,
        count,
        *settings,
        loras,
        own_scale,
        plugins,
        region,
    ]
    run = RAW | ON_DEVICE
    gr.on([], endpoints.generate_image, [*released.values()], picture, api_name="generate_image", **run)
    gr.on([], endpoints.generate, asked, [gallery, made], api_name="generate", **run)
    hinted = [photo, kind, released["width"], released["height"]]
    gr.on([], endpoints.make_hint, hinted, picture, api_name="hint", **RAW)
    simple = [address, *(released[name] for name in ("prompt", "seed", "width", "height", "num_steps"))]
    tool = run | {"api_visibility": "undocumented"}
    gr.on([], endpoints.make_picture, simple, picture, api_name=TOOL, **tool)


def offer_tool(blocks: gr.Blocks) -> None:
    """Make `make_picture` the one tool of a page launched as an MCP server. Gradio would make tools of the
    public endpoints; they take 14 arguments and more, and answer with a component's update, no picture."""
    server = blocks.mcp_server_obj
    server.api_info = blocks.get_api_info(all_endpoints=True)
    server.tool_to_endpoint = {server.tool_prefix + TOOL: f"/{TOOL}"}


class Endpoints:
    """What other people's code calls. The parameters' names are the API."""

    def __init__(self, studio: Studio):
        self.studio = studio

    @told
    def generate_image(
        self,
        input_image: dict | None = None,
        control_image: dict | None = None,
        prompt: str = PROMPT,
        seed: int = 0,
        width: int = DEFAULTS.width,
        height: int = DEFAULTS.height,
        guidance_scale: float = DEFAULTS.guidance_scale,
        num_steps: int = DEFAULTS.num_steps,
        infusenet_conditioning_scale: float = DEFAULTS.infusenet_conditioning_scale,
        infusenet_guidance_start: float = DEFAULTS.infusenet_guidance_start,
        infusenet_guidance_end: float = DEFAULTS.infusenet_guidance_end,
        enable_realism: bool = False,
        enable_anti_blur: bool = False,
        model_version: str = VERSIONS[0],
    ) -> Iterator[Any]:
        """A new picture of the person in a photograph. Seed 0 is random. Previews come while it is made;
        the last answer is the finished PNG."""
        if input_image is None:
            raise PhotoError("Give a photograph of a face.")
        events = self.studio.events(
            model_version,
            enable_realism,
            enable_anti_blur,
            (),
            id_image=read_upload(input_image),
            control_image=read_upload(control_image),
            prompt=prompt,
            seed=seed,
            width=width,
            height=height,
            guidance_scale=guidance_scale,
            num_steps=num_steps,
            infusenet_conditioning_scale=infusenet_conditioning_scale,
            infusenet_guidance_start=infusenet_guidance_start,
            infusenet_guidance_end=infusenet_guidance_end,
        )
        for event, preview in with_previews(events):
            if isinstance(event, Step):
                text = f"Step {event.step} of {event.num_steps}"
                yield gr.update(label=text, value=preview) if preview else gr.update(label=text)
            else:
                file = save_picture_file(event)
                yield gr.update(value=file, label=f"Generated Image, seed = {event.seed}")

    @told
    def generate(
        self,
        id_image: dict | None = None,
        id_images: list[dict] | None = None,
        control_image: dict | None = None,
        prompt: str = PROMPT,
        negative_prompt: str | None = None,
        true_cfg_scale: float = DEFAULTS.true_cfg_scale,
        num_images: int = DEFAULTS.num_images,
        seed: int = 0,
        width: int = DEFAULTS.width,
        height: int = DEFAULTS.height,
        guidance_scale: float | None = None,
        num_steps: int | None = None,
        infusenet_conditioning_scale: float = DEFAULTS.infusenet_conditioning_scale,
        infusenet_guidance_start: float = DEFAULTS.infusenet_guidance_start,
        infusenet_guidance_end: float = DEFAULTS.infusenet_guidance_end,
        enable_realism: bool = False,
        enable_anti_blur: bool = False,
        model_version: str = VERSIONS[0],
        loras: list[dict] | None = None,
        lora_scale: float | None = None,
        plugins: list[dict] | None = None,
        id_mask: str | list | dict | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Several pictures, from one or several photographs of a person, or from none. Answers with the
        pictures and the settings of each; while they are being made, with the step. `plugins`: JSON objects
        as infu/plugin_json.py has them, pictures and files sent as uploads. `id_mask`: where the person is,
        as a `mask` among them. `num_steps`, `guidance_scale` and `lora_scale` left out are what the model and
        the LoRAs were made for."""
        events = self.studio.events(
            model_version,
            enable_realism,
            enable_anti_blur,
            (*read_loras(loras, lora_scale), *read_plugins(plugins)),
            id_image=read_upload(id_image),
            id_images=tuple(map(read_upload, check_list("id_images", id_images))),
            control_image=read_upload(control_image),
            id_mask=read_region(id_mask),
            prompt=prompt,
            negative_prompt=negative_prompt,
            true_cfg_scale=true_cfg_scale,
            num_images=num_images,
            seed=seed,
            width=width,
            height=height,
            guidance_scale=guidance_scale,
            num_steps=num_steps,
            infusenet_conditioning_scale=infusenet_conditioning_scale,
            infusenet_guidance_start=infusenet_guidance_start,
            infusenet_guidance_end=infusenet_guidance_end,
        )
        pictures, made = [], []
        for event in events:
            if isinstance(event, Step):
                yield gr.skip(), {"step": event.step, "num_steps": event.num_steps}
            else:
                pictures.append({"image": save_picture_file(event), "caption": None})
                made.append(event.metadata)
        yield pictures, made

    @told
    def make_hint(
        self,
        image: dict | None = None,
        kind: str = "canny",
        width: int = DEFAULTS.width,
        height: int = DEFAULTS.height,
    ) -> Iterator[Any]:
        """What a ControlNet follows, made of a photograph: "canny" (edges), "depth" or "pose", a PNG of
        width x height pixels."""
        if image is None:
            raise PhotoError("Give the photograph that the hint is made of.")
        yield save_hint_file(make_hint(kind, read_upload(image), width, height))

    @told
    def make_picture(
        self,
        photo: str,
        prompt: str = PROMPT,
        seed: int = 0,
        width: int = DEFAULTS.width,
        height: int = DEFAULTS.height,
        num_steps: int = DEFAULTS.num_steps,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  how Gradio is told to pass one in
    ) -> Iterator[Any]:
        """Make a new picture of the person in a photograph, in the scene and style that a sentence describes.
        The face keeps its likeness; pose, clothes, place and light come from the sentence. Answers with the
        picture as a PNG image, and its address, in whose file name is the seed that repeats the picture.
        Takes seconds to minutes.

        Args:
            photo: The photograph, with a face well visible: its http or https address, or a data: URL (base64), or the path that a POST of the file to this server's /gradio_api/upload answers. The address of a picture made here works too.
            prompt: What to show, as a description in English, such as "A woman in a garden, oil painting".
            seed: A whole number of 1 or more, to have the same picture again; 0 is random.
            width: Width in pixels, 64 to 2048.
            height: Height in pixels, 64 to 2048.
            num_steps: Steps of computation, 1 to 200. More take longer, 30 are good.
        """  # noqa: E501  Gradio reads one line per argument
        events = self.studio.events(
            model_version=None,  # the one that is loaded
            enable_realism=False,
            enable_anti_blur=False,
            loras=(),
            id_image=read_address(photo),
            prompt=prompt,
            seed=seed,
            width=width,
            height=height,
            num_steps=num_steps,
        )
        for event in events:
            if isinstance(event, Step):
                progress((event.step, event.num_steps))
                yield gr.skip()
            else:
                yield save_picture_file(event)  # and no more: Gradio makes one text of several outputs
