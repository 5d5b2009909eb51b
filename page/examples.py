"""Example sentences with pictures that the loaded model makes of them: one by one, when the fold is opened,
while nobody else needs the device. Made once per model, and kept in our cache."""

import base64
import hashlib
import html
import io
import json
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import gradio as gr

from infu.cache import stamp
from infu.errors import InfuError
from infu.models import infu_cache
from infu.pipeline import Result
from infu.space import on_zero
from infu.whole import write_whole
from page.events import QUICK, QUIET
from page.studio import Studio
from page.texts import say
from page.told import told
from page.wishes import PLAIN

# Of FLUX, and of the mini model, which knows the words of its own world only: key -> sentence.
EXAMPLES: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
FACE = Path(__file__).parents[1] / "examples" / "astronaut.jpg"
SEED, WIDTH = 7, 240  # of the pictures; pixels of what is shown of them
PATIENCE = 0.5  # seconds between two looks at whether the device is free
JS = """
element.addEventListener("click", ({target}) => {
  const card = target.closest("button");
  if (card) trigger("take_example", {name: card.dataset.name});
});
"""


def draw_examples() -> gr.HTML:
    return gr.HTML("", js_on_load=JS, elem_id="example_cards")


def wire_examples(
    studio: Studio, opened: gr.Accordion, cards: gr.HTML, prompt: gr.Textbox, style: gr.Dropdown
) -> None:
    @told
    def make(visitor: gr.Request) -> Iterator[Any]:
        """The cards; then each again that has its picture."""
        examples = examples_of(studio)
        yield draw_cards(examples, {}, visitor)  # before the model is loaded
        folder = find_folder(studio)
        examples = examples_of(studio)
        pictures = read_pictures(folder, examples)
        yield draw_cards(examples, pictures, visitor)
        if on_zero():  # a GPU there is taken off the visitor's own time
            return
        for name in examples:
            if name in pictures:
                continue
            for picture in make_picture(studio, name):
                if picture is None:
                    yield gr.skip()  # here a run whose visitor has left ends
                else:
                    pictures[name] = picture
                    keep(folder / f"{name}.jpg", picture)
                    yield draw_cards(examples, pictures, visitor)

    def take(event: gr.EventData) -> tuple[Any, Any]:
        return examples_of(studio)[event.name], PLAIN

    opened.expand(make, None, cards, concurrency_id="examples", concurrency_limit=1, **QUIET)
    cards.take_example(take, None, [prompt, style], **QUICK)


def examples_of(studio: Studio) -> dict[str, str]:
    return EXAMPLES["mini" if studio.is_mini else "flux"]


def make_picture(studio: Studio, name: str) -> Iterator[bytes | None]:
    """None again and again, and at the end the picture of an example, a small JPEG. Whoever else comes has
    the device at once: the picture is then begun anew."""
    while True:
        while studio.turns.inside:
            time.sleep(PATIENCE)
            yield None
        with closing(studio.events(**request_of(studio, name))) as events:
            for event in events:
                if isinstance(event, Result):
                    yield shrink(event)
                    return
                if studio.turns.inside > 1:
                    break
                yield None


def request_of(studio: Studio, name: str) -> dict[str, Any]:
    """What `Studio.events` takes for an example."""
    settings = {"seed": SEED, "prompt": examples_of(studio)[name], **size_and_steps(studio)}
    if studio.load().model_version is not None:  # else plain FLUX, which takes no face
        settings["id_image"] = str(FACE)
    return settings | {"model_version": None, "enable_realism": False, "enable_anti_blur": False, "loras": ()}


def size_and_steps(studio: Studio) -> dict[str, int]:
    """What the loaded model was made for."""
    return {name: getattr(studio.defaults, name) for name in ("width", "height", "num_steps")}


def shrink(result: Result) -> bytes:
    image = result.image
    image.thumbnail((WIDTH, 2 * WIDTH))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()


def find_folder(studio: Studio) -> Path:
    """Where the pictures of the loaded model are kept: another, or one trained further, has another place."""
    backend = studio.load()
    weights = backend.files.transformer
    files = sorted(weights.glob("*.safetensors")) if weights.is_dir() else [weights]
    stamps = [stamp(path) for path in files]
    made_by = [backend.model_name, backend.model_version, studio.options.get("quantize"), stamps]
    asked = [examples_of(studio), size_and_steps(studio), SEED, WIDTH]
    return infu_cache() / "examples" / hashlib.sha256(json.dumps([made_by, asked]).encode()).hexdigest()[:16]


def read_pictures(folder: Path, examples: dict[str, str]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name in examples if (path := folder / f"{name}.jpg").is_file()}


def keep(path: Path, picture: bytes) -> None:
    """Save a picture, whole or not at all; where the cache may not be written to, it is made again."""
    with suppress(InfuError):
        write_whole(path, lambda part: part.write_bytes(picture))


def draw_cards(examples: dict[str, str], pictures: dict[str, bytes], visitor: gr.Request) -> str:
    cards = []
    for name, prompt in examples.items():
        shown = "<i></i>"
        if name in pictures:
            shown = f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(pictures[name]).decode()}'>"
        title = html.escape(say(visitor, name))
        cards.append(
            f"<button type='button' data-name='{name}' title='{html.escape(prompt)}'>{shown}{title}</button>"
        )
    return f"<div class='cards'>{''.join(cards)}</div>"
