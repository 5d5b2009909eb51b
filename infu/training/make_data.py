"""Settings -> a folder of encoded samples, by Ray Data: on this machine, or on all those of a Ray cluster
that share the folder. What is done is skipped, so that the same command goes on after whatever stopped it."""

import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from infu.errors import InfuError, InvalidRequest, MissingFile
from infu.models import MINI, locate
from infu.training.config import NOT_OF_THE_DATA, DataSettings, plain
from infu.training.encode import load_faces
from infu.training.measure import load_hook
from infu.training.shards import keep_appearance, write_dataset
from infu.training.sources import Unit, list_units
from infu.training.workers import REPORTS, PersonWorker, PhotoWorker, read_prompts, summarise
from infu.whole import write_whole

WAITED = 20  # seconds for a cluster to answer
STORE = 256 << 20  # bytes of Ray's object store on this machine: what passes through it are names and counts


def make_data(settings: DataSettings, ray_address: str | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Every unit done -> how many samples were kept, and how many left out for each reason; `report.json`
    too. `ray_address`: a cluster's, None for this machine. Raises `InfuError`."""
    check(settings)
    units = list_units(settings.sources, settings.per_unit)
    todo = [unit for unit in units if not (settings.out / REPORTS / f"{unit.name}.jsonl").is_file()]
    say(f"{len(units)} units of photographs, {len(todo)} to do")
    if todo:
        with ray_running(ray_address):
            for done, row in enumerate(spread(settings, todo), start=1):
                reasons = ", ".join(f"{n} {reason}" for reason, n in json.loads(row["reasons"]).items())
                say(f"unit {done} of {len(todo)}: {row['kept']} kept" + (f"; {reasons}" if reasons else ""))
    return write_report(settings, units)


def check(settings: DataSettings) -> None:
    """What can be seen to be wrong before a worker starts. Raises `InfuError`."""
    files = locate(base_model_path=settings.base_model_path or MINI / "base")
    faces, filters, wanted = load_faces(settings.faces), settings.filters, settings.pictures
    hooks = [filters.watermark, filters.unsafe]
    if wanted is not None:
        hooks += [wanted.enhancer, wanted.aesthetics]
        if not wanted.prompts.is_file() or not read_prompts(wanted.prompts):
            raise MissingFile(f"{wanted.prompts.name} holds no prompt. Write one a line.")
        locate(files.base, wanted.model_dir, wanted.model_version)
    for hook in filter(None, hooks):
        load_hook(hook)
    values = {
        "base": files.name,
        "faces": "embedded" if faces.detector is None else "released",
        "embedding_size": faces.embedding_size,
        "text_tokens": settings.max_sequence_length if settings.store_text else "captions",
        "settings": {key: value for key, value in plain(settings).items() if key not in NOT_OF_THE_DATA},
    }
    write_dataset(settings.out, values)
    if faces.detector is None and faces.recogniser is not None:
        keep_appearance(settings.out, faces.recogniser)


def spread(settings: DataSettings, units: list[Unit]) -> Iterator[dict[str, Any]]:
    """The units through as many workers as asked for, each with the networks loaded once; a unit whose worker
    died is given to another. Raises what a worker raised, if it is an `InfuError`."""
    import ray

    rows = ray.data.from_items(
        [{"unit": unit.to_json()} for unit in units],
        override_num_blocks=len(units),  # a unit at a time
    )
    done = rows.map(
        PersonWorker if settings.pictures else PhotoWorker,
        fn_constructor_args=[settings.model_dump_json()],
        compute=ray.data.ActorPoolStrategy(size=settings.workers),
        num_gpus=settings.gpus_per_worker,
        num_cpus=settings.cpus_per_worker,
    )
    try:
        yield from done.iter_rows()
    except Exception as error:
        ours = find_cause(error)
        if ours is None:
            raise
        raise ours from error


def find_cause(error: BaseException | None) -> InfuError | None:
    """The error of ours inside those that Ray wrapped around it."""
    while error is not None:
        if isinstance(error, InfuError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


@contextmanager
def ray_running(address: str | None) -> Iterator[None]:
    """A cluster to work on: the one at `address`, or one of this machine's own, gone at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        check_address(address)
    with redirect_stdout(sys.stderr):  # Ray prints until it is shut down; standard output is for results
        import ray

        own = {} if address else {"object_store_memory": STORE, "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InvalidRequest(
                f"The Ray cluster at {address!r} does not take this machine in: "
                f"{' '.join(str(error).split())[:160]}. If it asks for a token, set RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN here as they are there."
            ) from None
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()


def check_address(address: str) -> None:
    """Raises `InvalidRequest` where nothing listens: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return  # a form of address that Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=WAITED).close()
    except OSError:
        raise InvalidRequest(
            f"No Ray cluster answers at {address!r}. Start one with `ray start --head`, or leave --ray out."
        ) from None


def write_report(settings: DataSettings, units: list[Unit]) -> dict[str, Any]:
    """All units' reports in one."""

    kept, reasons = 0, Counter()
    for unit in units:
        row = summarise(settings.out / REPORTS / f"{unit.name}.jsonl")
        kept += row["kept"]
        reasons.update(json.loads(row["reasons"]))
    values = {"kept": kept, "left_out": dict(reasons.most_common())}
    write_whole(
        settings.out / "report.json", lambda part: part.write_text(json.dumps(values, indent=2) + "\n")
    )
    return values
