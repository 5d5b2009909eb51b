"""Who: the photographs of the person, the face in each that will be used, and which of several is meant."""

import base64
import html
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import gradio as gr
import numpy as np

from infu.errors import NoFaceError, PhotoError
from infu.images import read_photo
from page.events import QUICK, QUIET, RAW
from page.studio import Studio
from page.texts import label, say
from page.told import told
from page.uploads import make_showable, read_upload

MOST_SHOWN = 24  # faces of a crowd, the largest
LOOKING = QUIET | RAW | {"concurrency_limit": 4}
NOTHING = {"html": "", "chosen": 0}
# The radio buttons are the browser's own: it moves among them with the arrow keys and tells them to a reader.
CHOOSE = """
element.addEventListener("change", (event) => {
  props.value = {...props.value, chosen: Number(event.target.value)};
});
watch("value", () => element.querySelectorAll("input").forEach((input) => {
  input.checked = Number(input.value) === props.value.chosen;
}));
"""


class Person(NamedTuple):
    photo: gr.Image
    faces: gr.HTML  # its value: what is seen, and the number of the chosen face
    more: gr.File
    crops: gr.HTML


def draw_person() -> Person:
    photo = gr.Image(
        label=label("photo"), elem_id="photo", height=420, buttons=[], alt_text="Your photograph"
    )
    faces = gr.HTML(NOTHING, html_template="${value.html}", js_on_load=CHOOSE, elem_id="faces")
    with gr.Accordion(label("more_photos"), open=False, elem_id="more"):
        more = gr.File(
            label=label("more_photos_hint"),
            file_count="multiple",
            file_types=["image", ".heic", ".heif", ".avif"],
            height=130,
            elem_id="more_photos",
        )
        crops = gr.HTML("", elem_id="more_faces")
    return Person(photo, faces, more, crops)


def wire_person(studio: Studio, person: Person) -> None:
    photo, faces, more, crops = person

    @told
    def look(sent: dict | None, visitor: gr.Request) -> Iterator[tuple[Any, Any]]:
        yield from look_at(studio, sent, visitor)

    @told
    def look_at_more(sent: list[dict] | None, visitor: gr.Request) -> Iterator[tuple[Any, str]]:
        """Further photographs -> those in which a face is found, and the face of each; the others by name."""
        kept, seen, lost = [], [], []
        for file in sent or []:
            name = html.escape(file.get("orig_name") or "")
            try:
                found = find_crops(studio, read_upload(file))
                if not found:
                    raise NoFaceError(say(visitor, "no_face_here"))
                kept.append(file)
                seen.append(f"<figure>{draw_face(found[0], name)}<figcaption>{name}</figcaption></figure>")
            except PhotoError as error:
                lost.append(draw_words(say(visitor, "left_out", name=name, why=html.escape(str(error)))))
        shown = f"<div class='faces'>{''.join(seen)}</div>" if seen else ""
        yield kept or None, shown + "".join(lost)

    looked = photo.upload(look, photo, [photo, faces], **LOOKING)
    looked.failure(lambda: (None, NOTHING), None, [photo, faces], **QUICK)
    photo.clear(lambda: NOTHING, None, faces, **QUICK)
    looked = gr.on([more.upload, more.delete], look_at_more, more, [more, crops], **LOOKING)
    looked.failure(lambda: (None, ""), None, [more, crops], **QUICK)
    more.clear(lambda: "", None, crops, **QUICK)


def look_at(
    studio: Studio, sent: dict | None, visitor: gr.Request, group: str = "face"
) -> Iterator[tuple[Any, Any]]:
    """A photograph just uploaded -> how it is shown, and the faces in it. `group`: `draw_faces`'."""
    source = read_upload(sent)
    if source is None:
        return
    yield gr.skip(), {"html": draw_words(say(visitor, "looking")), "chosen": 0}
    shown = make_showable(source) or gr.skip()
    yield shown, {"html": draw_faces(find_crops(studio, source), visitor, group), "chosen": 0}


def wire_photo(photo: gr.Image) -> None:
    """A further photograph's drop zone: what is no photograph is told, and taken out again, at once."""
    uploaded = photo.upload(show_photo, photo, photo, **RAW, **QUIET)
    uploaded.failure(lambda: None, None, photo, **QUICK)


@told
def show_photo(sent: dict | None) -> Iterator[Any]:
    """A photograph just uploaded -> what the page shows of it."""
    source = read_upload(sent)
    yield (source and make_showable(source)) or gr.skip()


def ask_person(asked: dict[str, Any]) -> dict[str, Any]:
    """The values of the page's controls, by name -> what a request takes of them. Raises `PhotoError`."""
    photos = [read_upload(photo) for photo in (asked["input_image"], *(asked["more"] or ()))]
    which = {"id_image": photos[0]} if len(photos) == 1 else {"id_images": photos}
    return which | {"id_faces": [(asked["faces"] or NOTHING)["chosen"]]}


def find_crops(studio: Studio, source: str | bytes) -> list[np.ndarray]:
    """The faces of a photograph as the model sees them, uint8 RGB (112, 112, 3), the one used first in front.
    Raises `PhotoError`, and `ModelError` where the face model is not here."""
    picture = read_photo(source)
    stack = studio.faces()
    return [stack.crop(picture, face) for face in stack.find(picture)[:MOST_SHOWN]]


def draw_faces(crops: list[np.ndarray], visitor: gr.Request, group: str = "face") -> str:
    """What is said under the photograph, as HTML: the face, a choice of several, or that there is none.
    `group`: the name of the choice in the document."""
    if not crops:
        return draw_words(say(visitor, "no_face"))
    if len(crops) == 1:
        text = say(visitor, "one_face")
        return f"<div class='faces one'>{draw_face(crops[0], text)}<p role='status'>{text}</p></div>"
    choices = "".join(
        f"<label><input type='radio' name='{group}' value='{i}'{' checked' if i == 0 else ''}>"
        f"{draw_face(crop, say(visitor, 'face_number', number=i + 1))}</label>"
        for i, crop in enumerate(crops)
    )
    return f"<fieldset class='faces'><legend>{say(visitor, 'which_face')}</legend>{choices}</fieldset>"


def draw_face(crop: np.ndarray, name: str) -> str:
    """`name`: HTML already."""
    _, jpeg = cv2.imencode(".jpg", crop[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return f"<img src='data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}' alt='{name}'>"


def draw_words(text: str) -> str:
    return f"<p role='status'>{text}</p>"
