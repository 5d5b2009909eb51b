"""Where a model's files are, and that what is missing or broken is named before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import FOLDERS, GOLDEN
from safetensors.numpy import load_file, save_file

from infu.errors import BrokenFile, InfuError, InvalidRequest, MissingFile, UnknownName
from infu.models import BASE, INFINITE_YOU, MINI, locate, read_defaults, versioned

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 24000000000\n"
RELEASE = "infu_flux_v1.0"
NAME = "diffusion_pytorch_model"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "base", tmp_path / "server" / "base"))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "InfiniteYou", tmp_path / "server" / "InfiniteYou"))


@pytest.fixture
def sharded(base: Path) -> Path:
    """The base's transformer folder, in three shards and an index, as FLUX.1-dev has it."""
    folder = base / "transformer"
    tensors = load_file(folder / f"{NAME}.safetensors")
    (folder / f"{NAME}.safetensors").unlink()
    names = {f"{NAME}-{k + 1:05d}-of-00003.safetensors": sorted(tensors)[k::3] for k in range(3)}
    for shard, keys in names.items():
        save_file({key: tensors[key] for key in keys}, folder / shard)
    weight_map = {key: shard for shard, keys in names.items() for key in keys}
    (folder / f"{NAME}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_no_path_is_the_mini_model():
    files = locate()
    assert files.name == "mini" and files.base == MINI / "base"
    assert files.embedded_faces and files.detector is None and files.recogniser.name == "appearance.onnx"
    assert files.model_version == "aes_stage2" and set(files.optional_loras) == {"realism", "anti_blur"}
    assert versioned(files, "sim_stage1").projection != files.projection


def test_folders_give_every_file_of_the_released_layout():
    files = locate(**FOLDERS)
    version = GOLDEN / "InfiniteYou" / RELEASE / "aes_stage2"
    assert (files.infusenet, files.projection) == (
        version / "InfuseNetModel",
        version / "image_proj_model.bin",
    )
    assert files.detector == GOLDEN / "InfiniteYou" / "supports" / "insightface" / "models" / "antelopev2"
    assert files.name == "base + InfiniteYou" and files.model_versions == ("aes_stage2",)
    assert not files.embedded_faces and files.optional_loras == {}
    for part in (
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "scheduler",
    ):
        assert getattr(files, part) == GOLDEN / "base" / part


def test_a_base_alone_is_plain_flux():
    files = locate(GOLDEN / "base")
    assert files.infusenet is files.projection is files.model_version is files.detector is None
    assert files.model_versions == () and files.name == "base"
    with pytest.raises(InvalidRequest, match="without InfiniteYou"):
        versioned(files, "aes_stage2")


def test_a_shard_that_is_missing_is_named(sharded: Path, base: Path):
    locate(base)
    (sharded / f"{NAME}-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        MissingFile, match=r"shard diffusion_pytorch_model-00002-of-00003\.safetensors.*infu download"
    ):
        locate(base)


@pytest.mark.parametrize("beside", ["{}.incomplete", ".cache/huggingface/download/{}.0123.incomplete"])
def test_an_interrupted_download_is_called_that(sharded: Path, base: Path, beside: str):
    shard = f"{NAME}-00003-of-00003.safetensors"
    unfinished = sharded / beside.format(shard)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    (sharded / shard).rename(unfinished)
    with pytest.raises(MissingFile, match=rf"download of transformer was interrupted.*{shard}"):
        locate(base)


def spoil(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS = {
    "pointer": (spoil(POINTER), BrokenFile, "Git-LFS pointer.*git lfs pull"),
    "empty": (spoil(b""), BrokenFile, "is empty"),
    "web page": (spoil(b"<!DOCTYPE html><title>Log in</title>"), BrokenFile, "web page"),
    "absent": (Path.unlink, MissingFile, "infu download"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "file",
    [f"base/transformer/{NAME}.safetensors", "base/text_encoder_2/model.safetensors", "base/vae/config.json",
     f"base/vae/{NAME}.safetensors", "base/scheduler/scheduler_config.json",
     f"InfiniteYou/{RELEASE}/aes_stage2/image_proj_model.bin",
     f"InfiniteYou/{RELEASE}/aes_stage2/InfuseNetModel/{NAME}.safetensors"],
)  # fmt: skip
def test_a_file_that_is_not_what_it_should_be_is_named(base: Path, model_dir: Path, file: str, fault: str):
    damage, error, words = FAULTS[fault]
    path = base.parent / file
    damage(path)
    with pytest.raises(error, match=words) as caught:
        locate(base, model_dir)
    assert path.name in str(caught.value) or path.parent.name in str(caught.value)
    assert "server" not in str(caught.value)  # the folders above a model are nobody's business


def test_a_truncated_file_is_named(sharded: Path, base: Path):
    halve(sharded / f"{NAME}-00001-of-00003.safetensors")
    with pytest.raises(BrokenFile, match=r"00001-of-00003\.safetensors is truncated"):
        locate(base)


@pytest.mark.parametrize("left", ["spiece.model", "tokenizer.json"])
def test_either_file_of_t5s_tokenizer_is_enough(base: Path, left: str):
    for path in (base / "tokenizer_2").iterdir():
        if path.name != left:
            path.unlink()
    locate(base)
    (base / "tokenizer_2" / left).unlink()
    with pytest.raises(MissingFile, match=r"tokenizer_2 holds no tokenizer\.json or spiece\.model"):
        locate(base)


def test_versions_are_the_folders_that_are_there(model_dir: Path):
    for name in ("sim_stage1", "my_own"):
        shutil.copytree(model_dir / RELEASE / "aes_stage2", model_dir / RELEASE / name)
    (model_dir / RELEASE / "notes").mkdir()
    files = locate(GOLDEN / "base", model_dir)
    assert files.model_versions == ("aes_stage2", "sim_stage1", "my_own")
    other = versioned(files, "my_own")
    assert other.projection == model_dir / RELEASE / "my_own" / "image_proj_model.bin"
    assert other.transformer == files.transformer and other.model_version == "my_own"


def test_an_unknown_version_and_an_absent_one_are_told_apart(model_dir: Path):
    with pytest.raises(UnknownName, match="Did you mean 'aes_stage2'"):
        locate(GOLDEN / "base", model_dir, "aes_stage_2")
    with pytest.raises(MissingFile, match="has no sim_stage1; it has aes_stage2"):
        locate(GOLDEN / "base", model_dir, "sim_stage1")


def test_a_part_may_be_a_file_a_folder_or_another_model(base: Path, tmp_path: Path):
    file = Path(shutil.copy(base / "transformer" / f"{NAME}.safetensors", tmp_path / "other.safetensors"))
    assert locate(base, transformer_path=file).transformer == file
    assert locate(base, vae_path=base / "vae").vae == base / "vae"
    assert (
        locate(base, text_encoder_2_path=GOLDEN / "base").text_encoder_2 == GOLDEN / "base" / "text_encoder_2"
    )
    shutil.rmtree(base / "transformer")
    assert (
        locate(base, transformer_path=file).base == base
    )  # what comes from elsewhere need not be in the base
    file.write_bytes(POINTER)
    with pytest.raises(BrokenFile, match=r"other\.safetensors is a Git-LFS pointer"):
        locate(base, transformer_path=file)


def test_comfyuis_single_file_stands_in_for_the_folder(model_dir: Path):
    version = model_dir / RELEASE / "aes_stage2"
    folder = version / "InfuseNetModel"
    for name in ("infusenet_aes_bf16", "infusenet_aes_fp8e4m3fn"):
        shutil.copy(folder / f"{NAME}.safetensors", version / f"{name}.safetensors")
    assert locate(GOLDEN / "base", model_dir).infusenet == folder
    shutil.rmtree(folder)
    assert locate(GOLDEN / "base", model_dir).infusenet == version / "infusenet_aes_bf16.safetensors"
    named = version / "infusenet_aes_fp8e4m3fn.safetensors"
    assert locate(GOLDEN / "base", model_dir, infusenet_path=named).infusenet == named


def test_the_face_encoder_is_looked_for_beside_the_model_then_in_the_cache(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("INFU_CACHE", str(tmp_path / "cache"))
    name = "recognition_arcface_ir_se50.pth"
    assert (
        locate(GOLDEN / "base", model_dir).recogniser == tmp_path / "cache" / name
    )  # where `download` puts it
    package = tmp_path / "site" / "facexlib"
    for place in (package / "weights", tmp_path / "cache", model_dir / "supports" / "facexlib"):
        place.mkdir(parents=True)
        (package / "__init__.py").touch()
        monkeypatch.syspath_prepend(package.parent)
        (place / name).write_bytes(b"PK")
        assert locate(GOLDEN / "base", model_dir).recogniser == place / name


def test_optional_loras_are_those_that_are_there(model_dir: Path):
    folder = model_dir / "supports" / "optional_loras"
    folder.mkdir(parents=True)
    (folder / "flux_anti_blur_lora.safetensors").write_bytes(b"")
    assert locate(GOLDEN / "base", model_dir).optional_loras == {
        "anti_blur": folder / "flux_anti_blur_lora.safetensors"
    }


def test_a_damaged_note_on_the_face_stack_is_named(model_dir: Path):
    (model_dir / "supports").mkdir()
    (model_dir / "supports" / "face_stack.json").write_text("{")
    with pytest.raises(BrokenFile, match=r"face_stack\.json is damaged"):
        locate(GOLDEN / "base", model_dir)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"base_model_path": "/nowhere/at/all"}, r"base_model_path names \('all'\) does not exist"),
        ({"base_model_path": "./FLUX.1-dev/"}, "base_model_path"),
        ({"base_model_path": "a\0b"}, "base_model_path"),
        ({"base_model_path": ""}, "base_model_path"),  # a shell's unset variable: not FLUX.1-dev of the hub
        ({"model_dir": ""}, "model_dir"),
        ({"model_dir": GOLDEN / "base"}, "not an InfiniteYou folder: it has no infu_flux_v1.0"),
        ({"transformer_path": Path("nobody/nothing")}, "transformer_path"),  # a Path is never a hub id
        ({"base_model_path": GOLDEN / "lora_peft.safetensors"}, "is a LoRA, not a model"),
    ],
)
def test_a_path_that_leads_nowhere_is_named_by_its_argument(paths: dict, words: str):
    with pytest.raises(InfuError, match=words):
        locate(**{"base_model_path": GOLDEN / "base"} | paths)


def test_a_snapshot_of_the_hubs_cache_is_called_by_its_models_name(base: Path, tmp_path: Path):
    snapshot = tmp_path / "hub" / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    base.rename(snapshot)
    assert locate(snapshot, GOLDEN / "InfiniteYou").name == "FLUX.1-dev + InfiniteYou"


def test_the_page_starts_with_the_size_that_a_model_was_made_for(tmp_path):
    assert read_defaults({"base_model_path": None, "model_dir": None})["width"] == 128  # the mini's
    assert read_defaults({"base_model_path": BASE, "model_dir": INFINITE_YOU}) == {}
    (tmp_path / "generation_defaults.json").write_text('{"num_steps": 4, "seed": 1}')
    assert read_defaults({"base_model_path": tmp_path, "model_dir": None}) == {"num_steps": 4}
    (tmp_path / "generation_defaults.json").write_text("[]")
    with pytest.raises(BrokenFile, match="generation_defaults"):
        read_defaults({"base_model_path": tmp_path, "model_dir": None})
