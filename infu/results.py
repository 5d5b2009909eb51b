"""Pictures -> files in a folder, named as the released program names them."""

import os
from pathlib import Path

from infu.errors import InfuError
from infu.metadata import save_picture
from infu.pipeline import Result
from infu.request import GenerationRequest

PROMPT_SHOWN = 150  # characters of the prompt in a picture's file name, as released
NAME_BYTES = 255  # what file systems allow


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfuError(
            f"The folder for the pictures cannot be made: {error.strerror}. Choose another --out_results_dir."
        ) from None


def write_picture(result: Result, request: GenerationRequest, folder: Path) -> Path:
    """Write a picture whole or not at all, under the released program's name for it."""
    path = name_picture(request, result.seed, folder)
    part = folder / f".{os.getpid()}.part"
    try:
        save_picture(result.image, part, result.metadata)
        return part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InfuError(
            f"The picture cannot be written: {error.strerror}. "
            "Make room, or choose another --out_results_dir."
        ) from None


def name_picture(request: GenerationRequest, seed: int, folder: Path) -> Path:
    """`{index:05d}_{id stem}_{prompt}_seed{seed}.png`, as released; never a name that is taken."""
    prompt = request.prompt
    if len(prompt) > PROMPT_SHOWN:
        prompt = prompt[:PROMPT_SHOWN] + "*"
    prompt = "".join("|" if c == "/" else c if c.isprintable() else " " for c in prompt)
    index = len(os.listdir(folder))
    while True:
        start = f"{index:05d}_" + "".join(f"{Path(photo).stem}_" for photo in request.photos[:1])
        end = f"_seed{seed}.png"
        shown = prompt.encode("utf-8", "replace")[
            : NAME_BYTES - len((start + end).encode("utf-8", "replace"))
        ]
        path = folder / (start + shown.decode("utf-8", "ignore") + end)
        if not path.exists():
            return path
        index += 1
