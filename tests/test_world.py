"""The mini world: its pictures are what their labels say. The oracles are the embedded detector and
recogniser, which have seen photographs only, and arithmetic on pixels."""

import re
from dataclasses import replace

import numpy as np
import pytest

from infu.detectors import load_detector
from infu.face import search
from infu.recognisers import load_recogniser
from infu.training.world.captions import make_caption
from infu.training.world.dataset import make_shards, read_shards
from infu.training.world.people import COLOURS, HAIR, PLACES, make_look, make_person
from infu.training.world.renderer import Renderer


@pytest.fixture(scope="module")
def renderer():
    return Renderer(128, 160)


@pytest.fixture(scope="module")
def renders(renderer):
    """60 pictures of 30 people nobody tuned anything on."""
    return [render for seed in range(7000, 7030) for render in renderer.render_person(seed, [0, 1])]


def test_the_same_seed_is_the_same_picture(renderer):
    once, again, other = renderer.render(5, 1), renderer.render(5, 1), renderer.render(6, 1)
    np.testing.assert_array_equal(once.picture, again.picture)
    assert once.caption == again.caption
    assert np.abs(once.picture.astype(int) - other.picture).mean() > 5


def test_the_detector_finds_the_faces_and_the_five_points_are_where_it_says(renders):
    detector = load_detector(None)
    found = [(search(render.picture, detector), render) for render in renders]
    assert sum(not faces for faces, _ in found) <= 2  # of 60: at least 97 %
    errors = []
    for faces, render in found:
        if faces:
            eyes = np.linalg.norm(render.keypoints[0] - render.keypoints[1])
            errors.append(np.linalg.norm(faces[0].keypoints - render.keypoints, axis=1) / eyes)
    # CenterFace itself is off by a tenth of the distance between the eyes on faces this small; swapped
    # points, or another perspective than the picture's, would be off by a half.
    assert np.mean(errors) < 0.15


def test_a_person_is_recognised_in_another_picture(renderer):
    recogniser = load_recogniser(None)
    embeddings = []
    for seed in range(7100, 7110):
        for render in renderer.render_person(seed, [0, 1], "photo"):
            embeddings.append(recogniser.embed(render.picture, render.keypoints))
    embeddings = np.stack(embeddings) - np.mean(embeddings, 0)  # renders lie off the photographs' centre
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = (embeddings[0::2] @ embeddings[1::2].T).round(6)
    right = (cosines.argmax(1) == np.arange(10)).sum()
    assert right >= 6  # by chance 1 of 10


@pytest.mark.parametrize("colour", ["red", "yellow", "green", "blue", "purple"])
def test_the_colour_of_clothes_and_backdrop_is_the_named_one(renderer, colour):
    person = make_person(7200, renderer.bust)
    other = "blue" if colour == "yellow" else "yellow"
    look = replace(
        make_look(person, 0, "photo"), colour=colour, backdrop=other, pattern="plain", garment="t-shirt",
        haircut="short", hat="", beard="",
    )  # fmt: skip
    picture = renderer.render_looks(person, [look])[0].picture
    assert nearest_hue(picture[-12:, 50:78]) == colour
    assert nearest_hue(picture[:20, :12]) == other


def nearest_hue(pixels: np.ndarray) -> str:
    """Of five colours; brightness and grey taken off."""
    mean = pixels.reshape(-1, 3).mean(0)
    named = {name: hue(np.array(COLOURS[name])) for name in ("red", "yellow", "green", "blue", "purple")}
    return max(named, key=lambda name: float(hue(mean) @ named[name]))


def hue(rgb: np.ndarray) -> np.ndarray:
    colour = rgb - rgb.mean()
    return colour / np.linalg.norm(colour)


def test_captions_name_only_what_is_seen_and_differ(renders):
    colours = set(COLOURS) | set(HAIR)
    for render in renders:
        person, look = render.person, render.look
        seen = {look.colour, look.hair, look.backdrop, look.hat_colour if look.hat else look.colour}
        captions = {make_caption(person, look, wording) for wording in range(8)}
        assert len(captions) >= 6
        for caption in captions:
            words = set(re.findall(r"[a-z]+", caption))
            assert words & colours <= seen, caption
            assert ("man" in words) == person.male and ("woman" in words) != person.male
            assert not (words & {"beanie", "cap", "hat"}) or look.hat
            assert not (words & {"glasses", "sunglasses"}) or look.glasses
            assert not (words & {"beard", "moustache", "goatee", "stubble"}) or look.beard


def test_styles_are_what_they_are_called(renderer):
    photo, drawing, watercolour = (renderer.render(7300, 0, s).picture.astype(float) for s in STYLES)
    assert np.ptp(drawing, axis=2).max() < 16 < np.ptp(photo, axis=2).mean()  # grey pencil, warm paper
    border = np.concatenate([watercolour[0], watercolour[-1], watercolour[:, 0], watercolour[:, -1]])
    assert np.median(border) > 230  # paper
    inside = np.corrcoef(watercolour[30:130, 30:98].ravel(), photo[30:130, 30:98].ravel())[0, 1]
    assert inside > 0.8


STYLES = ("photo", "drawing", "watercolour")


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_behind_the_person_not_over_them(renderer, place):
    person = make_person(7400, renderer.bust)
    look = replace(make_look(person, 0, "photo"), hat="", haircut="short", glasses="")
    here, there = (renderer.render_looks(person, [replace(look, backdrop=p)])[0] for p in (place, "red"))
    x, y = here.keypoints[:2].mean(0).astype(int)  # the nose's bridge
    difference = np.abs(here.picture.astype(int) - there.picture).mean(2)
    assert difference[:20, :16].mean() > 30 > difference[y : y + 8, x - 4 : x + 4].mean()


def test_shards_hold_everything_and_are_made_once(tmp_path):
    made = list(make_shards(tmp_path, range(3), 2, (64, 80)))
    assert list(make_shards(tmp_path, range(3), 2, (64, 80))) == []
    assert [path.name for path in made] == ["000000.npz"]
    shards = read_shards(tmp_path)
    assert shards.pictures.shape == (6, 80, 64, 3) and shards.keypoints.shape == (6, 5, 2)
    assert [label["person"]["seed"] for label in shards.labels] == [0, 0, 1, 1, 2, 2]
    whole = Renderer(64, 80).render(2, 1)
    np.testing.assert_array_equal(shards.pictures[5], whole.picture)
    assert shards.labels[5]["captions"][0] == whole.caption
    assert shards.labels[5]["look"]["hair"] == whole.look.hair
