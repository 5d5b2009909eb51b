"""Torch's files are read as torch reads them, without it; what is no tensor is refused by name, never run."""

import builtins
import collections
import io
import os
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from golden import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infu.errors import BrokenFile, MissingFile
from infu.weights.torchfile import read_torch_file

PROJECTION = GOLDEN / "InfiniteYou" / "infu_flux_v1.0" / "aes_stage2" / "image_proj_model.bin"
FORMATS = {"zip": {}, "before 1.6": {"_use_new_zipfile_serialization": False}}
BASE = torch.arange(24.0).reshape(4, 6)


class Subclass(torch.Tensor):
    """Of a kind that only the program which saved it knows."""


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = "kept by a program of its own"
    return tensor


TENSORS = {
    "float32": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "float64": torch.linspace(0, 1, 5, dtype=torch.float64),
    "float16": torch.linspace(-1, 1, 7).half(),
    "bfloat16": torch.linspace(-300, 300, 9).bfloat16(),
    "int64": torch.arange(6).reshape(1, 2, 3),
    "int32": torch.arange(5, dtype=torch.int32),
    "int16": torch.arange(5, dtype=torch.int16),
    "int8": torch.arange(-3, 3, dtype=torch.int8),
    "uint8": torch.arange(7, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "transposed": BASE.T,
    "every other": BASE[::2, 1::2],
    "offset": BASE[2:],
    "column": BASE[:, 3],
    "expanded": torch.tensor([1.0, 2.0])[:, None].expand(2, 500),
    "parameter": torch.nn.Parameter(torch.ones(2, 3)),
    "parameter with attribute": with_attribute(torch.nn.Parameter(torch.ones(3))),
    "tensor with attribute": with_attribute(torch.full((2, 2), 0.5)),
}


def assert_same(value, expected) -> None:
    """Nested values as torch has them, tensors to the bit."""
    if isinstance(expected, torch.Tensor):
        expected = expected.detach()
        assert value.shape == tuple(expected.shape) and value.dtype.name == str(expected.dtype).split(".")[1]
        if expected.dtype == torch.bfloat16:
            assert value.dtype == ml_dtypes.bfloat16
            value, expected = value.astype(np.float32), expected.float()
        np.testing.assert_array_equal(value, expected.numpy())
    elif isinstance(expected, dict):
        assert list(value) == list(expected)
        for key in expected:
            assert_same(value[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(value) is type(expected) and len(value) == len(expected)
        for item, other in zip(value, expected, strict=True):
            assert_same(item, other)
    else:
        assert value == expected and type(value) is type(expected)


def save(path: Path, value, **options) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", TENSORS)
def test_every_kind_of_tensor_is_read_as_torch_reads_it(name, options, tmp_path):
    file = save(tmp_path / "a.pt", {"inner": {name: TENSORS[name]}}, **options)
    assert_same(read_torch_file(file), {"inner": {name: TENSORS[name]}})


@pytest.mark.parametrize("options", [*FORMATS.values(), {"pickle_protocol": 4}], ids=[*FORMATS, "protocol 4"])
def test_state_dict_and_plain_values_around_it_are_read(options, tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    value = {
        "state_dict": network.state_dict(),
        "epoch": 3,
        "lr": 0.1,
        "name": "né",
        "list": [1, None, (True, -(10**20))],
    }
    assert_same(read_torch_file(save(tmp_path / "a.pt", value, **options)), value)


def test_released_projection_is_read_as_torch_reads_it():
    assert_same(read_torch_file(PROJECTION), torch.load(PROJECTION, weights_only=True))


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_tensors_of_one_storage_share_it(options, tmp_path):
    file = save(tmp_path / "a.pt", {"whole": BASE, "part": BASE[1:3], "again": BASE}, **options)
    read = read_torch_file(file)
    read["whole"][1, 0] = -1.0
    assert read["part"][0, 0] == -1.0 == read["again"][1, 0]
    assert read_torch_file(file)["whole"][1, 0] == 6.0  # the file itself is left alone


def test_arrays_are_views_that_torch_takes_without_a_warning(tmp_path):
    read = read_torch_file(save(tmp_path / "a.pt", {"x": torch.ones(1000)}))
    assert not read["x"].flags["OWNDATA"] and torch.from_numpy(read["x"]).sum() == 1000


class Runs:
    """A pickle that calls a function of its maker's choice, here one that leaves a trace."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


HOSTILE = {
    "posix.system": lambda trace: Runs(os.system, f"touch {trace}"),
    "builtins.eval": lambda trace: Runs(eval, f"open({str(trace)!r}, 'w')"),
    "builtins.exec": lambda trace: Runs(exec, f"open({str(trace)!r}, 'w')"),
    "builtins.getattr": lambda trace: Runs(getattr, "x", "upper"),
    "io.open": lambda trace: Runs(builtins.open, str(trace), "w"),
    "collections.Counter": lambda trace: collections.Counter("aab"),
    "numpy": lambda trace: np.ones(3),
    "test_torchfile.Subclass": lambda trace: torch.ones(2).as_subclass(Subclass),
}


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_tensor_is_refused_by_name_and_not_run(name, options, nested, tmp_path):
    trace = tmp_path / "trace"
    value = HOSTILE[name](trace)
    value = {"a": torch.ones(2), "b": [{"c": (1, value)}]} if nested else value
    file = save(tmp_path / "a.pt", value, **options)
    with pytest.raises(BrokenFile, match=f"a.pt asks for '{name}.*do not use it") as refused:
        read_torch_file(file)
    assert not trace.exists() and str(tmp_path) not in str(refused.value)


def zip_of(pickled: bytes, storage: bytes = bytes(96), compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch zip with a pickle of our own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def pickle_of(
    shape: tuple, strides: tuple, offset: int = 0, numel: int = 24, kind: str = "FloatStorage"
) -> bytes:
    """The pickle of one tensor whose storage holds 24 float32 numbers, telling lies where told to."""

    def number(value: int) -> bytes:
        raw = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw

    def tuple_of(values: tuple) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"(X\7\0\0\0storagectorch\n" + kind.encode() + b"\nX\1\0\0\x000X\3\0\0\0cpu" + number(numel) + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + tuple_of(shape)
        + tuple_of(strides)
    )
    return b"\x80\2" + tensor + b"\x89ccollections\nOrderedDict\n)RtR."


def test_hand_made_file_is_read_where_it_tells_the_truth(tmp_path):
    file = tmp_path / "a.pt"
    file.write_bytes(zip_of(pickle_of((2, 3), (12, 2), offset=1), np.arange(24, dtype=np.float32).tobytes()))
    np.testing.assert_array_equal(read_torch_file(file), [[1, 3, 5], [13, 15, 17]])
    assert_same(read_torch_file(file), torch.load(file, weights_only=True))


@pytest.mark.parametrize(
    "lie",
    [
        pickle_of((5, 5), (5, 1)),
        pickle_of((24,), (1,), offset=1),
        pickle_of((2**40,), (0,)),  # numbers that repeat one: 4 TB once copied
        pickle_of((2**62, 2**62), (0, 0)),
        pickle_of((-1,), (1,)),
        pickle_of((24,), (-1,), offset=23),
        pickle_of((24,), (1, 1)),
        pickle_of((4,), (1,), offset=-4),
        pickle_of((1,) * 40, (1,) * 40),
        pickle_of((24,), (1,), numel=2**50),
        pickle_of((24,), (1,), numel=23),
        pickle_of((12,), (1,), numel=24, kind="DoubleStorage"),
        b"\x80\2]q\0h\0a.",  # a list inside itself
        b"\x80\2}q\0X\1\0\0\0ah\0s.",
        b"\x80\2" + b"(" * 100_000 + b".",
        b"\x80\2" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\2N",
        b"\x80\2N0.",
        b"\x80\2X\xff\xff\xff\x7fabc.",
        b"\x80\2" + b"\x8b\xff\xff\xff\x7f1.",
        b"",
    ],
    ids=range(21),
)
def test_lying_file_is_refused_before_anything_is_allocated(lie, tmp_path):
    file = tmp_path / "a.pt"
    file.write_bytes(zip_of(lie))
    with pytest.raises(BrokenFile, match="a.pt (is damaged|asks for)"):
        read_torch_file(file)


def test_memo_index_of_four_billion_costs_nothing(tmp_path):
    """Python's own unpickler makes a table of that length, 64 GB."""
    file = tmp_path / "a.pt"
    file.write_bytes(zip_of(b"\x80\2Nr\xfe\xff\xff\xff."))
    assert read_torch_file(file) is None


def test_compressed_zip_is_refused(tmp_path):
    """Torch never compresses, and 10 GB of zeros fit into 10 MB."""
    file = tmp_path / "a.pt"
    file.write_bytes(zip_of(pickle_of((24,), (1,)), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(BrokenFile, match="asks for compressed data"):
        read_torch_file(file)


def test_names_of_a_file_cannot_fill_the_page(tmp_path):
    file = tmp_path / "a.pt"
    file.write_bytes(zip_of(b"\x80\2cos\n" + b"x" * 100_000 + b"\n."))
    with pytest.raises(BrokenFile) as refused:
        read_torch_file(file)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "content, trouble",
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (pickle.dumps({"a": 1}), "bare pickle"),
        (b"\0" * 600, "not a torch file"),
        (PROJECTION.read_bytes()[:-100], "damaged or cut short"),
        (PROJECTION.read_bytes()[:1000], "damaged or cut short"),
    ],
)
def test_file_that_is_no_torch_file_is_named_with_what_it_is(content, trouble, tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(content)
    with pytest.raises(BrokenFile, match=f"model.bin.*{trouble}"):
        read_torch_file(file)


def test_missing_file_is_named_without_its_folder(tmp_path):
    with pytest.raises(MissingFile, match="'model.bin'") as missing:
        read_torch_file(tmp_path / "model.bin")
    assert str(tmp_path) not in str(missing.value)


SMALL = {}
for kind, options in FORMATS.items():
    stream = io.BytesIO()
    torch.save(TENSORS, stream, **options)
    SMALL[kind] = stream.getvalue()


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_is_read_or_refused_and_nothing_else(data, tmp_path):
    content = bytearray(SMALL[data.draw(st.sampled_from(sorted(SMALL)))])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert_read_or_refused(tmp_path / "a.pt", bytes(content))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    codes=st.lists(
        st.sampled_from([bytes([code]) for code in b"(.0]})a}sutR\x85\x86\x87NK\1q\0h\0b\x89\x88cQi"]),
        max_size=40,
    )
)
def test_random_instructions_are_read_or_refused_and_nothing_else(codes, tmp_path):
    assert_read_or_refused(tmp_path / "a.pt", zip_of(b"\x80\2" + b"".join(codes) + b"."))


def test_a_text_with_an_escape_that_is_none_is_refused(tmp_path):
    """Found by the tests above: pickletools warns of it."""
    assert_read_or_refused(tmp_path / "a.pt", zip_of(b"\x80\2S'\\8'\n."))


def assert_read_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        read_torch_file(file)
    except BrokenFile as refused:
        assert 20 < len(str(refused)) < 400
