"""Many clients at once, each with its own photograph, prompts and seeds. `python tests/load.py`: the figures.

What is checked of every request: it is answered, and the PNG holds its own prompt and seed.
"""

import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import conftest  # noqa: F401, I001  first: it says where the repository's root is
import psutil
from gradio_client import Client, handle_file
from gradio_client.utils import Status
from PIL import Image, PngImagePlugin
from serving import ROOT, Server, served

from infu.metadata import read_picture

SMALL = {"width": 64, "height": 64, "num_steps": 2}


@dataclass
class Load:
    """What was seen: a line of `samples` each time a tenth of the requests has been answered."""

    seconds: list[float] = field(default_factory=list)  # of each request
    queued: int = 0  # requests that were told a place in the queue
    mixed_up: list[str] = field(default_factory=list)
    samples: list[tuple[int, float, int, float]] = field(
        default_factory=list
    )  # answered, MB, files, their MB


def put_under_load(server: Server, photo: Path, folder: Path, requests: int, clients: int) -> Load:
    """`requests` in all, from so many clients at once, each of which waits for its answer before it asks
    again. Raises what a client raises."""
    load, lock = Load(), threading.Lock()

    def ask_on(k: int) -> None:
        own = copy_with_a_comment(photo, folder / f"photograph-{k}.png", str(k))
        client = Client(server.url, verbose=False, download_files=folder / f"client-{k}")
        for seed in range(k + 1, requests + 1, clients):
            prompt = f"portrait number {seed}"
            begun = time.monotonic()
            job = client.submit(
                handle_file(own), prompt=prompt, seed=seed, **SMALL, api_name="/generate_image"
            )
            told = False
            while not job.done():
                told |= job.status().code is Status.IN_QUEUE
                time.sleep(0.1)
            answer = job.result()
            made = read_picture(answer["value"])
            with lock:
                load.seconds.append(time.monotonic() - begun)
                load.queued += told
                if (made["prompt"], made["seed"]) != (prompt, seed) or not answer["label"].endswith(
                    f" {seed}"
                ):
                    load.mixed_up.append(f"{prompt}: {made['prompt']}, {made['seed']}, {answer['label']}")
                if len(load.seconds) % (requests // 10) == 0:
                    load.samples.append((len(load.seconds), memory(server), *kept(server)))

    with ThreadPoolExecutor(clients) as pool:
        for asked in [pool.submit(ask_on, k) for k in range(clients)]:
            asked.result()
    return load


def copy_with_a_comment(photo: Path, path: Path, comment: str) -> Path:
    """The same photograph in another file, which the server cannot take for one that it has."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", comment)
    with Image.open(photo) as image:
        image.save(path, pnginfo=text)
    return path


def memory(server: Server) -> float:
    """The server's resident memory, in MB."""
    return psutil.Process(server.pid).memory_info().rss / 1e6


def kept(server: Server) -> tuple[int, float]:
    """The files that the server keeps, and their MB."""
    sizes = []
    for path in server.files.rglob("*"):
        try:
            sizes += [path.stat().st_size] if path.is_file() else []
        except FileNotFoundError:  # swept meanwhile
            continue
    return len(sizes), sum(sizes) / 1e6


def main(requests: int = 200, clients: int = 20) -> None:
    os.environ["INFU_KEPT_MINUTES"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(folder) as server:
            begun = time.monotonic()
            load = put_under_load(server, ROOT / "examples/astronaut.jpg", folder, requests, clients)
            took = time.monotonic() - begun
            print(
                f"{len(load.seconds)} answered in {took:.0f} s, {load.queued} told their place in the queue"
            )
            print(f"mixed up: {load.mixed_up}")
            print(
                f"a request took at most {max(load.seconds):.1f} s, mean {statistics.mean(load.seconds):.1f}"
            )
            print("| answered | memory | files | |\n|---|---|---|---|")
            for answered, megabytes, files, size in load.samples:
                print(f"| {answered} | {megabytes:.0f} MB | {files} | {size:.1f} MB |")
            time.sleep(90)
            print("a minute and a half later:", f"{memory(server):.0f} MB", kept(server))


if __name__ == "__main__":
    main()
