"""What often lies under a model file's name and is none: the one place that knows."""

START = 64  # bytes of a file that are enough to tell
LFS_POINTER = b"version https://git-lfs"


def name_intruder(start: bytes) -> str | None:
    """The first bytes of a file -> what it is instead of a model, as the rest of a sentence; None: nothing
    that is known here."""
    if not start:
        return "is empty"
    if start.startswith(LFS_POINTER):
        return "is a Git-LFS pointer, not the file itself (run `git lfs pull`)"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not a model (a login or error page was saved under its name)"
    return None
