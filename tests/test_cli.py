"""The command line: the released program's flags and file names, and what scripts rely on (standard output,
exit codes). Processes of its own where a process matters."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import typer
from golden import FOLDERS, GOLDEN, LORA_CASES, read_golden
from PIL import Image
from typer.testing import CliRunner

from infu.cli import app, reported
from infu.errors import InvalidRequest
from infu.metadata import read_picture
from infu.options import ModelOptions, OutputOptions, PictureOptions, read_lora
from infu.request import GenerationRequest

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "examples" / "astronaut.jpg"
SMALL = (
    "--width",
    "96",
    "--height",
    "128",
    "--num_steps",
    "2",
)  # the mini model makes it in a tenth of a second


def start(*command: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infu", *map(str, command)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*command: str | Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `python -m infu`."""
    process = start(*command, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def call(*command: str | Path) -> tuple[int, str, str]:
    """The same within this process, which has torch loaded already."""
    result = CliRunner().invoke(app, list(map(str, command)))
    return result.exit_code, result.stdout, result.stderr


def test_help_appears_at_once_and_loads_no_framework():
    best = 9.0
    for _ in range(3):  # the best of three: other tests run beside this one
        began = time.perf_counter()
        code, out, _ = run("--help")
        best = min(best, time.perf_counter() - began)
        assert code == 0 and all(verb in out for verb in ("generate", "batch", "download", "info"))
    assert best < 1.5
    check = "import sys, infu.cli; print({'torch', 'mlx', 'gradio', 'diffusers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", check], cwd=ROOT, text=True) == "set()\n"


def test_defaults_are_the_released_programs():
    values = {f.name: f.default for group in (PictureOptions, ModelOptions) for f in fields(group)}
    released = {
        "prompt": "A man, portrait, cinematic",
        "infu_flux_version": "v1.0",
        "model_version": "aes_stage2",
        "seed": 0,
        "infusenet_conditioning_scale": 1.0,
        "infusenet_guidance_start": 0.0,
        "infusenet_guidance_end": 1.0,
        "enable_realism_lora": False,
        "enable_anti_blur_lora": False,
        "quantize_8bit": False,
        "cpu_offload": False,
        "width": 864,
        "height": 1152,
    }
    assert {name: values[name] for name in released} == released
    request = PictureOptions().request()  # left open, they are what the model was made for
    assert (request.guidance_scale, request.num_steps) == (3.5, 30)


@pytest.mark.parametrize(
    ("case", "backend"),
    [*((case, "pytorch") for case in ("plain", "control", *LORA_CASES)), ("plain", "mlx"), ("both", "mlx")],
)
def test_pictures_are_the_released_pipelines(case: str, backend: str, tmp_path: Path):
    golden, arrays = read_golden(case), {}
    for name in ("noise", "id_embedding", "control_keypoints"):
        array = golden.noise if name == "noise" else getattr(golden.request, name)
        if array is not None:
            np.save(tmp_path / f"{name}.npy", array)
            arrays[f"--{name}"] = tmp_path / f"{name}.npy"
    flags = {f"--{name}": path for name, path in FOLDERS.items()} | arrays
    for name in ("prompt", "width", "height", "num_steps", "guidance_scale"):
        flags[f"--{name}"] = getattr(golden.request, name)
    for name in ("conditioning_scale", "guidance_start", "guidance_end"):
        flags[f"--infusenet_{name}"] = getattr(golden.request, f"infusenet_{name}")
    loras = [part for lora in golden.request.plugins for part in ("--lora", f"{lora.path}:{lora.scale}")]
    command = (
        "generate",
        "--backend",
        backend,
        "--dtype",
        "float32",
        "--out_results_dir",
        tmp_path / "out",
        "--json",
    )
    code, out, err = call(*command, *(part for pair in flags.items() for part in pair), *loras)
    assert code == 0, err
    picture = np.asarray(Image.open(json.loads(out)["file"]))
    np.testing.assert_allclose(picture, golden.image * 255, rtol=0, atol=1)


