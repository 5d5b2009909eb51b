"""Ours against the plain way (plain_way.py) on the same random weights: `python -m benchmarks.pipeline`.

Time: both in one process, alternating, the median of the pairs' ratios. Memory: each way in processes of its
own, the median of their largest resident size while denoising, less what they had before loading.
Prints the table that stands in docs/measurements.md.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

STEPS, WIDTH, HEIGHT = 8, 256, 256  # 256 image tokens
MIB = 1 << 20
MEMORY_RUNS = 5  # one run differs from the next by a tenth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a child process: one way's memory
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_memory(options.measure, Path(options.folder))))
        return
    print(f"\n{time.strftime('%Y-%m-%d')}, {describe_machine()}, commit {commit()}, {options.pairs} pairs\n")
    print(
        "| model (float32, 256 x 256, 8 steps) | measured | ours | plain way | ratio |\n|---|---|---|---|---|"
    )
    for name in ("mini", "middle"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = make(name, Path(scratch))
            for row in [*time_rows(folder, options.pairs), *memory_rows(folder)]:
                print(f"| {name} | " + " | ".join(row) + " |", flush=True)


def make(name: str, scratch: Path) -> Path:
    """The shipped mini model, or a random one of middle size."""
    from benchmarks.random_model import MIDDLE, make_model
    from infu.models import MINI

    if name == "mini":
        return MINI
    make_model(scratch, MIDDLE)
    return scratch


def load(folder: Path, offload: str | None = None):
    from backends import load_backend

    folders = {"base_model_path": folder / "base", "model_dir": folder / "InfiniteYou"}
    return load_backend("pytorch", **folders, dtype="float32", offload=offload)


def make_request(backend, **changes):
    from infu import GenerationRequest

    embedding = np.random.default_rng(0).standard_normal(backend._projection.proj_in.in_features)
    values = dict(
        prompt="A man, portrait", id_embedding=embedding, width=WIDTH, height=HEIGHT, num_steps=STEPS
    )
    return GenerationRequest(**(values | {"seed": 1} | changes))


def time_rows(folder: Path, pairs: int) -> list[tuple[str, ...]]:
    """Time per step, and the time of a whole first and second picture."""
    from benchmarks.plain_way import PlainWay
    from infu import generate
    from infu.noise import make_noise

    backend = load(folder)
    plain, request = PlainWay(backend), make_request(backend)
    control, noise = np.zeros((HEIGHT, WIDTH, 3), np.uint8), make_noise(1, WIDTH, HEIGHT)
    steps: dict[str, list[float]] = {"ours": [], "plain": []}
    firsts, seconds, others = [], [], []
    for pair in range(pairs + 1):  # the first one warms up
        backend.cache.clear()
        marks: list[float] = []
        first = timed(
            lambda marks=marks: generate(
                request, backend, on_step=lambda *_: marks.append(time.perf_counter())
            )
        )
        second = timed(lambda: generate(request.replace(seed=2), backend))
        theirs: list[float] = []
        plain_step = lambda _, theirs=theirs: theirs.append(time.perf_counter())  # noqa: E731
        other = timed(lambda step=plain_step: plain.generate(request, control, noise, step))
        if pair:
            steps["ours"].append(statistics.median(np.diff(marks)))
            steps["plain"].append(statistics.median(np.diff(theirs)))
            firsts.append(first), seconds.append(second), others.append(other)
    return [
        row("a step", steps["ours"], steps["plain"]),
        row("a picture, everything new", firsts, others),
        row("the next picture of the same face and prompt", seconds, others),
    ]


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(what: str, ours: list[float], plain: list[float]) -> tuple[str, ...]:
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    return (
        what,
        f"{statistics.median(ours) * 1e3:.0f} ms",
        f"{statistics.median(plain) * 1e3:.0f} ms",
        f"{ratio:.2f}",
    )


def memory_rows(folder: Path) -> list[tuple[str, ...]]:
    """The largest resident size while denoising: all kept, the text encoders released, the plain way."""
    sizes = {}
    for way in ("ours", "released", "plain"):
        command = [sys.executable, "-m", "benchmarks.pipeline", "--measure", way, "--folder", str(folder)]
        runs = [
            subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(MEMORY_RUNS)
        ]
        sizes[way] = statistics.median(json.loads(run.stdout) for run in runs)
    what = {
        "ours": "memory while denoising, all kept",
        "released": "the same, offload=model (text encoders released)",
    }
    return [
        (
            what[way],
            f"{sizes[way]:.0f} MiB",
            f"{sizes['plain']:.0f} MiB",
            f"{sizes[way] / sizes['plain']:.2f}",
        )
        for way in what
    ]


def measure_memory(way: str, folder: Path) -> float:
    """In MiB, above what the process has with all libraries imported and warm."""
    from benchmarks.plain_way import PlainWay
    from infu import generate
    from infu.models import MINI
    from infu.noise import make_noise

    generate(make_request(warm := load(MINI)), warm)
    del warm
    before = psutil.Process().memory_info().rss
    backend = load(folder, "model" if way == "released" else None)
    with Peak() as peak:
        start = lambda *_: peak.start()  # noqa: E731
        if way == "plain":
            control, noise = np.zeros((HEIGHT, WIDTH, 3), np.uint8), make_noise(1, WIDTH, HEIGHT)
            PlainWay(backend).generate(make_request(backend), control, noise, start)
        else:
            generate(make_request(backend), backend, on_step=start)
    return (peak.bytes - before) / MIB


class Peak:
    """The largest resident size from the first `start` on, asked every 5 ms."""

    def __enter__(self) -> "Peak":
        self.bytes, self._stop, self._started = 0, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def start(self) -> None:
        self._started.set()

    def _watch(self) -> None:
        process = psutil.Process()
        self._started.wait()
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, process.memory_info().rss)

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._started.set()
        self._thread.join()


def describe_machine() -> str:
    import torch

    flags = (
        "AVX-512"
        if "AVX512" in torch.backends.cpu.get_cpu_capability()
        else torch.backends.cpu.get_cpu_capability()
    )
    return f"{psutil.cpu_count()} cores ({platform.machine()}, {flags}), torch {torch.__version__}"


def commit() -> str:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
