"""Photographs that a client names by an address."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gradio.processing_utils
import pytest

from infu.errors import PhotoError
from page.uploads import read_address, read_upload


@pytest.fixture
def web(photo: Path, tmp_path: Path, monkeypatch) -> str:
    """A server in the web that has the photograph; what is fetched lies under `tmp_path`."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=photo.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_photograph_in_the_web_is_fetched_into_the_cache(
    web: str, photo: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(gradio.processing_utils, "PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])  # as if public
    for path in (read_address(web + photo.name), read_upload({"path": web + photo.name})):
        assert Path(path).is_relative_to(tmp_path) and Path(path).read_bytes() == photo.read_bytes()
    with pytest.raises(PhotoError, match="could not be fetched"):
        read_address(web + "missing.png")


def test_the_servers_own_network_is_not_asked(web: str, photo: Path):
    with pytest.raises(PhotoError, match="must be public"):
        read_address(web + photo.name)


def test_what_this_server_gave_out_is_taken_from_its_folder(web: str, photo: Path, tmp_path: Path):
    (tmp_path / "a b.png").write_bytes(photo.read_bytes())
    assert read_address(f"{web}gradio_api/file={tmp_path}/a%20b.png") == str(tmp_path / "a b.png")
    with pytest.raises(PhotoError, match="must be public"):
        read_address(f"{web}gradio_api/file={photo}")
