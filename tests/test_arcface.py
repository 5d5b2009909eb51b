"""facexlib's ArcFace, converted without torch, gives its own code's embeddings (tests/golden/arcface)."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import GOLDEN

from infu.align import TEMPLATE, unit
from infu.arcface import convert, load_arcface
from infu.errors import BrokenFile, MissingFile
from infu.face import FaceStack, find_faces
from infu.images import read_photo
from infu.models import ARCFACE as PTH
from infu.recognisers import load_recogniser
from infu.weights.torchfile import read_torch_file

FIXTURE, SCRFD = GOLDEN / "arcface", GOLDEN / "scrfd"


def make_weights() -> dict[str, torch.Tensor]:
    """The fixture's weights, by its rule."""
    weights = {}
    for name, shape in json.loads((FIXTURE / "manifest.json").read_text()).items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        if name.endswith("num_batches_tracked"):
            value = np.int64(0)
        elif name.endswith("running_var"):
            value = 1 + 0.1 * np.abs(noise)
        elif name.endswith(("running_mean", "bias")):
            value = 0.1 * noise
        elif len(shape) == 1:
            value = 0.6 + 0.1 * noise
        else:
            value = noise / np.sqrt(np.prod(shape[1:]))
        weights[name] = torch.from_numpy(np.asarray(value, np.int64 if np.ndim(value) == 0 else np.float32))
    return weights


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return make_weights()


@pytest.fixture(scope="module")
def pth(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("facexlib") / PTH
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFU_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the test's own."""
    monkeypatch.setenv("INFU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURE / "arcface.npz"))


def test_embeddings_are_facexlibs(pth, expected):
    recogniser = load_recogniser(pth)
    embeddings = np.stack(
        [unit(recogniser.embed(crop[:, :, ::-1], TEMPLATE)) for crop in expected["crops_bgr"]]
    )
    np.testing.assert_allclose(embeddings, expected["embeddings"], rtol=0, atol=1e-5)


def test_file_of_torch_before_1_6_converts_to_the_same_network(weights, pth, tmp_path):
    """The released file is from 2020, when this was torch's format."""
    torch.save(weights, tmp_path / PTH, _use_new_zipfile_serialization=False)
    old, new = (convert(read_torch_file(path), PTH) for path in (tmp_path / PTH, pth))
    assert old == new


def test_conversion_is_kept_and_made_again_where_it_broke(pth, cache, expected):
    load_arcface(pth)
    (kept,) = cache.iterdir()
    made = kept.stat().st_mtime_ns
    load_arcface(pth)
    assert kept.stat().st_mtime_ns == made
    kept.write_bytes(kept.read_bytes()[:1000])
    pixels = expected["crops_bgr"][:1].astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    embedding = load_arcface(pth).run(None, {"input": pixels})[0]
    np.testing.assert_allclose(embedding, expected["embeddings"][:1], rtol=0, atol=1e-5)
    assert list(cache.iterdir()) == [kept] and kept.stat().st_size > 1000


def test_another_file_of_the_same_name_is_converted_anew(pth, cache):
    load_arcface(pth)
    before = pth.stat().st_mtime_ns
    os.utime(pth, ns=(before, before + 1))
    load_arcface(pth)
    os.utime(pth, ns=(before, before))
    assert len(list(cache.iterdir())) == 2


def test_folder_that_cannot_be_written_is_done_without(pth, tmp_path, monkeypatch):
    (tmp_path / "a file").write_bytes(b"")
    monkeypatch.setenv("INFU_CACHE", str(tmp_path / "a file"))
    assert load_arcface(pth).get_outputs()[0].shape[1] == 512


def test_released_stack_goes_from_photograph_to_embedding(pth):
    stack = FaceStack(SCRFD / "antelopev2", pth, 512)
    photo = read_photo(SCRFD / "pictures" / "one.png")
    crop = stack.crop(photo, find_faces(photo, SCRFD / "antelopev2")[0])
    embedding = stack.embed([photo])
    assert embedding.dtype == np.float32 and abs(np.linalg.norm(embedding) - 1) < 1e-6
    np.testing.assert_allclose(embedding, unit(load_recogniser(pth).embed(crop, TEMPLATE)), rtol=0, atol=1e-6)


def test_missing_file_names_itself_and_the_command(tmp_path):
    with pytest.raises(MissingFile, match=f"{PTH} is missing.*python -m infu download") as missing:
        load_recogniser(tmp_path / PTH)
    assert str(tmp_path) not in str(missing.value)


@pytest.mark.parametrize(
    "name, value, trouble",
    [
        ("body.5.res_layer.0.weight", None, "lacks the tensor body.5.res_layer.0.weight"),
        ("body.24.res_layer.0.weight", np.ones(64), "does not have: body.24.res_layer.0.weight"),
        ("output_layer.4.bias", np.ones(192), r"output_layer.4.bias has the shape \(192,\)"),
        ("epoch", 3, "not a state dict"),
    ],
)
def test_another_network_is_refused_by_the_name_of_what_differs(name, value, trouble, weights):
    changed = {key: tensor.numpy() for key, tensor in weights.items() if key != name}
    if value is not None:
        changed[name] = value
    with pytest.raises(BrokenFile, match=trouble):
        convert(changed, PTH)


def test_file_holds_every_tensor_of_the_manifest(pth):
    manifest = json.loads((FIXTURE / "manifest.json").read_text())
    assert {name: list(value.shape) for name, value in read_torch_file(pth).items()} == manifest
