"""Photographs that a client names by an address."""

from pathlib import Path

import gradio.processing_utils
import pytest
from web import web

from infu.errors import PhotoError
from page.uploads import read_address, read_upload


@pytest.fixture
def other(photo: Path, tmp_path: Path, monkeypatch) -> str:
    """A server that has the photograph; what is fetched lies under `tmp_path`."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with web(photo.parent) as address:
        yield address


def test_a_photograph_in_the_web_is_fetched_into_the_cache(
    other: str, photo: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(gradio.processing_utils, "PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])  # as if public
    for path in (read_address(other + photo.name), read_upload({"path": other + photo.name})):
        assert Path(path).is_relative_to(tmp_path) and Path(path).read_bytes() == photo.read_bytes()
    with pytest.raises(PhotoError, match="could not be fetched"):
        read_address(other + "missing.png")


def test_the_servers_own_network_is_not_asked(other: str, photo: Path):
    with pytest.raises(PhotoError, match="must be public"):
        read_address(other + photo.name)


def test_what_this_server_gave_out_is_taken_from_its_folder(other: str, photo: Path, tmp_path: Path):
    (tmp_path / "a b.png").write_bytes(photo.read_bytes())
    assert read_address(f"{other}gradio_api/file={tmp_path}/a%20b.png") == str(tmp_path / "a b.png")
    with pytest.raises(PhotoError, match="must be public"):
        read_address(f"{other}gradio_api/file={photo}")
