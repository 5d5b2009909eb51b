"""Head angles by name: OpenCV finds the angle again in the five points, and the pictures follow."""

import cv2
import numpy as np
import pytest
from golden import GOLDEN, read_golden
from hypothesis import given
from hypothesis import strategies as st

from backends import load_backend
from infu import GenerationRequest, InfuError, generate
from infu.align import TEMPLATE, fit_similarity
from infu.metadata import read_picture, save_picture
from infu.pose import MEAN_FACE, POSES, move_points, place_pose

SIZES = [(864, 1152), (1152, 864), (1024, 1024), (720, 1280), (64, 2048)]


def find_angles(points: np.ndarray) -> tuple[float, float]:
    """Degrees of yaw and pitch at which OpenCV sees the mean face, all but in parallel."""
    camera = np.array([[1e4, 0, 0], [0, 1e4, 0], [0, 0, 1.0]])
    pixels = (points - points.mean(axis=0)).astype(np.float64)
    _, vector, _ = cv2.solvePnP(MEAN_FACE * (1, 1, -1), pixels, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    forwards = cv2.Rodrigues(vector)[0] @ (0, 0, -1)  # where the nose points; OpenCV's z runs away from us
    return np.degrees(np.arctan2(forwards[0], -forwards[2])), np.degrees(np.arcsin(-forwards[1]))


@pytest.mark.parametrize("name", POSES)
def test_opencv_sees_the_head_at_the_angle_that_was_asked_for(name: str):
    yaw, pitch = find_angles(place_pose(name, 864, 1152))
    assert (
        abs(yaw - POSES[name].yaw) < 2 and abs(pitch - POSES[name].pitch) < 2
    )  # a lens has some perspective


@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("name", POSES)
def test_a_head_is_in_the_picture_at_every_ratio_and_never_stretched(name: str, width: int, height: int):
    points = place_pose(name, width, height)
    assert points.dtype == np.float32 and points.shape == (5, 2)
    assert (points > 0).all() and (points < (width, height)).all()
    portrait = place_pose(name, 864, 1152)
    scale = min(width, height * 3 / 4) / 864
    np.testing.assert_allclose(points - points[2], (portrait - portrait[2]) * scale, rtol=0, atol=1e-3)


def test_the_front_is_the_face_that_recognisers_are_trained_on():
    points = place_pose("front", 864, 1152)
    matrix = fit_similarity(points)
    aligned = points @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(aligned - TEMPLATE).max() < 0.5  # of 112 pixels: the template is not quite symmetric


def test_left_is_right_in_a_mirror_and_the_nose_leads():
    for side in ("three_quarter", "profile"):
        left, right = place_pose(f"{side}_left", 864, 1152), place_pose(f"{side}_right", 864, 1152)
        mirrored = (right * (-1, 1) + (864, 0))[[1, 0, 2, 4, 3]]
        np.testing.assert_allclose(left, mirrored, rtol=0, atol=1e-3)
        assert left[0, 0] < left[1, 0] and left[3, 0] < left[4, 0]  # the order of the drawing is kept
        assert left[2, 0] < left[[0, 1], 0].mean()
    profile = place_pose("profile_left", 864, 1152)
    assert profile[2, 0] < profile[:, 0][[0, 1, 3, 4]].min()  # the nose stands out of the face


def test_up_down_far_and_close_are_what_they_say():
    points = {name: place_pose(name, 864, 1152) for name in POSES}
    nose = {name: (p[2, 1] - p[0, 1]) / (p[3, 1] - p[0, 1]) for name, p in points.items()}  # eyes 0, mouth 1
    assert nose["up"] < nose["front"] < nose["down"]
    eyes = {name: p[1, 0] - p[0, 0] for name, p in points.items()}
    assert 3 * eyes["far"] < 2 * eyes["front"] and 2 * eyes["close"] > 3 * eyes["front"]


@given(st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_own_points_moved_to_another_picture_and_back_are_the_same(old, new):
    points = place_pose("three_quarter_left", *old)
    moved = move_points(points, old, new)
    np.testing.assert_allclose(move_points(moved, new, old), points, rtol=0, atol=0.01)
    turned = cv2.norm(moved[0] - moved[1]) / cv2.norm(moved[3] - moved[4])
    assert abs(turned - cv2.norm(points[0] - points[1]) / cv2.norm(points[3] - points[4])) < 1e-3


def test_an_unknown_angle_and_two_controls_at_once_are_refused_in_words():
    with pytest.raises(InfuError, match="no head angle called 'profil_left'. Did you mean 'profile_left'"):
        GenerationRequest("a", pose="profil_left")
    for other in ({"control_image": b"x"}, {"control_keypoints": np.zeros((5, 2))}):
        with pytest.raises(InfuError, match="not several"):
            GenerationRequest("a", pose="front", **other)


def test_a_pose_is_its_five_points_and_is_written_into_the_picture(tmp_path):
    backend = load_backend(
        "pytorch", base_model_path=GOLDEN / "base", model_dir=GOLDEN / "InfiniteYou", dtype="float32"
    )
    golden = read_golden("control").request
    request = golden.replace(control_image=None, control_keypoints=None, infusenet_guidance_end=1.0)
    size = request.width, request.height
    named = generate(request.replace(pose="profile_left"), backend)
    points = place_pose("profile_left", *size)
    drawn = generate(request.replace(control_keypoints=points), backend)
    other = generate(request.replace(pose="front"), backend)
    np.testing.assert_array_equal(named.pixels, drawn.pixels)
    assert np.abs(named.pixels - other.pixels).max() > 0.01
    save_picture(named.image, tmp_path / "a.png", named.metadata)
    assert read_picture(tmp_path / "a.png")["pose"] == "profile_left"
    assert drawn.metadata["control_keypoints"] == points.tolist() and drawn.metadata["pose"] is None
