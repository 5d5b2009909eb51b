"""The Gradio page and its API: a photograph and a sentence in, a new picture of that person out.

`build_page` makes the page, `main` serves it. Importing this module loads no model and no framework.
"""

import spaces  # noqa: F401, I001  first: on ZeroGPU it must come before anything that imports torch

import os
import signal
import sys
import tempfile
import threading
from typing import Annotated

import gradio as gr
import typer

from infu.errors import InfuError
from infu.models import read_defaults
from infu.options import ModelOptions, spread
from page import layout as page
from page.studio import Studio, picture_only
from page.uploads import KEPT_SECONDS, SWEEP_SECONDS


def build_page(studio: Studio) -> gr.Blocks:
    """The page, top to bottom as a visitor reads it; all events at the end."""
    with gr.Blocks(
        title=page.TITLE, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)
    ) as blocks:
        notice = page.draw_head(studio.notice())
        with gr.Row(elem_id="work"):
            with gr.Column(min_width=320):
                photo, prompt, generate, stop = page.draw_question()
            with gr.Column(min_width=320):
                progress, picture, seed_used, download = page.draw_answer()
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            defaults = page.DEFAULTS.replace(**read_defaults(studio.options))
            control, source, settings = page.draw_advanced(studio.options["model_version"], defaults)
            loras, lora_scale, report = page.draw_loras()
        photos, negative, true_cfg, count, gallery, made = page.draw_api_only()
        timer = gr.Timer(1.0)

        # All events, here. The order of `controls` is the public API; tests/test_api.py holds it.
        controls = [photo, control, prompt, *settings]
        asked = [photo, photos, control, prompt, negative, true_cfg, count, *settings, loras, lora_scale]
        shown = [picture, progress, seed_used, download, generate, stop]
        raw = {"preprocess": False, "postprocess": False}  # Gradio's own values: `page/uploads.py` says why
        run = raw | {"concurrency_id": "gpu", "concurrency_limit": 1}  # one device: others queue
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        quick = quiet | {"queue": False}

        gr.on([], picture_only(studio.generate_image), controls, picture, api_name="generate_image", **run)
        gr.on([], studio.generate, asked, [gallery, made], api_name="generate", **run)
        waiting = [progress, download, generate, stop]
        begun = gr.on([generate.click, prompt.submit], page.busy, None, waiting, **quick)
        queued = {"show_progress": "minimal", "show_progress_on": progress}  # the place in the queue
        page_controls = [*controls, loras, lora_scale]
        running = begun.then(studio.generate_on_page, page_controls, shown, **run, **(quiet | queued))
        running.then(studio.look, None, [notice, timer], **quick)
        stop.click(page.stopping, None, [progress, stop], cancels=running, **quick)
        stop.click(studio.stop, None, [progress, generate, stop], concurrency_limit=None, **quiet)
        for upload in (photo, control):
            uploaded = upload.upload(studio.show, upload, upload, **raw, **quiet)
            uploaded.failure(lambda: None, None, upload, **quick)
        loras.clear(lambda: "", None, report, **quick)
        inspected = loras.upload(studio.inspect, loras, report, **raw, **quiet)
        inspected.failure(lambda: (None, ""), None, [loras, report], **quick)
        source.upload(studio.restore, source, [source, prompt, *settings], **raw, **quiet)
        gr.on([blocks.load, timer.tick], studio.look, None, [notice, timer], **quick)
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
        studio = Studio(**model.loading())
    except InfuError as error:
        raise SystemExit(str(error)) from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="infu-", dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = build_page(studio)
        blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            theme=page.make_theme(),
            css_paths=page.CSS,
            footer_links=["api", "settings"],
            run_history=False,  # it would keep the visitors' photographs in their browsers
            max_file_size="800mb",  # the largest LoRAs in use; photographs are bounded by what they decode to
            prevent_thread_lock=True,
        )
        threading.Thread(target=studio.load_early, daemon=True).start()
        blocks.block_thread()


def main() -> None:
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    cli.command()(serve)
    cli()


if __name__ == "__main__":
    main()
