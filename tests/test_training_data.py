"""Photographs -> encoded samples: what is read, what is left out and why, and that nothing is lost or made
twice when a worker dies. Real photographs, the embedded detector; Ray in processes of its own."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from golden import GOLDEN
from onnx import helper, numpy_helper
from PIL import Image
from safetensors import safe_open
from skimage.data import astronaut
from training_data import BASE, train_settings
from typer.testing import CliRunner

from backends import load_backend
from backends.pytorch.load import load_network
from infu.cli import app
from infu.errors import BrokenFile, InvalidRequest, MissingFile
from infu.face import FaceStack, find_faces
from infu.keypoints import draw_keypoints
from infu.metadata import read_picture
from infu.models import MINI
from infu.pose import POSES, place_pose
from infu.training.buckets import choose_bucket, cut_to, make_buckets
from infu.training.captions import Captioners
from infu.training.config import DataSettings, TrainSettings, read_settings
from infu.training.encode import load_faces
from infu.training.engine import Trainer
from infu.training.make_data import check, check_address, find_cause, make_data
from infu.training.measure import Refused, load_hook, measure_angles, measure_sharpness
from infu.training.networks import make_infusenet, make_projection, save_embedded_faces, save_release
from infu.training.shards import Shards
from infu.training.sources import list_units, read_unit
from infu.training.swap import FaceSwap
from infu.training.workers import PersonWorker, PhotoWorker

ROOT = Path(__file__).parents[1]
SIDE = 256  # of the test's buckets
FILTERS = {"min_face": 30, "unsafe": "hooks_for_training:redness", "max_unsafe": 0.4}


def jpeg(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """One good photograph of each kind of source, and in the folder one of each fault."""
    folder = tmp_path_factory.mktemp("photos")
    good = astronaut()
    red = good // 4
    red[:, :, 0] = 255
    pictures = {
        "good": good,
        "wide": np.pad(good, ((0, 0), (300, 0), (0, 0)), mode="reflect")[:, 250:],
        "blurred": cv2.GaussianBlur(good, (0, 0), 6),
        "two": np.concatenate([good, good], axis=1),
        "none": np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8),
        "small": good[::4, ::4],
        "red": cv2.addWeighted(good, 0.5, red, 0.5, 0),
    }
    for name, picture in pictures.items():
        (folder / f"{name}.jpg").write_bytes(jpeg(picture))
        (folder / f"{name}.txt").write_text(f"The {name} one")
    (folder / "silent.jpg").write_bytes(jpeg(good[:, ::-1]))
    (folder / "broken.jpg").write_bytes(jpeg(good)[:5000])
    with tarfile.open(folder / "a.tar", "w") as archive:
        for key in ("x", "y"):
            caption = json.dumps({"caption": f"In the tar, {key}"}).encode()
            for name, data in ((f"{key}.jpg", jpeg(good)), (f"{key}.json", caption)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    image = [{"bytes": jpeg(good[20:]), "path": "z.jpg"}, {"bytes": b"", "path": None}]
    table = pa.table({"image": image, "text": ["In a table", "No picture"]})
    pq.write_table(table, folder / "b.parquet", row_group_size=1)
    return folder


def settings(photos: Path, out: Path, **changes) -> dict:
    values = {
        "sources": [str(photos)],
        "out": str(out),
        "base_model_path": BASE,
        "dtype": "float32",
        "pixels": SIDE * SIDE,
        "filters": FILTERS,
        "max_sequence_length": 16,
        "per_unit": 4,
    }
    return values | changes


def make(photos: Path, out: Path, **changes) -> subprocess.CompletedProcess:
    """`python -m infu make-data` in a process of its own."""
    process = start(photos, out, **changes)
    stdout, stderr = process.communicate(timeout=500)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start(photos: Path, out: Path, **changes) -> subprocess.Popen:
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings(photos, out, **changes)))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "infu", "make-data", str(file)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_reports(out: Path) -> dict[str, dict]:
    lines = [json.loads(x) for path in (out / "reports").iterdir() for x in path.read_text().splitlines()]
    assert len({line["name"] for line in lines}) == len(lines)
    return {line["name"]: line for line in lines}


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "out"
    run = make(photos, out, workers=2)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["kept"] == 5
    return out


def test_every_source_is_read_and_every_fault_has_its_reason(made):
    reasons = {name: line["reason"] for name, line in read_reports(made).items()}
    assert reasons == {
        "good.jpg": None,
        "wide.jpg": None,
        "a.tar/x": None,
        "a.tar/y": None,
        "b.parquet/0-0": None,
        "b.parquet/1-0": "cannot be read",
        "broken.jpg": "cannot be read",
        "blurred.jpg": "sharpness too low",
        "two.jpg": "crowd too high",
        "none.jpg": "no face",
        "small.jpg": "enlarged too high",
        "red.jpg": "unsafe too high",
        "silent.jpg": "no caption",
    }


def test_a_sample_is_what_the_backend_encodes(made, photos):
    """Latents, points, text and embedding are those of the pipeline itself; the caption is the file's."""
    backend = load_backend("pytorch", BASE, dtype="float32")
    shards = Shards([made])
    captions = {shards.caption(n): n for n in range(len(shards))}
    assert set(captions) == {"The good one", "The wide one", "In the tar, x", "In the tar, y", "In a table"}
    number = captions["The good one"]
    with_points, black = (shards.read([number], [flag]) for flag in (True, False))
    assert (with_points.width, with_points.height) == (SIDE, SIDE)
    photo = np.asarray(Image.open(photos / "good.jpg"))
    picture = cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    points = find_faces(photo)[0].keypoints / 2
    for latents, encoded in (
        (with_points.latents, picture),
        (with_points.control, draw_keypoints(points, SIDE, SIDE)),
        (black.control, np.zeros_like(picture)),
    ):
        torch.testing.assert_close(latents, backend.encode_image(encoded).clone(), rtol=0, atol=1e-5)
    text = backend.encode_prompt("The good one", 16)
    torch.testing.assert_close(with_points.states, text.states.clone(), rtol=0, atol=1e-6)
    torch.testing.assert_close(with_points.pooled, text.pooled.clone(), rtol=0, atol=1e-6)
    expected = FaceStack(None, None, 192).embed([photo])
    np.testing.assert_allclose(with_points.embedding[0].numpy(), expected, rtol=0, atol=1e-6)


