"""The mini model's face encoder and what measures it: the ONNX graph says what its parts say, crops lie where
they should, stage 1's samples train and the trained model makes pictures on both backends, the table counts
rightly. Oracles: PyTorch, arithmetic on pixels, a real photograph."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from backends import load_backend
from backends.mlx.plugins.vision import encode_picture
from infu import ControlNet, GenerationRequest, IPAdapter, find_faces, generate
from infu.align import CROP, HEAD, HEAD_CENTRE, HEAD_REGION, align, crop_head, unit
from infu.errors import InfuError, MissingFile
from infu.recognisers import load_recogniser
from infu.training.config import DataSettings, TrainSettings, read_settings
from infu.training.encode import Examiner, load_faces
from infu.training.judge import TEMPLATE, Judge, rank
from infu.training.minibase import autoencoder, data, diffusion, identities, table
from infu.training.minibase.__main__ import app
from infu.training.minibase.export import export
from infu.training.minibase.faces import CELLS, export_appearance, find_family, find_spread
from infu.training.minibase.networks import make_base
from infu.training.run import train
from infu.training.shards import keep_appearance, read_rows
from infu.training.world import reader as readers
from infu.training.world.dataset import make_shards, part_shards, read_shards
from infu.training.world.renderer import Renderer

SIZE = (128, 160)
EXAMPLES = Path(__file__).parents[1] / "examples/training/mini"
FEW = {  # of an example's steps: two, so large that they are seen
    "steps": 2,
    "batch": 4,
    "micro_batch": 4,
    "save_dtype": "float32",
    "learning_rate": 0.1,
    "warmup_steps": 0,
    "cooldown_steps": 0,
}


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """8 pictures of 4 people, encoded; a base, a reader and a face encoder that have learnt for a step."""
    folder = tmp_path_factory.mktemp("world")
    list(make_shards(folder / "shards", range(4), 2, SIZE))
    shards, run = read_shards(folder / "shards"), folder / "run"
    data.encode(folder / "shards", run, lambda text: None)
    (run / "size.json").write_text(json.dumps(SIZE))
    learn(
        diffusion.open_dit(run, 1),
        lambda net, n: diffusion.loss_of_dit(net, data.load_encoded(run, SIZE), 2, 0, n),
    )
    latents = data.load_latents(run / "latents.npz")
    for name, loss_of in (("decoder", autoencoder.loss_of_decoder), ("encoder", autoencoder.loss_of_encoder)):
        learn(
            autoencoder.open_half(run, name, 1), lambda net, n, of=loss_of: of(net, latents, shards, 1, 0, n)
        )
    for of in readers.FACTS:
        learn(readers.open_reader(run, of, 2), lambda net, n: readers.loss_of_reader(net, shards, 4, 0, n))
    reader, family = readers.load_reader(run, "head"), find_family(load_recogniser(None), shards)
    export_appearance(reader, family, run / "raw.onnx")
    raw = load_recogniser(run / "raw.onnx")
    seen = [raw.embed(*identities.view(shards, n)[:2])[192:] for n in range(len(shards.pictures))]
    np.save(run / "seen.npy", np.stack(seen))
    export_appearance(reader, family, run / "appearance.onnx", find_spread(np.stack(seen)))
    return folder


def learn(training, loss_of) -> None:
    for _ in training.go(lambda number: loss_of(training.network, number)):
        pass
    training.save()


# The head's crop.


def test_a_head_lies_around_the_aligned_face(astronaut):
    points = find_faces(Image.fromarray(astronaut))[0].keypoints
    head, face = crop_head(astronaut, points), align(astronaut, points)
    scale = HEAD / HEAD_REGION
    left, top = (HEAD / 2 - scale * centre for centre in HEAD_CENTRE)
    inside = head[round(top) : round(top + scale * CROP), round(left) : round(left + scale * CROP)]
    small = cv2.resize(face, inside.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(inside.astype(int) - small).mean() < 12


@pytest.mark.parametrize("times", [0.5, 2, 6])
def test_a_head_does_not_depend_on_the_size_of_its_photograph(astronaut, times):
    points = find_faces(Image.fromarray(astronaut))[0].keypoints
    other = cv2.resize(
        astronaut, None, fx=times, fy=times, interpolation=cv2.INTER_AREA if times < 1 else cv2.INTER_CUBIC
    )
    moved = (points + 0.5) * times - 0.5
    assert np.abs(crop_head(astronaut, points).astype(int) - crop_head(other, moved)).mean() < 5


# The face encoder.


def test_the_face_encoder_says_what_its_parts_say(world, astronaut):
    run, recogniser = world / "run", load_recogniser(None)
    points = find_faces(Image.fromarray(astronaut))[0].keypoints
    described = load_recogniser(run / "appearance.onnx")
    vector = described.embed(astronaut, points)
    assert vector.shape == (described.size,)

    family = find_family(recogniser, read_shards(world / "shards"))
    face = unit(recogniser.embed(astronaut, points))
    expected = unit(face - (face @ family) * family)
    np.testing.assert_allclose(vector[:192], expected, atol=1e-5)
    assert abs(vector[:192] @ family) < 1e-5  # nothing is left of what all renders share

    head = crop_head(astronaut, points)
    reader = readers.load_reader(run, "head")
    parts = reader.split(reader(readers.to_tensor(head[None])))
    told = [parts[name].softmax(1) for name in ("male", "haircut", "fringe", "beard", "glasses")] + [
        parts["age"]
    ]
    told = torch.cat(told, dim=1)[0].detach().numpy()
    spread = find_spread(np.load(run / "seen.npy"))
    cells = head.reshape(8, 8, 8, 8, 3).mean((1, 3))[1:7, 2:6] / 127.5 - 1  # (6, 4, 3)
    seen = np.concatenate([told, cells.transpose(2, 0, 1).ravel()])
    np.testing.assert_allclose(vector[192:], (seen - spread.mean) * spread.scale, atol=2e-3)


def test_each_part_of_the_face_encoders_vector_weighs_alike(world):
    """On average over what the spread was found of."""
    seen = np.load(world / "run" / "seen.npy")
    spread, told = find_spread(seen), seen.shape[1] - CELLS
    scaled = (seen - spread.mean) * spread.scale
    varied = seen.std(0) > 1e-3
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    for part in (slice(told), slice(told, None)):
        share = varied[part].mean()
        assert np.square(scaled[:, part]).sum(1).mean() == pytest.approx(share, rel=0.05)


def test_a_missing_face_encoder_is_named(tmp_path):
    with pytest.raises(MissingFile, match=r"appearance\.onnx"):
        load_recogniser(tmp_path / "appearance.onnx")


# The readers.


def test_a_reader_learns_what_renders_show(world, tmp_path):
    shards = read_shards(world / "shards")
    training = readers.open_reader(tmp_path, "head", 40)
    losses = [
        log.loss for log in training.go(lambda n: readers.loss_of_reader(training.network, shards, 8, 0, n))
    ]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    training.save()
    right = readers.measure(readers.load_reader(tmp_path, "head"), shards)
    assert set(right) == set(readers.HEAD.choices) and all(0 <= share <= 1 for share in right.values())


def test_unseen_people_are_nowhere_in_what_is_learnt_from(world):
    seen, unseen = part_shards(read_shards(world / "shards"), 0.3)
    one, other = ({label["person"]["seed"] for label in part.labels} for part in (seen, unseen))
    assert one and other and not one & other


# Stage 1's samples.


def test_a_mirrored_sample_has_its_points_in_the_mirror(world):
    shards = read_shards(world / "shards")
    mirrored = 0
    for n in range(len(shards.pictures)):
        picture, points, _ = identities.view(shards, n)
        assert points[0, 0] < points[1, 0] and points[3, 0] < points[4, 0]  # left before right
        if not np.array_equal(picture, shards.pictures[n]):
            mirrored += 1
            np.testing.assert_array_equal(picture, shards.pictures[n][:, ::-1])
    assert 0 < mirrored < len(shards.pictures)


def test_what_stage_one_makes_of_the_world_draws_a_photograph_alike_on_both_backends(
    world, tmp_path, astronaut
):
    run, shards = world / "run", read_shards(world / "shards")
    base = tmp_path / "base"
    export(run, base, SIZE)
    identities.embed_all(load_recogniser(run / "appearance.onnx"), shards, tmp_path / "embeddings.npy")
    embeddings = np.load(tmp_path / "embeddings.npy")
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    samples = tmp_path / "samples"
    identities.write_identities(run, make_base(run), "base", shards, embeddings, samples)
    keep_appearance(samples, run / "appearance.onnx")
    folders = {"data": [samples], "model_dir": tmp_path / "model", "run_dir": tmp_path / "stage1"}
    settings = TrainSettings(
        stage=1, **folders, base_model_path=str(base), steps=2, batch=4, micro_batch=4, learning_rate=1e-2,
        blocks_per_residual=(3, 3), projection=dict(width=64, depth=1, num_heads=1, num_tokens=8),
        precision="no", gradient_checkpointing=False, workers=0, save_dtype="float32",
    )  # fmt: skip
    train(settings, lambda text: None)
    pictures = {}
    for name in ("pytorch", "mlx"):
        backend = load_backend(
            name, base, model_dir=tmp_path / "model", model_version="sim_stage1", dtype="float32"
        )
        assert backend.faces.embedding_size == embeddings.shape[1]
        for person in (None, Image.fromarray(astronaut)):
            request = GenerationRequest(
                prompt="a woman", id_image=person, width=64, height=80, num_steps=2, seed=1
            )
            pictures[name, person is None] = np.asarray(generate(request, backend).image).astype(int)
    for plain in (True, False):
        assert np.abs(pictures["pytorch", plain] - pictures["mlx", plain]).max() <= 1
    assert np.abs(pictures["mlx", True] - pictures["mlx", False]).max() > 0  # the photograph is seen


def test_a_controlnet_learns_edges_and_draws_alike_on_both_backends(world, tmp_path, astronaut):
    run, base, hints = world / "run", tmp_path / "base", tmp_path / "hints"
    export(run, base, SIZE)
    shards = f"--pictures={world / 'shards'}"
    result = CliRunner().invoke(app, ["hints", str(run), shards, f"--base={base}", f"--out={hints}"])
    assert result.exit_code == 0, (result.output, result.exception)
    backends = {name: load_backend(name, base, dtype="float32") for name in ("pytorch", "mlx")}
    (path,) = (hints / "shards").glob("*.safetensors")
    sample, (row, *_) = load_file(path), read_rows(path)
    picture, _, _ = identities.view(read_shards(world / "shards"), 0)
    edges = np.repeat(cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 100, 200)[..., None], 3, axis=2)
    of_mlx = backends["mlx"].numpy(backends["mlx"].encode_image(edges))[0]
    np.testing.assert_allclose(sample["control"][0], of_mlx, rtol=2e-3, atol=2e-3)  # float16
    states = backends["mlx"].numpy(backends["mlx"].encode_prompt(row["caption"]).states)[0]
    np.testing.assert_allclose(sample["states"][0], states, rtol=5e-3, atol=5e-3)

    example = read_settings(TrainSettings, EXAMPLES / "controlnet.yaml")
    network = tmp_path / "canny"
    folders = {"data": [hints], "model_dir": network, "run_dir": tmp_path / "run"}
    folders["base_model_path"] = str(base)
    train(example.model_copy(update=folders | FEW), lambda text: None)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 2 and log[0]["grad_norm"] > 0
    latents = {}
    for name, backend in backends.items():
        request = GenerationRequest(prompt="a woman", width=64, height=80, num_steps=2, seed=1)
        for scale in (None, 0, 1):
            plugins = [ControlNet(network, astronaut, scale, hint="canny")] if scale is not None else []
            latents[name, scale] = generate(request.replace(plugins=plugins), backend).latents
        np.testing.assert_array_equal(latents[name, 0], latents[name, None])
        assert np.abs(latents[name, 1] - latents[name, 0]).max() > 1e-3
    np.testing.assert_allclose(latents["pytorch", 1], latents["mlx", 1], rtol=0, atol=1e-4)
    for changes, held in (({"network": "infusenet"}, "holds canny hints"), ({"data": [world]}, "no data")):
        with pytest.raises(InfuError, match=held):
            train(example.model_copy(update=folders | FEW | changes), lambda text: None)


def test_a_style_adapter_learns_pictures_and_draws_alike_on_both_backends(world, tmp_path, astronaut):
    run, base, styles = world / "run", tmp_path / "base", tmp_path / "styles"
    export(run, base, SIZE)
    (weights,) = (base / "transformer").glob("*.safetensors")
    rng, tensors = np.random.default_rng(0), load_file(weights)  # its gates are zero: attention is unheard
    save_file({n: (t + rng.normal(0, 0.05, t.shape)).astype(t.dtype) for n, t in tensors.items()}, weights)
    adapter = tmp_path / "style"
    tower, given = adapter / "image_encoder", (f"--pictures={world / 'shards'}", f"--base={base}")
    command = ["styles", str(run), *given, f"--encoder={tower}", f"--out={styles}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (result.output, result.exception)
    assert sum(file.stat().st_size for file in tower.iterdir()) < 3e5
    backends = {name: load_backend(name, base, dtype="float32") for name in ("pytorch", "mlx")}
    (path,) = (styles / "shards").glob("*.safetensors")
    sample, rows = load_file(path), read_rows(path)
    for n in (0, len(rows) - 1):
        picture, _, _ = identities.view(read_shards(world / "shards"), n)
        seen = encode_picture(backends["mlx"], tower, picture)[0]
        np.testing.assert_allclose(sample["embedding"][n], seen, rtol=0, atol=1e-5)
    assert sample["embedding"].std(0).mean() > 0.2  # pictures differ in it
    short = [row["caption"] in ("a man", "a woman") for row in rows]
    assert any(short) and not all(short)

    example = read_settings(TrainSettings, EXAMPLES / "style.yaml")
    folders = {"data": [styles], "model_dir": adapter, "run_dir": tmp_path / "run"}
    folders["base_model_path"] = str(base)
    train(example.model_copy(update=folders | FEW), lambda text: None)
    latents = {}
    for name, backend in backends.items():
        request = GenerationRequest(prompt="a woman", width=64, height=80, num_steps=2, seed=1)
        for scale in (None, 1):
            plugins = [IPAdapter(adapter, astronaut, scale)] if scale is not None else []
            latents[name, scale] = generate(request.replace(plugins=plugins), backend).latents
        assert np.abs(latents[name, 1] - latents[name, None]).max() > 1e-3
    np.testing.assert_allclose(latents["pytorch", 1], latents["mlx", 1], rtol=0, atol=1e-4)
    for network in ("infusenet", "controlnet"):
        with pytest.raises(InfuError, match=f"style pictures, on which no {network}"):
            train(example.model_copy(update=folders | FEW | {"network": network}), lambda text: None)
    other = {name: -array for name, array in load_file(tower / "model.safetensors").items()}
    save_file(other, tower / "model.safetensors")
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0 and "made with another encoder" in str(result.exception)


def test_stage_twos_sources_are_photographs_and_prompts_of_one_sex(world, tmp_path):
    shards = read_shards(world / "shards")
    identities.write_photos(shards, tmp_path, people=1)
    for word, male, other in (("men", True, "woman"), ("women", False, " man")):
        (photo,) = (tmp_path / word).glob("*.png")
        labelled = zip(shards.pictures, shards.labels, strict=True)
        pictures = [picture for picture, label in labelled if label["person"]["male"] == male]
        assert any(np.array_equal(np.asarray(Image.open(photo)), picture) for picture in pictures)
        lines = (tmp_path / f"{word}.txt").read_text().splitlines()
        assert lines and not any(other in line for line in lines)


@pytest.mark.parametrize("name", ["stage2_data_men.yaml", "stage2_data_women.yaml"])
def test_stage_twos_pictures_have_the_size_that_the_base_knows(name):
    settings = read_settings(DataSettings, EXAMPLES / name)
    assert Examiner(settings, load_faces("embedded")).buckets == [SIZE]


# The judge and the table.


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Judge:
    """In the layout of the real one; it knows people by the mean colours of parts of the face."""
    file = tmp_path_factory.mktemp("judge") / "judge.onnx"
    shapes = {"image": ["N", 3, 150, 150], "embedding": ["N", 192]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in shapes.items()]
    pool = helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[18, 18], strides=[18, 18])
    graph = helper.make_graph(
        [pool, helper.make_node("Flatten", ["cells"], ["embedding"])], "judge", ends[:1], ends[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return Judge(file)


def test_the_judge_sees_dlibs_crop(judge, astronaut):
    """dlib's eyes lie at a height of (.216 + .25) / 1.5 of its crop."""
    canvas = np.zeros((150, 150, 3), np.uint8)
    canvas[:, :75] = 255
    cells = judge.see(canvas, TEMPLATE).reshape(3, 8, 8)
    assert np.all(cells[:, :, :4] > 250) and np.all(cells[:, :, 5:] < 5)
    assert TEMPLATE[0, 1] == pytest.approx((0.21599 + 0.25) / 1.5 * 150)
    assert judge(astronaut) is not None and judge(np.zeros((160, 128, 3), np.uint8)) is None


