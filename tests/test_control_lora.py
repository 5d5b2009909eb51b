"""BFL's control LoRAs (Canny, Depth): a base that reads 64 channels reads a picture's 64 more.

The oracle is diffusers' FluxTransformer2DModel of 128 channels with the change merged into its weights in
float64, under diffusers' FluxControlNetModel of 64 channels for InfuseNet.
"""

import functools
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from golden import FOLDERS, GOLDEN, PEFT, read_golden
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from skimage import data

from backends import load_backend
from infu import InfuError, Lora, generate
from infu.batch import read_batch
from infu.errors import PhotoError
from infu.flow import make_sigmas
from infu.inspect import describe_file, draw_file, read_model_shapes
from infu.noise import pack_latents
from infu.options import read_lora as read_flag

CONTROL = GOLDEN / "lora/foreign/bfl_control.safetensors"
TOLERANCE = {"pytorch": 1e-5, "mlx": 1e-4}  # of latents of size 4; without the control's term: see the test
MODULES = {  # of the fixture and of `with_last_norm`: BFL's -> diffusers', in the order of its rows
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
    "double_blocks.0.txt_mlp.0": ["transformer_blocks.0.ff_context.net.0.proj"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "img_in": ["x_embedder"],
    "single_blocks.0.linear1": [
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.0.proj_mlp",
    ],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "double_blocks.0.img_attn.norm.query_norm": ["transformer_blocks.0.attn.norm_q"],
    "double_blocks.0.img_attn.norm.key_norm": ["transformer_blocks.0.attn.norm_k"],
    "single_blocks.0.norm.query_norm": ["single_transformer_blocks.0.attn.norm_q"],
    "single_blocks.0.norm.key_norm": ["single_transformer_blocks.0.attn.norm_k"],
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    """Backends, each loaded once."""
    return functools.cache(lambda name, **options: load_backend(name, **FOLDERS, dtype="float32", **options))


def draw_edges(width, height):
    picture = Image.new("RGB", (width, height))
    ImageDraw.Draw(picture).ellipse(
        (width // 4, height // 4, width // 2, height // 2), outline="white", width=3
    )
    return picture


@pytest.fixture(scope="module")
def with_last_norm(tmp_path_factory):
    """The fixture with the last modulation besides, whose halves are exchanged between BFL and diffusers, of
    rank 2; in BFL's published files it is of rank 128."""
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(CONTROL)
    module = "final_layer.adaLN_modulation.1"
    shapes = {"lora_A.weight": (2, 64), "lora_B.weight": (128, 2), "lora_B.bias": (128,)}
    for leaf, shape in shapes.items():
        tensors[f"{module}.{leaf}"] = torch.randn(shape, generator=generator) / 8
    path = tmp_path_factory.mktemp("control") / "control.safetensors"
    save_file(tensors, path)
    return path


def merge(state, tensors, strength):
    """diffusers' weights (x_embedder already 128 wide) with the change, in float64."""
    state = {name: tensor.double() for name, tensor in state.items()}
    for bfl, modules in MODULES.items():
        if f"{bfl}.scale" in tensors:
            (name,) = modules
            old = state[f"{name}.weight"]
            state[f"{name}.weight"] = old + strength * (tensors[f"{bfl}.scale"].double() - old)
            continue
        if f"{bfl}.lora_A.weight" not in tensors:
            continue
        down, up, bias = (
            tensors[f"{bfl}.{leaf}"].double() for leaf in ("lora_A.weight", "lora_B.weight", "lora_B.bias")
        )
        if modules == ["norm_out.linear"]:
            up, bias = up.roll(len(up) // 2, 0), bias.roll(len(bias) // 2)
        start = 0
        for name in modules:
            rows = slice(start, start + len(state[f"{name}.weight"]))
            state[f"{name}.weight"] += strength * up[rows] @ down
            state[f"{name}.bias"] += strength * bias[rows]
            start = rows.stop
        assert start == len(up)
    return {name: tensor.float() for name, tensor in state.items()}


def reference(backend, path, strength, picture, golden):
    """The denoising loop over diffusers' own networks, 128 and 64 channels wide."""
    from diffusers import FluxControlNetModel, FluxTransformer2DModel

    request = golden.request
    base = FluxTransformer2DModel.from_pretrained(FOLDERS["base_model_path"] / "transformer")
    state = base.state_dict()
    state["x_embedder.weight"] = torch.nn.functional.pad(state["x_embedder.weight"], (0, 64))
    config = {name: value for name, value in base.config.items() if not name.startswith("_")}
    network = FluxTransformer2DModel(**config | {"in_channels": 128, "out_channels": 64})
    network.load_state_dict(merge(state, load_file(path), strength))
    folder = FOLDERS["model_dir"] / "infu_flux_v1.0/aes_stage2/InfuseNetModel"
    side = FluxControlNetModel.from_pretrained(folder)
    text = backend.encode_prompt(request.prompt)
    identity = torch.from_numpy(golden.arrays["tokens"])
    hint = backend.encode_image(picture)
    width, height = request.run_size
    black = backend.encode_image(np.zeros((height, width, 3), np.uint8))
    ids = torch.zeros(height // 16, width // 16, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height // 16)[:, None], torch.arange(width // 16)
    ids = ids.reshape(-1, 3)
    latents = torch.from_numpy(pack_latents(golden.noise))
    sigmas = make_sigmas(request.num_steps, latents.shape[1], backend.scheduler)
    with torch.no_grad():
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            same = dict(
                timestep=torch.tensor([sigma]), img_ids=ids, pooled_projections=text.pooled, return_dict=False
            )
            residuals = {}
            if request.infuses(step):
                doubles, singles = side(
                    hidden_states=latents, controlnet_cond=black,
                    conditioning_scale=request.infusenet_conditioning_scale,
                    encoder_hidden_states=identity, guidance=torch.ones(1), txt_ids=torch.zeros(8, 3), **same,
                )  # fmt: skip
                residuals = dict(controlnet_block_samples=doubles, controlnet_single_block_samples=singles)
            (velocity,) = network(
                hidden_states=torch.cat([latents, hint], -1), encoder_hidden_states=text.states,
                guidance=torch.tensor([request.guidance_scale]),
                txt_ids=torch.zeros(text.states.shape[1], 3), **same, **residuals,
            )  # fmt: skip
            latents = latents + (after - sigma) * velocity
    return latents.numpy()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers 0.42 warns about an import of its own
@pytest.mark.parametrize(("name", "strength"), [("pytorch", 1.0), ("pytorch", 0.6), ("mlx", 0.6)])
def test_latents_are_those_of_diffusers_with_the_change_merged(loaded, with_last_norm, name, strength):
    golden = read_golden("plain")
    picture = draw_edges(golden.request.width, golden.request.height)
    expected = reference(loaded("pytorch"), with_last_norm, strength, np.array(picture), golden)
    plugins = [Lora(with_last_norm, strength, picture)]
    result = generate(golden.request.replace(plugins=plugins), loaded(name), noise=golden.noise)
    np.testing.assert_allclose(result.latents, expected, rtol=0, atol=TOLERANCE[name])
    other = [Lora(with_last_norm, strength, Image.new("RGB", picture.size))]
    black = generate(golden.request.replace(plugins=other), loaded(name), noise=golden.noise)
    assert np.abs(black.latents - expected).max() > 1e-3  # the picture counts
    assert result.notes == () and result.metadata["loras"][0]["needs_picture"]
    (plugin,) = result.metadata["plugins"]
    assert plugin == {"lora": "control.safetensors", "scale": strength, "control_photo": True}


EACH = ({"name": "pytorch", "offload": "sequential"}, {"name": "mlx"})


def run(backend, *plugins):
    golden = read_golden("plain")
    request = golden.request.replace(plugins=plugins, num_steps=2)
    return generate(request, backend, noise=golden.noise).latents


@pytest.mark.parametrize("options", EACH, ids=str)
def test_a_removed_control_lora_leaves_no_trace_and_two_go_in_any_order(loaded, with_last_norm, options):
    backend, picture = loaded(**options), draw_edges(64, 64)
    before = run(backend)
    assert np.array_equal(run(backend, Lora(CONTROL, 0.0)), before)  # as if absent: it needs no picture
    first, second = Lora(CONTROL, 0.7, picture), Lora(with_last_norm, 0.5, Image.new("RGB", (64, 64)))
    both = run(backend, first, Lora(PEFT, 0.5), second)
    halves = (Lora(CONTROL, 0.35, picture), Lora(CONTROL, 0.35, picture))  # of the first: norms add up too
    np.testing.assert_allclose(run(backend, second, *halves, Lora(PEFT, 0.5)), both, rtol=0, atol=1e-5)
    assert np.array_equal(run(backend), before)


def test_diffusers_spelling_of_a_control_lora_is_the_same_change(loaded, tmp_path):
    made = {}
    for key, tensor in load_file(CONTROL).items():
        module, leaf = next((m, key.removeprefix(f"{m}.")) for m in MODULES if key.startswith(f"{m}."))
        names = MODULES[module]
        parts = [tensor] * len(names)
        if "lora_B" in leaf and len(names) > 1:
            parts = tensor.split([64] * 3 + [len(tensor) - 192] * (len(names) - 3))
        for name, part in zip(names, parts, strict=True):
            made[f"transformer.{name}.{'weight' if leaf == 'scale' else leaf}"] = part.clone()
    save_file(made, tmp_path / "a.safetensors")
    picture = data.astronaut()  # a photograph, and an array
    theirs = run(loaded("pytorch"), Lora(CONTROL, 1.0, picture))
    ours = run(loaded("pytorch"), Lora(tmp_path / "a.safetensors", 1.0, picture))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"name": "pytorch", "quantize": 8}, *EACH], ids=str)
def test_the_picture_changes_quantised_and_offloaded_bases_as_much(loaded, options):
    black, edges = (
        Lora(CONTROL, 1.0, picture) for picture in (Image.new("RGB", (64, 64)), draw_edges(64, 64))
    )
    backend = loaded(**options)
    change = run(backend, edges) - run(backend, black)
    expected = run(loaded("pytorch"), edges) - run(loaded("pytorch"), black)
    error = np.linalg.norm(change - expected) / np.linalg.norm(expected)
    assert error < (0.2 if "quantize" in options else 1e-3)


def test_the_picture_is_cut_about_its_middle_to_the_outputs_shape(loaded):
    """Never stretched, no bars: a wide picture's sides go."""
    width, height = read_golden("plain").request.run_size
    tall = draw_edges(width, height)
    wide = Image.new("RGB", (3 * width, height), "red")
    wide.paste(tall, (width, 0))
    assert np.array_equal(
        run(loaded("pytorch"), Lora(CONTROL, 1.0, wide)), run(loaded("pytorch"), Lora(CONTROL, 1.0, tall))
    )


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (Lora(CONTROL), "bfl_control.safetensors is a control LoRA: it needs a picture"),
        (Lora(PEFT, 1.0, Image.new("RGB", (64, 64))), "lora_peft.safetensors is no control LoRA"),
        (Lora(CONTROL, 1.0, b"no picture"), "photograph"),
    ],
)
def test_what_does_not_go_together_is_said(loaded, lora, says):
    with pytest.raises(InfuError, match=says):
        run(loaded("pytorch"), lora)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"img_in.lora_A.weight": torch.ones(2, 384)}, "made for inpainting"),
        ({"img_in.dora_scale": torch.ones(64, 1)}, "LoKr or DoRA"),
    ],
)
def test_a_control_lora_that_cannot_be_read_is_refused_by_name(loaded, tmp_path, changes, says):
    save_file(load_file(CONTROL) | changes, tmp_path / "a.safetensors")
    with pytest.raises(InfuError, match=says):
        run(loaded("pytorch"), Lora(tmp_path / "a.safetensors", 1.0, draw_edges(64, 64)))


def test_the_flag_takes_a_picture_after_the_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:1.safetensors").touch()
    lora = read_flag("a:1.safetensors:-0.5:C:/my edges.png")
    assert (lora.path, lora.scale, lora.image) == ("a:1.safetensors", -0.5, "C:/my edges.png")


def test_a_line_of_a_batch_takes_a_picture(tmp_path):
    draw_edges(64, 64).save(tmp_path / "edges.png")
    line = {"prompt": "a lake", "plugins": [{"lora": str(CONTROL), "scale": 0.5, "image": "edges.png"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    ((_, request),) = read_batch(tmp_path / "a.jsonl")
    assert request.plugins == (Lora(CONTROL, 0.5, tmp_path / "edges.png"),)
    (tmp_path / "edges.png").write_bytes(b"")
    ((_, error),) = read_batch(tmp_path / "a.jsonl")
    assert isinstance(error, PhotoError)


def test_inspect_says_that_it_needs_a_picture():
    values = describe_file(CONTROL, read_model_shapes(FOLDERS["base_model_path"]))
    assert values["needs_picture"] and values["matched"] == {"transformer": 15}
    assert "needs a picture to follow" in draw_file(values)
