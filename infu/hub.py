"""Repositories and files from the network into their caches; every way this fails is a sentence of its own.

The cache, its layout and its environment variables (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT) are
huggingface_hub's. What is complete in the cache is used without any request.
"""

import errno
import fnmatch
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_cached_repo_tree, get_token, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    DisabledRepoError,
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import tqdm

from infu.errors import BrokenFile, DownloadError, InfuError, MissingFile
from infu.weights.intruder import START, name_intruder

# HTTPError: the hub's answers and the network's faults; RuntimeError: hf_xet's.
FAILURES = (HTTPError, OSError, RuntimeError)
STALE = 3600  # seconds since the last byte: nobody goes on with that file (huggingface_hub starts it anew)
AGAIN = "Run the command again: what has arrived is kept."
TOKEN = "make one at huggingface.co/settings/tokens and give it with `hf auth login` or as HF_TOKEN"


class Unseen(tqdm):
    """The progress bar of a look at what is to be done."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{**options, "disable": True})


def find_repo(repo_id: str, patterns: list[str]) -> Path | None:
    """The folder of a repository's snapshot where the cache holds all that `patterns` name, else None."""
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise DownloadError(f"{repo_id!r} is not a hub id. A hub id is owner/name.") from None
    return folder if is_whole(repo_id, folder, patterns) else None


def is_whole(repo_id: str, folder: Path, patterns: list[str]) -> bool:
    """Whether a snapshot holds what `patterns` name. A cache made by an older huggingface_hub has no list of
    the repository's files: then every pattern must find something, and every index the shards it names."""
    try:
        get_cached_repo_tree(repo_id)
    except CachedRepoTreeNotFoundError:
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        shards = {
            name for index in folder.rglob("*.safetensors.index.json") for name in read_shards(index, folder)
        }
        found = [fnmatch.filter(names | shards, pattern) for pattern in patterns]
        return all(matches and names.issuperset(matches) for matches in found)
    return not list_damaged(repo_id, folder)


def read_shards(index: Path, folder: Path) -> set[str]:
    """The shards that an index names, as paths within `folder`. A damaged one is found out on loading."""
    try:
        shards = json.loads(index.read_bytes())["weight_map"].values()
        return {(index.parent / shard).relative_to(folder).as_posix() for shard in shards}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def fetch_repo(repo_id: str, patterns: list[str]) -> Path:
    """Fetch what `patterns` name into the hub's cache, save what is there already; return its folder."""
    begun = False
    try:
        for path in list_unfinished():
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink(missing_ok=True)
        plan = snapshot_download(repo_id, allow_patterns=patterns, dry_run=True, tqdm_class=Unseen)
        if not plan:
            raise MissingFile(f"The hub's {repo_id} holds no model of this kind. Check the hub id.")
        check_space(sum(file.file_size or 0 for file in plan if file.will_download), repo_id)
        begun = True
        folder = Path(snapshot_download(repo_id, allow_patterns=patterns))
        damaged = list_damaged(repo_id, folder)
        for path in damaged:
            path.resolve().unlink()  # the cache's blob, then the name that leads to it
            path.unlink(missing_ok=True)
        return Path(snapshot_download(repo_id, allow_patterns=patterns)) if damaged else folder
    except FAILURES as error:
        raise explain(error, repo_id, begun) from None


def list_damaged(repo_id: str, folder: Path) -> list[Path]:
    """Files in a snapshot's folder whose size is not the one the hub told: pointers, cut or emptied files."""
    try:
        files = get_cached_repo_tree(repo_id)
    except CachedRepoTreeNotFoundError:
        return []
    there = [(folder / file.path, file.size) for file in files]
    return [path for path, size in there if path.is_file() and path.stat().st_size != size]


