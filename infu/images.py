"""A photograph in any form a phone, a camera or a browser makes -> uint8 RGB (H, W, 3), upright, bounded.

The array carries nothing of the file's metadata. What cannot be used is a `PhotoError` naming the trouble.
"""

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, TypeAlias

import cv2
import numpy as np
import pillow_heif
from PIL import Image, ImageOps

from infu.errors import PhotoError

# Only these decoders see a stranger's file: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000", "PPM")
MAX_PIXELS = 128_000_000  # opened; phones make 12 to 108 million, the cameras above that ask for gigabytes
MAX_SIDE = 4096  # kept; a face of 60 pixels in a 12-megapixel picture keeps all of them
MIN_SIDE = 32
MAX_RATIO = 64  # long side to short; no photograph is such a strip, and scaled down it would vanish
ORIENTATION = 0x0112  # EXIF tag
# What Pillow's decoders have been seen to raise, or may, on a damaged file.
DECODER_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
STARTS = (  # of files that are pictures at heart: if they do not open, they are damaged
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"\0\0\0\x0cjP  ",
)  # fmt: skip

GIVE = "Give a JPEG, PNG, WebP, HEIC or AVIF file."
TOO_LARGE = "The {} has {}; at most 128 million can be opened. Make it smaller and try again."

Photo: TypeAlias = str | Path | bytes | Image.Image | np.ndarray

pillow_heif.register_heif_opener()
decoding = threading.Lock()  # `warnings.catch_warnings` is not for two threads at once


def read_photo(source: Photo) -> np.ndarray:
    """A path, a file's bytes, a PIL picture or an RGB array -> uint8 RGB (H, W, 3), upright as its EXIF says,
    transparency on white, the first frame of an animation, at most 4096 pixels long. Raises `PhotoError`."""
    if isinstance(source, np.ndarray):
        return bounded(check_size(check_array(source), "picture"))
    if isinstance(source, Image.Image):
        return decode(source, "picture")
    if isinstance(source, bytes | bytearray | memoryview):
        return read_stream(io.BytesIO(source), "photograph")
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise PhotoError(f"A photograph is a file, bytes, a PIL picture or an RGB array, not {kind}.")
    name = repr(Path(source).name)
    try:
        with Path(source).open("rb") as stream:
            return read_stream(stream, f"file {name}")
    except FileNotFoundError:
        raise PhotoError(f"There is no file {name}. Check its name and folder.") from None
    except (OSError, ValueError):  # a folder, no right to read it, a NUL in the name
        raise PhotoError(f"{name} cannot be read. Check that it is a file, and yours to read.") from None


def fit_picture(photo: Photo, width: int, height: int) -> np.ndarray:
    """A photograph, as `read_photo` takes it -> uint8 RGB (height, width, 3): filled, cut about its middle.
    One of that size stays as it is."""
    picture = Image.fromarray(read_photo(photo))
    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))


def pad_picture(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture (H, W, 3), no larger than width x height, at its top left; its edge is repeated beyond."""
    beyond = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.pad(picture, beyond, mode="edge")


def read_stream(stream: BinaryIO, what: str) -> np.ndarray:
    """An open picture file -> uint8 RGB (H, W, 3). `what` names it in errors."""
    start = stream.read(512)
    stream.seek(0)
    if not start:
        raise PhotoError(f"The {what} is empty. Save or upload it again.")
    try:
        with decoding, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF and many pixels: the size is checked in `decode`
            picture = Image.open(stream, formats=FORMATS)
            if picture.format == "JPEG" and max(picture.size) >= 2 * MAX_SIDE:
                picture.draft("RGB", (MAX_SIDE, MAX_SIDE))  # decoded at half the size: a quarter of the time
    except Image.DecompressionBombError:
        raise PhotoError(TOO_LARGE.format(what, "far too many pixels")) from None
    except DECODER_FAULTS:
        raise PhotoError(f"The {what} {looks_like(start)}") from None
    return decode(picture, what)


def decode(picture: Image.Image, what: str) -> np.ndarray:
    """A PIL picture, opened and perhaps not yet decoded -> uint8 RGB (H, W, 3)."""
    check_size(picture, what)
    try:
        with decoding, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
            return turn(bounded(to_rgb(picture)), read_orientation(picture))
    except DECODER_FAULTS:
        raise PhotoError(f"The {what} is damaged or cut short. Save or upload it again.") from None


def to_rgb(picture: Image.Image) -> np.ndarray:
    """A decoded picture of any mode -> uint8 RGB (H, W, 3)."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.nan_to_num(np.asarray(picture).astype(np.float64))
        return np.repeat(scaled_to_bytes(grey, picture)[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def scaled_to_bytes(grey: np.ndarray, picture: Image.Image) -> np.ndarray:
    """Grey of 16 bits, 32 bits or floating point -> uint8. Where the mode does not say what is white, the
    smallest usual white that no pixel exceeds is."""
    brightest = grey.max()
    if picture.mode.startswith("I;16") or picture.format == "PNG":
        white = 65535
    else:
        usual = (1, 255, 65535, 2**31 - 1) if picture.mode == "F" else (255, 65535, 2**31 - 1)
        white = next((value for value in usual if brightest <= value), brightest)
    return np.rint(np.clip(grey / white, 0, 1) * 255).astype(np.uint8)


def read_orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or the EXIF is damaged."""
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except DECODER_FAULTS:
        return 1
    return orientation if orientation in range(1, 9) else 1


def turn(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as stored -> as EXIF's `orientation` means them to be seen (EXIF 2.3, tag 274)."""
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def bounded(rgb: np.ndarray) -> np.ndarray:
    """The picture, made smaller where its long side exceeds `MAX_SIDE`."""
    height, width = rgb.shape[:2]
    scale = MAX_SIDE / max(height, width)
    if scale >= 1:
        return rgb
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = (
        cv2.INTER_LINEAR if scale > 0.7 else cv2.INTER_AREA
    )  # near 1 nothing aliases, and area is 4 times slower
    return cv2.resize(rgb, size, interpolation=how)


def check_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise PhotoError(
            f"A picture given as an array must be uint8 RGB (H, W, 3), not {array.dtype} {array.shape}."
        )
    return np.ascontiguousarray(array)


def check_size(picture: Image.Image | np.ndarray, what: str) -> Image.Image | np.ndarray:
    """The picture again. Raises `PhotoError` where it is too small or too large to be worth decoding."""
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
    if width * height > MAX_PIXELS:
        raise PhotoError(TOO_LARGE.format(what, f"{width} x {height} pixels"))
    if min(width, height) < MIN_SIDE:
        small = f"The {what} has only {width} x {height} pixels"
        raise PhotoError(f"{small}. Give one of at least {MIN_SIDE} x {MIN_SIDE}.")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise PhotoError(
            f"The {what} is too narrow ({width} x {height} pixels). Cut out the part with the face."
        )
    return picture


def looks_like(start: bytes) -> str:
    """What a file that does not open seems to be, and what to do: the end of a sentence."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(STARTS) or start[4:8] == b"ftyp":
        return "is damaged or cut short, or is of a kind this program does not know. " + GIVE
    if b"<svg" in text:
        return "is an SVG drawing, not a photograph. Export it as PNG, or give a JPEG."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "is a web page, not a picture. Save the picture itself."
    if text.startswith(b"%pdf"):
        return "is a PDF, not a picture. Export the photograph as JPEG or PNG."
    if not any(byte < 9 or 13 < byte < 32 for byte in start):
        return "is text, not a picture. " + GIVE
    return "is not a picture, or is damaged. " + GIVE
