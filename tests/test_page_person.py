"""The page's three questions about the person, in a real browser: whose face, how like, at which angle."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from browsing import (
    PATIENCE,
    PHONE,
    drop,
    field_value,
    make,
    open_fold,
    set_field,
    upload,
    visited,
)
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving import Server
from skimage.data import astronaut, coffee

from backends import load_backend
from infu import GenerationRequest, generate
from infu.images import read_photo
from infu.keypoints import fit_control_photo
from infu.metadata import read_picture
from infu.pose import place_pose
from page.likeness import STOPS, describe, stop_at

SMALL = {"width": 96, "height": 128, "num_steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def backend():
    """The model that the page has."""
    return load_backend("pytorch")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict[str, Path]:
    """Two people side by side, the second smaller and seen in a mirror; one person in a mirror; no person; no
    picture."""
    folder = tmp_path_factory.mktemp("photos")
    both = np.full((512, 1024, 3), 128, np.uint8)
    both[:, :512] = astronaut()
    both[:384, 600:984] = cv2.resize(astronaut(), (384, 384), interpolation=cv2.INTER_AREA)[:, ::-1]
    pictures = {"both": both, "mirrored": astronaut()[:, ::-1], "coffee": coffee()}
    paths = {name: folder / f"{name}.png" for name in pictures}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(paths[name])
    (folder / "text.jpg").write_text("not a picture")
    return paths | {"text": folder / "text.jpg"}


def set_small(page: Page) -> None:
    open_fold(page)
    for name, value in SMALL.items():
        set_field(page, name, value)


def assert_is(path: Path, backend, **asked) -> None:
    """The picture is the library's for this request, to the level that a rounding may differ by."""
    made = read_picture(path)
    names = ("prompt", "width", "height", "seed", "num_steps")
    expected = generate(GenerationRequest(**{name: made[name] for name in names}, **asked), backend)
    difference = np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(expected.image))
    assert difference.max() <= 1


def test_the_chosen_one_of_several_faces_is_used_and_a_lost_face_is_told(
    browser: Browser, server: Server, photos: dict[str, Path], backend, tmp_path: Path
):
    first, second = (
        generate(GenerationRequest("a", id_image=photos["both"], id_faces=[i], **SMALL), backend).pixels
        for i in (0, 1)
    )
    assert np.abs(first - second).max() > 2.5 / 255  # or what follows would show nothing
    with visited(browser, server) as page:
        faces = page.locator("#faces")
        page.locator("#photo input[type=file]").set_input_files(photos["coffee"])
        expect(faces).to_contain_text("No face was found in this photograph.", timeout=PATIENCE)
        page.get_by_label("Remove Image").click()
        expect(faces).to_be_hidden()
        upload(page, photos["both"])
        expect(faces).to_contain_text("Several faces", timeout=PATIENCE)
        expect(faces.get_by_role("radio")).to_have_count(2)
        faces.get_by_role("radio", name="Face 1").focus()
        page.keyboard.press("ArrowRight")
        expect(faces.get_by_role("radio", name="Face 2")).to_be_checked()
        set_small(page)
        make(page, tmp_path / "second.png")
        assert_is(tmp_path / "second.png", backend, id_image=photos["both"], id_faces=[1])

        upload(page, photos["mirrored"])
        expect(faces).to_contain_text("This face will be used.", timeout=PATIENCE)
        shown = page.locator("#faces img")
        assert page.evaluate("image => image.naturalWidth", shown.element_handle()) == 112
        make(page, tmp_path / "one.png")
        assert_is(tmp_path / "one.png", backend, id_image=photos["mirrored"])


