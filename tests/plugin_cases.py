"""The golden cases of plug-ins: what was asked, and the latents that the released code made of it."""

import json
import re
from typing import Any

import numpy as np
from golden import GOLDEN

from infu import ControlNet, GenerationRequest, Person

PLUGINS = GOLDEN / "plugins"
NETWORKS = {"union": "union", "pro2": "pro2", "xlabs": "xlabs_controlnet.safetensors"}
RELEASED_OMINICONTROL = re.compile(  # the modules that its published adapters change
    r"x_embedder|transformer_blocks\.\d+\.(norm1\.linear|attn\.(to_[qkv]|to_out\.0)|ff\.net\.2)"
    r"|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])"
)


def read_case(name: str) -> tuple[GenerationRequest, dict[str, np.ndarray]]:
    """The request of a case, and its arrays (noise, latents, image, …)."""
    values = json.loads((PLUGINS / "cases.json").read_text())[name]
    arrays = dict(np.load(PLUGINS / f"{name}.npz"))
    asked: dict[str, Any] = {
        "prompt": values["prompt"],
        "width": values["w"],
        "height": values["h"],
        "seed": values["seed"],
        "num_images": len(arrays["noise"]),
        "num_steps": values["steps"],
        "guidance_scale": values["g"],
        "negative_prompt": values.get("neg_prompt"),
        "true_cfg_scale": values.get("true_gs", 1.0),
        "true_cfg_start_step": values.get("cfg_start", 0),
        "infusenet_guidance_start": values.get("st", 0.0),
        "infusenet_guidance_end": values.get("en", 1.0),
    }
    plugins: list[Any] = []
    if values["kind"] == "people":
        people = zip(arrays["masks"], arrays["embeddings"], arrays["keypoints"], values["sc"], strict=True)
        plugins += [
            Person(mask=mask, id_embedding=embedding, control_keypoints=keypoints, scale=scale)
            for mask, embedding, keypoints, scale in people
        ]
    elif "embedding" in arrays:
        asked["id_embedding"] = arrays["embedding"]
        asked["infusenet_conditioning_scale"] = values["sc"]
        asked["control_keypoints"] = values.get("keypoints")
    if "net" in values:
        window = {"start": values.get("cn_st", 0.0), "end": values.get("cn_en", 1.0)}
        path, mode = PLUGINS / NETWORKS[values["net"]], values.get("mode")
        plugins.append(ControlNet(path, arrays["hint"], values["cn_sc"], mode=mode, **window))
    return GenerationRequest(plugins=plugins, **asked), arrays
