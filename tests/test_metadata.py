"""The request inside the PNG: it comes back whole, and nothing of a face or a folder is in it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infu import GenerationRequest, Lora
from infu.errors import PhotoError
from infu.metadata import picture_metadata, read_picture, save_picture

PICTURE = Image.new("RGB", (8, 8), "red")


def make_metadata(**changes):
    return {"infu": 1, "model": "mini"} | GenerationRequest(**({"prompt": "a"} | changes)).settings()


@settings(deadline=None)  # a file is written
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.integers(0, 2**32 - 1))
def test_settings_come_back_whatever_the_prompt(tmp_path_factory, prompt, seed):
    path = tmp_path_factory.mktemp("png") / "a.png"
    metadata = make_metadata(prompt=prompt, seed=seed, control_keypoints=np.eye(5, 2))
    save_picture(PICTURE, path, metadata)
    assert read_picture(path) == metadata


def test_neither_a_face_nor_a_path_nor_exif_is_in_the_file(tmp_path):
    photo = Image.new("RGB", (8, 8))
    exif = photo.getexif()
    exif[0x010F] = "Phone of somebody"
    metadata = make_metadata(
        id_embedding=np.arange(512.0), plugins=[Lora("/home/me/secret/style.safetensors")]
    )
    photo.info["exif"] = exif.tobytes()
    save_picture(photo, tmp_path / "a.png", metadata)
    raw = (tmp_path / "a.png").read_bytes()
    assert b"embedding" not in raw and b"secret" not in raw and b"somebody" not in raw
    assert b"style.safetensors" in raw


def test_without_metadata_the_file_has_none(tmp_path):
    save_picture(PICTURE, tmp_path / "a.png", None)
    with pytest.raises(PhotoError, match="no InfU settings"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("raw", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_no_png_is_refused_in_words(raw):
    with pytest.raises(PhotoError, match="no PNG"):
        read_picture(io.BytesIO(raw))


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "{", '{"infu": 2}', '{"infu": 1, "prompt": 3}', "[" * 100_000]
)
def test_foreign_text_in_a_png_is_refused_in_words(tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("infu", text)
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(PhotoError, match="no InfU settings"):
        read_picture(tmp_path / "a.png")


def test_each_picture_of_a_batch_carries_its_own_seed():
    metadata = make_metadata(seed=2**32 - 1, num_images=3)
    assert [picture_metadata(metadata, k)["seed"] for k in range(3)] == [2**32 - 1, 0, 1]
    assert picture_metadata(metadata, 1)["num_images"] == 1
