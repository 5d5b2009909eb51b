"""The Gradio page and its API: a photograph and a sentence in, a new picture of that person out.

`build_page` makes the page, `main` serves it. Importing this module loads no model and no framework.
"""

import page.zero  # noqa: F401, I001  first: on ZeroGPU it must come before anything that imports torch

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import gradio as gr
import typer

from infu.errors import InfuError
from infu.options import ModelOptions, spread
from infu.space import choose_model, is_public, on_space
from page.answer import GENERATE, draw_answer, draw_buttons, wire_answer
from page.api import offer_tool, wire_api
from page.events import QUICK
from page.examples import draw_examples, wire_examples
from page.history import draw_bare, wire_history
from page.layout import CSS, HEAD, TITLE, draw_head, make_theme
from page.likeness import draw_likeness, wire_likeness
from page.loras import draw_loras, wire_loras
from page.model import draw_model, wire_model
from page.person import draw_person, wire_person
from page.plugins import draw_plugins, list_plugin_controls, list_restored, wire_plugins
from page.pose import draw_pose, wire_pose
from page.settings import draw_settings, wire_settings
from page.size import draw_size, wire_size
from page.studio import Studio
from page.texts import I18N, label
from page.uploads import KEPT_SECONDS, SWEEP_SECONDS, sweep_forever
from page.wishes import draw_wishes, take_apart, wire_wishes


def build_page(studio: Studio) -> gr.Blocks:
    """The page, top to bottom as a visitor reads it, and then its events. Each part is a file of `page/`."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)
    ) as blocks:
        defaults = studio.defaults
        notice = draw_head(studio.notice())
        with gr.Row(elem_id="work"):
            with gr.Column(min_width=320):
                person = draw_person()
                prompt, style, final = draw_wishes(studio.defaults.prompt)
                num_images, buttons = draw_buttons()
                likeness = draw_likeness()
                size = draw_size(defaults.width, defaults.height)
            with gr.Column(min_width=320):
                answer = draw_answer()
        with gr.Accordion(label("examples"), open=False, elem_id="examples") as examples:
            cards = draw_examples()
        posing = draw_pose()
        plugins = draw_plugins(studio)
        with gr.Accordion("LoRA", open=False, elem_id="lora"):
            loras = draw_loras()
        if not studio.public:  # what one visitor loads, all others would have to take
            with gr.Accordion(label("which_model"), open=False, elem_id="which_model") as opened:
                models = draw_model(studio)
        with gr.Accordion(label("advanced"), open=False, elem_id="advanced"):
            source, settings = draw_settings(studio.options["model_version"], defaults)
            bare = draw_bare()
        timer = gr.Timer(1.0)

        released = {"input_image": person.photo, "control_image": posing.control, "prompt": prompt}
        released |= settings
        wire_api(studio, released, loras.files)
        controls = released | {
            "faces": person.faces,
            "more": person.more,
            "pose": posing.widget,
            "style": style,
            "loras": loras.files,
            "lora_scale": loras.scale,
            "lora_report": loras.report,
            "lora_picture": loras.picture,
            "num_images": num_images,
            "bare": bare,
        }
        controls |= list_plugin_controls(plugins)
        restored = [prompt, *settings.values(), posing.widget, *list_restored(plugins)]
        running = wire_answer(studio, controls, buttons, answer)
        wire_person(studio, person)
        wire_pose(blocks, studio, posing, settings)
        wire_likeness(blocks, studio, *likeness, settings)
        wire_loras(studio, loras, prompt, settings)
        wire_wishes(prompt, style, final)
        wire_examples(studio, examples, cards, prompt, style)
        wire_size(studio, size, person.photo, [settings["width"], settings["height"]])
        judged = wire_plugins(studio, plugins, settings)
        take_apart(wire_settings(source, restored), prompt, style)
        used, again = wire_history(answer.history, answer.picture, restored)
        take_apart(used, prompt, style)
        take_apart(again, prompt, style).success(None, js=GENERATE, **QUICK)
        if not studio.public:
            loaded = wire_model(studio, blocks, opened, models, size[0], settings)
            loaded.then(studio.look, None, [notice, timer], **QUICK)
            for judge_again in judged:
                judge_again(loaded)
        running.then(studio.look, None, [notice, timer], **QUICK)
        gr.on([blocks.load, timer.tick], studio.look, None, [notice, timer], **QUICK)
    return blocks


@spread
def serve(
    model: ModelOptions,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen; 0.0.0.0: to all.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Default: the first free one from 7860.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Make a public link.")] = False,
) -> None:
    """Serve the page until it is interrupted or ended; its files go with it."""
    try:
        studio = Studio(public=share or is_public(), **choose_model(model.loading()))
    except InfuError as error:
        raise SystemExit(str(error)) from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="infu-", dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        if on_space():
            studio.load_early()  # ZeroGPU packs what this thread has put on `cuda` when the page is launched
        blocks = build_page(studio)
        blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            theme=make_theme(),
            css_paths=CSS,
            head=HEAD,
            i18n=I18N,
            footer_links=["api", "settings"],
            run_history=False,  # it would keep the visitors' photographs in their browsers
            max_file_size="800mb",  # the largest LoRAs in use; photographs are bounded by what they decode to
            mcp_server=True,
            prevent_thread_lock=True,
        )
        offer_tool(blocks)
        threading.Thread(target=studio.load_early, daemon=True).start()
        threading.Thread(target=sweep_forever, args=[Path(folder)], daemon=True).start()
        blocks.block_thread()


def main() -> None:
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    cli.command()(serve)
    cli()


if __name__ == "__main__":
    main()