def test_json_alone_stands_on_standard_output(tmp_path: Path):
    command = (
        "generate",
        "--id_image",
        PHOTO,
        "--prompt",
        "on/off",
        "--num_images",
        "2",
        "--seed",
        "4294967295",
    )
    code, out, err = run(*command, *SMALL, "--out_results_dir", tmp_path, "--json")
    assert code == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    assert [picture["seed"] for picture in told] == [4294967295, 0]
    names = ["00000_astronaut_on|off_seed4294967295.png", "00001_astronaut_on|off_seed0.png"]
    assert [picture["file"] for picture in told] == [str(tmp_path / name) for name in names]
    assert sorted(os.listdir(tmp_path)) == names
    for picture in told:
        inside = read_picture(picture["file"])
        assert (
            inside == picture["settings"]
            and inside["seed"] == picture["seed"]
            and inside["prompt"] == "on/off"
        )


def test_without_json_the_files_are_listed_and_a_terminal_sees_the_progress(tmp_path: Path):
    reader, terminal = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "infu",
        "generate",
        *SMALL,
        "--seed",
        "7",
        "--out_results_dir",
        str(tmp_path),
    ]
    out = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal, text=True, check=True
    ).stdout
    shown = os.read(reader, 1 << 16).decode()
    assert out.splitlines() == [str(tmp_path / "00000_A man, portrait, cinematic_seed7.png")]
    assert "Loading the model" in shown and "seed 7" in shown and "2/2" in shown


def test_seed_0_is_a_random_one(tmp_path: Path):
    seeds = {
        json.loads(call("generate", *SMALL, "--out_results_dir", tmp_path, "--json")[1])["seed"]
        for _ in range(2)
    }
    assert len(seeds) == 2 and 0 not in seeds


def test_a_long_prompt_is_cut_in_the_name_as_released_and_fits_a_file_system(tmp_path: Path):
    for prompt in ("word " * 60, "顔" * 400, "line\nbreak\ttab"):
        code, out, err = call(
            "generate", "--prompt", prompt, *SMALL, "--seed", "3", "--out_results_dir", tmp_path
        )
        assert code == 0, err
    names = sorted(os.listdir(tmp_path))
    assert names[0] == f"00000_{('word ' * 60)[:150]}*_seed3.png"
    assert len(names[1].encode()) <= 255 and names[1].endswith("_seed3.png")
    assert names[2] == "00002_line break tab_seed3.png"


def test_a_picture_never_replaces_another(tmp_path: Path):
    for _ in range(2):
        assert call("generate", *SMALL, "--seed", "3", "--out_results_dir", tmp_path)[0] == 0
    first, second = sorted(os.listdir(tmp_path))
    (tmp_path / first).unlink()  # the folder's count now names the second one again
    assert call("generate", *SMALL, "--seed", "3", "--out_results_dir", tmp_path)[0] == 0
    assert len(os.listdir(tmp_path)) == 2 and second in os.listdir(tmp_path)


@pytest.mark.parametrize("flag", [("--no_such_flag",), ("--backend", "tensorflow"), ("--num_steps", "many")])
def test_wrong_usage_is_exit_code_2(flag: tuple[str, ...], tmp_path: Path):
    code, out, err = call("generate", *flag, "--out_results_dir", tmp_path)
    assert code == 2 and out == "" and flag[0] in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--id_image", "nobody.jpg"), "nobody.jpg"),
        (("--id_image", ROOT / "pyproject.toml"), "pyproject.toml"),
        (("--width", "20000"), "64 to 2048"),
        (("--lora", "nothing.safetensors:0.5"), "no LoRA file 'nothing.safetensors'"),
        (("--noise", PHOTO), "not an .npy file"),
        (("--quantize_8bit", "--quantize", "4"), "contradict"),
        (("--cpu_offload", "--offload", "sequential"), "contradict"),
        (("--infu_flux_version", "v2.0"), "Did you mean 'v1.0'"),
        (("--model_version", "aes_stage3"), "Did you mean 'aes_stage2'"),
        (("--base_model_path", "/nowhere/FLUX"), "base_model_path"),
        (("--base_model_path", GOLDEN / "base", "--id_image", PHOTO), "without InfiniteYou"),
        (("--base_model_path", GOLDEN / "base", "--enable_realism_lora"), "no realism LoRA"),
        (("--out_results_dir", ROOT / "pyproject.toml"), "cannot be made"),
    ],
)
def test_an_error_of_the_users_is_one_line_and_exit_code_1(flags: tuple, words: str, tmp_path: Path):
    code, out, err = call("generate", *SMALL, "--out_results_dir", tmp_path, *flags)
    said = [line for line in err.splitlines() if not line.startswith("Loading")]
    assert code == 1 and out == "" and len(said) == 1 and words in said[0]
    code, out, err = call("generate", *SMALL, "--out_results_dir", tmp_path, *flags, "--json")
    assert code == 1 and out == "" and json.loads(err)["message"] == said[0]


