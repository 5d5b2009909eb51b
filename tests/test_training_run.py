"""A training run: it goes on where it stopped, is the same on several processes, and says what it does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from training_data import BASE, SIZES, train_settings, write_random_data
from typer.testing import CliRunner

from backends import load_backend
from infu import GenerationRequest, generate
from infu.cli import app
from infu.errors import InvalidRequest, MissingFile, NonFiniteError
from infu.training.config import DataSettings, TrainSettings, read_settings
from infu.training.engine import Trainer
from infu.training.estimate import estimate_training
from infu.training.run import read_log, train
from infu.training.shards import Order, Shards
from infu.training.workers import read_prompts

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "examples" / "astronaut.jpg"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_random_data(tmp_path_factory.mktemp("data"))


def settings(folder: Path, data: Path, **changes) -> TrainSettings:
    return TrainSettings(**train_settings(folder, data, **changes))


def read_weights(folder: Path, version: str = "sim_stage1") -> dict[str, torch.Tensor]:
    release = folder / "InfiniteYou" / "infu_flux_v1.0" / version
    weights = load_file(release / "InfuseNetModel" / "diffusion_pytorch_model.safetensors")
    return weights | torch.load(release / "image_proj_model.bin", weights_only=True)["image_proj"]


def test_two_steps_and_two_more_are_four_bit_for_bit(tmp_path, data):
    """Weights, and the moments of the optimiser, which would show in the steps after."""
    said: list[str] = []
    train(settings(tmp_path / "whole", data), said.append)
    train(settings(tmp_path / "halves", data, steps=2), said.append)
    train(settings(tmp_path / "halves", data), said.append)
    whole, halves = read_weights(tmp_path / "whole"), read_weights(tmp_path / "halves")
    assert whole.keys() == halves.keys() and all(torch.equal(whole[name], halves[name]) for name in whole)
    lines = [read_log(tmp_path / run / "run" / "log.jsonl") for run in ("whole", "halves")]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4]
    for a, b in zip(*lines, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }
    moments = [
        torch.load(tmp_path / run / "run/states/00000004/optimizer.bin", weights_only=True)["state"]
        for run in ("whole", "halves")
    ]
    for a, b in zip(moments[0].values(), moments[1].values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert "4 of 4 steps to go" in said[0] and "2 of 4 steps to go" in " ".join(said)


def launch(folder: Path, data: Path, processes: int, *program: str, **changes) -> list[subprocess.Popen]:
    """`python -m infu train` in as many processes as asked for, as torchrun would start them."""
    folder.mkdir(exist_ok=True)
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(train_settings(folder, data, **changes)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    many = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(k), "LOCAL_RANK": str(k)} | many if processes > 1 else {} for k in range(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(program or ("-m", "infu", "train")), str(file)]
    return [
        subprocess.Popen(command, cwd=ROOT, env=environment | rank, stderr=subprocess.PIPE, text=True)
        for rank in ranks
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    said = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """Two steps in one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(settings(folder, data, steps=2), print)
    return folder


def assert_the_same(one: Path, other: Path) -> None:
    """Weights of size .1 to 1, moved by up to 2e-3, and losses of size 3."""
    weights, others = read_weights(one), read_weights(other)
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=1e-6)
    losses = [[line["loss"] for line in read_log(folder / "run/log.jsonl")] for folder in (one, other)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-6)


def test_two_processes_are_one(tmp_path, data, alone):
    """The mean of two processes' gradients is the gradient of the whole batch, noise and all."""
    finish(launch(tmp_path, data, 2, steps=2))
    assert_the_same(alone, tmp_path)


