"""A visitor's own LoRA files: what each changes, its trigger words, its strength, and the picture that a
control LoRA follows."""

import html
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr

from infu.errors import PhotoError
from infu.inspect import describe_file
from infu.plugins import Lora
from page.events import QUICK, QUIET, RAW
from page.person import wire_photo
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import read_loras, read_upload

NOTHING: dict[str, Any] = {"html": "", "scales": [], "pictures": []}
# A strength moved, or a word clicked. What is drawn anew gets its strengths back.
JS = """
element.addEventListener("change", ({target}) => {
  const scales = [...props.value.scales];
  scales[target.dataset.file] = Number(target.value);
  props.value = {...props.value, scales};
});
element.addEventListener("click", ({target}) => {
  if (target.dataset.word) trigger("add_word", {word: target.dataset.word});
});
watch("value", () => element.querySelectorAll("input").forEach((input) => {
  input.value = props.value.scales[input.dataset.file];
}));
"""


class Loras(NamedTuple):
    files: gr.File
    scale: gr.Slider
    report: gr.HTML  # its value: what is said of the files; each one's own scale; whether it needs a picture
    picture: gr.Image


def draw_loras() -> Loras:
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
    report = gr.HTML(NOTHING, html_template="${value.html}", js_on_load=JS, elem_id="lora_report")
    picture = gr.Image(
        label=label("lora_picture"), visible=False, height=240, buttons=[], elem_id="lora_picture"
    )
    return Loras(files, scale, report, picture)


def wire_loras(studio: Studio, loras: Loras, prompt: gr.Textbox, settings: dict[str, Any]) -> None:
    """`settings`: those with the released names; what a LoRA for few steps was made for goes in there."""
    files, _, report, picture = loras

    @told
    def inspect(sent: list[dict] | None, visitor: gr.Request) -> Iterator[tuple[Any, Any]]:
        """Files as they are now -> what is said of them, and the picture's field where one needs it."""
        found = []
        for lora in read_loras(sent, 1.0):
            values = describe_file(lora.path, studio.load().module_shapes)
            if values["what"] != "LoRA":
                raise PhotoError(f"{values['file']} is no LoRA but this: {values['what']}.")
            if studio.load().recipe is not None:  # the base is for few steps by itself, and that counts
                values["few_steps"] = None
            found.append(values)
        rows = "".join(draw_file(visitor, i, values, len(found)) for i, values in enumerate(found))
        pictures = [values["needs_picture"] for values in found]
        scales = [find_scale(values) for values in found]
        yield (
            {"html": rows, "scales": scales, "pictures": pictures},
            gr.update(visible=any(pictures)),
            *fill_steps(found),
        )

    filled = [settings["num_steps"], settings["guidance_scale"]]
    seen = gr.on([files.upload, files.delete], inspect, files, [report, picture, *filled], **RAW, **QUIET)
    seen.failure(lambda: (None, NOTHING), None, [files, report], **QUICK)
    files.clear(lambda: (NOTHING, gr.update(visible=False)), None, [report, picture], **QUICK)
    report.add_word(add_word, prompt, prompt, **QUICK)
    wire_photo(picture)


def add_word(event: gr.EventData, prompt: str) -> str:
    """A trigger word that was clicked -> the prompt with it, once."""
    word = str(event.word)
    return prompt if word in prompt else ", ".join(filter(None, (prompt.rstrip(" ,"), word)))


def ask_loras(asked: dict[str, Any]) -> tuple[Lora, ...]:
    """The values of the page's controls, by name -> the LoRAs of a run. Raises `InfuError`."""
    loras = read_loras(asked["loras"], asked["lora_scale"])
    report = asked["lora_report"] or NOTHING
    if len(report["scales"]) != len(loras):  # the files changed a moment ago
        return loras
    image = read_upload(asked["lora_picture"])
    return tuple(
        replace(lora, scale=lora.scale * own, image=image if needs else None)
        for lora, own, needs in zip(loras, report["scales"], report["pictures"], strict=True)
    )


def fill_steps(found: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Steps and guidance of the first file that is for few steps; without one the visitor's stay."""
    recipe = next((values["few_steps"] for values in found if values["few_steps"]), None)
    return (gr.skip(), gr.skip()) if recipe is None else (recipe["num_steps"], recipe["guidance_scale"])


def find_scale(values: dict[str, Any]) -> float:
    """The strength that a file was made for."""
    return values["few_steps"]["scale"] if values["few_steps"] else 1.0


def draw_file(visitor: gr.Request, i: int, values: dict[str, Any], count: int) -> str:
    """One file, as HTML: its name, what of it is used, its words, and among several its own strength."""
    name = html.escape(values["file"])
    matched = sum(values["matched"].values())
    lines = [say(visitor, "lora_matched", count=matched)]
    if values["unused"]:
        lines.append(say(visitor, "lora_unused", count=values["unused"]["count"]))
    if recipe := values["few_steps"]:
        told = {"steps": recipe["num_steps"], "guidance": f"{recipe['guidance_scale']:g}"}
        lines.append(say(visitor, "lora_few_steps", **told, scale=f"{recipe['scale']:g}"))
    if values["needs_picture"]:
        lines.append(say(visitor, "lora_needs_picture"))
    words = "".join(
        f"<button type='button' data-word='{html.escape(word)}'>+ {html.escape(word)}</button>"
        for word in values["trigger_words"]
    )
    words = words and f"<p class='words'>{say(visitor, 'lora_words')} {words}</p>"
    title = html.escape(say(visitor, "lora_own_scale", name=values["file"]))
    span = f"min='-2' max='2' step='0.025' value='{find_scale(values):g}'"
    own = f"<input type='range' {span} data-file='{i}' aria-label='{title}'>"
    return f"<section><b>{name}</b>{own if count > 1 else ''}<p>{' '.join(lines)}</p>{words}</section>"