def test_a_fault_of_ours_is_one_line_and_exit_code_70_and_shows_its_trace_on_demand(
    capsys: pytest.CaptureFixture,
):
    for debug in (False, True):
        with pytest.raises(typer.Exit) as caught, reported(OutputOptions(debug=debug)):
            raise ZeroDivisionError("two\nlines")
        err = capsys.readouterr().err
        assert caught.value.exit_code == 70
        assert err.startswith("Unexpected ZeroDivisionError: two lines (--debug shows where)\n")
        assert ("Traceback" in err) == debug and (len(err.splitlines()) == 1) != debug


def test_ctrl_c_is_exit_code_130_and_leaves_whole_pictures_only(tmp_path: Path):
    process = start(
        "generate", *SMALL, "--num_images", "64", "--num_steps", "20", "--out_results_dir", tmp_path, "--json"
    )
    json.loads(process.stdout.readline())  # one is done, the next is being made
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert 1 <= len(os.listdir(tmp_path)) < 64
    for name in os.listdir(tmp_path):
        assert read_picture(tmp_path / name)["num_steps"] == 20


def test_a_head_angle_is_asked_for_by_name_and_a_face_by_number(tmp_path: Path):
    asked = ("generate", "--id_image", PHOTO, *SMALL, "--seed", 1, "--out_results_dir", tmp_path, "--json")
    code, out, err = call(*asked, "--pose", "three_quarter_left", "--id_face", 0)
    assert code == 0, err
    assert read_picture(json.loads(out)["file"])["pose"] == "three_quarter_left"
    code, _, err = call(*asked, "--pose", "three_quarter")
    assert code == 1 and "Did you mean 'three_quarter_" in err
    code, _, err = call(*asked, "--id_face", 1)
    assert code == 1 and "There is no face 1 in the photograph" in err


def test_a_batch_skips_a_bad_line_says_which_and_goes_on(tmp_path: Path):
    photo = os.path.relpath(PHOTO, tmp_path)
    small = {"width": 96, "height": 128, "num_steps": 2, "seed": 5}
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    lines = [
        json.dumps({"prompt": "one", "id_image": photo} | small),
        "{not json",
        "",
        json.dumps({"prompt": "two", "promt": "two"} | small),
        json.dumps({"prompt": "three", "id_image": "broken.jpg"} | small),
        json.dumps({"prompt": "four", "width": 1} | small | {"width": 1}),
        "[1]",
        json.dumps({"prompt": "five", "id_images": [photo, 7]} | small),
        "\udcff",
        json.dumps({"prompt": "six", "plugins": [{"lora": "../style.safetensors"}]} | small),
        json.dumps({"prompt": "seven", "id_images": [photo, photo], "seed": 0} | small | {"seed": 0}),
    ]
    file = tmp_path / "jobs.jsonl"
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    code, out, err = call("batch", file, "--out_results_dir", tmp_path / "out", "--json")
    assert code == 1
    done = [json.loads(line) for line in out.splitlines()]
    assert [(d["line"], d["seed"], d["settings"]["prompt"]) for d in done] == [
        (1, 5, "one"),
        (11, 0, "seven"),
    ]
    wrong = {e["line"]: e["message"] for e in map(json.loads, err.splitlines())}
    expected = {
        2: "not JSON",
        4: "Did you mean 'prompt'",
        5: "broken.jpg",
        6: "64 to 2048",
        7: "not an object",
        8: "name a file, not 7",
        9: "UTF-8",
        10: "style.safetensors",
    }
    assert wrong.keys() == expected.keys() and all(expected[line] in wrong[line] for line in wrong)


def test_a_batch_loads_its_model_once_and_not_for_nothing(tmp_path: Path):
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"prompt": "a", "width": 96, "height": 128, "num_steps": 1}\n' * 3)
    code, out, err = call("batch", file, "--out_results_dir", tmp_path / "out")
    assert code == 0 and err.count("Loading the model") == 1 and len(out.splitlines()) == 3
    file.write_text("{}\n")
    code, out, err = call("batch", file, "--out_results_dir", tmp_path / "out")
    assert code == 1 and "Loading" not in err and err.startswith("line 1: ") and "1 of 1 lines" in err


