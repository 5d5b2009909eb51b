"""The public endpoints `/generate_image` (the released Space's) and `/generate`. Names and order are the API:
tests/test_api.py holds them."""

import gradio as gr

from page.events import ON_DEVICE, RAW
from page.layout import DEFAULTS
from page.studio import Studio


def wire_api(
    studio: Studio,
    released: dict[str, gr.components.Component],
    loras: gr.File,
    lora_scale: gr.Slider,
) -> None:
    """`released`: the controls of the released Space's 14 arguments, in its order."""
    photo, control, prompt, *settings = released.values()
    with gr.Column(visible=False):  # what only `/generate` takes and answers; the page does not show it
        photos = gr.File(label="Several photographs of the person", file_count="multiple")
        negative = gr.Textbox(label="Negative prompt")
        true_cfg = gr.Number(DEFAULTS.true_cfg_scale, label="True guidance scale")
        count = gr.Number(DEFAULTS.num_images, label="Number of pictures", precision=0)
        picture = gr.Image(label="Picture", format="png")
        gallery = gr.Gallery(label="Pictures", format="png")
        made = gr.JSON(label="Settings of each picture")
    asked = [photo, photos, control, prompt, negative, true_cfg, count, *settings, loras, lora_scale]
    run = RAW | ON_DEVICE
    gr.on([], studio.generate_image, [*released.values()], picture, api_name="generate_image", **run)
    gr.on([], studio.generate, asked, [gallery, made], api_name="generate", **run)