def test_a_missing_judge_is_named(tmp_path):
    with pytest.raises(MissingFile, match="judge.onnx is not there"):
        Judge(tmp_path / "judge.onnx")


def test_those_known_are_ranked_by_their_distance():
    known = [np.array([0.0, 0]), np.array([3.0, 4]), np.array([9.0, 9])]
    assert rank(np.array([1.0, 2]), known) == [0, 1, 2] and rank(np.array([7.0, 7]), known) == [2, 1, 0]


def test_the_table_counts_who_is_right_and_what_is_obeyed(world, judge):
    people = table.make_people(Renderer(*SIZE), 3)
    assert {one.photo.look.hat for one in people} == {""}
    for one in people:
        for render, asked in zip(one.others, table.ASKED, strict=True):
            assert all(getattr(render.look, name) == value for name, value in asked.facts.items())
            assert render.person.seed == one.photo.person.seed

    class Told:  # reads the prompt's words back, whatever the picture shows
        def read(self, pictures):
            names = {name for asked in table.ASKED for name in asked.facts}
            return {name: [table.ASKED[0].facts.get(name)] for name in names}

    row = table.measure(people, judge, Told(), lambda one, prompt, seed: one.photo.picture)
    assert row["face"] == row["right"] == row["farther"] == 1  # each photograph is nearest to itself
    assert row["skin"] == pytest.approx(1, abs=0.1)  # but for where the detector sees the points
    assert row["colour"] == pytest.approx(1 / 6) and row["expression"] == pytest.approx(1 / 5)
    facts = [fact for asked in table.ASKED for fact in asked.facts.items()]
    obeyed = sum(table.ASKED[0].facts.get(name) == value for name, value in facts) / len(facts)
    assert row["obeyed"] == pytest.approx(obeyed)
    wrong = table.measure(people, judge, Told(), lambda one, prompt, seed: people[0].photo.picture)
    assert wrong["right"] == pytest.approx(1 / 3) and wrong["farther"] == pytest.approx(0.5, abs=0.2)
    text = table.as_markdown({"one": row})
    assert text.splitlines()[2].startswith("| one | 100 % | 100 % | 100 % |")