def test_a_models_own_face_encoder_makes_the_samples_where_it_is_named(photos):
    """The mini model's: more than the recogniser says."""
    photo = np.asarray(Image.open(photos / "good.jpg"))
    faces = load_faces(str(MINI / "InfiniteYou"))
    np.testing.assert_array_equal(faces.embed([photo]), load_backend("pytorch").faces.embed([photo]))
    assert faces.embedding_size > 192


def test_scores_stand_in_the_shards(made):
    rows = []
    for path in (made / "shards").iterdir():
        with safe_open(path, "pt") as shard:
            rows += json.loads(shard.metadata()["rows"])
    assert len(rows) == 5
    assert all(row["scores"].keys() == {"crowd", "face", "enlarged", "sharpness", "unsafe"} for row in rows)


def test_the_same_command_again_does_nothing_over(made, photos):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.safetensors")}
    said: list[str] = []
    values = DataSettings(**settings(photos, made, workers=2))
    assert make_data(values, None, said.append)["kept"] == 5
    assert said == ["6 units of photographs, 0 to do"]
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.safetensors")} == before


def test_data_begun_with_other_settings_is_not_mixed(made, photos):
    with pytest.raises(InvalidRequest, match="made with another .*settings"):
        check(DataSettings(**settings(photos, made, max_sequence_length=20)))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """A stage-1 model beside the golden base, for the embedded recogniser."""
    base = load_network("transformer", GOLDEN / "base/transformer", GOLDEN / "base", torch.float32, "cpu")
    network, folder = make_infusenet(base, (3, 3)), tmp_path_factory.mktemp("InfiniteYou")
    projection = make_projection(192, 48, width=64, depth=1, num_heads=1, num_tokens=8, seed=0)
    state = torch.nn.ModuleDict({"infusenet": network, "projection": projection}).state_dict()
    save_release(folder, "sim_stage1", state, network.config, torch.float32)
    save_embedded_faces(folder, tmp_path_factory.mktemp("none") / "appearance.onnx")
    return folder