def list_unfinished() -> set[Path]:
    """What downloads under way, and those that were killed, have in the hub's cache."""
    return set(Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*.incomplete"))


def count_fetched(repo_id: str) -> int:
    """Bytes of a repository that the hub's cache holds, unfinished files included."""
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    sizes = []
    for path in blobs.glob("*"):
        with suppress(FileNotFoundError):  # an unfinished file that has just become a finished one
            sizes.append(path.stat().st_size)
    return sum(sizes)


def fetch_file(url: str, path: Path, name: str) -> Path:
    """Fetch one file from outside the hub to `path`: resumed where it was cut, whole or not there at all."""
    part = path.with_name(f"{path.name}.part")
    begun = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            begun = stream.tell() > 0
            http_get(url, stream, resume_size=stream.tell(), displayed_filename=path.name)
    except FAILURES as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 416:  # nothing is left to send
            part.unlink()  # from a run that ended between the last byte and the renaming below
            return fetch_file(url, path, name)
        raise explain(error, name, begun) from None
    with part.open("rb") as stream:
        intruder = name_intruder(stream.read(START))
    if intruder is not None:
        part.unlink()
        raise BrokenFile(
            f"What came in place of {name} {intruder}. Check the network's login page, then try again."
        )
    return part.replace(path)


def check_space(needed: int, name: str) -> None:
    """Refuse a download that the disk of the hub's cache cannot hold, before it begins."""
    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise disk_full(name, f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")


def disk_full(name: str, figures: str) -> DownloadError:
    return DownloadError(
        f"The disk is too full for {name}: {figures}. Free some space, or set HF_HOME to a folder on a "
        f"larger disk. {AGAIN}"
    )


def explain(error: Exception, name: str, begun: bool) -> InfuError:
    """The sentence for a failed download of `name`. `begun`: the first bytes had arrived."""
    if isinstance(
        error, LocalEntryNotFoundError | DryRunError
    ):  # the hub's wrappers; what happened is within
        error = error.__cause__ or error
    if isinstance(error, HfHubHTTPError):
        return explain_answer(error, name)
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadError(
            f"{name} is not here, or not all of it, and HF_HUB_OFFLINE forbids fetching it. "
            "Unset HF_HUB_OFFLINE and run `python -m infu download` once; after that it works offline."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left" in str(error):
        return disk_full(name, "it filled up while downloading")
    if isinstance(error, PermissionError) or isinstance(error, OSError) and error.errno == errno.EROFS:
        return DownloadError(
            f"{name} cannot be stored: the cache folder may not be written to. "
            "Set HF_HOME (for ArcFace: INFU_CACHE) to a folder that may."
        )
    if begun:
        return DownloadError(f"The download of {name} broke off. {AGAIN}")
    return DownloadError(
        f"The server that holds {name} cannot be reached. Check the network connection, and behind a proxy "
        "HTTPS_PROXY. A model that is here already works without a network."
    )


def explain_answer(error: HfHubHTTPError, name: str) -> DownloadError:
    """The sentence for a refusal by the server."""
    status, token = error.response.status_code, get_token()
    if status == 401 and token:
        return DownloadError(
            f"The hub does not accept your token (expired, deleted or mistyped). For a new one, {TOKEN}."
        )
    if isinstance(error, GatedRepoError) and not token:
        return DownloadError(
            f"{name} is behind a licence and you are not logged in to the hub. Accept the licence at "
            f"huggingface.co/{name}; then, for a token, {TOKEN}."
        )
    if isinstance(error, GatedRepoError) and "fine-grained" in (error.server_message or str(error)):
        return DownloadError(
            f"Your token may not read {name}: at huggingface.co/settings/tokens allow it "
            '"read access to contents of all public gated repos you can access", then try again.'
        )
    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"Your account has not accepted the licence of {name}, or access is not granted yet. "
            f"Open huggingface.co/{name} in a browser, accept it, and try again."
        )
    if isinstance(error, RepositoryNotFoundError):
        private = (
            "or it is private and your account may not see it" if token else f"or it is private: then {TOKEN}"
        )
        return DownloadError(f"There is no {name} here or on the hub. Check the spelling, {private}.")
    if isinstance(error, DisabledRepoError):
        return DownloadError(f"The hub has disabled {name}. Give another hub id, or a folder.")
    if status == 429:
        return DownloadError(
            f"The hub has had too many requests. Wait some minutes, or log in: {TOKEN}. {AGAIN}"
        )
    if status >= 500:
        return DownloadError(
            f"The server that holds {name} is out of order (status {status}). Wait some minutes. {AGAIN}"
        )
    return DownloadError(
        f"The server refuses {name} (status {status}). Check its page in a browser, and the network's proxy."
    )
