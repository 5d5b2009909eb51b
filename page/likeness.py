"""Likeness against freedom: one slider that sets three settings together, as InfiniteYou's authors advise.

The README of github.com/bytedance/InfiniteYou, "Important Usage Tips": `sim_stage1` for more likeness; for
more freedom first `infusenet_guidance_start` .1 alone, "especially helpful for sim_stage1", and only then
`infusenet_conditioning_scale` .9.
"""

import html
import json
from typing import Any, NamedTuple

import gradio as gr

from page.events import QUICK, RAW
from page.studio import Studio
from page.texts import label, say


class Stop(NamedTuple):
    """Values of the settings of these names."""

    model_version: str
    infusenet_conditioning_scale: float
    infusenet_guidance_start: float


STOPS = (
    Stop("sim_stage1", 1.0, 0.0),
    Stop("sim_stage1", 1.0, 0.1),
    Stop("aes_stage2", 1.0, 0.0),  # the released default
    Stop("aes_stage2", 1.0, 0.1),
    Stop("aes_stage2", 0.9, 0.1),
)
RELEASED = 2


def draw_likeness() -> tuple[gr.Slider, gr.HTML]:
    """The slider, and under it what it set."""
    with gr.Column(elem_id="likeness", min_width=0):
        slider = gr.Slider(
            0,
            len(STOPS) - 1,
            RELEASED,
            step=1,
            label=label("likeness"),
            buttons=[],
            elem_id="likeness_level",
        )
        return slider, gr.HTML("", elem_id="likeness_set")


def wire_likeness(
    blocks: gr.Blocks,
    studio: Studio,
    slider: gr.Slider,
    line: gr.HTML,
    settings: dict[str, gr.components.Component],
) -> None:
    """The slider moves the settings; settings moved by hand or by a picture move the slider, where it can
    stand for them."""

    def correct(level: int) -> tuple[Any, ...]:
        """Settings that the browser chose, where this model has no such version -> the nearest it has."""
        stop = stop_at(level, studio.backend.model_versions if studio.backend else None)
        return (gr.skip(),) * 4 if stop == STOPS[level] else (*stop, STOPS.index(stop))

    moved = [settings[name] for name in Stop._fields]
    options = QUICK | RAW | {"trigger_mode": "always_last"}
    # In the browser: an answer of the server's would come when the slider has moved on.
    chosen = slider.input(None, slider, moved, js=f"(level) => {json.dumps(STOPS)}[level]", **options)
    corrected = chosen.then(correct, slider, [*moved, slider], **options)
    # And once more at the end: of quick changes, an answer in between may have seen only some.
    corrected.then(describe, [slider, *moved], [slider, line], **options)
    gr.on(
        [blocks.load, *(setting.change for setting in moved)],
        describe,
        [slider, *moved],
        [slider, line],
        **options,
    )


def stop_at(level: int, versions: tuple[str, ...] | None) -> Stop:
    """The stop at this level, or the nearest whose version the model has. None: not known yet, take all."""
    known = [i for i, stop in enumerate(STOPS) if versions is None or stop.model_version in versions]
    return STOPS[min(known or [level], key=lambda i: abs(i - level))]


def describe(
    level: int, model_version: str | None, scale: float, start: float, visitor: gr.Request
) -> tuple[Any, str]:
    """Where the slider is and what is set -> its level, skipped where it is right or no stop is that, and the
    line under it, as HTML."""
    stop = Stop(model_version or "", round(float(scale or 0), 3), round(float(start or 0), 3))
    known = stop in STOPS
    line = say(visitor, "likeness_line", version=html.escape(str(stop[0])), scale=stop[1], start=stop[2])
    own = "" if known else f"<b>{say(visitor, 'likeness_own')}</b> "
    ends = f"<span>{say(visitor, 'likeness_more')}</span><span>{say(visitor, 'likeness_free')}</span>"
    right = gr.skip() if not known or STOPS[level] == stop else STOPS.index(stop)
    return right, f"<p class='ends' aria-hidden='true'>{ends}</p><p role='status'>{own}{line}</p>"
