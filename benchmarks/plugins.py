"""What plug-ins cost: `python -m benchmarks.plugins`, in a git checkout, on a quiet machine.

A step without any, now against the code before they were there (`BEFORE`, in a worktree while this runs): two
processes on the same random weights, in turns. Then a step with each plug-in against one without, in one
process, in turns. Ratios are medians of the pairs'. Prints the table that stands in docs/measurements.md.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.pipeline import commit, describe_machine, row

ROOT = Path(__file__).parents[1]
BEFORE = "2f9dcfe"  # the last commit without plug-ins but LoRA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--backend", choices=("pytorch", "mlx"), default="pytorch")
    parser.add_argument("--side", type=int, default=256, help="pixels of the picture's sides")
    options = parser.parse_args()
    from benchmarks.random_model import MIDDLE, make_model
    from benchmarks.random_plugins import make_plugins

    side, pairs = options.side, options.pairs
    print(f"\n{time.strftime('%Y-%m-%d')}, {describe_machine()}, commit {commit()}, {pairs} pairs\n")
    print(f"| a step ({options.backend}, float32, {side} x {side}) | this | against | ratio |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder / "model", MIDDLE, versions=["aes_stage2"])
        plugins = make_plugins(folder / "plugins", folder / "model" / "base", MIDDLE, side)
        same, without = against_before(folder / "model", options)
        for cells in (without, *against_none(folder / "model", plugins, options)):
            print(f"| {' | '.join(cells)} |", flush=True)
    agree = "the same bit for bit" if same else "NOT the same"
    print(f"\nLatents without plug-ins, now and at {BEFORE}: {agree}.")


def against_before(model: Path, options: argparse.Namespace) -> tuple[bool, tuple[str, ...]]:
    """Whether both make the same latents, and the row of their times."""
    times: dict[str, list[float]] = {"now": [], "before": []}
    latents = set()
    with ExitStack() as stack:
        roots = {"now": ROOT, "before": stack.enter_context(checked_out(BEFORE))}
        runs = {
            name: stack.enter_context(process(root, model, options.backend, options.side))
            for name, root in roots.items()
        }
        for pair in range(options.pairs + 1):  # the first one warms up
            for name in list(runs)[:: 1 if pair % 2 else -1]:
                answer = ask(runs[name])
                latents.add(answer["latents"])
                times[name] += [answer["step"]] if pair else []
    return len(latents) == 1, row(f"no plug-in, now; at {BEFORE}", times["now"], times["before"])


def against_none(model: Path, plugins: dict, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    backend, request = load(model, options.backend, options.side)
    requests = {"": request} | {name: request.replace(plugins=made) for name, made in plugins.items()}
    times: dict[str, list[float]] = {name: [] for name in requests}
    for pair in range(options.pairs + 1):
        for name, asked in requests.items():
            step, _ = run(backend, asked)
            times[name] += [step] if pair else []
    none = times.pop("")
    return (row(f"with {name}; without", with_it, none) for name, with_it in times.items())


# In the other process too, on the code of either commit: nothing but the public interface.


def load(model, backend, side):
    """A backend, and a request without plug-ins."""
    import numpy as np

    from backends import load_backend
    from infu import GenerationRequest

    folders = {"base_model_path": model / "base", "model_dir": model / "InfiniteYou"}
    loaded = load_backend(backend, **folders, dtype="float32")
    face = np.random.default_rng(0).standard_normal(loaded.faces.embedding_size)
    asked = {"prompt": "A man, portrait", "seed": 1, "num_steps": 8, "width": side, "height": side}
    return loaded, GenerationRequest(id_embedding=face, **asked)


def run(backend, request):
    """Seconds of a step, the median of a picture's, and its latents."""
    import statistics
    import time
    from itertools import pairwise

    from infu import generate

    marks = []
    latents = generate(request, backend, on_step=lambda *_: marks.append(time.perf_counter())).latents
    return statistics.median(after - before for before, after in pairwise(marks)), latents


def serve():
    """Make a picture for every line that comes in, and answer with its time and what it was."""
    import hashlib
    import json
    import sys
    from pathlib import Path

    backend, request = load(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    for _ in sys.stdin:
        step, latents = run(backend, request)
        print(
            json.dumps({"step": step, "latents": hashlib.sha256(latents.tobytes()).hexdigest()}), flush=True
        )


@contextmanager
def process(root: Path, *arguments: object) -> Iterator[subprocess.Popen]:
    """`serve`, on the code in `root`."""
    code = "\n".join(map(inspect.getsource, (load, run, serve))) + "\nserve()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, **pipes) as child:
        try:
            yield child
        finally:
            child.stdin.close()


def ask(child: subprocess.Popen) -> dict:
    child.stdin.write("\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A worktree of that commit, removed again."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "code"
        git("worktree", "add", "--detach", str(folder), revision)
        try:
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder))


def git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main()
