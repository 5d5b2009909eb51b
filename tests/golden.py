"""The golden cases: requests, noise and pictures of the released pipeline (tests/golden/README.md)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infu import GenerationRequest, Lora

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {"base_model_path": GOLDEN / "base", "model_dir": GOLDEN / "InfiniteYou"}
PEFT, KOHYA = GOLDEN / "lora_peft.safetensors", GOLDEN / "lora_kohya.safetensors"
LORA_CASES = {
    "peft": (Lora(PEFT, 0.8),),
    "kohya": (Lora(KOHYA, 0.8),),
    "both": (Lora(PEFT, 0.5), Lora(KOHYA, 1.0)),
}


@dataclass(frozen=True, eq=False)
class Golden:
    """One case: what was asked, the noise (1, 16, h / 8, w / 8), and what came out."""

    request: GenerationRequest
    noise: np.ndarray
    image: np.ndarray  # float32 (h, w, 3) in 0..1
    arrays: dict[str, np.ndarray]


def read_golden(case: str) -> Golden:
    """`plain` or `control`, or `plain` with LoRAs: `peft`, `kohya`, `both`."""
    name = "plain" if case in LORA_CASES else case
    values = json.loads((GOLDEN / "cases.json").read_text())[name]
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    image = np.load(GOLDEN / "lora.npz")[case] if case in LORA_CASES else arrays["image"]
    request = GenerationRequest(
        prompt=values["prompt"],
        id_embedding=arrays["embedding"],
        control_keypoints=arrays["keypoints"] if len(arrays["keypoints"]) else None,
        width=values["w"],
        height=values["h"],
        seed=0,
        num_steps=values["steps"],
        guidance_scale=values["g"],
        infusenet_conditioning_scale=values["sc"],
        infusenet_guidance_start=values["st"],
        infusenet_guidance_end=values["en"],
        plugins=LORA_CASES.get(case, ()),
    )
    return Golden(request, arrays["noise"], image, arrays)
