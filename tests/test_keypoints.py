"""Drawing and fitting are the released program's to the pixel (tests/golden/scrfd/README.md)."""

import hashlib
import json

import numpy as np
import pytest
from golden import GOLDEN, read_golden
from PIL import Image

from infu.errors import InvalidRequest
from infu.face import FaceStack
from infu.images import read_photo
from infu.keypoints import draw_keypoints, fit_control_photo

SCRFD = GOLDEN / "scrfd"
FITTED = json.loads((SCRFD / "cases.json").read_text())["fitted"]


def test_drawings_are_the_released_ones_to_the_pixel():
    drawings = np.load(SCRFD / "drawings.npz")  # points outside the canvas, level limbs, coincident points
    for keypoints, canvas in zip(drawings["kps"], drawings["canvas"], strict=True):
        np.testing.assert_array_equal(draw_keypoints(keypoints, 160, 224), canvas)


def test_golden_control_image_is_drawn():
    golden = read_golden("control")
    drawn = draw_keypoints(golden.arrays["keypoints"], golden.request.width, golden.request.height)
    np.testing.assert_array_equal(drawn, golden.arrays["control"])


@pytest.mark.parametrize("name", FITTED)
def test_control_photo_is_fitted_and_its_face_drawn_as_released(name):
    case = FITTED[name]
    width, height = case["width"], case["height"]
    photo = read_photo(SCRFD / "pictures" / f"{name.split('_')[0]}.png")
    fitted = np.asarray(fit_control_photo(photo, width, height))
    assert hashlib.sha256(fitted.tobytes()).hexdigest() == case["sha256_rgb"]
    face = FaceStack(SCRFD / "antelopev2", None, 192).find_one(fitted, "control image")
    assert face.detector_size == case["found_at"]
    control = np.asarray(Image.open(SCRFD / "control" / f"{name}.png").convert("RGB"))
    np.testing.assert_array_equal(draw_keypoints(face.keypoints, width, height), control)


def test_array_and_pil_picture_are_fitted_alike():
    photo = read_photo(SCRFD / "pictures" / "one.png")
    for source in (photo, Image.fromarray(photo), Image.fromarray(photo).convert("RGBA")):
        fitted = fit_control_photo(source, 96, 128)
        assert fitted.mode == "RGB" and fitted.size == (96, 128)
        np.testing.assert_array_equal(fitted, fit_control_photo(photo, 96, 128))


@pytest.mark.parametrize("size", [(64, 4000), (4000, 64)])
@pytest.mark.parametrize("width, height", [(2048, 64), (64, 2048), (512, 512)])
def test_strip_is_fitted_by_its_middle_without_the_whole(size, width, height):
    w, h = size
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    photo = np.repeat(
        np.repeat(ramp[None] if w > h else ramp[:, None], min(size), axis=int(w < h))[:, :, None], 3, 2
    )
    fitted = np.asarray(fit_control_photo(photo, width, height))
    assert fitted.shape == (height, width, 3)
    assert abs(int(fitted[(height - 1) // 2, (width - 1) // 2, 0]) - 127) <= 3  # its middle is in the middle


@pytest.mark.parametrize("value", [1e9, -1e30, np.inf, np.nan])
def test_points_that_cannot_be_drawn_are_refused(value):
    keypoints = np.full((5, 2), 50.0)
    keypoints[3, 1] = value
    with pytest.raises(InvalidRequest, match="control_keypoints"):
        draw_keypoints(keypoints, 64, 64)


def test_points_far_outside_leave_the_canvas_black():
    assert not draw_keypoints(np.full((5, 2), 16000.0), 64, 64).any()
