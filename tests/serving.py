"""Starts `python app.py`, or another page, in a process of its own on a free port, and ends it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTING_SECONDS = 120  # on a busy machine Gradio alone takes 20 to import


@dataclass(frozen=True)
class Server:
    url: str
    files: Path  # where it keeps uploads and pictures
    log: Path  # what it prints
    pid: int

    def printed(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Server]:
    """The page of `python app.py OPTIONS`, its files and its log under `folder`."""
    with started(folder, [sys.executable, ROOT / "app.py", *options], ROOT) as server:
        yield server


@contextmanager
def started(folder: Path, command: list[str | Path], cwd: Path) -> Iterator[Server]:
    """What a Gradio program serves, its files and its log under `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files, log = folder / "files", folder / "log.txt"
    files.mkdir()
    environment = os.environ | {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(files),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("w") as printed:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=printed, stderr=printed)
    server = Server(f"http://127.0.0.1:{port}/", files, log, process.pid)
    try:
        wait_for(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(server: Server, process: subprocess.Popen) -> None:
    end = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(server.url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"The page did not come up.\n{server.printed()}")
