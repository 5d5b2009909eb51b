"""What a worker does with a unit of photographs: stage 1's samples are the photographs themselves, stage 2's
are pictures of their people. Each unit's shards come first and its report last: a unit with a report is done,
and a worker that dies leaves a unit that another does over, picture by picture where it stopped."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infu import GenerationRequest, Lora, generate
from infu.errors import NoFaceError, PhotoError
from infu.metadata import save_picture
from infu.training.captions import Captioners
from infu.training.config import DataSettings
from infu.training.encode import Encoder, Examiner, Portrait, load_faces
from infu.training.measure import (
    Refused,
    check_limits,
    load_hook,
    measure_angles,
    measure_crowd,
    measure_sharpness,
)
from infu.training.shards import Encoded, write_shard
from infu.training.sources import RawPhoto, Unit, read_unit
from infu.whole import write_whole

REPORTS, PICTURES = "reports", "pictures"


class PhotoWorker:
    """Stage 1 (SPSS): a photograph is source and target."""

    def __init__(self, settings: str):
        """`settings`: a `DataSettings` as JSON, since it crosses to another machine."""
        self.settings = DataSettings.model_validate_json(settings)
        self.encoder = Encoder(self.settings)
        self.faces = load_faces(self.settings.faces)
        self._examine = Examiner(self.settings, self.faces)
        names = [] if self.settings.pictures else self.settings.captions
        self._caption = Captioners(names, self.settings.caption_prompt, self.encoder.backend.device)

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        """{"unit": a `Unit` as JSON} -> its name, and how many samples were kept, and why others were not."""
        unit = Unit.from_json(row["unit"])
        path = self.settings.out / REPORTS / f"{unit.name}.jsonl"
        if not path.is_file():
            lines = list(self._write_unit(unit))
            write_whole(path, lambda part: part.write_text("".join(json.dumps(x) + "\n" for x in lines)))
        return summarise(path)

    def _write_unit(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """Writes the unit's shards -> the lines of its report: of each sample its scores, and why it was left
        out, or None."""
        waiting: dict[tuple[int, int], list[Encoded]] = {}
        written = 0
        for raw in read_unit(unit):
            for outcome in self.make_samples(raw, unit):
                if isinstance(outcome, Refused):
                    scores = outcome.scores
                    yield {
                        "name": raw.name,
                        "reason": outcome.reason,
                        "detail": outcome.detail,
                        "scores": scores,
                    }
                    continue
                yield {"name": outcome.row["name"], "reason": None, "scores": outcome.row["scores"]}
                group = waiting.setdefault(outcome.size, [])
                group.append(outcome)
                if len(group) == self.settings.per_unit:
                    write_shard(self.settings.out, f"{unit.name}-{written:04d}", group)
                    written += 1
                    group.clear()
        for group in waiting.values():
            if group:
                write_shard(self.settings.out, f"{unit.name}-{written:04d}", group)
                written += 1

    def make_samples(self, raw: RawPhoto, unit: Unit) -> Iterator[Encoded | Refused]:
        try:
            portrait = self._examine(raw)
            yield from self._use(portrait, raw, unit)
        except Refused as refusal:
            yield refusal

    def _use(self, portrait: Portrait, raw: RawPhoto, unit: Unit) -> Iterator[Encoded | Refused]:
        caption, captioner = self._caption(raw.name, portrait.picture, raw.caption)
        row = {"captioner": captioner, "scores": portrait.scores}
        yield self.encoder(raw.name, portrait.picture, portrait.keypoints, portrait.embedding, caption, row)


class PersonWorker(PhotoWorker):
    """Stage 2 (SPMS): a real face is the source, synthetic pictures of that person are the targets."""

    def __init__(self, settings: str):
        super().__init__(settings)
        wanted = self.settings.pictures
        self._wanted = wanted
        self._prompts = read_prompts(wanted.prompts)
        self._loras = tuple(Lora(lora.path, lora.scale) for lora in wanted.loras)
        self._enhance = load_hook(wanted.enhancer) if wanted.enhancer else None
        self._aesthetics = load_hook(wanted.aesthetics) if wanted.aesthetics else None
        self._swap: Callable | None = None
        if wanted.swap is not None:
            from infu.training.swap import FaceSwap

            self._swap = FaceSwap(wanted.swap.model, wanted.swap.recogniser)

    def _use(self, portrait: Portrait, raw: RawPhoto, unit: Unit) -> Iterator[Encoded | Refused]:
        for k in range(self._wanted.per_person):
            name = f"{raw.name}/{k}"
            draw = zlib.crc32(name.encode())  # prompt, size and seed: the same wherever it is made
            prompt = self._prompts[draw % len(self._prompts)]
            try:
                picture = self._find_or_make(portrait, prompt, draw, unit, name)
                keypoints, scores = self._judge(picture, portrait)
                row = {"captioner": "prompt", "seed": draw, "scores": scores}
                yield self.encoder(name, picture, keypoints, portrait.embedding, prompt, row)
            except Refused as refusal:
                yield refusal

    def _find_or_make(self, portrait: Portrait, prompt: str, draw: int, unit: Unit, name: str) -> np.ndarray:
        """The picture, from its file where a worker made it before: none is made twice."""
        path = self.settings.out / PICTURES / unit.name / f"{draw:08x}.png"
        if not path.is_file():
            buckets = self._examine.buckets
            width, height = buckets[draw // len(self._prompts) % len(buckets)]
            request = GenerationRequest(
                prompt=prompt,
                id_embedding=portrait.embedding,
                width=width,
                height=height,
                seed=draw,
                num_steps=self._wanted.num_steps,
                guidance_scale=self._wanted.guidance_scale,
                max_sequence_length=self.settings.max_sequence_length,
                plugins=self._loras,
            )
            result = generate(request, self.encoder.backend)
            image = self._improve(np.asarray(result.image), portrait)
            write_whole(
                path,
                lambda part: save_picture(Image.fromarray(image), part, result.metadata | {"name": name}),
            )
        return np.array(Image.open(path).convert("RGB"))

    def _improve(self, picture: np.ndarray, portrait: Portrait) -> np.ndarray:
        if self._swap is not None:
            found = self.faces.find(picture)
            if found:
                own = self.faces.find_one(portrait.photo)
                picture = self._swap(picture, found[0].keypoints, portrait.photo, own.keypoints)
        return picture if self._enhance is None else self._enhance(picture)

    def _judge(self, picture: np.ndarray, portrait: Portrait) -> tuple[np.ndarray, dict[str, float]]:
        """A synthetic picture -> its five points and all its scores. Raises `Refused`."""
        try:
            face = self.faces.find_one(picture)
        except (NoFaceError, PhotoError):
            raise Refused("no face in the synthetic picture") from None
        yaw, pitch, roll = measure_angles(face.keypoints)
        scores = {
            "likeness": float(self.faces.embed([picture]) @ portrait.embedding),
            "yaw": yaw,
            "pitch": pitch,
            "roll": roll,
            "crowd": measure_crowd(self.faces.find(picture)),
            "sharpness": measure_sharpness(self.faces.crop(picture, face)),
        }
        if self._aesthetics is not None:
            scores["aesthetics"] = float(self._aesthetics(picture))
        wanted = self._wanted
        least = {"likeness": wanted.min_likeness, "aesthetics": wanted.min_aesthetics}
        most = {"yaw": wanted.max_yaw, "pitch": wanted.max_pitch, "roll": wanted.max_roll}
        check_limits(scores, least, most | {"crowd": self.settings.filters.max_crowd})
        return face.keypoints, scores


def read_prompts(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def summarise(path: Path) -> dict[str, Any]:
    """A unit's report -> how many samples were kept, and how many left out for each reason."""
    reasons: dict[str, int] = {}
    for line in path.read_text().splitlines():
        reason = json.loads(line)["reason"] or ""
        reasons[reason] = reasons.get(reason, 0) + 1
    return {"unit": path.stem, "kept": reasons.pop("", 0), "reasons": json.dumps(reasons)}