def test_the_example_batch_runs(tmp_path: Path):
    code, out, err = call("batch", ROOT / "examples" / "batch.jsonl", "--out_results_dir", tmp_path)
    assert code == 0, err
    assert len(os.listdir(tmp_path)) == len(out.splitlines()) == 3


def test_optional_loras_are_used_and_named_in_the_picture(tmp_path: Path):
    flags = ("--enable_realism_lora", "--enable_anti_blur_lora", "--json", "--out_results_dir", tmp_path)
    code, out, err = call("generate", *SMALL, *flags)
    assert code == 0, err
    names = [plugin["lora"] for plugin in json.loads(out)["settings"]["plugins"]]
    assert names == ["flux_realism_lora.safetensors", "flux_anti_blur_lora.safetensors"]


@pytest.mark.parametrize(
    ("text", "name", "scale"),
    [("a.safetensors", "a.safetensors", 1.0), ("a.safetensors:0.8", "a.safetensors", 0.8),
     ("a.safetensors:-.5", "a.safetensors", -0.5), ("b:2", "b:2", 1.0), ("b:2:0.3", "b:2", 0.3),
     ("style:new", "style:new", 1.0)],
)  # fmt: skip
def test_a_lora_is_a_file_whose_name_may_hold_colons_and_a_scale(
    text: str, name: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for file in ("a.safetensors", "b:2", "style:new"):
        (tmp_path / file).touch()
    lora = read_lora(text)
    assert (str(lora.path), lora.scale) == (name, scale)


def test_a_cuda_device_is_one_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back afterwards
    ModelOptions(cuda_device=1).loading()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    ModelOptions(cuda_device=1).loading()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    with pytest.raises(InvalidRequest, match="from 0 to 0"):
        ModelOptions(cuda_device=2).loading()


def test_a_model_saved_in_4_bits_makes_the_picture_of_the_model_loaded_in_4_bits(tmp_path: Path):
    code, out, err = call("quantize", tmp_path / "packed", "--quantize", "4", "--dtype", "float32", "--json")
    assert code == 0, err
    folders = [part for name, path in json.loads(out).items() for part in (f"--{name}", path)]
    common = (
        "generate",
        "--backend",
        "mlx",
        "--dtype",
        "float32",
        *SMALL,
        "--seed",
        "3",
        "--json",
        "--id_image",
        PHOTO,
    )
    pictures = []
    for flags in (folders, ["--quantize", "4"]):
        code, out, err = call(*common, *flags, "--out_results_dir", tmp_path)
        assert code == 0, err
        pictures.append(np.asarray(Image.open(json.loads(out)["file"])))
    np.testing.assert_array_equal(*pictures)
    code, _, err = call("quantize", tmp_path / "other")
    assert code == 1 and "--quantize 8, 6, 4 or 3" in err and not (tmp_path / "other").exists()


def test_info_says_what_is_here_and_what_fits(tmp_path: Path):
    code, out, _ = run("info", HF_HOME=str(tmp_path), INFU_CACHE=str(tmp_path))
    assert code == 0 and re.search(r"mini: here \(aes_stage2, sim_stage1\)", out)
    assert re.search(r"FLUX\.1-dev \+ InfiniteYou: not here\n.*infu download", out) and "42.4 GB" in out
    code, out, _ = call(
        "info", "--json", "--base_model_path", GOLDEN / "base", "--model_dir", GOLDEN / "InfiniteYou"
    )
    told = json.loads(out)
    assert [model["name"] for model in told["models"]] == ["base + InfiniteYou"] == [told["memory_of"]]
    assert any("ArcFace" in sentence for sentence in told["models"][0]["missing"])
    assert told["memory"] and all(row["fits"] for row in told["memory"])
    code, out, _ = call("info", "--json", "--base_model_path", GOLDEN / "nothing")
    assert code == 0 and json.loads(out)["models"][0]["here"] is False


def test_every_setting_of_a_request_has_a_flag_or_stands_in_another():
    flags = {f.name for f in fields(PictureOptions)}
    elsewhere = {"id_images": "id_image", "id_faces": "id_face", "plugins": "plugin"}
    assert all(elsewhere.get(f.name, f.name) in flags for f in fields(GenerationRequest) if f.init)
