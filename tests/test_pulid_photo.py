"""PuLID's way from a photograph to its networks' input is the released one (tests/golden/pulid/README.md)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDEN
from PIL import Image
from pulid_encoders import FACEXLIB, FIXTURE, make_encoders, make_weights, save_torch

from backends import load_backend
from infu import GenerationRequest, PuLID, generate, parsing, retinaface
from infu.detectors import open_session
from infu.errors import BrokenFile, MissingFile, NoFaceError
from infu.pulid_photo import (
    ALIGNER,
    align,
    bounded,
    find_central,
    find_encoders,
    fit,
    make_input,
)

CHECKPOINT = FIXTURE / "checkpoint" / "pulid_flux_v0.9.1.safetensors"
PREPROCESS = FIXTURE / "preprocess"
# Pillow adds up a pixel's neighbours in another order than torch; a step of 8 bits is 1.5e-2.
RESIZED = {"rtol": 0, "atol": 5e-5}


def read_picture(name: str) -> np.ndarray:
    return np.asarray(Image.open(PREPROCESS / f"{name}.png").convert("RGB"))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(PREPROCESS / "preprocess.npz"))


@pytest.fixture(scope="module")
def facexlib() -> dict[str, np.ndarray]:
    """What facexlib 0.3's own code makes of the fixture's weights."""
    return dict(np.load(FACEXLIB / "facexlib.npz"))


def test_crop_is_the_released_one(expected):
    affine = fit(expected["landmarks"])
    np.testing.assert_allclose(affine, expected["affine"], rtol=0, atol=1e-4)
    difference = np.abs(
        align(read_picture("source"), expected["landmarks"]).astype(int) - read_picture("aligned")
    )
    # OpenCV 4.10, which made the fixture, and 5.0 interpolate differently: by at most 3 levels.
    assert difference.max() <= 3 and (difference > 0).mean() < 0.2


def test_parser_is_given_what_the_released_one_is(expected):
    given = parsing.make_input(read_picture("aligned"))
    np.testing.assert_allclose(given[0, :, ::8, ::8], expected["parser_input_s8"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [336, 56])
def test_image_encoder_is_given_the_face_in_grey_on_white(expected, size):
    given = make_input(read_picture("aligned"), expected["labels"], size)
    if size == 336:
        np.testing.assert_allclose(given[:, ::8, ::8], expected["input336_antialias_s8"], **RESIZED)
        # The whole picture, stored in float16; in each channel the same grey, of which some overshoots white.
        grey = given * np.float32((0.26862954, 0.26130258, 0.27577711))[:, None, None]
        grey = grey + np.float32((0.48145466, 0.4578275, 0.40821073))[:, None, None]
        np.testing.assert_allclose(grey, np.stack([expected["grey336_antialias"]] * 3), rtol=0, atol=6e-4)
        assert grey.max() > 1.01
    else:
        identity = np.load(FIXTURE / "identity.npz")["input_antialias"]
        np.testing.assert_allclose(given[None], identity, **RESIZED)


def test_large_photograph_is_made_smaller_and_no_small_one_larger():
    assert bounded(np.zeros((700, 1501, 3), np.uint8)).shape == (477, 1024, 3)  # both rounded down
    small = np.zeros((300, 1024, 3), np.uint8)
    assert bounded(small) is small


def test_parser_is_facexlibs(facexlib):
    session = open_session(parsing.convert(make_weights("bisenet"), "parsing_bisenet.pth"), "BiSeNet")
    scores = session.run(None, {"input": parsing.make_input(read_picture("aligned"))})[0][0]
    np.testing.assert_allclose(scores[:, ::16, ::16], facexlib["scores_s16"], rtol=0, atol=1e-5)


def test_aligning_detector_is_facexlibs(facexlib):
    weights = {f"module.{name}": value for name, value in make_weights("retinaface").items()}
    session = open_session(retinaface.convert(weights, retinaface.__name__), "RetinaFace")
    photo = read_picture("source")  # 180 x 208: no level of the pyramid is twice the next
    pixels = photo[:, :, ::-1].astype(np.float32) - retinaface.MEAN
    outputs = session.run(None, {"input": pixels.transpose(2, 0, 1)[None]})
    for name, values in zip(("boxes", "scores", "points"), outputs, strict=True):
        np.testing.assert_allclose(values[0], facexlib[name], rtol=0, atol=1e-5)
    given = facexlib["boxes"], facexlib["scores"][:, 1], facexlib["points"]
    faces = retinaface.decode(*given, photo.shape[:2], float(facexlib["threshold"]))
    made = [np.concatenate([face.box, [face.score], face.keypoints.ravel()]) for face in faces]
    np.testing.assert_allclose(np.array(made), facexlib["faces"], rtol=0, atol=1e-3)  # pixels


@pytest.mark.parametrize("network", [parsing, retinaface])
def test_another_network_is_refused_by_what_differs(network):
    with pytest.raises(BrokenFile, match=r"face\.pth lacks the tensor .*\.conv1\.weight"):
        network.convert({"input_layer.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, "face.pth")
    with pytest.raises(BrokenFile, match=r"face\.pth is not a state dict"):
        network.convert([1, 2], "face.pth")


def test_all_missing_encoders_are_named_at_once(tmp_path):
    (tmp_path / "antelopev2").mkdir()
    (tmp_path / "antelopev2" / "glintr100.onnx").write_bytes(b"")
    with pytest.raises(MissingFile) as missing:
        find_encoders(tmp_path)
    assert "glintr100" not in str(missing.value)
    for name in ("EVA02_CLIP_L_336_psz14_s6B.pt", "scrfd_10g_bnkps.onnx", "parsing_bisenet.pth"):
        assert name in str(missing.value)


def test_points_on_one_another_are_no_face():
    with pytest.raises(NoFaceError, match="another photograph"):
        fit(np.full((5, 2), 50, np.float32))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> Iterator[Path]:
    folder = make_encoders(tmp_path_factory.mktemp("encoders"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFU_CACHE", str(folder / "cache"))
        yield folder


def test_photograph_becomes_a_picture_on_both_backends(encoders):
    """From the photograph to the latents, and the second request of the same face looks at nothing again."""
    plugin = PuLID(CHECKPOINT, image=PREPROCESS / "source.png", encoders=encoders)
    request = GenerationRequest(
        "A man", width=64, height=80, num_steps=2, seed=1, max_sequence_length=16, plugins=[plugin],
        negative_prompt="blurry", true_cfg_scale=2.0,
    )  # fmt: skip
    made = {}
    for name in ("pytorch", "mlx"):
        backend = load_backend(name, base_model_path=GOLDEN / "base", dtype="float32")
        made[name] = generate(request, backend).latents
        others = [generate(request.replace(plugins=[]), backend).latents]
        backend.drop_networks()
        np.testing.assert_array_equal(generate(request, backend).latents, made[name])
        two = dataclasses.replace(plugin, image=[plugin.image, read_picture("aligned")])
        others.append(generate(request.replace(plugins=[two]), backend).latents)
        for other in others:
            assert np.abs(other - made[name]).max() > 0.01
    # Both look at the same pixels; what float32 loses on the way through 22 blocks of random weights.
    np.testing.assert_allclose(made["mlx"], made["pytorch"], rtol=0, atol=1e-3)


def test_photograph_without_a_face_is_told(encoders):
    (encoders / "sees nothing").mkdir()
    blind = make_weights("retinaface")
    for level in range(3):
        blind[f"ClassHead.{level}.conv1x1.bias"] -= np.float32([0, 9, 0, 9])
    save_torch(blind, encoders / "sees nothing" / ALIGNER)
    with pytest.raises(NoFaceError, match="PuLID found no face"):
        find_central(read_picture("source"), encoders / "sees nothing" / ALIGNER)
