"""Pictures between a client and the server: Gradio's raw file data <-> the very files, untouched by Gradio.

`gr.Image` itself would clip a 16-bit photograph, and fail on HEIC or on a text named .jpg before we see it.
"""

import base64
import io
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from gradio import FileData
from gradio.processing_utils import ssrf_protected_download
from gradio.utils import get_upload_folder, is_in_or_equal
from PIL import Image

from infu.checks import check_list
from infu.errors import InvalidRequest, PhotoError
from infu.images import read_photo
from infu.metadata import save_picture
from infu.pipeline import Result, Step
from infu.plugin_json import MASK, PICTURES, read_plugin, read_value
from infu.plugins import Lora, Plugin

PREVIEW_SECONDS = 0.25  # at most four previews a second
# Every file is gone within an hour of its last use.
KEPT_SECONDS = round(60 * float(os.environ.get("INFU_KEPT_MINUTES", 45)))
SWEEP_SECONDS = max(1, KEPT_SECONDS // 5)
SHOWN = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM")  # how the files begin that every browser shows


def read_upload(sent: dict[str, Any] | None, what: str = "picture") -> str | bytes | None:
    """What a client sent for a picture -> its path or bytes, for `read_photo`; None where it sent none.
    `what` names it in errors.

    A path has to be one of Gradio's own folder. Who knows it may use it: Gradio names an upload by the
    SHA-256 of a secret of this server and the content, we name a picture at random, and neither is listed, so
    one visitor cannot come at another's file.

    Raises `PhotoError`.
    """
    if sent is None:
        return None
    given = sent if isinstance(sent, dict) else {}
    url, path = (text if isinstance(text := given.get(n), str) else "" for n in ("url", "path"))
    if url.startswith("data:"):
        try:
            return base64.b64decode(url.partition(",")[2])
        except ValueError:
            raise PhotoError(f"The {what}'s data URL is not base64. Send the {what} again.") from None
    if path.startswith(("http://", "https://")):
        path = fetch(path, what)
    if not path or "\0" in path or not is_in_or_equal(path, get_upload_folder()):
        raise PhotoError(f"A {what} must be uploaded: send it with handle_file, or post it to /upload.")
    if not os.path.isfile(path):
        raise PhotoError(
            f"The {what} is no longer on the server, which keeps it for an hour. Upload it again."
        )
    os.utime(path)  # the sweep goes by the time of the last use
    return path


def read_address(address: str) -> str | bytes:
    """Where a photograph is, in one word: http(s), data: or an upload's path -> as `read_upload`."""
    if not isinstance(address, str) or not address:
        raise PhotoError("Give a photograph of a face: its address, a data: URL, or the path of an upload.")
    return read_upload({"url" if address.startswith("data:") else "path": address})


def fetch(url: str, what: str) -> str:
    """A file in the web -> its path in Gradio's cache. Gradio's guard keeps requests out of the server's own
    network; a file that this server itself gave out is taken from its folder."""
    _, given, own = url.partition("/gradio_api/file=")
    if given and is_in_or_equal(own := unquote(own), get_upload_folder()):
        return own
    try:
        return ssrf_protected_download(url, str(make_folder()))
    except Exception:  # of safehttpx, httpx and Gradio: a class of their own for none
        raise PhotoError(
            f"The {what} could not be fetched from its address, which must be public. Upload it instead."
        ) from None


def read_loras(sent: list[dict[str, Any]] | None, scale: float | None) -> tuple[Lora, ...]:
    """LoRA files that a client sent, each at this scale, None for its own. Raises `PhotoError`,
    `InvalidRequest`."""
    return tuple(Lora(read_file(file, "LoRA"), scale) for file in check_list("loras", sent))


def read_file(sent: dict[str, Any] | None, what: str) -> str | None:
    """`read_upload` for what is no picture: it cannot be inside the request."""
    path = read_upload(sent, what)
    if isinstance(path, bytes):
        raise PhotoError(
            f"A {what} must be uploaded as a file: send it with handle_file, or post it to /upload."
        )
    return path


def read_plugins(sent: list[dict[str, Any]] | None) -> tuple[Plugin, ...]:
    """Plug-ins that a client wrote as JSON (infu/plugin_json.py), its files and pictures sent as uploads.
    Raises `PhotoError`, `InvalidRequest`."""
    return tuple(read_plugin(plugin, find_sent) for plugin in check_list("plugins", sent))


def read_region(sent: Any) -> Any:
    """Where a client says that the person is: a region's name, a box, rows of numbers, or a picture sent as
    an upload. Raises `PhotoError`, `InvalidRequest`."""
    return read_value(MASK, sent, find_sent)


def find_sent(field: str, value: Any) -> Any:
    """What a client's plug-in names. A text is never a file of this server: only a known name."""
    if isinstance(value, str):
        if field in ("path", MASK) and re.fullmatch(r"[\w.-]+", value) and not os.path.exists(value):
            return value
        raise InvalidRequest(f"{field} must be an upload, or for a plug-in's file the name of a known one.")
    return read_upload(value, field) if field in (MASK, *PICTURES) else read_file(value, "plug-in's file")


def make_showable(source: str | bytes) -> dict[str, Any] | None:
    """A photograph that not every browser shows (HEIC, TIFF) -> file data of a PNG with the pixels that will
    be used; None for the others. Raises `PhotoError` for a file that is no photograph."""
    start = source[:8] if isinstance(source, bytes) else read_start(source)
    pixels = read_photo(source)
    if start.startswith(SHOWN):
        return None
    path = make_folder() / "photograph.png"
    Image.fromarray(pixels).save(path, compress_level=1)
    return file_data(path)


def save_picture_file(result: Result, settings: bool = True) -> dict[str, Any]:
    """A result's one picture as a PNG file in Gradio's cache, with its settings inside or, with `settings`
    False, neither there nor in the file's name -> its file data."""
    path = make_folder() / (f"infiniteyou-seed-{result.seed}.png" if settings else "infiniteyou.png")
    save_picture(result.image, path, result.metadata if settings else None)
    return file_data(path)


def save_hint_file(hint: np.ndarray) -> dict[str, Any]:
    """A hint's pixels as a PNG file in Gradio's cache -> its file data."""
    path = make_folder() / "hint.png"
    Image.fromarray(hint).save(path, compress_level=1)
    return file_data(path)


def with_previews(
    events: Iterator[Step | Result],
) -> Iterator[tuple[Step | Result, dict[str, Any] | None]]:
    """Each event, and with a step, where one is due, its preview as file data. The JPEG is inside the
    message: no file to clean up, and no second request for the client."""
    shown = -PREVIEW_SECONDS
    for event in events:
        preview = None
        if isinstance(event, Step) and time.monotonic() - shown >= PREVIEW_SECONDS:
            jpeg = io.BytesIO()
            event.preview().save(jpeg, "JPEG", quality=85)
            preview = {"url": "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()}
            shown = time.monotonic()
        yield event, preview


def read_start(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(8)


def make_folder() -> Path:
    """A new folder in Gradio's cache, whose name nobody can guess."""
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder


def file_data(path: Path) -> dict[str, Any]:
    return FileData(path=str(path), orig_name=path.name, mime_type="image/png").model_dump()


def sweep_forever(folder: Path) -> None:
    """Beside Gradio's own sweep, which leaves every folder, and each file that no component has shown: one
    fetched from its address, or saved in a run that nobody waited for."""
    while True:
        time.sleep(SWEEP_SECONDS)
        sweep(folder, KEPT_SECONDS)


def sweep(folder: Path, kept_seconds: float) -> None:
    """Delete the files under `folder` that were last used longer ago than that, and folders left empty."""
    oldest = time.time() - kept_seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        with suppress(OSError):  # a folder that is not empty; a file that Gradio's sweep has taken
            if path.stat().st_mtime < oldest:
                path.rmdir() if path.is_dir() else path.unlink()
