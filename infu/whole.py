"""Files that are there whole or not at all, and folders that can be made: what a killed worker leaves is
never half of something."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from infu.errors import InfuError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` gets a path of its own beside `path`, which then takes its name. Raises `InfuError`."""
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except OSError as error:
        raise InfuError(
            f"{path.name} cannot be written: {error.strerror or error}. Make room, or choose another folder."
        ) from None
    finally:
        part.unlink(missing_ok=True)