def test_two_processes_that_share_the_weights_are_one_and_go_on_where_they_stopped(tmp_path, data, alone):
    """FSDP: each holds half of every tensor, of its gradient and of its moments."""
    program = str(ROOT / "tests" / "sharded_train.py")
    for steps in (1, 2):
        finish(launch(tmp_path, data, 2, program, steps=steps, fsdp=True))
    assert_the_same(alone, tmp_path)
    states = tmp_path / "run" / "states" / "00000002"
    assert len(list((states / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2


def test_a_run_that_is_told_to_stop_saves_where_it_is(tmp_path, data):
    (process,) = launch(tmp_path / "run", data, 1, steps=100_000)
    log = tmp_path / "run" / "run" / "log.jsonl"
    for line in process.stderr:
        if line.startswith("step 2 "):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=400)
    assert process.returncode == 0
    last = read_log(log)[-1]["step"]
    assert (log.parent / "states" / f"{last:08d}" / "state.json").is_file()


def test_stage_2_begins_with_stage_1s_weights_and_leaves_them(tmp_path, data):
    train(settings(tmp_path, data, steps=1), print)
    before = read_weights(tmp_path)
    run = {"run_dir": str(tmp_path / "run2"), "learning_rate": 5e-4, "warmup_steps": 2}
    train(settings(tmp_path, data, stage=2, steps=1, **run), print)
    after = read_weights(tmp_path, "aes_stage2")
    assert all(torch.equal(before[name], value) for name, value in read_weights(tmp_path).items())
    moved = max((after[name] - before[name]).abs().max().item() for name in before)
    # AdamW's first step moves a weight by its rate, halved by the warm-up, and by a decay of 1 % of the rate.
    assert moved == pytest.approx(2.5e-4, rel=0.1)


def test_the_rate_rises_stays_and_falls(tmp_path, data):
    train(settings(tmp_path, data, steps=5, learning_rate=1e-3, warmup_steps=2, cooldown_steps=2), print)
    rates = [line["learning_rate"] for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 5e-4])


def test_a_run_draws_samples_and_losses_and_its_model_loads(tmp_path, data):
    sample = {"prompt": "A man", "id_image": str(PHOTO), "width": 64, "height": 80, "num_steps": 2, "seed": 3}
    train(settings(tmp_path, data, steps=2, sample_every=1, samples=[sample]), print)
    run = tmp_path / "run"
    pictures = [np.asarray(Image.open(run / "samples" / f"{step:08d}-0.png")) for step in (1, 2)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() > 0  # a step moved the weights
    backend = load_backend(
        "pytorch", BASE, model_dir=tmp_path / "InfiniteYou", model_version="sim_stage1", dtype="float32"
    )
    request = GenerationRequest(prompt="A man", id_image=PHOTO, width=64, height=80, num_steps=2, seed=3)
    assert np.array_equal(np.asarray(generate(request, backend).image), pictures[1])
    assert [line["step"] for line in read_log(run / "samples.jsonl")] == [1, 2]
    plot = np.asarray(Image.open(run / "losses.png").convert("RGB"))
    assert plot.shape[1] > 1000 and len(np.unique(plot.reshape(-1, 3), axis=0)) > 20


def test_captions_without_states_are_encoded_on_the_way(tmp_path):
    """The same run as with states that were encoded before."""
    bare = write_random_data(tmp_path / "bare", text=False)
    trainer = Trainer(settings(tmp_path, bare, steps=1))
    (log,) = trainer.steps()
    assert np.isfinite(log.loss) and log.grad_norm > 0
    text = load_backend("pytorch", BASE, dtype="float32").encode_prompt("A man, number 2")
    ours = trainer._encode(["A man, number 2"])
    assert torch.equal(ours["states"], text.states) and torch.equal(ours["pooled"], text.pooled)


def test_every_sample_comes_up_once_an_epoch_in_batches_of_one_size(data):
    shards = Shards([data])
    assert len(shards) == 30
    order = Order(shards.by_size(), 4, seed=1)
    batches = [order[step] for step in range(order.per_epoch)]
    assert order.per_epoch == 9 and {len(batch) for batch in batches} == {4}
    assert sorted(set(np.concatenate(batches).tolist())) == list(range(30))
    for batch in batches:
        assert len({shards.sizes[shards.find(int(number))[0]] for number in batch}) == 1
    again = Order(shards.by_size(), 4, seed=1)
    assert np.array_equal(again[order.per_epoch + 2], order[order.per_epoch + 2])
    assert not np.array_equal(order[0], order[order.per_epoch])


def test_a_batch_is_what_the_shards_hold_with_black_where_no_points_are_wanted(data):
    shards = Shards([data])
    numbers = shards.by_size()[0][[7, 2]]
    batch = shards.read(numbers, [True, False])
    size = (batch.width, batch.height)
    file = load_file(data / "shards" / f"00001-{size[0]}x{size[1]}-5.safetensors")
    assert torch.equal(batch.latents[0], file["latents"][2]) and torch.equal(
        batch.control[0], file["control"][2]
    )
    black = load_file(data / f"black-{size[0]}x{size[1]}.safetensors")["control"]
    assert torch.equal(batch.control[1], black)
    assert shards.caption(int(numbers[0])) == "A man, number 2" and size == min(SIZES)


def test_what_is_wrong_with_settings_or_data_is_said_in_words(tmp_path, data):
    def refused(kind, text: str, **changes) -> None:
        file = tmp_path / "train.yaml"
        file.write_text(json.dumps(train_settings(tmp_path, data) | changes))
        with pytest.raises(kind, match=text):
            Trainer(read_settings(TrainSettings, file))

    refused(InvalidRequest, "no setting 'lerning_rate'", lerning_rate=1)
    refused(InvalidRequest, "multiple of micro_batch", batch=5)
    refused(InvalidRequest, "learning_rate: input should be greater than 0", learning_rate=0)
    refused(MissingFile, "make-data", data=[str(tmp_path)])
    refused(MissingFile, "Train stage 1 first", stage=2)
    refused(InvalidRequest, "encoded with the base 'base'", base_model_path=None)
    with pytest.raises(InvalidRequest, match="not YAML"):
        (tmp_path / "train.yaml").write_text("a: [")
        read_settings(TrainSettings, tmp_path / "train.yaml")


def test_numbers_that_are_not_finite_end_the_run(tmp_path, data):
    with pytest.raises(NonFiniteError, match="lower learning_rate"):
        train(settings(tmp_path, data, learning_rate=1e30, max_grad_norm=None), print)
    assert not (tmp_path / "run" / "states").exists()


def test_a_dry_run_counts_weights_and_operations(tmp_path, data):
    """Against the networks themselves, and the rule that a product of a weight with B vectors takes 2 B
    operations, once forward, and once or twice back."""
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(train_settings(tmp_path, data)))
    run = CliRunner().invoke(app, ["train", str(file), "--dry_run", "--devices", "2", "--tflops", "1e-6"])
    assert run.exit_code == 0, run.stderr
    trainer = Trainer(settings(tmp_path, data))
    trained = sum(p.numel() for p in trainer.trainee.parameters())
    frozen = sum(p.numel() for p in trainer.base.parameters())
    assert f"30 samples of up to 80 x 64; {trained:,} weights train beside {frozen:,} frozen" in run.stdout
    operations = float(re.search(r"(\S+) operations a sample", run.stdout)[1])
    # Nearly all of a block's weights meet either all 20 image tokens or the 512 of text, at most all.
    assert 2 * 2 * (20 * frozen + 20 * trained) < operations < 2 * 3 * 532 * (frozen + trained)
    seconds = float(re.search(r"(\S+) s a step", run.stdout)[1])
    assert seconds == pytest.approx(operations * 4 / (2 * 1e6), rel=0.02)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_the_settings_for_many_gpus_are_the_papers(name: str):
    values = read_settings(TrainSettings, ROOT / "examples" / "training" / f"{name}.yaml")
    paper = {"stage1": (1, 2e-5, 512), "stage2": (2, 1e-5, 256)}[name]
    assert (values.stage, values.learning_rate, values.batch) == paper
    assert values.betas == (0.9, 0.999) and values.weight_decay == 0.01 and values.fsdp
    assert all(sample.id_image.is_file() for sample in values.samples)
    data = read_settings(DataSettings, ROOT / "examples" / "training" / f"{name}_data.yaml")
    assert [str(data.out)] == [str(folder) for folder in values.data]
    assert data.pictures is None or read_prompts(data.pictures.prompts)


def test_the_commands_explain_themselves():
    for verb, words in {
        "train": ("accelerate launch", "--dry_run"),
        "make-data": ("--ray", "parquet"),
    }.items():
        run = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "120"})
        assert run.exit_code == 0 and all(word in run.stdout for word in words), run.stdout


def test_a_wrong_file_of_settings_is_an_error_in_words(tmp_path):
    run = CliRunner().invoke(app, ["train", str(tmp_path / "none.yaml")])
    assert run.exit_code == 1 and "There is no file 'none.yaml'" in run.stderr


def test_an_identity_adapter_trains_through_the_same_loop(tmp_path, data):
    """For comparison; its file has the layout that InstantX's has."""
    values = settings(tmp_path, data, network="ip_adapter", steps=2)
    train(values, print)
    state = torch.load(tmp_path / "InfiniteYou" / "ip-adapter.bin", weights_only=True)
    assert state.keys() == {"image_proj", "ip_adapter"} and len(state["ip_adapter"]) == 2 * 12
    assert all(state["ip_adapter"][f"{i}.to_v_ip.weight"].any() for i in range(12))
    assert "weights train beside" in estimate_training(values, 1, 1.0)[0]
    with pytest.raises(InvalidRequest, match="draws no samples"):
        file = tmp_path / "train.yaml"
        file.write_text(json.dumps(train_settings(tmp_path, data, network="ip_adapter", stage=2)))
        read_settings(TrainSettings, file)
