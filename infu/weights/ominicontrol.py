"""OminiControl's adapters (arXiv 2411.15098): LoRAs for the condition tokens alone, read as any LoRA is."""

import re
from collections.abc import Mapping
from dataclasses import replace

from infu.errors import BrokenFile
from infu.weights.changes import Change, Changes
from infu.weights.files import fold
from infu.weights.lora import TRANSFORMER, LoraFile

SEEN = re.compile(  # the modules that a condition's tokens pass: the image's, and what is one for all
    r"x_embedder|transformer_blocks\.\d+\.(norm1|attn\.(to_|norm_[qk]$)|ff\.).*|single_transformer_blocks\..*"
)


def read_adapter(file: LoraFile) -> Changes:
    """What an adapter does to the base's modules, at strength 1 whatever alpha it stores, as released.

    Raises `BrokenFile` for a LoRA that also changes what no condition token passes.
    """
    changes: Mapping[str, Change] = file.changes[TRANSFORMER]
    others = [name for name in changes if not SEEN.fullmatch(name)]
    if others or file.changes_text or file.control is not None:
        held = fold(others) or "a text encoder" if file.control is None else "a control picture's latents"
        raise BrokenFile(
            f"{file.name} is a LoRA for the whole model, not OminiControl's: it also changes {held}. "
            "Use it as Lora(path), or --lora FILE."
        )
    return {name: replace(change, factor=1.0) for name, change in changes.items()}
