"""The mini base's training: what it makes is FLUX's layout to everyone who reads it, a run that stopped is
the run that did not, each part learns. Oracles: singular values, transformers' tokenizers, both backends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from backends import load_backend
from infu import GenerationRequest, Lora, generate
from infu.errors import MissingFile
from infu.training.minibase import autoencoder, data, diffusion
from infu.training.minibase import lora as loras
from infu.training.minibase.__main__ import app
from infu.training.minibase.export import export
from infu.training.minibase.latents import fit_latents, load_latents, patches
from infu.training.minibase.networks import make_vae
from infu.training.run import read_log
from infu.training.world.dataset import make_shards, read_shards

SIZE = (64, 80)
PROMPT = "A woman with long blond hair, wearing a red t-shirt, oil painting"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """12 small pictures, encoded."""
    folder = tmp_path_factory.mktemp("world")
    list(make_shards(folder / "shards", range(6), 2, SIZE))
    data.encode(folder / "shards", folder / "run", lambda text: None)
    return folder


@pytest.fixture
def run(world, tmp_path):
    """A run of its own over the shared encoded pictures."""
    for name in ("latents.npz", "tokenizer", "tokenizer_2", "data"):
        (tmp_path / name).symlink_to(world / "run" / name)
    return tmp_path


def learn_dit(run, steps: int, until: int) -> diffusion.Run:
    training = diffusion.open_dit(run, steps)
    encoded = data.load_encoded(run, SIZE)
    for log in training.go(lambda step: diffusion.loss_of_dit(training.network, encoded, 2, 0, step)):
        if log.step == until:
            training.save()
            break
    return training


def test_latents_lose_what_the_smallest_singular_values_hold(world):
    pictures = read_shards(world / "shards").pictures
    latents = fit_latents(pictures, count=10**9)  # all patches
    flat = patches(pictures).astype(np.float64)
    singular = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
    least = np.square(singular[16:]).sum() / flat.size  # Eckart and Young: no 16 numbers keep more
    encoded = latents.encode(pictures)
    kept = encoded.transpose(0, 2, 3, 1).reshape(-1, 16) / latents.scale @ latents.basis.T + latents.mean
    assert np.square(kept - flat).mean() == pytest.approx(least, rel=1e-3)
    assert np.square(encoded).mean() == pytest.approx(1, rel=3e-3)  # the deviations divide by n - 1
    assert np.abs(latents.decode(encoded).astype(int) - pictures).mean() < 10  # the layout of pixels is right


def test_previews_show_the_mean_colour_of_a_patch(world):
    shards, latents = read_shards(world / "shards"), load_latents(world / "run" / "latents.npz")
    colours = latents.colours()
    encoded = latents.encode(shards.pictures)[0]
    shown = np.tensordot(encoded, np.array(colours["factors"]), axes=(0, 0)) + colours["bias"]
    means = (shards.pictures[0].reshape(10, 8, 8, 8, 3).mean((1, 3)) / 127.5) - 1
    assert np.abs(shown - means).mean() < 0.02


def test_transformers_reads_the_tokenizers_as_we_do(world):
    ours = data.load_tokenizers(world / "run")
    clip = CLIPTokenizer.from_pretrained(world / "run" / "tokenizer")
    assert clip(PROMPT, padding="max_length", max_length=77).input_ids == ours.clip(PROMPT)[0].tolist()
    t5 = PreTrainedTokenizerFast.from_pretrained(world / "run" / "tokenizer_2")
    ids = ours.t5(PROMPT)[0]
    assert t5(PROMPT).input_ids == ids[: np.flatnonzero(ids == 1)[0] + 1].tolist()
    assert "<unk>" not in t5.convert_ids_to_tokens(ids.tolist())  # unknown words are spelled
    assert t5.decode(ids, skip_special_tokens=True) == PROMPT.lower()


def test_a_run_that_stopped_is_the_run_that_did_not(run):
    once = learn_dit(run, steps=4, until=4)
    (run / "dit").rename(run / "once")
    learn_dit(run, steps=4, until=2)
    again = learn_dit(run, steps=4, until=4)
    for name, tensor in once.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    assert all(map(torch.equal, once.ema, again.ema))
    first, second = (read_log(run / name / "log.jsonl") for name in ("once", "dit"))
    assert [line["loss"] for line in first] == [line["loss"] for line in second]
    assert len(second) == 4 and sum(second[0]["counts"]) == 2


def test_two_processes_average_their_gradients(run):
    """Each has half of the batch. AdamW's first moments after a step are a tenth of the gradients; weights
    would say less: what Adam and Muon make of a gradient near zero is rounding."""
    (run / "size.json").write_text(json.dumps(SIZE))
    command = ["-m", "infu.training.minibase", "dit", str(run), "--steps", "1", "--batch"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    moments = []
    for line in ([*torchrun, *command, "2"], [*command, "4"]):
        done = subprocess.run([sys.executable, *line], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        state = torch.load(run / "dit" / "state.pt", weights_only=True)
        assert state["step"] == len(read_log(run / "dit" / "log.jsonl")) == 1
        moments.append([value["exp_avg"] for value in state["optimizers"][1]["state"].values()])
        (run / "dit").rename(run / f"dit{len(moments)}")
    largest = max(moment.abs().max().item() for moment in moments[1])
    assert largest > 0
    for two, one in zip(*moments, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-4 * largest)


def test_everything_learns_and_the_teacher_stays(run):
    before = {
        name: tensor.clone() for name, tensor in diffusion.open_dit(run, 3).network.state_dict().items()
    }
    base = learn_dit(run, steps=3, until=3).network
    still = [name for name, tensor in base.named_parameters() if torch.equal(tensor, before[name])]
    assert not still
    encoded, training = data.load_encoded(run, SIZE), diffusion.open_distilled(run, 40)
    teacher = {name: tensor.clone() for name, tensor in training.network.teacher.state_dict().items()}
    logs = training.go(lambda step: diffusion.loss_of_distilled(training.network, encoded, 2, 0, step))
    assert all(np.isfinite(next(logs).loss) for _ in range(2))
    for name, tensor in training.network.teacher.state_dict().items():
        assert torch.equal(tensor, teacher[name]), name
    assert not any(key.startswith(("_teacher", "clip", "t5")) for key in training.network.state_dict())


@pytest.mark.parametrize(
    "name, loss_of",
    [(autoencoder.DECODER, autoencoder.loss_of_decoder), (autoencoder.ENCODER, autoencoder.loss_of_encoder)],
)
def test_a_half_of_the_vae_learns(run, world, name, loss_of):
    shards, latents = read_shards(world / "shards"), load_latents(run / "latents.npz")
    training = autoencoder.open_half(run, name, 60)
    logs = list(training.go(lambda step: loss_of(training.network, latents, shards, 2, 0, step)))
    first, last = (np.mean([log.loss for log in part]) for part in (logs[:5], logs[-5:]))
    assert last < 0.7 * first


def test_both_backends_draw_the_same_with_what_is_exported(run, world, tmp_path):
    learn_dit(run, steps=3, until=3)
    shards, latents = read_shards(world / "shards"), load_latents(run / "latents.npz")
    for name, loss_of in (("decoder", autoencoder.loss_of_decoder), ("encoder", autoencoder.loss_of_encoder)):
        half = autoencoder.open_half(run, name, 1)
        list(half.go(lambda step, h=half, of=loss_of: of(h.network, latents, shards, 1, 0, step)))
        half.save()
    export(run, tmp_path / "base", SIZE)
    assert json.loads((tmp_path / "base" / "vae" / "config.json").read_text())["scaling_factor"] == 1
    pictures = []
    for name in ("pytorch", "mlx"):
        backend = load_backend(name, base_model_path=tmp_path / "base", dtype="float32")
        request = GenerationRequest(prompt=PROMPT, width=64, height=80, num_steps=2, seed=1)
        pictures.append(np.asarray(generate(request, backend).image).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # of 255: rounding
    assert pictures[0].std() > 5


def test_the_vaes_halves_are_measured_in_decibels_of_unseen_pictures(world):
    vae, latents = make_vae(), load_latents(world / "run" / "latents.npz")
    measured = autoencoder.measure_halves(
        vae.decoder, vae.encoder, latents, read_shards(world / "shards").pictures[:2]
    )
    assert set(measured) == {"decoder", "both"} and all(0 < value < 15 for value in measured.values())
    assert autoencoder.psnr(torch.tensor([0.2]), torch.tensor([0.0])) == pytest.approx(
        20
    )  # 20 log10(2 / 0.2)


def test_the_commands_make_a_base_from_shards(world, tmp_path):
    """The way of docs/training.md, each command once."""
    run, shards, base = (str(tmp_path / "run"), f"--pictures={world / 'shards'}", str(tmp_path / "base"))
    few = ["--steps", "2", "--batch", "2"]
    for line in (
        ["encode", run, shards],
        ["dit", run, *few],
        ["decoder", run, shards, *few],
        ["encoder", run, shards, *few],
        ["distil", run, *few],
        ["export", run, base],
        ["lora", run, shards, "--of", "anti_blur", "--out", str(tmp_path / "lora.safetensors"), *few],
    ):
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, (line, result.output, result.exception)
    assert (tmp_path / "run" / "dit" / "losses.png").stat().st_size > 1000
    with Image.open(tmp_path / "run" / "dit" / "samples" / "0000002.png") as sheet:
        assert sheet.size == (len(diffusion.PROMPTS) * SIZE[0], SIZE[1])
    request = GenerationRequest(prompt=PROMPT, width=64, height=80, num_steps=2, seed=1)
    plugged = request.replace(plugins=[Lora(tmp_path / "lora.safetensors", scale=10)])
    results = {}
    for name in ("pytorch", "mlx"):
        backend = load_backend(name, base_model_path=base, dtype="float32")
        results[name] = [generate(asked, backend) for asked in (request, plugged)]
    for ours, other in zip(*results.values(), strict=True):
        assert np.asarray(ours.image).std() > 5
        np.testing.assert_allclose(ours.latents, other.latents, atol=1e-4)
    plain, tuned = results["pytorch"]
    assert np.abs(plain.latents - tuned.latents).max() > 0


def test_loras_learn_from_photographs_and_from_the_sharpest_of_them(world):
    shards = read_shards(world / "shards")
    photos, sharp = (loras.CHOICES[name](shards) for name in ("realism", "anti_blur"))
    styles = [label["look"]["style"] for label in shards.labels]
    assert photos.tolist() == [style == "photo" for style in styles]
    assert sharp.sum() == np.ceil(photos.sum() / 4) and not (sharp & ~photos).any()


def test_a_run_without_encoded_pictures_says_what_to_do(tmp_path):
    with pytest.raises(MissingFile, match="minibase encode"):
        data.load_encoded(tmp_path, SIZE)
