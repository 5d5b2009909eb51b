"""The golden base with a face model of ours, in a folder, and the tiny plug-ins as `download` leaves them."""

import json
import shutil
from pathlib import Path

import torch
from golden import GOLDEN

PROJECTION = "infu_flux_v1.0/aes_stage2/image_proj_model.bin"
EMBEDDING = 192  # numbers of the embedded recogniser's vector; golden's model takes ArcFace's 512
HUB = {  # a hub repository -> where its tiny files are
    "XLabs-AI/flux-ip-adapter-v2": {"ip_adapter.safetensors": "plugins/ip_adapter.safetensors"},
    "openai/clip-vit-large-patch14": {
        name: f"plugins/image_encoder/{name}"
        for name in ("config.json", "preprocessor_config.json", "model.safetensors")
    },
    "XLabs-AI/flux-controlnet-collections": {
        "flux-canny-controlnet-v3.safetensors": "plugins/xlabs_controlnet.safetensors"
    },
    "guozinan/PuLID": {
        name: f"pulid/checkpoint/{name}" for name in ("config.json", "pulid_flux_v0.9.1.safetensors")
    },
    "Yuanshi/OminiControl": {"omini/subject_512.safetensors": "ominicontrol/subject.safetensors"},
}


def make_model(folder: Path) -> list[str]:
    """InfiniteYou's folder for the golden base, with a projection that takes the embedded recogniser's
    vectors -> the options that load both."""
    shutil.copytree(GOLDEN / "InfiniteYou", folder)
    (folder / "supports").mkdir()
    (folder / "supports/face_stack.json").write_text(json.dumps({"stack": "embedded"}))
    weights = torch.load(folder / PROJECTION, weights_only=True)
    inner = weights["image_proj"]
    inner["proj_in.weight"] = inner["proj_in.weight"][:, :EMBEDDING].clone()
    torch.save(weights, folder / PROJECTION)
    return ["--base_model_path", str(GOLDEN / "base"), "--model_dir", str(folder)]


def fill_hub(home: Path) -> None:
    """The hub's cache under HF_HOME, with the repositories of `HUB`."""
    for repo, files in HUB.items():
        cache = home / "hub" / f"models--{repo.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs/main").write_text("a" * 40)
        for name, source in files.items():
            path = cache / "snapshots" / ("a" * 40) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(GOLDEN / source, path)
