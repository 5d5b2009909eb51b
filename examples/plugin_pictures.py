"""The pictures of plug-ins in README: `python examples/plugin_pictures.py docs/plugins`.

A row each: what is given, then the same request without and with the plug-in. With the mini model where it has
weights of that kind; PuLID and OminiControl with the tests' random weights, which draw nothing but show that the
plug-in acts.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from golden import FOLDERS  # noqa: E402
from plugin_pairs import KINDS  # noqa: E402

from backends import load_backend  # noqa: E402
from infu import ControlNet, GenerationRequest, IPAdapter, Lora, Person, generate  # noqa: E402
from infu.hints import make_hint  # noqa: E402
from infu.training.minibase.table import make_people  # noqa: E402
from infu.training.world.people import make_look, make_person  # noqa: E402
from infu.training.world.renderer import Renderer  # noqa: E402

SIZE = WIDTH, HEIGHT = 128, 160
PARK = "a photo of a woman with brown hair, wearing a red sweater, in a park"


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    mini = load_backend("pytorch", dtype="float32")
    tiny = load_backend("pytorch", **FOLDERS, dtype="float32")
    renderer = Renderer(*SIZE)
    dark, light = (Image.fromarray(one.photo.picture) for one in choose_people(renderer))
    style = Image.fromarray(render_style(renderer))
    photo = np.asarray(ImageOps.fit(Image.open(ROOT / "examples/astronaut.jpg").crop((100, 0, 340, 300)), SIZE))
    edges = Image.fromarray(make_hint("canny", photo, *SIZE))
    realism = Lora(mini.optional_loras["realism"])
    request = GenerationRequest(PARK, width=WIDTH, height=HEIGHT, num_steps=20, guidance_scale=2.5, seed=3)
    two = {"id_image": dark, "id_mask": "left"}
    rows = {
        "person": ([dark, light], mini, request.replace(id_image=dark), [Person("right", light)], two),
        "controlnet": ([photo, edges], mini, request, [ControlNet("mini-canny", photo, hint="canny")], {}),
        "ip_adapter": ([style], mini, request, [IPAdapter("mini-style", style)], {}),
        "lora": ([], mini, request, [realism], {}),
        "pulid": ([], tiny, request.replace(num_steps=8), [KINDS["PuLID"][0]], {}),
        "ominicontrol": ([style], tiny, request.replace(num_steps=8), [], {}),
    }
    for name, (given, backend, asked, plugins, besides) in rows.items():
        if name == "ominicontrol":
            plugins = [KINDS["OminiControl"][1]]
        made = [generate(one, backend).image for one in (asked, asked.replace(plugins=plugins, **besides))]
        row = [np.asarray(ImageOps.fit(Image.fromarray(np.asarray(x)), SIZE)) for x in (*given, *made)]
        Image.fromarray(np.concatenate(row, axis=1)).save(out / f"{name}.jpg", quality=88)
