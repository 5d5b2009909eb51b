"""Photographs that a client names by an address."""

import os
import time
from pathlib import Path

import gradio.processing_utils
import pytest
from web import web

from infu.errors import PhotoError
from page.uploads import read_address, read_upload, sweep


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


def test_the_sweep_takes_what_is_old_and_the_folders_left_empty(tmp_path: Path):
    for name in ("old/a.png", "both/old.png", "both/new.png", "new/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("old/a.png", "old", "both/old.png", "both"):
        os.utime(tmp_path / name, (time.time() - 100,) * 2)
    sweep(tmp_path, 60)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"old", "both", "both/new.png", "new", "new/b.png"}  # taking a file touches its folder
    os.utime(tmp_path / "old", (time.time() - 100,) * 2)
    sweep(tmp_path, 60)
    assert not (tmp_path / "old").exists()
