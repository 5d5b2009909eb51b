"""InfiniteYou: one photograph of a face and one sentence in, a new picture of that person out."""

from infu.errors import Cancelled, InfuError
from infu.face import find_faces
from infu.pipeline import generate
from infu.request import GenerationRequest, Lora

__all__ = ["Cancelled", "GenerationRequest", "InfuError", "Lora", "find_faces", "generate"]
