"""Weight files and LoRA files: read like safetensors' own reader, or refused in words."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from golden import FOLDERS, GOLDEN, KOHYA, PEFT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from infu.errors import BrokenFile, InfuError, MissingFile
from infu.weights.files import fold, open_weights
from infu.weights.lora import read_lora

FILE = GOLDEN / "base/vae/diffusion_pytorch_model.safetensors"


def test_tensors_are_those_of_safetensors_own_reader():
    weights, oracle = open_weights(FILE.parent), load_file(FILE)
    assert set(weights) == set(oracle)
    for name, tensor in oracle.items():
        assert weights[name].shape == tensor.shape
        assert np.array_equal(weights.read(name), tensor.numpy())


def test_numbers_numpy_does_not_have_are_read_bit_for_bit(tmp_path):
    kinds = {torch.bfloat16: ml_dtypes.bfloat16, torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn}
    kinds |= {torch.float8_e5m2: ml_dtypes.float8_e5m2, torch.float16: np.float16}
    tensors = {str(kind): torch.randn(3, 5).to(kind) for kind in kinds} | {"scalar": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "a.safetensors")
    weights = open_weights(tmp_path)
    for kind, ours in kinds.items():
        assert weights[str(kind)].dtype == ours
        assert np.array_equal(weights.read(str(kind)).astype(np.float32), tensors[str(kind)].float().numpy())
    assert weights.read("scalar").shape == () and weights.read("scalar") == 2.5


def make_shards(folder):
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    names = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    for name, file in names.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_shards_are_one_file(tmp_path):
    make_shards(tmp_path)
    assert set(open_weights(tmp_path)) == {"a", "b"}


def test_a_missing_shard_is_named(tmp_path):
    make_shards(tmp_path)
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingFile, match="m-00002-of-00002.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "index", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../../etc/passwd"}}']
)
def test_a_bad_index_is_refused(tmp_path, index):
    make_shards(tmp_path)
    (tmp_path / "m.safetensors.index.json").write_text(index)
    with pytest.raises(BrokenFile, match="index"):
        open_weights(tmp_path)


def header(**entry) -> bytes:
    raw = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
    return len(raw).to_bytes(8, "little") + raw


BROKEN = {
    "empty": (b"", "is empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git-LFS pointer"),
    "html": (b"<!DOCTYPE html><html>Log in</html>", "web page"),
    "zip": (b"PK\x03\x04" + b"\0" * 80, "pickle"),
    "pickle": (b"\x80\x04" + b"\x95" * 80, "pickle"),
    "huge header": ((1 << 62).to_bytes(8, "little") + b"{}", "not a safetensors file"),
    "header of nothing": ((2).to_bytes(8, "little") + b"[]", "damaged header"),
    "deep": ((100_000).to_bytes(8, "little") + b"[" * 100_000, "damaged header"),
    "truncated": (header() + b"\0" * 7, "truncated"),
    "lying shape": (header(shape=[1 << 40]) + b"\0" * 8, "damaged header"),
    "negative shape": (header(shape=[-1, -2]) + b"\0" * 8, "damaged header"),
    "infinite shape": (header(shape=[float("inf")]) + b"\0" * 8, "damaged header"),
    "negative offset": (header(data_offsets=[-8, 0]) + b"\0" * 8, "damaged header"),
    "unknown kind": (header(dtype="Q9") + b"\0" * 8, "'Q9'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_what_it_is(tmp_path, name):
    raw, says = BROKEN[name]
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(BrokenFile, match=says) as error:
        open_weights(tmp_path)
    assert "model.safetensors" in str(error.value) and str(tmp_path) not in str(error.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_anywhere_in_a_file_is_read_or_refused(tmp_path_factory, data):
    raw = bytearray(header() + b"\0" * 8)
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        weights = open_weights(path)
        for name in weights:
            weights.read(name)
    except InfuError:
        pass


def test_names_are_folded_so_that_they_can_be_read():
    names = [f"blocks.{i}.attn.to_q.weight" for i in range(19)] + ["proj_out.bias"]
    assert fold(names) == "blocks.{0...18}.attn.to_q.weight, proj_out.bias"


# LoRA.

SHAPES = {
    name.removesuffix(".weight"): tuple(header.shape)
    for name, header in open_weights(FOLDERS["base_model_path"] / "transformer").items()
    if name.endswith(".weight") and len(header.shape) == 2
}
NETWORKS = {"transformer": SHAPES}


def changed(path):
    return read_lora(path, NETWORKS).changes["transformer"]


@pytest.mark.parametrize("path", [PEFT, KOHYA])
def test_every_key_of_the_golden_loras_is_used(path):
    lora = read_lora(path, NETWORKS)
    assert lora.unused == () and lora.notes == []
    for name, change in lora.changes["transformer"].items():
        assert change.matrix.shape == SHAPES[name]


def test_a_name_with_dots_spaces_and_any_script_is_read(tmp_path):
    path = tmp_path / "my 風格 v1.5 'final'.safetensors"
    shutil.copy(PEFT, path)
    assert changed(path).keys() == changed(PEFT).keys()


def pair(module="transformer.x_embedder", rank=2, out=64, columns=64, **changes):
    tensors = {
        f"{module}.lora_A.weight": torch.ones(rank, columns),
        f"{module}.lora_B.weight": torch.ones(out, rank),
    }
    return tensors | changes


def test_strength_is_alpha_over_rank_and_one_without_alpha(tmp_path):
    for alpha, factor in ((None, 1.0), (0.0, 1.0), (1.0, 0.5), (4.0, 2.0)):
        extra = {} if alpha is None else {"transformer.x_embedder.alpha": torch.tensor(alpha)}
        save_file(pair() | extra, tmp_path / "a.safetensors")
        assert changed(tmp_path / "a.safetensors")["x_embedder"].factor == factor


BAD_LORAS = {
    "nothing fits": ({"down_blocks.0.lora_A.weight": torch.ones(1)}, "made for Stable Diffusion"),
    "half a pair": (
        {"transformer.x_embedder.lora_A.weight": torch.ones(2, 64)},
        "half a pair for transformer.x_emb",
    ),
    "another width": (pair(columns=63), "made for another model: transformer.x_embedder"),
    "another rank": (
        pair() | {"transformer.x_embedder.lora_B.weight": torch.ones(64, 3)},
        "contradicts itself",
    ),
    "NaN": (pair() | {"transformer.x_embedder.lora_A.weight": torch.full((2, 64), torch.nan)}, "not finite"),
}


@pytest.mark.parametrize("name", BAD_LORAS)
def test_a_lora_that_does_not_fit_is_refused_with_the_reason(tmp_path, name):
    tensors, says = BAD_LORAS[name]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(BrokenFile, match=says):
        read_lora(tmp_path / "a.safetensors", NETWORKS)


def test_a_foreign_key_among_good_ones_is_named(tmp_path):
    save_file(pair() | {"transformer.wings.lora_A.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    (note,) = read_lora(tmp_path / "a.safetensors", NETWORKS).notes
    assert "transformer.wings.lora_A.weight" in note


def test_a_lora_that_is_not_there_is_named_without_its_folder(tmp_path):
    with pytest.raises(MissingFile, match="no LoRA file 'a.safetensors'"):
        read_lora(tmp_path / "a.safetensors", NETWORKS)
