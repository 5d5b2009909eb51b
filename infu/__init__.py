"""InfiniteYou: one photograph of a face and one sentence in, a new picture of that person out."""

from infu.errors import Cancelled, InfuError
from infu.face import find_faces
from infu.pipeline import generate
from infu.plugins import ControlNet, IPAdapter, Lora, OminiControl, Person, PuLID
from infu.request import GenerationRequest

__all__ = [
    "Cancelled",
    "ControlNet",
    "GenerationRequest",
    "IPAdapter",
    "InfuError",
    "Lora",
    "OminiControl",
    "Person",
    "PuLID",
    "find_faces",
    "generate",
]
