"""Coverage-guided fuzzing of the readers of weight files, some seconds each; longer runs: fuzz_reader.py.

What it once found stands below as files of their own.
"""

import io
import json
import os
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import save

from backends.mlx import load as mlx_load
from backends.pytorch import load as torch_load
from infu.errors import BrokenFile
from infu.weights.checkpoint import HINTS, SCALES
from infu.weights.files import DTYPES, open_weights
from infu.weights.lora import PREFIXES
from infu.weights.lora_module import ENDINGS

READERS = ("safetensors", "gguf", "torch", "lora")
SECONDS = 7  # for each reader
WORDS = (
    *(f'"{kind}"' for kind in DTYPES), *(ending for endings in ENDINGS.values() for ending in endings),
    *SCALES, *HINTS, *(prefix for prefix, *_ in PREFIXES), '"dtype":', '"shape":[', '"data_offsets":[',
    '"__metadata__":{', "null", "true", "1e999", "\\ud800",
)  # fmt: skip


def make_gguf(path: Path) -> None:
    writer = GGUFWriter(path, "flux")
    writer.add_array("comfy.gguf.orig_shape.txt_in.weight", [4, 8])
    writer.add_tensor("img_in.weight", np.ones((4, 4), np.float32))
    for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
        name = f"double_blocks.0.img_mlp.{kind.value}.weight"
        writer.add_tensor(name, quantize(np.ones((2, 32), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_torch(**options) -> bytes:
    stream = io.BytesIO()
    tensors = {"img_in.weight": torch.ones(2, 2), "b": torch.ones(3, dtype=torch.bfloat16)}
    torch.save({"state_dict": tensors, "step": 3}, stream, **options)
    return stream.getvalue()


def make_lora() -> bytes:
    fused, plain = "lora_unet_double_blocks_0_img_attn_qkv", "transformer.x_embedder"
    tensors = {f"{fused}.lora_down.weight": torch.ones(1, 4), f"{fused}.lora_up.weight": torch.ones(12, 1)}
    tensors |= {f"{fused}.alpha": torch.tensor(2.0), f"{fused}.dora_scale": torch.ones(12, 1)}
    tensors |= {f"{plain}.lora_A.weight": torch.ones(1, 8), f"{plain}.lora_B.weight": torch.ones(4, 1)}
    tensors |= {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lokr_w1": torch.ones(2, 2)}
    tensors |= {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lokr_w2": torch.ones(2, 2)}
    return header_of(save(tensors, {"ss_network_alpha": "4"}))


def header_of(file: bytes) -> bytes:
    return file[8 : 8 + int.from_bytes(file[:8], "little")].rstrip()


def make_scaled() -> bytes:
    start = "model.diffusion_model.img_in"
    tensors = {f"{start}.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), f"{start}.bias": torch.ones(2)}
    tensors |= {f"{start}.scale_weight": torch.ones(1), "vae.decoder.conv_in.bias": torch.ones(2)}
    notes = {"layers": {"img_in": {"format": "float8_e4m3fn"}}}
    return header_of(save(tensors, {"_quantization_metadata": json.dumps(notes)}))


def make_seeds(kind: str, folder: Path) -> None:
    """Small whole files to begin with."""
    if kind == "gguf":
        make_gguf(folder / "a")
    elif kind == "torch":
        (folder / "a").write_bytes(make_torch())
        (folder / "b").write_bytes(make_torch(_use_new_zipfile_serialization=False))
    else:
        (folder / "a").write_bytes(make_lora() if kind == "lora" else make_scaled())


@pytest.mark.parametrize("kind", READERS)
def test_whatever_stands_in_a_file_it_is_read_or_refused_in_words(kind, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    make_seeds(kind, corpus)
    words = [w.replace("\\", "\\\\").replace('"', '\\"') for w in WORDS if w]
    (tmp_path / "words").write_text("".join(f'"{word}"\n' for word in words))
    script = Path(__file__).with_name("fuzz_reader.py")
    limits = (
        f"-max_total_time={SECONDS}",
        "-timeout=60",
        "-rss_limit_mb=3000",
        "-max_len=8192",
        f"-dict={tmp_path}/words",
    )
    done = subprocess.run(
        [sys.executable, script, kind, corpus, *limits,
         f"-dict={tmp_path}/words", f"-artifact_prefix={tmp_path}/"],
        env=os.environ | {"PYTHONPATH": str(script.parents[1])}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done" in done.stderr and len(list(corpus.iterdir())) > 2  # it found its way into the code


# What it, or a look at what it had not reached, found.

PLAIN = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "notes that are no dict": {"__metadata__": "abc", "a": PLAIN},
    "notes that are a list": {"__metadata__": [1], "a": PLAIN},
    "half a character": {"a\ud800": PLAIN},
    "a terminal's command": {"a\x1b[2J": PLAIN},
    "a name of a page": {"a" * 5000: PLAIN},
    "65 axes": {"a": PLAIN | {"shape": [1] * 65}},
    "a kind of a page": {"a": PLAIN | {"dtype": "F" * 5000}},
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_fuzzing_found_are_refused_in_a_line(tmp_path, name):
    raw = json.dumps(HEADERS[name]).encode()
    (tmp_path / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    with pytest.raises(BrokenFile) as refused:
        open_weights(tmp_path / "a.safetensors")
    assert len(str(refused.value)) < 120 and str(refused.value).isprintable()


LARGE = 17 << 20  # bytes of a header: all of it real, and parsed it would take a hundred times as much


def test_headers_of_many_megabytes_are_refused_unread(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(LARGE.to_bytes(8, "little") + b"{" + b" " * (LARGE + 100))
    with pytest.raises(BrokenFile, match="a header of 17 MB"):
        open_weights(tmp_path / "a.safetensors")
    list_of_bytes = struct.pack("<QcIIQ", 1, b"k", 9, 0, 1 << 20) + bytes(1 << 20)
    for entries in (17, 1):  # one is read
        start = struct.pack("<4sIQQ", b"GGUF", 3, 0, entries)
        (tmp_path / f"{entries}.gguf").write_bytes(start + entries * list_of_bytes)
    assert open_weights(tmp_path / "1.gguf").metadata == {"k": [0] * (1 << 20)}
    with pytest.raises(BrokenFile, match="damaged header"):
        open_weights(tmp_path / "17.gguf")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_of_instructions_without_end_is_refused(tmp_path, legacy):
    torch.save({"a": "b" * LARGE}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BrokenFile, match="a.pt"):
        open_weights(tmp_path / "a.pt")


def nested(depth: int) -> dict:
    """A dict of two names for a dict of two names ...: small in a file, 2**depth when written out."""
    values = {"a": torch.ones(1)}
    for _ in range(depth):
        values = {"a": values, "b": values}
    return values


@pytest.mark.parametrize(
    "values", [nested(40), {"a\n": torch.ones(1)}, [torch.ones(1)]], ids=lambda v: str(type(v))
)
def test_torch_files_that_fuzzing_found_are_refused_in_a_line(tmp_path, values):
    torch.save(values, tmp_path / "a.pt")
    with pytest.raises(BrokenFile, match="tensors by name"):
        open_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "load", [mlx_load.load_projection, partial(torch_load.load_projection, device="cpu")]
)
def test_a_projection_that_is_no_dict_is_refused(tmp_path, load):
    torch.save([torch.ones(1)], tmp_path / "image_proj_model.bin")
    with pytest.raises(BrokenFile, match="image_proj_model.bin holds no tensors by name"):
        load(tmp_path / "image_proj_model.bin", dtype=None)


def test_a_state_dict_beside_a_tensor_of_that_name_is_read(tmp_path):
    torch.save({"state_dict": torch.ones(2), "m": {"x": torch.ones(3)}}, tmp_path / "a.pt")
    weights = open_weights(tmp_path / "a.pt")
    assert {name: array.shape for name, array in weights.items()} == {"state_dict": (2,), "m.x": (3,)}