def pictures(tmp_path: Path, model_dir: Path, **changes) -> dict:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A man in a garden\nA woman at sea\n\nA portrait\n")
    lora = {"path": str(GOLDEN / "lora_peft.safetensors"), "scale": 0.5}
    values = {
        "model_dir": str(model_dir),
        "prompts": str(prompts),
        "per_person": 3,
        "num_steps": 2,
        "loras": [lora],
        "enhancer": "hooks_for_training:show_the_astronaut",
        "aesthetics": "hooks_for_training:brightness",
        "min_aesthetics": 0.2,
        "max_yaw": 80,
    }
    return values | changes


def people(tmp_path: Path, count: int) -> Path:
    """Photographs of a person each: the same astronaut, in files that differ."""
    folder = tmp_path / "people"
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02d}.jpg").write_bytes(jpeg(astronaut()[i : 500 + i]))
    return folder


def test_killing_a_worker_loses_nothing_and_makes_no_picture_twice(tmp_path, model_dir):
    out, folder = tmp_path / "out", people(tmp_path, 6)
    changes = {"pictures": pictures(tmp_path, model_dir), "workers": 2, "per_unit": 2}
    process = start(folder, out, **changes)
    files = kill_a_worker(process, out)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    lines = read_reports(out)
    assert len(lines) == 18 and {line["reason"] for line in lines.values()} == {None}
    assert json.loads(stdout) == {"kept": 18, "left_out": {}}
    final = {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    assert len(final) == 18 and len({path.name for path in final}) == 18
    assert files.items() <= final.items()  # those that were there when the worker died are the same files
    assert not list(out.rglob("*.part"))
    shards = Shards([out])
    names = []
    for path in shards.paths:
        with safe_open(path, "pt") as shard:
            names += json.loads(shard.metadata()["rows"])
    assert sorted(row["name"] for row in names) == sorted(
        f"{i:02d}.jpg/{k}" for i in range(6) for k in range(3)
    )
    expected = {"likeness", "yaw", "pitch", "roll", "crowd", "sharpness", "aesthetics"}
    assert all(row["scores"].keys() == expected for row in names)
    likeness = [row["scores"]["likeness"] for row in names]  # of the astronaut, stretched up to twice as wide
    assert min(likeness) > 0.4 and max(likeness) > 0.9


def kill_a_worker(process: subprocess.Popen, out: Path) -> dict[Path, int]:
    """Wait for the first pictures, kill one of the processes that make them -> the pictures there then."""
    until = time.monotonic() + 400
    while not list(out.glob("pictures/*/*.png")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "PersonWorker" in " ".join(child.cmdline())]
    assert workers, [child.cmdline() for child in children]
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait(60)
    return {path: path.stat().st_mtime_ns for path in out.glob("pictures/*/*.png")}


def test_what_a_picture_must_be_is_measured_and_kept_of_those_left_out_too(tmp_path, model_dir):
    wanted = pictures(tmp_path, model_dir, per_person=1, min_aesthetics=0.99)
    worker = PersonWorker(
        DataSettings(**settings(people(tmp_path, 1), tmp_path / "out", pictures=wanted)).model_dump_json()
    )
    (unit,) = list_units([tmp_path / "people"], 4)
    assert worker({"unit": unit.to_json()})["kept"] == 0
    (line,) = read_reports(tmp_path / "out").values()
    assert line["reason"] == "aesthetics too low" and line["scores"]["likeness"] > 0.8
    made = read_picture(next((tmp_path / "out").rglob("*.png")))  # to be looked at, with its whole request
    assert made["name"] == "00.jpg/0" and made["model_version"] == "sim_stage1" and made["loras"]


def test_the_target_is_the_picture_and_the_source_the_real_face(tmp_path, model_dir):
    wanted = pictures(tmp_path, model_dir, per_person=1)
    values = DataSettings(**settings(people(tmp_path, 1), tmp_path / "out", pictures=wanted))
    check(values)
    worker = PersonWorker(values.model_dump_json())
    (unit,) = list_units(values.sources, 4)
    assert worker({"unit": unit.to_json()})["kept"] == 1
    picture = np.array(Image.open(next((tmp_path / "out").rglob("*.png"))))
    batch = Shards([tmp_path / "out"]).read([0], [True])
    assert (batch.width, batch.height) == picture.shape[1::-1]
    latents = worker.encoder.backend.encode_image(picture)
    torch.testing.assert_close(batch.latents, latents.clone(), rtol=0, atol=1e-5)
    photo = np.asarray(Image.open(tmp_path / "people" / "00.jpg"))
    real = FaceStack(None, None, 192).embed([photo])
    np.testing.assert_allclose(batch.embedding[0].numpy(), real, rtol=0, atol=1e-6)


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(photos, tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(settings(photos, tmp_path / "out")))
    run = CliRunner().invoke(app, ["make-data", str(file), "--dry_run"])
    assert run.exit_code == 0, run.stderr
    assert "9 photographs in folders, and 3 tar shards or groups of parquet rows: 6 units" in run.stdout
    assert "s a photograph on this machine" in run.stdout and not (tmp_path / "out").exists()


def test_units_are_the_same_on_every_machine_and_names_do_not_collide(photos, tmp_path):
    units = list_units([photos], 4)
    assert [unit.kind for unit in units] == ["folder"] * 3 + ["tar", "parquet", "parquet"]
    assert len({unit.name for unit in units}) == 6
    elsewhere = tmp_path / "mounted"
    elsewhere.symlink_to(photos)
    assert [unit.name for unit in list_units([elsewhere], 4)] == [unit.name for unit in units]
    assert [raw.name for raw in read_unit(units[3])] == ["a.tar/x", "a.tar/y"]
    with pytest.raises(MissingFile, match="Check the name"):
        list_units([tmp_path / "nowhere"], 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="holds no pictures"):
        list_units([tmp_path / "empty"], 4)


def test_buckets_have_the_area_and_the_nearest_shape_is_chosen():
    buckets = make_buckets(1024 * 1024, 64, 2.0)
    areas = np.array([w * h for w, h in buckets])
    assert areas.max() <= 1024**2 and areas.min() > 0.9 * 1024**2
    assert all(w % 64 == h % 64 == 0 and 0.5 <= w / h <= 2 for w, h in buckets)
    assert {(h, w) for w, h in buckets} >= {(1024, 1024), (1152, 896)}
    assert choose_bucket(3000, 3000, buckets) == (1024, 1024)
    assert choose_bucket(600, 800, buckets) == (832, 1216) or choose_bucket(600, 800, buckets) == (896, 1152)


@pytest.mark.parametrize("corner", [(0, 0), (400, 0), (0, 900), (400, 900), (200, 450)])
def test_the_cut_keeps_the_face_and_moves_its_points_with_it(corner):
    """Five marked pixels of a tall picture are found again where the points say."""
    x, y = corner
    photo = np.zeros((1200, 600, 3), np.uint8)
    keypoints = np.array([[50, 60], [150, 60], [100, 110], [60, 160], [140, 160]], np.float32) + corner
    for px, py in keypoints.astype(int):
        photo[py - 4 : py + 5, px - 4 : px + 5] = 255
    box = np.array([x, y, x + 200, y + 220], np.float32)
    picture, moved, scale = cut_to(photo, box, keypoints, (512, 512))
    assert picture.shape == (512, 512, 3) and scale == pytest.approx(512 / 600)
    assert (moved > 0).all() and (moved < 512).all()
    for px, py in np.rint(moved).astype(int):
        assert picture[py, px].min() > 200


def test_angles_of_named_poses_are_found_again():
    for name in ("front", "three_quarter_left", "three_quarter_right", "up", "down"):
        yaw, pitch, roll = measure_angles(place_pose(name, 600, 800))
        assert (yaw, pitch, roll) == pytest.approx((POSES[name].yaw, POSES[name].pitch, 0), abs=0.5), name
    angle = np.radians(20)
    turned = place_pose("front", 600, 800) @ np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    )
    assert measure_angles(turned)[2] == pytest.approx(20, abs=0.5)


