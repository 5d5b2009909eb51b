"""How good the mini model is, measured on people whom it has never seen: docs/training.md holds the table.

24 people, six prompts each. Likeness: is the nearest of the 24 the right one, to a judge that no training
saw, how many of the others are farther off, and does the skin go with the photograph's? Obedience: what a
reader, trained on renders alone, sees of what the prompt says. Beside the model stand the plain base, an
IP-Adapter for identity, and the ceiling: other true renders of the same people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from infu import GenerationRequest, IPAdapter, generate
from infu.align import align
from infu.training.judge import Judge, rank
from infu.training.world.captions import HAIRCUTS
from infu.training.world.people import Look, make_look, make_person
from infu.training.world.reader import Reader
from infu.training.world.renderer import Render, Renderer

FIRST, PEOPLE = 900_000, 24  # seeds that no training set reaches
STEPS, GUIDANCE = 20, 2.5
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Asked:
    """What a prompt says, as a reader names it, and the words."""

    facts: dict[str, str]
    words: str


ASKED = (
    Asked(
        dict(hair="blond", colour="red", expression="smiling", backdrop="blue"),
        "a photo of a {} with blond hair, wearing a red t-shirt, smiling, blue background",
    ),
    Asked(
        dict(hair="black", colour="green", expression="neutral", backdrop="park"),
        "a photo of a {} with black hair, wearing a green sweater, looking serious, in a park",
    ),
    Asked(
        dict(hair="red", colour="white", expression="laughing", backdrop="beach"),
        "a photo of a {} with red hair, wearing a white shirt, laughing, by the sea",
    ),
    Asked(
        dict(colour="yellow", hat="beanie", expression="surprised", backdrop="snow"),
        "a photo of a {}, wearing a yellow sweater and a blue beanie, looking surprised, in the snow",
    ),
    Asked(
        dict(hair="brown", colour="purple", glasses="round", backdrop="white"),
        "a photo of a {} with brown hair, wearing a purple t-shirt and round glasses, white background",
    ),
    Asked(
        dict(hair="grey", colour="black", expression="sad", backdrop="library"),
        "a photo of a {} with grey hair, wearing a black suit, looking sad, in a library",
    ),
)


@dataclass(frozen=True, eq=False)
class Unseen:
    """`photo`: what the model is given; `others`: true renders that show what the prompts ask for."""

    photo: Render
    others: Sequence[Render]

    @property
    def word(self) -> str:
        return "man" if self.photo.person.male else "woman"


Draw = Callable[[Unseen, str, int], np.ndarray]  # a person, a prompt, a seed -> uint8 RGB (H, W, 3)


def make_people(renderer: Renderer, count: int = PEOPLE) -> list[Unseen]:
    people = []
    for seed in range(FIRST, FIRST + count):
        person = make_person(seed, renderer.bust)
        looks = [make_look(person, number, "photo") for number in range(1 + len(ASKED))]
        own = replace(looks[0], expression="neutral", hat="", hair=person.hair, haircut=person.haircut)
        wanted = [obey(look, asked) for look, asked in zip(looks[1:], ASKED, strict=True)]
        renders = renderer.render_looks(person, [own, *wanted])
        people.append(Unseen(renders[0], renders[1:]))
    return people


def obey(look: Look, asked: Asked) -> Look:
    """The look with what the prompt says; hair to be coloured must be there."""
    facts = dict(asked.facts)
    if "hair" in facts and look.haircut == "bald":
        facts["haircut"] = next(cut for cut in HAIRCUTS if cut != "bald")
    return replace(look, **({"hat": "", "glasses": ""} | facts))


def measure(people: Sequence[Unseen], judge: Judge, reader: Reader, draw: Draw) -> dict[str, float]:
    """-> shares: `face` found, `right` person of all pictures; of those with a face the mean share of the
    others who are `farther` off than the right one (chance: a half), and the correlation of their `skin` with
    the photograph's; each fact obeyed, and their mean `obeyed`."""
    known = [judge.see(one.photo.picture, one.photo.keypoints) for one in people]
    right, farther, skins, facts = 0, [], [], {}
    for i, one in enumerate(people):
        skin = see_skin(one.photo.picture, one.photo.keypoints)
        for k, asked in enumerate(ASKED):
            picture = draw(one, asked.words.format(one.word), k)
            keypoints = judge.find(picture)
            if keypoints is not None:
                order = rank(judge.see(picture, keypoints), known)
                right += order[0] == i
                farther.append(1 - order.index(i) / max(1, len(people) - 1))
                skins.append((see_skin(picture, keypoints), skin))
            read = reader.read(picture[None])
            for name, value in asked.facts.items():
                facts.setdefault(name, []).append(read[name][0] == value)
    count = len(people) * len(ASKED)
    obeyed = {name: float(np.mean(values)) for name, values in facts.items()}
    whole = float(np.mean([value for values in facts.values() for value in values]))
    likeness = {"farther": float(np.mean(farther)), "skin": float(np.corrcoef(np.transpose(skins))[0, 1])}
    return {"face": len(farther) / count, "right": right / count} | likeness | obeyed | {"obeyed": whole}