def test_several_photographs_of_a_person_and_those_left_out_by_name(
    browser: Browser, server: Server, photos: dict[str, Path], photo: Path, backend, tmp_path: Path
):
    with visited(browser, server) as page:
        upload(page, photo)
        page.locator("#more > button").click()
        sent = [photos[name] for name in ("mirrored", "coffee", "text")]
        page.locator("#more_photos input[type=file]").set_input_files(sent)
        seen = page.locator("#more_faces")
        expect(seen).to_contain_text("coffee.png is left out: no face was found.", timeout=PATIENCE)
        expect(seen).to_contain_text("text.jpg is left out: The file 'text.jpg' is text, not a picture.")
        expect(seen.get_by_alt_text("mirrored.png")).to_be_visible()
        expect(page.locator("#more_photos")).not_to_contain_text("coffee")
        set_small(page)
        make(page, tmp_path / "mean.png")
        assert_is(tmp_path / "mean.png", backend, id_images=[photo, photos["mirrored"]])


@pytest.mark.parametrize(
    "versions", [None, ("aes_stage2", "sim_stage1", "mine"), ("aes_stage2",), ("sim_stage1",)]
)
def test_the_likeness_slider_only_asks_for_versions_that_are_there(versions):
    chosen = [stop_at(level, versions) for level in range(len(STOPS))]
    assert {stop.model_version for stop in chosen} <= set(versions or ("aes_stage2", "sim_stage1"))
    order = [STOPS.index(stop) for stop in chosen]
    assert order == sorted(order)  # never more like the photograph on the way to freedom
    assert versions is not None and len(versions) == 1 or order == list(range(len(STOPS)))


def test_the_likeness_slider_says_what_it_set_and_when_it_does_not_stand_for_it():
    visitor = SimpleNamespace(headers={"accept-language": "en"})
    level, line = describe(4, "sim_stage1", 1, 0.1, visitor)
    assert level == 1 and "sim_stage1, strength 1, from 10% of the steps" in line
    level, line = describe(2, "<b>mine", 1, 0, visitor)
    assert not isinstance(level, int) and "Own values:</b> &lt;b&gt;mine" in line


def test_the_likeness_slider_and_the_settings_move_one_another(browser: Browser, server: Server):
    with visited(browser, server) as page:
        slider, line = page.locator("#likeness_level input[type=range]"), page.locator("#likeness_set")
        expect(line).to_contain_text("aes_stage2, strength 1, from 0% of the steps")
        slider.focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        expect(line).to_contain_text("aes_stage2, strength 0.9, from 10% of the steps", timeout=PATIENCE)
        for _ in range(4):
            page.keyboard.press("ArrowLeft")
        expect(line).to_contain_text("sim_stage1, strength 1, from 0% of the steps", timeout=PATIENCE)
        open_fold(page)
        expect(page.locator("#model_version input")).to_have_value("Likeness (sim_stage1)")
        assert field_value(page, "infusenet_conditioning_scale") == 1
        set_field(page, "infusenet_conditioning_scale", 0.6)
        expect(line).to_contain_text("Own values: sim_stage1, strength 0.6, from 0% of the steps")
        set_field(page, "infusenet_guidance_start", 0.1)
        set_field(page, "infusenet_conditioning_scale", 1)
        expect(line).not_to_contain_text("Own values")
        expect(slider).to_have_value("1")


def points_of(page: Page) -> np.ndarray:
    dots = page.locator("#poses circle[tabindex]").all()
    return np.array([[float(dot.get_attribute(name)) for name in ("cx", "cy")] for dot in dots])


def choose_pose(page: Page, name: str) -> None:
    page.locator("#poses").get_by_role("radio", name=name, exact=True).check(force=True)
    expect(page.locator("#poses svg[role]")).to_be_visible(timeout=PATIENCE)


def expect_points(page: Page, expected: np.ndarray, within: float = 0.11) -> None:
    """In the end, after the server's answer."""
    page.wait_for_function(
        """([expected, within]) => {
            const dots = [...document.querySelectorAll("#poses circle[tabindex]")];
            const near = (dot, name, value) => Math.abs(dot.getAttribute(name) - value) < within;
            return dots.length === 5
                && dots.every((dot, i) => near(dot, "cx", expected[i][0]) && near(dot, "cy", expected[i][1]));
        }""",
        arg=[np.asarray(expected, float).tolist(), within],
    )