def test_a_blurred_face_is_less_sharp_by_far():
    crop = astronaut()[60:172, 170:282]
    sharp, blurred = measure_sharpness(crop), measure_sharpness(cv2.GaussianBlur(crop, (0, 0), 3))
    assert sharp > 100 > 10 > blurred


def test_a_captioner_is_any_model_of_transformers(tmp_path):
    """A BLIP of random numbers with a vocabulary of six words, saved and loaded as a user's own would be."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        "a",
        "man",
        "woman",
        "in",
        "red",
        "garden",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ids = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config=small
        | ids
        | {"vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 96},
        vision_config=small | {"image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    processor = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(processor, tokenizer).save_pretrained(tmp_path / "blip")
    caption = Captioners([str(tmp_path / "blip"), "file"], "Describe it.", "cpu")
    picture = astronaut()
    found = {caption(f"{i}.jpg", picture, "Beside it") for i in range(20)}
    by_model = [text for text, whose in found if whose != "file"]
    assert ("Beside it", "file") in found and len(by_model) == 1 and set(by_model[0].split()) <= set(words)
    assert caption("0.jpg", picture, None)[1] == str(tmp_path / "blip")
    with pytest.raises(Refused, match="no caption"):
        Captioners(["file"], "", "cpu")("0.jpg", picture, None)


def test_settings_and_hooks_are_checked_before_a_worker_starts(photos, tmp_path):
    def refused(kind, text: str, **changes) -> None:
        with pytest.raises(kind, match=text):
            check(DataSettings(**settings(photos, tmp_path / "out", **changes)))

    refused(InvalidRequest, "package.module:function", filters=FILTERS | {"watermark": "nowhere:at_all"})
    refused(
        MissingFile, "holds no prompt", pictures={"model_dir": str(photos), "prompts": str(photos / "no")}
    )
    assert load_hook("hooks_for_training:brightness")(np.full((4, 4, 3), 255, np.uint8)) == 1.0
    file = tmp_path / "data.yaml"
    file.write_text("sources: [photos]\nout: data\nbucket_step: 60\n")
    with pytest.raises(InvalidRequest, match="bucket_step: input should be a multiple of 16"):
        read_settings(DataSettings, file)
    file.write_text("sources: [photos]\nout: data\n")
    read = read_settings(DataSettings, file)
    assert read.out == tmp_path / "data" and read.sources == [tmp_path / "photos"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InvalidRequest, match="No Ray cluster answers at '127.0.0.1"):
        check_address(address)
    cause = MissingFile("Gone.")
    wrapped = RuntimeError("ray")
    wrapped.__cause__ = cause
    assert find_cause(wrapped) is cause


def test_a_photo_worker_goes_on_with_what_another_left(photos, tmp_path):
    """A unit whose shards are there but whose report is not is done over, into the same files."""
    values = DataSettings(**settings(photos, tmp_path / "out"))
    worker = PhotoWorker(values.model_dump_json())
    unit = next(unit for unit in list_units(values.sources, 4) if unit.kind == "tar")
    first = worker({"unit": unit.to_json()})
    names = sorted(path.name for path in (tmp_path / "out").rglob("*.safetensors"))
    (tmp_path / "out" / "reports" / f"{unit.name}.jsonl").unlink()
    assert worker({"unit": unit.to_json()}) == first and first["kept"] == 2
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.safetensors")) == names


def build_onnx(
    path: Path, nodes: list, inputs: dict, output: tuple, constants: dict[str, np.ndarray]
) -> Path:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()]
    result = helper.make_tensor_value_info(output[0], 1, output[1])
    graph = helper.make_graph(nodes, "g", values, [result], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_face_swap_in_inswappers_layout_changes_the_face_alone(tmp_path):
    """A swapper that paints (target 3 x 128 x 128, source 512, its map the last tensor) and a recogniser that
    answers with 512 numbers: outside the face the picture stays, inside it is the paint, by the source."""
    paint = [helper.make_node("Slice", ["source", "from", "to", "axis"], ["three"])]
    paint += [helper.make_node("Abs", ["three"], ["positive"])]
    paint += [helper.make_node("Reshape", ["positive", "shape"], ["colour"])]
    paint += [helper.make_node("Mul", ["target", "zero"], ["black"])]
    paint += [helper.make_node("Add", ["black", "colour"], ["output"])]
    whole = {
        "from": np.array([0]),
        "to": np.array([3]),
        "axis": np.array([1]),
        "shape": np.array([1, 3, 1, 1]),
    }
    swapper = build_onnx(
        tmp_path / "inswapper_128.onnx",
        paint,
        {"target": (1, 3, 128, 128), "source": (1, 512)},
        ("output", (1, 3, 128, 128)),
        whole | {"zero": np.zeros(1, np.float32), "emap": np.eye(512, dtype=np.float32)},
    )
    vector = np.zeros((1, 512), np.float32)
    vector[0, :3] = 0.8, 0.6, 0.0  # of length 1: red and green, no blue
    pool = [helper.make_node("ReduceMean", ["input.1"], ["mean"], axes=[1, 2, 3], keepdims=0)]
    pool += [helper.make_node("Mul", ["mean", "nothing"], ["none"])]
    pool += [helper.make_node("Add", ["none", "vector"], ["output"])]
    recogniser = build_onnx(
        tmp_path / "w600k_r50.onnx",
        pool,
        {"input.1": (1, 3, 112, 112)},
        ("output", (1, 512)),
        {"nothing": np.zeros(1, np.float32), "vector": vector},
    )
    photo = astronaut()
    points = find_faces(photo)[0].keypoints
    swapped = FaceSwap(swapper, recogniser)(photo, points, photo, points)
    x, y = points[2].astype(int)  # the nose
    np.testing.assert_allclose(swapped[y, x], [204, 153, 0], atol=2)
    outside = np.ones(photo.shape[:2], bool)
    outside[max(0, y - 160) : y + 160, max(0, x - 160) : x + 160] = False
    assert np.array_equal(swapped[outside], photo[outside])
    with pytest.raises(MissingFile, match="Bring it"):
        FaceSwap(tmp_path / "none.onnx", recogniser)
    (tmp_path / "broken.onnx").write_bytes(b"no")
    with pytest.raises(BrokenFile, match="not what the face swap needs"):
        FaceSwap(tmp_path / "broken.onnx", recogniser)


def test_what_make_data_wrote_is_trained_on(made, tmp_path):
    values = train_settings(tmp_path, made, steps=1, batch=2, micro_batch=1)
    (log,) = Trainer(TrainSettings(**values)).steps()
    assert np.isfinite(log.loss) and sum(log.counts) == 2
