"""A plug-in written as JSON is its value: in a batch's line, as --plugin, and at /generate."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDEN, PEFT
from PIL import Image

from infu import IPAdapter, Lora, OminiControl, Person, PuLID
from infu.batch import read_line
from infu.errors import InvalidRequest, MissingFile, PhotoError, UnknownName
from infu.options import PictureOptions, find_file
from infu.plugin_json import read_plugin
from page.uploads import read_plugins


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 48)).save(tmp_path / "face.png")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    (tmp_path / "encoders").mkdir()
    np.save(tmp_path / "tokens.npy", np.ones((8, 32), np.float32))
    return tmp_path


def test_each_kind_is_its_value_and_files_are_of_the_folder(folder: Path):
    def read(values: dict):
        return read_plugin(values, partial(find_file, folder))

    face, file = folder / "face.png", folder / "weights.safetensors"
    assert read({"lora": "weights.safetensors", "scale": 0.5}) == Lora(file, 0.5)
    pulid = read(
        {"pulid": "weights.safetensors", "image": "face.png", "encoders": "encoders", "start_step": 4}
    )
    assert pulid == PuLID(file, face, start_step=4, encoders=folder / "encoders") and pulid.image == face
    several = read({"pulid": "0.9.1", "image": ["face.png", "face.png"]})
    assert several.path == "0.9.1" and several.photos == (face, face)
    tokens = read({"pulid": "0.9.1", "id_tokens": "tokens.npy", "uncond_id_tokens": [[0.5, 1.5]]})
    np.testing.assert_array_equal(tokens.id_tokens, np.ones((8, 32)))
    np.testing.assert_array_equal(tokens.uncond_id_tokens, [[0.5, 1.5]])
    adapter = read({"ip_adapter": "weights.safetensors", "image_embeds": [1, 2], "scale": 0.7})
    assert isinstance(adapter, IPAdapter) and adapter.scale == 0.7
    object_ = read({"ominicontrol": "weights.safetensors", "image": "face.png", "position_delta": [0, 32]})
    assert isinstance(object_, OminiControl) and object_.position_delta == (0, 32)
    person = read({"person": True, "mask": [[0, 1]], "id_image": "face.png"})
    assert isinstance(person, Person) and person.photos == (face,)
    assert read({"person": True, "mask": "face.png", "id_image": "face.png"}).mask == face


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({}, InvalidRequest, "with one of lora, controlnet, ip_adapter, pulid, ominicontrol, person"),
        ({"lora": "a", "pulid": "b"}, InvalidRequest, "with one of"),
        ("lora", InvalidRequest, "not as 'lora'"),
        ({"pulid": "0.9.1", "id_wieght": 1}, UnknownName, "pulid called 'id_wieght'.*mean 'id_weight'"),
        ({"pulid": 7}, InvalidRequest, "path must name a file, not 7"),
        ({"pulid": "0.9.1", "image": 7}, InvalidRequest, "image must name a file, not 7"),
        ({"pulid": "0.9.1", "id_tokens": "no.npy"}, MissingFile, "no file 'no.npy'"),
        ({"pulid": "0.9.1", "image": "face.png", "id_weight": 99}, InvalidRequest, "from 0 to 10"),
    ],
)
def test_what_is_wrong_is_told(folder: Path, values, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        read_plugin(values, partial(find_file, folder))


def test_line_of_a_batch_looks_at_the_pictures_of_its_plugins(folder: Path):
    line = {"prompt": "a", "plugins": [{"pulid": "0.9.1", "image": "face.png"}]}
    (plugin,) = read_line(json.dumps(line).encode(), folder).plugins
    assert plugin.path == "0.9.1" and plugin.image == folder / "face.png"
    for mask, found in (("face.png", folder / "face.png"), ("left", "left"), ([0, 0, 1, 0.5],) * 2):
        assert read_line(json.dumps(line | {"id_mask": mask}).encode(), folder).id_mask == found
    (folder / "face.png").write_bytes(b"text")
    with pytest.raises(PhotoError):
        read_line(json.dumps(line).encode(), folder)


def test_flags_make_the_plugins(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    face = Path("face.png")
    flags = PictureOptions(
        lora=[f"{PEFT}:0.5"],
        plugin=['{"ominicontrol": "weights.safetensors", "image": "face.png"}'],
        pulid_image=[face],
        pulid_id_weight=0.7,
        pulid_start_step=4,
    )
    lora, object_, pulid = flags.request().plugins
    assert (str(lora.path), lora.scale) == (str(PEFT), 0.5)
    assert object_.path == Path("weights.safetensors") and object_.image == face
    assert pulid == PuLID("0.9.1", [face], 0.7, 4) and pulid.photos == (face,)
    assert PictureOptions().request().plugins == ()
    with pytest.raises(InvalidRequest, match="--plugin is a JSON object"):
        PictureOptions(plugin=["{lora"]).request()
    with pytest.raises(PhotoError):
        PictureOptions(pulid_image=[folder / "tokens.npy"]).request()


def test_client_names_no_file_of_the_server(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    face = {"path": str(folder / "face.png")}
    (plugin,) = read_plugins([{"pulid": "0.9.1", "image": face, "id_weight": 0.5}])
    assert plugin.image == face["path"] and plugin.path == "0.9.1"
    secret = str(GOLDEN / "pulid" / "checkpoint" / "pulid_flux_v0.9.1.safetensors")
    for stolen in (
        {"pulid": secret, "image": face},
        {"pulid": {"path": secret}, "image": face},
        {"pulid": "0.9.1", "image": str(PEFT)},
        {"pulid": "0.9.1", "image": {"path": str(PEFT)}},
        {"pulid": "0.9.1", "image": face, "encoders": str(GOLDEN)},
        {"pulid": "0.9.1", "id_tokens": str(folder / "tokens.npy")},
        {"pulid": "someone/repository", "image": face},
    ):
        with pytest.raises((InvalidRequest, PhotoError), match="upload"):
            read_plugins([stolen])
