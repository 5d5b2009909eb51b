"""The folds of the plug-ins in a real browser, on the golden base with its tiny plug-ins: what each adds to a
picture, how its settings come back, and that what cannot run says so before it begins."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from browsing import (
    PATIENCE,
    expect_ready,
    field_value,
    make,
    open_fold,
    set_field,
    upload,
    visited,
)
from golden import GOLDEN
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, expect
from pulid_encoders import make_encoders
from serving import served
from skimage.data import coffee
from tiny import fill_hub, make_model

from backends import load_backend
from infu import ControlNet, GenerationRequest, IPAdapter, OminiControl, Person, PuLID, generate
from infu.hints import make_hint

SMALL = {"width": 96, "height": 128, "num_steps": 2, "seed": 5}
STYLE, CLIP = GOLDEN / "plugins/ip_adapter.safetensors", GOLDEN / "plugins/image_encoder"
XLABS = GOLDEN / "plugins/xlabs_controlnet.safetensors"
SUBJECT = GOLDEN / "ominicontrol/subject.safetensors"
PULID = GOLDEN / "pulid/checkpoint/pulid_flux_v0.9.1.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    return make_model(tmp_path_factory.mktemp("model") / "InfiniteYou")


@pytest.fixture(scope="module")
def server(tmp_path_factory, model: list[str]):
    home = tmp_path_factory.mktemp("hub")
    fill_hub(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("INFU_CACHE", str(home / "infu"))
        (home / "infu/facexlib").mkdir(parents=True)
        make_encoders(home / "infu/facexlib")
        with served(tmp_path_factory.mktemp("server"), *model) as server:
            yield server
            assert "A request failed." not in server.printed()


@pytest.fixture(scope="module")
def backend(model: list[str]):
    """The model that the page has."""
    _, base, _, folder = model
    return load_backend("pytorch", base_model_path=base, model_dir=folder)


@pytest.fixture(scope="module")
def cup(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cup") / "coffee.png"
    Image.fromarray(coffee()).save(path)
    return path


def prepare(page: Page, photo: Path) -> None:
    upload(page, photo)
    open_fold(page)
    for name, value in SMALL.items():
        set_field(page, name, value)


def open_part(page: Page, part: str, verdict: str = "Ready to run.") -> None:
    page.locator(f"#{part} > button").click()
    expect(page.locator(f"#{part}_verdict")).to_contain_text(verdict, timeout=PATIENCE)
    page.wait_for_timeout(1000)  # as in open_fold


def give(page: Page, part: str, picture: Path) -> None:
    page.locator(f"#{part}_image input[type=file]").set_input_files(picture)
    expect(page.locator(f"#{part}_image img")).to_be_visible(timeout=PATIENCE)


def choose(page: Page, part: str, name: str, verdict: str) -> None:
    page.locator(f"#{part}_weights input").click()
    page.get_by_role("option", name=name).click()
    expect(page.locator(f"#{part}_verdict")).to_contain_text(verdict, timeout=PATIENCE)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def ask(backend, made: dict, photo: Path, *plugins, **more) -> np.ndarray:
    """What the library makes of the same request."""
    names = ("prompt", "width", "height", "seed", "num_steps")
    request = GenerationRequest(
        **{name: made[name] for name in names}, id_image=photo, plugins=plugins, **more
    )
    return np.asarray(generate(request, backend).image).astype(int)


def test_a_style_and_an_object_are_what_the_library_makes_of_them_and_their_settings_come_back(
    browser: Browser, server, backend, photo: Path, cup: Path, tmp_path: Path
):
    with visited(browser, server, mini=False) as page:
        prepare(page, photo)
        plain = make(page, tmp_path / "plain.png")
        assert plain["plugins"] == []
        open_part(page, "style_picture", "Licence: FLUX.1 [dev] Non-Commercial License")
        open_part(page, "object_picture", "Licence: Apache-2.0")
        page.locator("#style_picture_weights input").click()
        expect(page.get_by_role("option", name="instantx")).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_role("option", name="mini-style")).to_have_count(0)  # for another model
        page.keyboard.press("Escape")
        for part, strength in (("style_picture", 0.9), ("object_picture", 0.5)):
            give(page, part, cup)
            set_field(page, f"{part}_scale", strength)
        both = make(page, tmp_path / "both.png")
        assert [(name, p[name], p["scale"]) for p in both["plugins"] for name in [next(iter(p))]] == [
            ("ip_adapter", "xlabs", 0.9),
            ("ominicontrol", "subject_512", 0.5),
        ]
        expect(page.locator("#history dl")).to_contain_text("subject_512 (0.5)")
        style = IPAdapter(STYLE, cup, 0.9, image_encoder=CLIP)
        subject = OminiControl(SUBJECT, cup, 0.5, position_delta=(0, 32))  # what subject_512 was made for
        expected = ask(backend, both, photo, style, subject)
        assert np.abs(pixels(tmp_path / "both.png") - expected).max() <= 1
        assert np.abs(pixels(tmp_path / "plain.png") - ask(backend, plain, photo)).max() <= 1
        assert np.abs(pixels(tmp_path / "plain.png") - expected).max() > 10

        # The plain one's settings have neither.
        page.locator("#history [role=option]").nth(1).click()
        page.locator("#use").click()
        expect(page.locator("#style_picture_scale input[type=number]")).to_have_value("0", timeout=PATIENCE)
        assert make(page, tmp_path / "again.png")["plugins"] == []
        page.locator("#source input[type=file]").set_input_files(tmp_path / "both.png")
        expect(page.locator("#style_picture_scale input[type=number]")).to_have_value("0.9", timeout=PATIENCE)
        assert field_value(page, "object_picture_scale") == 0.5
        assert make(page, tmp_path / "back.png")["plugins"] == both["plugins"]
        assert (pixels(tmp_path / "back.png") == pixels(tmp_path / "both.png")).all()


def test_a_second_person_and_edges_are_what_the_library_makes_of_them(
    browser: Browser, server, backend, photo: Path, cup: Path, tmp_path: Path
):
    mirrored = tmp_path / "mirrored.png"
    ImageOps.mirror(Image.open(photo)).save(mirrored)
    with visited(browser, server, mini=False) as page:
        prepare(page, photo)
        open_part(page, "another_person", "")
        give(page, "another_person", mirrored)
        expect(page.locator("#another_faces")).to_contain_text("This face will be used.", timeout=PATIENCE)
        page.get_by_label("Left third").check()
        expect(page.locator("#place_frame rect")).to_have_attribute("width", "32.0", timeout=PATIENCE)
        open_part(page, "hint_picture", "download --controlnet union-pro-2")
        page.get_by_label("Depth", exact=True).check()
        expect(page.locator("#hint_made")).to_contain_text("infu download --hint depth", timeout=PATIENCE)
        choose(page, "hint_picture", "xlabs-canny", "Ready to run.")
        expect(page.get_by_label("Edges")).to_be_checked(timeout=PATIENCE)  # what this ControlNet is for
        give(page, "hint_picture", cup)
        made = page.locator("#hint_made img")
        expect(made).to_be_visible(timeout=PATIENCE)
        shown = base64.b64decode(made.get_attribute("src").partition(",")[2])
        assert (np.asarray(Image.open(io.BytesIO(shown))) == make_hint("canny", cup, 96, 128)).all()
        third = make(page, tmp_path / "third.png")
        followed = ControlNet(XLABS, cup, 0.7, hint="canny")
        expected = ask(
            backend, third, photo, Person("left_third", mirrored), followed, id_mask=rest([0, 0, 1 / 3, 1])
        )
        assert np.abs(pixels(tmp_path / "third.png") - expected).max() <= 1

        page.get_by_label("Drawn by hand").check()
        corner = page.get_by_label("Corner at the bottom right")
        corner.focus()
        corner.press("ArrowUp")
        corner.press("Shift+ArrowUp")
        drawn = make(page, tmp_path / "drawn.png")
        person, edges = drawn["plugins"]
        left, top, right, bottom = person["region"]
        assert (left, top, right) == (0.5, 0.1, 0.95) and bottom == pytest.approx(
            0.95 - 0.06 * 96 / 128, abs=2e-3
        )
        assert (edges["controlnet"], edges["hint"], edges["scale"]) == ("xlabs-canny", "canny", 0.7)
        another = Person(person["region"], mirrored)
        expected = ask(backend, drawn, photo, another, followed, id_mask=rest(person["region"]))
        assert np.abs(pixels(tmp_path / "drawn.png") - expected).max() <= 1
        expect(page.locator("#history dl")).to_contain_text("xlabs-canny, canny (0.7)")

        page.locator("#history [role=option]").nth(1).click()
        page.locator("#use").click()
        expect(page.get_by_label("Left third")).to_be_checked(timeout=PATIENCE)
        assert make(page, tmp_path / "again.png")["plugins"] == third["plugins"]
        assert (pixels(tmp_path / "again.png") == pixels(tmp_path / "third.png")).all()


def test_pulid_beside_infiniteyou_is_what_the_library_makes_of_it(
    browser: Browser, server, backend, photo: Path, tmp_path: Path
):
    face = GOLDEN / "pulid/preprocess/source.png"
    with visited(browser, server, mini=False) as page:
        prepare(page, photo)
        open_part(page, "pulid_picture", "Licence: Apache-2.0")
        give(page, "pulid_picture", face)
        set_field(page, "pulid_picture_scale", 0.8)
        both = make(page, tmp_path / "both.png")
        assert both["plugins"] == [{"pulid": "0.9.1", "id_weight": 0.8, "start_step": 0}]
        expect(page.locator("#history dl")).to_contain_text("0.9.1 (0.8)")
        expected = ask(backend, both, photo, PuLID(PULID, face, 0.8))
        assert np.abs(pixels(tmp_path / "both.png") - expected).max() <= 1
        assert np.abs(expected - ask(backend, both, photo)).max() > 10
        set_field(page, "pulid_picture_scale", 0)
        assert make(page, tmp_path / "plain.png")["plugins"] == []
        page.locator("#source input[type=file]").set_input_files(tmp_path / "both.png")
        expect(page.locator("#pulid_picture_scale input[type=number]")).to_have_value("0.8", timeout=PATIENCE)
        choose(page, "pulid_picture", "0.9.0", "Run python -m infu download --pulid 0.9.0")


def rest(box: list[float]) -> np.ndarray:
    """All of a small picture but the box."""
    mask = np.ones((SMALL["height"], SMALL["width"]), np.float32)
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (96, 128, 96, 128), strict=True)
    )
    mask[top:bottom, left:right] = 0
    return mask


def test_what_cannot_run_says_so_in_its_fold_and_no_run_begins(
    browser: Browser, server, photo: Path, cup: Path, tmp_path: Path
):
    vast = tmp_path / "vast"  # an adapter whose image encoder is said to be of 400 GB; most of it is a hole
    (vast / "image_encoder").mkdir(parents=True)
    (vast / "ip_adapter.safetensors").symlink_to(STYLE)
    for path in CLIP.iterdir():
        if path.suffix == ".json":
            (vast / "image_encoder" / path.name).symlink_to(path)
    write_hole(vast / "image_encoder/model.safetensors", 200_000_000_000)
    with visited(browser, server, mini=False) as page:
        prepare(page, photo)
        open_part(page, "style_picture")
        give(page, "style_picture", cup)
        choose(page, "style_picture", "instantx", "Run python -m infu download --ip_adapter instantx")
        page.locator("#generate").click()
        expect(page.locator("#progress")).to_contain_text("--ip_adapter instantx", timeout=PATIENCE)
        expect_ready(page)
        choose(page, "style_picture", "A file of one's own", "")
        own = page.locator("#style_picture_own textarea, #style_picture_own input")
        for path, verdict in {
            str(tmp_path / "none.safetensors"): "none.safetensors",
            str(SUBJECT): "subject.safetensors is",
            str(GOLDEN / "instantx_ip_adapter/ip-adapter.bin"): "--ip_adapter instantx",  # lacks its encoder
            str(vast): "With its plug-ins this request needs",
            str(STYLE): "Ready to run.",
        }.items():
            own.fill(path)
            own.press("Enter")
            expect(page.locator("#style_picture_verdict")).to_contain_text(verdict, timeout=PATIENCE)
        assert make(page, tmp_path / "own.png")["plugins"][0]["ip_adapter"] == STYLE.name


def write_hole(path: Path, numbers: int) -> None:
    """A safetensors file with one tensor of so many bfloat16 numbers, all of them a hole in the file."""
    size = 2 * numbers
    tensor = {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, size]}
    header = json.dumps({"vision_model.post_layernorm.weight": tensor}).encode()
    header += b" " * (-len(header) % 8)  # aligned, or it would be copied
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