def test_a_head_angle_is_chosen_moved_drawn_and_brought_back(
    browser: Browser, server: Server, photo: Path, photos: dict[str, Path], backend, tmp_path: Path
):
    size = SMALL["width"], SMALL["height"]
    with visited(browser, server) as page:
        upload(page, photo)
        set_small(page)
        page.locator("#pose > button").click()
        choose_pose(page, "Half left")
        expect_points(page, place_pose("three_quarter_left", *size))
        make(page, tmp_path / "preset.png")
        assert read_picture(tmp_path / "preset.png")["pose"] == "three_quarter_left"
        assert_is(tmp_path / "preset.png", backend, id_image=photo, pose="three_quarter_left")

        nose = page.get_by_role("button", name="Nose")
        nose.focus()
        for key in ("ArrowRight", "Shift+ArrowDown"):  # a hundredth and a twentieth of the width
            page.keyboard.press(key)
        moved = place_pose("three_quarter_left", *size).round(1)
        moved[2] += (0.96, 4.8)
        expect_points(page, moved)
        expect(nose).to_be_focused()
        expect(page.locator("#poses").get_by_role("radio", name="Own points")).to_be_checked()
        eye = page.get_by_role("button", name="Eye on the left")
        box = eye.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        pixel = page.locator("#poses svg[role]").bounding_box()["width"] / size[0]
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] - 10 * pixel, middle[1] + 5 * pixel, steps=3)
        page.mouse.up()
        moved[0] += (-10, 5)
        expect_points(page, moved, within=0.5)
        moved = points_of(page)
        made = make(page, tmp_path / "own.png")
        np.testing.assert_allclose(made["control_keypoints"], moved, rtol=0, atol=0.01)
        assert_is(tmp_path / "own.png", backend, id_image=photo, control_keypoints=moved)

        page.locator("#poses").get_by_role("button", name="Reset").click()
        expect_points(page, place_pose("three_quarter_left", *size))
        choose_pose(page, "Close")
        set_field(page, "width", 128)
        expect_points(page, place_pose("close", 128, 128))
        drop(page, "#source", tmp_path / "own.png")
        expect_points(page, moved)
        drop(page, "#source", tmp_path / "preset.png")
        expect_points(page, place_pose("three_quarter_left", *size))

        control = page.locator("#control input[type=file]")
        control.set_input_files(photos["coffee"])
        expect(page.get_by_test_id("toast-body").last).to_contain_text("No face was found", timeout=PATIENCE)
        expect(page.locator("#poses").get_by_role("radio", name="As the text says")).to_be_checked()
        control.set_input_files(photos["mirrored"])
        fitted = np.asarray(fit_control_photo(read_photo(photos["mirrored"]), *size))
        expect_points(page, backend.faces.find_one(fitted).keypoints)
        assert make(page, tmp_path / "photo.png")["control_photo"]
        assert_is(tmp_path / "photo.png", backend, id_image=photo, control_image=photos["mirrored"])


def test_points_are_moved_by_a_finger_on_a_phone(browser: Browser, server: Server):
    with visited(browser, server, PHONE) as page:
        page.locator("#pose > button").click()
        choose_pose(page, "Front")
        before = points_of(page)
        eye = page.get_by_role("button", name="Eye on the right")
        eye.scroll_into_view_if_needed()
        box = eye.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = page.context.new_cdp_session(page)
        for kind, shift in (("touchStart", 0), ("touchMove", 10), ("touchMove", 30)):
            points = [{"x": x + shift, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        expect(page.locator("#poses").get_by_role("radio", name="Own points")).to_be_checked()
        after = points_of(page)
        assert after[1, 0] > before[1, 0] + 10 and (after[[0, 2, 3, 4]] == before[[0, 2, 3, 4]]).all()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
