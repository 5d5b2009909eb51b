"""What a model needs is counted from its files; what a machine has, asked of the machine."""

import json
import math
from pathlib import Path

import psutil
import pytest
from golden import FOLDERS, GOLDEN
from safetensors.numpy import load_file

from infu.memory import RELEASED, fits, memory_needed, read_machine, read_network, read_networks
from infu.models import locate

MANIFESTS = {
    "transformer": "flux1_dev_transformer",
    "infusenet": "infusenet",
    "text_encoder_2": "t5_xxl",
    "text_encoder": "clip_l",
    "vae": "vae",
    "projection": "image_proj",
}


@pytest.mark.parametrize("part", MANIFESTS)
def test_released_sizes_are_the_released_checkpoints(part: str):
    shapes = json.loads((Path(__file__).parent / "manifests" / f"{MANIFESTS[part]}.json").read_text())
    shapes.pop("encoder.embed_tokens.weight", None)  # T5's `shared.weight` under its other name
    assert RELEASED[part].total == sum(map(math.prod, shapes.values()))
    assert RELEASED[part].block >= max(map(math.prod, shapes.values()))


def test_sizes_of_files_are_counted_to_the_number():
    files = locate(**FOLDERS)
    networks = read_networks(files)
    for part in ("transformer", "infusenet", "vae", "text_encoder", "text_encoder_2"):
        tensors = load_file(next(getattr(files, part).glob("*.safetensors")))
        assert networks[part].total == sum(
            t.size for n, t in tensors.items() if n != "encoder.embed_tokens.weight"
        )
    assert networks["transformer"].width == 64 and networks["vae"].width == 16


def test_weights_are_what_the_pytorch_backend_holds():
    from backends import load_backend

    backend = load_backend("pytorch", **FOLDERS, dtype="float32")
    held = {"transformer": backend._dit, "infusenet": backend._infusenet, "text_encoder_2": backend._t5}
    parts = memory_needed(locate(**FOLDERS), dtype="float32")["parts"]
    for part, resident in held.items():
        assert parts[part] == pytest.approx(
            resident.nbytes, rel=0.02
        )  # buffers, such as rotary tables, come on top


@pytest.mark.parametrize(
    ("quantize", "offload", "measured"),  # GB, the released program's README: bfloat16, an 80 GB card
    [(None, None, 43), (None, "model", 30), (8, None, 24), (8, "model", 16)],
)
def test_needs_are_near_what_the_released_program_measured(quantize, offload, measured):
    needed = memory_needed(None, "bfloat16", quantize, offload)
    assert needed["device"] / 1e9 == pytest.approx(
        measured, rel=0.2
    )  # its offloading moves other parts than ours


def test_each_choice_that_saves_memory_needs_less():
    needs = [memory_needed(None, "bfloat16", quantize)["device"] for quantize in (None, 8, 6, 4, 3)]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == 5
    for quantize in (None, 8, 4):
        kept, moved, layered = (
            memory_needed(None, "bfloat16", quantize, o) for o in (None, "model", "sequential")
        )
        assert kept["device"] > moved["device"] > layered["device"]
        assert moved["main"] == moved["weights"]
    assert memory_needed(None, "float32")["weights"] == 2 * memory_needed(None, "bfloat16")["weights"]


def test_a_quantised_folder_is_counted_as_it_is_stored(tmp_path: Path):
    from backends.mlx.save import save_quantised

    save_quantised(locate(**FOLDERS), tmp_path / "packed", 4)
    stored = memory_needed(
        locate(tmp_path / "packed" / "base", tmp_path / "packed" / "InfiniteYou"), "float32"
    )
    for part in ("transformer", "text_encoder_2"):
        file = tmp_path / "packed" / "base" / part / "model.safetensors"
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert stored["parts"][part] == file.stat().st_size - header
    computed = memory_needed(locate(**FOLDERS), "bfloat16", quantize=4)["parts"]["transformer"]
    assert computed == pytest.approx(
        stored["parts"]["transformer"], rel=0.15
    )  # groups of 32 where 64 do not divide


def test_a_larger_picture_needs_more_beside_the_same_weights():
    small, large = memory_needed(None, width=512, height=512), memory_needed(None, width=2048, height=2048)
    assert small["weights"] == large["weights"] and small["working"] < large["working"]


def test_a_file_without_a_readable_header_counts_as_released(tmp_path: Path):
    file = tmp_path / "flux1-dev-Q4_K_S.gguf"
    file.write_bytes(b"GGUF")
    assert read_network("transformer", file) == RELEASED["transformer"]


def test_a_projection_is_counted_by_its_file():
    path = GOLDEN / "InfiniteYou" / "infu_flux_v1.0" / "aes_stage2" / "image_proj_model.bin"
    assert (
        read_network("projection", path).total == path.stat().st_size // 4
    )  # float32, and a few bytes of names


def test_the_machine_says_its_memory_and_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plain = read_machine()
    assert plain["memory"] == psutil.virtual_memory().total and plain["device_memory"] is None
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\n[ "$1" = --id=1 ] && echo "NVIDIA H100 80GB HBM3, 81559"\n')
    driver.chmod(0o755)
    assert read_machine()["device_memory"] is None  # card 0 is not there
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert (read_machine()["device"], read_machine()["device_memory"]) == (
        "NVIDIA H100 80GB HBM3",
        81559 << 20,
    )


def test_a_card_needs_its_own_memory_and_main_memory_beside():
    card = {"memory": 64e9, "usable": 64e9, "device": "card", "device_memory": 48e9}
    assert fits(memory_needed(None), card)
    assert not fits(memory_needed(None, "float32"), card)
    assert not fits(memory_needed(None, offload="model"), card | {"usable": 32e9})  # the weights rest there
    assert fits(memory_needed(None, quantize=4), {"usable": 24e9, "device_memory": None})
    assert not fits(memory_needed(None), {"usable": 24e9, "device_memory": None})
