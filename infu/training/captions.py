"""Captions: what stands beside a picture, or what a vision-language model of transformers says of it."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from infu.errors import ModelError
from infu.training.measure import Refused

FILE = "file"  # in a list of captioners: what stands beside the picture
LONGEST = 77  # tokens that a model may write


class Captioners:
    """Several of them, of which each picture gets one, always the same: the paper mixes captions so."""

    def __init__(self, names: Sequence[str], prompt: str, device: str):
        """`names`: "file", or a folder or hub id of a model. Raises `ModelError`."""
        self._names = names
        self._models = {name: VisionModel(name, prompt, device) for name in names if name != FILE}

    def __call__(self, name: str, picture: np.ndarray, beside: str | None) -> tuple[str, str]:
        """The picture's name, uint8 RGB, the caption beside it -> a caption, and whose it is. Raises
        `Refused`."""
        usable = [captioner for captioner in self._names if captioner != FILE or beside]
        if not usable:
            raise Refused("no caption")
        chosen = usable[zlib.crc32(name.encode()) % len(usable)]
        return (beside if chosen == FILE else self._models[chosen](picture)), chosen


class VisionModel:
    """BLIP-2, InternVL or any other model that transformers loads for image, text -> text."""

    def __init__(self, name: str, prompt: str, device: str):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        try:
            self._processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError) as error:
            short = " ".join(str(error).split())[:200]
            raise ModelError(f"The captioning model {name!r} cannot be loaded: {short}") from None
        self._model = model.to(device).eval()
        self._chats = bool(getattr(self._processor, "chat_template", None))
        self._prompt = prompt

    @torch.inference_mode()
    def __call__(self, picture: np.ndarray) -> str:
        """uint8 RGB (H, W, 3) -> a sentence, chosen greedily: the same picture, the same words."""
        image = Image.fromarray(picture)
        if self._chats:
            content = [{"type": "image", "image": image}, {"type": "text", "text": self._prompt}]
            inputs = self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            inputs = self._processor(images=image, return_tensors="pt")
        inputs = inputs.to(self._model.device, self._model.dtype)
        ids = self._model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        if self._model.config.is_encoder_decoder is False and self._chats:
            ids = ids[:, inputs["input_ids"].shape[1] :]  # what follows the question
        text = self._processor.batch_decode(ids, skip_special_tokens=True)[0]
        return " ".join(text.split())
