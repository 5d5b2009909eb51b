"""What the environment says of the place: a Hugging Face Space, one on ZeroGPU, a page for the public."""

import os

from infu.memory import read_nvidia
from infu.models import BASE, INFINITE_YOU

YES = ("1", "t", "true", "yes")
PATHS = ("base_model_path", "model_dir", "transformer_path", "infusenet_path")


def on_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def on_zero() -> bool:
    """Whether GPUs are lent call by call (https://huggingface.co/docs/hub/spaces-zerogpu)."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in YES


def wants_compiled() -> bool:
    """Whether blocks are compiled at the start on ZeroGPU: INFU_AOTI."""
    return on_zero() and os.environ.get("INFU_AOTI", "").lower() in YES


def is_public() -> bool:
    """Whether the page is open to people who may not name files of this machine or models of the hub.
    INFU_PUBLIC decides; without it every Space is public."""
    told = os.environ.get("INFU_PUBLIC")
    return told.lower() in YES if told else on_space()


def choose_model(options: dict) -> dict:
    """`load_backend`'s options, with the real model on a Space that has a GPU and was told no other."""
    if on_space() and not any(options.get(name) for name in PATHS) and (on_zero() or read_nvidia()):
        return options | {"base_model_path": BASE, "model_dir": INFINITE_YOU}
    return options
