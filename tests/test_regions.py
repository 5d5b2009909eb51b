"""Regions of several people: from a name, an array or a picture to the latents' grid."""

import numpy as np
import pytest
import torch
from golden import GOLDEN
from PIL import Image

from infu.errors import InvalidRequest, UnknownName
from infu.regions import REGIONS, SIDES, read_mask, split_regions, to_latent_grid


def unpacked(tokens: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return tokens.reshape(rows // 2, columns // 2, 2, 2).transpose(0, 2, 1, 3).reshape(rows, columns)


def test_soft_masks_come_to_the_released_latent_grid():
    golden = np.load(GOLDEN / "plugins/two_people.npz")
    for mask, wanted in zip(golden["masks"], golden["masks_latent"], strict=True):
        tokens = to_latent_grid(read_mask(mask, 96, 128), (96, 128), (96, 128))
        assert tokens.shape == (1, 48, 4)
        np.testing.assert_allclose(unpacked(tokens, 16, 12), wanted, rtol=0, atol=1e-6)  # float32's rounding


@pytest.mark.parametrize("size", [(33, 57), (128, 96), (7, 300)])
def test_a_mask_of_any_size_is_sampled_as_torch_does(size):
    mask = np.random.default_rng(0).random(size, np.float32)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], (16, 12), mode="bilinear")
    tokens = to_latent_grid(mask, (96, 128), (96, 128))
    # Places far along a long side are float32 in torch: 300 pixels times 1e-7.
    np.testing.assert_allclose(unpacked(tokens, 16, 12), wanted[0, 0], rtol=0, atol=5e-5)


def test_a_mask_lies_over_the_asked_size_not_over_the_run():
    """100 pixels wide becomes a run of 112: the left half still ends at pixel 50."""
    tokens = to_latent_grid(read_mask("left", 100, 64), (100, 64), (112, 64))
    centres = np.arange(112 // 8) * 8 + 4  # of latent pixels
    np.testing.assert_array_equal(unpacked(tokens, 8, 14)[0], (centres < 50).astype(np.float32))


@pytest.mark.parametrize("names", SIDES.values())
def test_regions_side_by_side_cover_the_picture_once(names):
    for width in (64, 97, 100):
        np.testing.assert_array_equal(sum(read_mask(name, width, 32) for name in names), 1)


def test_as_many_regions_as_people():
    assert split_regions(2) == ("left", "right")
    with pytest.raises(InvalidRequest, match="1 to 3 people"):
        split_regions(4)


def test_booleans_bytes_and_a_picture_are_one_mask(tmp_path):
    mask = read_mask("middle_third", 90, 40)
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    for same in (mask > 0, (mask * 255).astype(np.uint8), mask.tolist(), tmp_path / "mask.png"):
        np.testing.assert_array_equal(read_mask(same, 1, 1), mask)


@pytest.mark.parametrize(
    "wrong", [np.ones(3), np.full((2, 2), np.nan), [[2.0]], [[-1]], [["a"]], np.ones((0, 4))]
)
def test_what_is_no_mask_is_named(wrong):
    with pytest.raises(InvalidRequest, match="A mask is an array"):
        read_mask(wrong, 64, 64)


def test_a_region_that_does_not_exist_is_named():
    with pytest.raises(UnknownName, match="Did you mean 'left'"):
        read_mask("lefft", 64, 64)
    assert set(REGIONS) >= {"left", "right"}


def test_a_box_is_the_region_that_it_spans():
    for name, (start, end) in REGIONS.items():
        assert (read_mask((start, 0, end, 1), 100, 60) == read_mask(name, 100, 60)).all()
    mask = read_mask([0.25, 0.5, 0.5, 1.0], 8, 4)
    assert mask.tolist() == [[0] * 8, [0] * 8, [0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0, 1, 1.1), (0, 0, "1", 1), (0, 0, float("nan"), 1)])
def test_a_box_out_of_the_picture_is_refused(box):
    with pytest.raises(InvalidRequest):
        read_mask(box, 100, 60)