def see_skin(picture: np.ndarray, keypoints: np.ndarray) -> float:
    """How light the middle of the face is, between eyes and mouth, 0..255."""
    return float(align(picture, keypoints)[55:90, 38:74].mean())


def measure_scales(
    people: Sequence[Unseen], judge: Judge, draw_at: Callable[[float], Draw]
) -> dict[float, float]:
    """For each scale the mean distance between who was asked for and who is in the picture, of those with a
    face at every scale."""
    known = [judge.see(one.photo.picture, one.photo.keypoints) for one in people]
    asked = ASKED[0]
    seen = [
        [judge(draw_at(scale)(one, asked.words.format(one.word), 0)) for one in people] for scale in SCALES
    ]
    whole = [i for i in range(len(people)) if all(row[i] is not None for row in seen)]
    return {
        scale: float(np.mean([np.linalg.norm(row[i] - known[i]) for i in whole]))
        for scale, row in zip(SCALES, seen, strict=True)
    }


def make_draw(backend, with_face: bool = True, scale: float = 1.0, adapter: Path | None = None) -> Draw:
    """By the product's own way: a photograph goes in. `adapter`: an IP-Adapter instead of InfuseNet."""

    def draw(one: Unseen, prompt: str, seed: int) -> np.ndarray:
        photo = one.photo.picture
        if adapter is not None:
            plugin = IPAdapter(adapter, image_embeds=backend.faces.embed([photo]), scale=scale)
            given = {"plugins": [plugin]}
        else:
            given = {"id_image": Image.fromarray(photo)} if with_face else {}
            given["infusenet_conditioning_scale"] = scale
        return draw_picture(backend, prompt, seed, photo.shape[1::-1], **given)

    return draw


def draw_picture(backend, prompt: str, seed: int, size: tuple[int, int], **given) -> np.ndarray:
    width, height = size
    settings = {"width": width, "height": height, "num_steps": STEPS, "guidance_scale": GUIDANCE}
    return np.asarray(generate(GenerationRequest(prompt, seed=seed, **settings, **given), backend).image)


def draw_sheet(backend, given: Sequence[tuple[np.ndarray, str]], size: tuple[int, int]) -> Image.Image:
    """A row for each photograph, of a "man" or a "woman": itself, then a picture for each prompt."""
    rows = []
    for photo, word in given:
        source = Image.fromarray(photo)
        row = [np.asarray(ImageOps.fit(source, size))]
        for seed, asked in enumerate(ASKED):
            row.append(draw_picture(backend, asked.words.format(word), seed, size, id_image=source))
        rows.append(np.concatenate(row, axis=1))
    return Image.fromarray(np.concatenate(rows))


def draw_true(one: Unseen, _: str, seed: int) -> np.ndarray:
    """The ceiling."""
    return one.others[seed].picture


def as_markdown(rows: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(rows.values())))
    lines = [["", *names], ["---"] * (1 + len(names))]
    lines += [[system, *(f"{100 * values[name]:.0f} %" for name in names)] for system, values in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
