"""The lines above the picture: how far a run is, and how long it will still take."""

import html
import time

import gradio as gr

from infu.pipeline import Step
from page.texts import say


def draw_progress(text: str, share: float = 0.0, notes: tuple[str, ...] = ()) -> str:
    """A bar filled to `share`, a sentence, and notes for the user, as HTML."""
    return (
        "<div role='progressbar' aria-labelledby='progress_text' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{100 * share:.0f}'><div style='width: {100 * share:.1f}%'></div></div>"
        f"<p role='status' id='progress_text'>{html.escape(text, quote=False)}</p>"
        + "".join(f"<p class='note'>{html.escape(note)}</p>" for note in notes)
    )


class Pace:
    """The time left, from the steps measured so far."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.first: float | None = None  # when the first step was done: before it, files and photos are read

    def describe(self, event: Step, num_images: int, visitor: gr.Request) -> str:
        """Which step, which picture, how long still."""
        now = time.monotonic()
        text = [say(visitor, "step", step=event.step, num_steps=event.num_steps)]
        if num_images > 1:
            number = (event.step - 1) * num_images // event.num_steps + 1
            text.append(say(visitor, "picture_number", number=number, num_images=num_images))
        if self.first is None:
            self.first = now
        elif event.step < event.num_steps:
            left = (now - self.first) / (event.step - 1) * (event.num_steps - event.step)
            text.append(say(visitor, "left", time=draw_time(left)))
        elif event.step == event.num_steps:
            text.append(say(visitor, "decoding"))
        return " · ".join(text)

    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.begun


def draw_time(seconds: float) -> str:
    """3:05, or 1:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
