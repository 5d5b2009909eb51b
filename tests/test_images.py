"""Whatever a phone, a camera or a browser makes becomes the same upright RGB picture, or a clear sentence."""

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from infu.errors import PhotoError
from infu.images import MAX_SIDE, read_photo

ASTRONAUT = skimage.data.astronaut()[::4, ::2]  # (128, 256, 3): no side and no corner equals another
EXACT = [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("BMP", {}), ("PPM", {}), ("JPEG2000", {})]
LOSSY = [
    ("JPEG", {"quality": 95}),
    ("WEBP", {"quality": 95}),
    ("HEIF", {"quality": 95}),
    ("AVIF", {"quality": 95}),
    ("GIF", {}),
    ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (256, 128), "red")], "quality": 95}),
]


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def photo(kind: str = "PNG", **options) -> bytes:
    return saved(Image.fromarray(ASTRONAUT), kind, **options)


def assert_near(picture: np.ndarray, expected: np.ndarray, mean: float) -> None:
    """A wrong turn, channel order or scale is off by 40 levels and more."""
    assert picture.dtype == np.uint8 and picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() <= mean


@pytest.mark.parametrize("kind, options", EXACT, ids=[kind for kind, _ in EXACT])
def test_lossless_formats_are_read_to_the_pixel(kind, options):
    np.testing.assert_array_equal(read_photo(photo(kind, **options)), ASTRONAUT)


@pytest.mark.parametrize("kind, options", LOSSY, ids=[kind for kind, _ in LOSSY])
def test_lossy_formats_are_read(kind, options):
    assert_near(read_photo(photo(kind, **options)), ASTRONAUT, mean=9)  # GIF: 256 colours, 8 levels off


def test_path_text_bytes_picture_and_array_give_the_same(tmp_path):
    file = tmp_path / "a photo with ünicode.png"
    file.write_bytes(photo())
    for source in (file, str(file), file.read_bytes(), Image.fromarray(ASTRONAUT), ASTRONAUT):
        np.testing.assert_array_equal(read_photo(source), ASTRONAUT)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif = exif if kind == "TIFF" else exif.tobytes()  # HEIF: written into the container too, as phones do
    data = photo(kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 95}))
    tagged = Image.fromarray(ASTRONAUT)
    tagged.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(tagged))  # Pillow's own table of the eight
    assert_near(read_photo(data), expected, mean=6)


