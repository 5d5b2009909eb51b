"""README's pictures of plug-ins: `python tests/plugin_pictures.py docs/plugins`.

A strip each: what is given, then the same request without and with the plug-in. By the mini model where it
has weights of that kind. PuLID and OminiControl have none of its size: theirs are the tests' random weights,
which draw nothing, and show only that they act.
"""

import sys
from dataclasses import replace
from pathlib import Path

import conftest  # noqa: F401, I001  first: it says where the repository's root is
import numpy as np
from golden import FOLDERS
from PIL import Image, ImageOps
from plugin_pairs import KINDS
from serving import ROOT

from backends import load_backend
from infu import ControlNet, GenerationRequest, IPAdapter, Lora, Person, generate
from infu.hints import make_hint
from infu.training.world.people import make_look, make_person
from infu.training.world.renderer import Renderer

SIZE = WIDTH, HEIGHT = 128, 160
ASKED = GenerationRequest(
    "a photo of a woman with brown hair, wearing a red sweater, in a park",
    width=WIDTH, height=HEIGHT, num_steps=20, guidance_scale=2.5, seed=3,
)  # fmt: skip
PHOTOGRAPH = ROOT / "examples/astronaut.jpg"
FACE = (140, 0, 340, 250)  # of the photograph


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    mini, tiny = load_backend("pytorch", dtype="float32"), load_backend("pytorch", **FOLDERS, dtype="float32")
    renderer = Renderer(*SIZE)
    dark, light = draw(renderer, 900_000, "photo"), draw(renderer, 900_003, "photo")
    sketch = draw(renderer, 900_001, "drawing")
    photo = np.asarray(ImageOps.fit(Image.open(PHOTOGRAPH).crop(FACE), SIZE))
    edges = make_hint("canny", photo, *SIZE)
    realism = Lora(mini.optional_loras["realism"])
    pulid, omini = KINDS["PuLID"][0], KINDS["OminiControl"][1]
    one = ASKED.replace(id_image=Image.fromarray(dark))
    both = one.replace(id_mask="left", plugins=[Person("right", Image.fromarray(light))])
    strips = {  # what is given, the backend, the request without, and with
        "person": ([dark, light], mini, one, both),
        "controlnet": ([photo, edges], mini, *add(ControlNet("mini-canny", photo, hint="canny"))),
        "ip_adapter": ([sketch], mini, *add(IPAdapter("mini-style", sketch), "a woman")),
        "lora": ([], mini, *add(realism)),
        "pulid": ([], tiny, *add(pulid)),
        "ominicontrol": ([], tiny, *add(omini)),
    }
    for name, (given, backend, *requests) in strips.items():
        made = [np.asarray(generate(request, backend).image) for request in requests]
        Image.fromarray(np.concatenate([*given, *made], axis=1)).save(out / f"{name}.jpg", quality=88)


def add(plugin, prompt: str = ASKED.prompt) -> tuple[GenerationRequest, GenerationRequest]:
    asked = ASKED.replace(prompt=prompt)
    return asked, asked.replace(plugins=[plugin])


def draw(renderer: Renderer, seed: int, style: str) -> np.ndarray:
    """Someone of the mini world."""
    person = make_person(seed, renderer.bust)
    look = replace(make_look(person, 0, style), hat="")
    return renderer.render_looks(person, [look])[0].picture


if __name__ == "__main__":
    main()
