"""A visitor's own LoRA files, their scale, and what they are."""

import html
from collections.abc import Iterator

import gradio as gr

from infu.errors import PhotoError
from infu.inspect import describe_file, draw_file
from page.events import QUICK, QUIET, RAW
from page.studio import Studio
from page.texts import label
from page.told import told
from page.uploads import read_loras


def draw_loras() -> tuple[gr.File, gr.Slider, gr.HTML]:
    """Files, scale, report."""
    with gr.Row(equal_height=True):
        files = gr.File(
            label=label("lora_files"),
            file_count="multiple",
            file_types=[".safetensors"],
            height=160,
            elem_id="loras",
        )
        scale = gr.Slider(
            -2.0, 2.0, 1.0, step=0.05, label=label("lora_scale"), min_width=220, elem_id="lora_scale"
        )
    return files, scale, gr.HTML("", elem_id="lora_report")


def wire_loras(studio: Studio, files: gr.File, report: gr.HTML) -> None:
    @told
    def inspect(sent: list[dict] | None) -> Iterator[str]:
        """Files just uploaded -> what they are and how much of them the model uses, as HTML."""
        reports = []
        for lora in read_loras(sent, 1.0):
            values = describe_file(lora.path, studio.load().module_shapes)
            if values["what"] != "LoRA":
                raise PhotoError(f"{values['file']} is no LoRA but this: {values['what']}.")
            reports.append(draw_file(values))
        yield draw_report("\n".join(reports))

    files.clear(lambda: "", None, report, **QUICK)
    inspected = files.upload(inspect, files, report, **RAW, **QUIET)
    inspected.failure(lambda: (None, ""), None, [files, report], **QUICK)


def draw_report(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>" if text else ""