def test_picture_that_gradio_has_turned_is_not_turned_again():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(photo("PNG", exif=exif))) as picture:
        turned = ImageOps.exif_transpose(picture)
    np.testing.assert_array_equal(read_photo(turned), np.asarray(turned))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0broken", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + b"\xff" * 40]
)
def test_damaged_exif_does_not_cost_the_picture(exif):
    assert_near(read_photo(photo("JPEG", quality=95, exif=exif)), ASTRONAUT, mean=6)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    expected = np.rint(ramp / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        picture = read_photo(saved(Image.fromarray(ramp), kind))
        np.testing.assert_array_equal(picture, np.repeat(expected[:, :, None], 3, axis=2))
    wide = Image.fromarray(ramp.astype(np.int32))  # mode I, as Pillow before 11.3 opens such a PNG
    np.testing.assert_array_equal(read_photo(wide)[:, :, 0], expected)


def test_sixteen_bit_colour_is_scaled_not_clipped():
    deep = ASTRONAUT.astype(np.int32) * 257
    deep[::2] += 100  # not just the same byte twice
    data = cv2.imencode(".png", np.minimum(deep, 65535).astype(np.uint16)[:, :, ::-1])[1].tobytes()
    assert np.abs(read_photo(data).astype(int) - ASTRONAUT).max() <= 1


def test_floating_point_grey_is_scaled():
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    expected = np.rint(ramp * 255)
    np.testing.assert_array_equal(read_photo(Image.fromarray(ramp))[:, :, 0], expected)
    assert np.abs(read_photo(Image.fromarray(ramp * 255))[:, :, 0] - expected).max() <= 1
    ramp[0, 0] = np.nan
    np.testing.assert_array_equal(read_photo(saved(Image.fromarray(ramp), "TIFF"))[:, :, 0], expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    source = Image.fromarray(ASTRONAUT)
    if mode == "LAB":
        spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        picture = ImageCms.profileToProfile(source, *spaces, outputMode="LAB")
    else:
        picture = source.convert(mode)
    expected = source.convert(mode) if mode in ("L", "1", "P") else source
    assert_near(read_photo(picture), np.asarray(expected.convert("RGB")), mean=2)


def test_cmyk_jpeg_is_not_a_negative():
    data = saved(Image.fromarray(ASTRONAUT).convert("CMYK"), "JPEG", quality=95)
    opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert_near(read_photo(data), opencv, mean=2)
    assert_near(read_photo(data), ASTRONAUT, mean=6)


def test_transparency_is_put_on_white():
    alpha = np.zeros((128, 256), np.uint8)
    alpha[:, 64:128], alpha[:, 128:] = 128, 255
    share = alpha[:, :, None] / 255
    expected = ASTRONAUT * share + 255 * (1 - share)
    rgba = Image.fromarray(np.dstack([ASTRONAUT, alpha]))
    for kind in ("PNG", "TIFF"):
        assert np.abs(read_photo(saved(rgba, kind)) - expected).max() <= 1.01  # a rounding, twice
    grey = Image.fromarray(ASTRONAUT).convert("L")
    grey.putalpha(Image.fromarray(alpha))
    expected = np.asarray(grey)[:, :, :1] * share + 255 * (1 - share)
    assert np.abs(read_photo(saved(grey, "PNG")) - expected).max() <= 1.01


@pytest.mark.parametrize("transparent", [0, bytes([0] + [255] * 255)], ids=["one colour", "alpha per colour"])
def test_transparent_palette_is_put_on_white(transparent):
    palette = Image.fromarray(np.repeat([[0, 1]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)).convert(
        "P"
    )
    palette.putpalette([200, 0, 0, 0, 0, 200] + [0] * 762)
    picture = read_photo(saved(palette, "PNG", transparency=transparent))
    np.testing.assert_array_equal(picture[0, [0, -1]], [[255, 255, 255], [0, 0, 200]])


def test_colour_key_of_an_rgb_png_is_put_on_white():
    two = np.full((64, 64, 3), 50, np.uint8)
    two[:, 32:] = 90
    picture = read_photo(saved(Image.fromarray(two), "PNG", transparency=(50, 50, 50)))
    np.testing.assert_array_equal(picture[0, [0, -1]], [[255] * 3, [90] * 3])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("blue", "red", "lime")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert_near(read_photo(data), np.asarray(frames[0]), mean=4)


def test_large_picture_is_bounded_and_keeps_its_shape():
    wide = Image.fromarray(ASTRONAUT).resize((8200, 4100), Image.Resampling.NEAREST)
    for data in (saved(wide, "JPEG", quality=60), saved(wide, "BMP")):
        picture = read_photo(data)
        assert picture.shape == (MAX_SIDE // 2, MAX_SIDE, 3)
        small = cv2.resize(picture, (256, 128), interpolation=cv2.INTER_AREA)
        assert_near(small, ASTRONAUT, mean=6)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises this size: a few bytes, as a decompression bomb has."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_decompression_bomb_is_refused_before_it_is_decoded(side):
    read_photo(photo())  # the first picture loads the decoders
    started = time.perf_counter()
    with pytest.raises(PhotoError, match="at most 128 million"):
        read_photo(png_of_size(side, side))
    assert time.perf_counter() - started < 0.2


BAD = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"This is no picture at all.\n" * 20, "text"),
    "latin.jpg": ("Dies ist kein Bild, sondern ein Brief über Äpfel.".encode(), "text"),
    "drawing.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "page.png": (b"\xef\xbb\xbf<!DOCTYPE html><html><body>Log in</body></html>", "web page"),
    "paper.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
    "noise.png": (bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8)), "not a picture"),
    "one.png": (saved(Image.new("RGB", (1, 1)), "PNG"), "1 x 1"),
    "thin.png": (saved(Image.new("RGB", (4000, 8)), "PNG"), "4000 x 8"),
    "strip.png": (saved(Image.new("RGB", (4000, 40)), "PNG"), "narrow"),
    "video.heic": (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200), "damaged or cut short"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_photograph_is_refused_by_a_sentence_that_says_so(name, tmp_path):
    data, trouble = BAD[name]
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(PhotoError, match=trouble) as refused:
        read_photo(file)
    text = str(refused.value)
    assert name in text and str(tmp_path) not in text and text.endswith(".")
    with pytest.raises(PhotoError, match=trouble):
        read_photo(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "HEIF", "AVIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_file_is_called_damaged(kind, share):
    data = photo(kind)
    with pytest.raises(PhotoError, match="damaged or cut short"):
        read_photo(data[: int(len(data) * share)])


def test_missing_file_is_named_without_its_folder(tmp_path):
    with pytest.raises(PhotoError, match="There is no file 'me.jpg'") as refused:
        read_photo(tmp_path / "me.jpg")
    assert str(tmp_path) not in str(refused.value)
    for unreadable in (tmp_path, "a\0b.png", "x" * 5000):
        with pytest.raises(PhotoError):
            read_photo(unreadable)


@pytest.mark.parametrize(
    "source", [None, 3, np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 3)), np.zeros(3)]
)
def test_what_is_neither_file_nor_picture_is_refused(source):
    with pytest.raises(PhotoError):
        read_photo(source)


def test_callers_picture_is_left_as_it_was(tmp_path):
    file = tmp_path / "large.jpg"
    Image.fromarray(ASTRONAUT).resize((8200, 4100), Image.Resampling.NEAREST).save(file, quality=50)
    with Image.open(file) as picture:
        assert read_photo(picture).shape[1] == MAX_SIDE
        assert picture.size == (8200, 4100)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_give_a_picture_or_a_photo_error(data):
    assert_picture_or_refusal(data)


STARTS = [
    b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"GIF89a",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"\0\0\0\x1cftypheic\0\0\0\0",
    b"\0\0\0\x1cftypavif\0\0\0\0",
    b"II*\0\x08\0\0\0",
    b"P6 64 64 255\n",
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STARTS), st.binary(max_size=400))
def test_random_bytes_after_a_true_start_give_a_picture_or_a_photo_error(start, data):
    assert_picture_or_refusal(start + data)


FILES = {
    kind: photo(kind)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "HEIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_damage_to_a_real_file_gives_a_picture_or_a_photo_error(data):
    file = bytearray(FILES[data.draw(st.sampled_from(sorted(FILES)))])
    reach = data.draw(st.sampled_from([64, 600, len(file)]))  # headers are where decoders fail
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, min(reach, len(file)) - 1))] = data.draw(st.integers(0, 255))
    assert_picture_or_refusal(bytes(file[: data.draw(st.integers(len(file) // 2, len(file)))]))


def assert_picture_or_refusal(data: bytes) -> None:
    try:
        picture = read_photo(data)
    except PhotoError as refused:
        assert 20 < len(str(refused)) < 300
    else:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert picture.flags["C_CONTIGUOUS"] and max(picture.shape) <= MAX_SIDE
