"""OminiControl: the latents of the released code, from both backends, alone and together with InfiniteYou."""

import functools
import json

import ml_dtypes
import numpy as np
import pytest
from golden import FOLDERS, GOLDEN, read_golden
from PIL import Image
from plugin_cases import RELEASED_OMINICONTROL
from safetensors.numpy import save_file

from backends import load_backend
from infu import Cancelled, GenerationRequest, InfuError, Lora, OminiControl, generate
from infu.hooks import Run
from infu.ominicontrol import place_tokens, read_condition
from infu.options import PictureOptions
from infu.weights.lora import read_lora
from infu.weights.ominicontrol import read_adapter

FOLDER = GOLDEN / "ominicontrol"
CASES = json.loads((FOLDER / "cases.json").read_text())
INPUTS, EXPECTED = np.load(FOLDER / "inputs.npz"), np.load(FOLDER / "expected.npz")
SUBJECT = FOLDER / "subject.safetensors"
TOLERANCE = 1e-4  # of latents of size 4; the README's. Any wrong reading there moves them by 0.1 or more
BACKENDS = ["pytorch", "mlx"]


@pytest.fixture(scope="module")
def loaded():
    """Backends by name, each loaded once."""
    return functools.cache(lambda name, **how: load_backend(name, **FOLDERS, dtype="float32", **how))


def picture(name: str) -> Image.Image:
    return Image.fromarray(INPUTS[name])


def subject(**changes) -> OminiControl:
    return OminiControl(SUBJECT, picture("subject_image"), position_delta=(0, -32), **changes)


def ask(case: dict, **changes) -> GenerationRequest:
    """The request of one of the README's cases."""
    plugins = [
        OminiControl(
            FOLDER / f"{condition['adapter']}.safetensors",
            picture(condition["image"]),
            position_delta=condition.get("delta", (0, 0)),
            position_scale=condition.get("scale", 1.0),
            independent=case.get("cached", False),
            image_guidance=case.get("image_guidance", 1.0),
        )
        for condition in case["conds"]
    ]
    if "style" in case:
        plugins.append(Lora(FOLDER / f"{case['style']}.safetensors", 1.0))
    request = GenerationRequest(
        CASES["prompt"],
        width=CASES["width"],
        height=CASES["height"],
        num_steps=CASES["steps"],
        guidance_scale=CASES["guidance"],
        seed=0,
        plugins=plugins,
    )
    if "infu" in case:
        names = {"sc": "conditioning_scale", "st": "guidance_start", "en": "guidance_end"}
        values = {f"infusenet_{names[key]}": value for key, value in case["infu"].items()}
        request = request.replace(id_embedding=read_golden("plain").request.id_embedding, **values)
    return request.replace(**changes)


def run(backend, request: GenerationRequest) -> np.ndarray:
    return generate(request, backend, noise=INPUTS["noise"]).latents


@pytest.mark.parametrize("case", CASES["cases"])
@pytest.mark.parametrize("name", BACKENDS)
def test_latents_are_the_released_codes(loaded, name: str, case: str):
    latents = run(loaded(name), ask(CASES["cases"][case]))
    np.testing.assert_allclose(latents, EXPECTED[case], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_picture_is_encoded_as_the_released_code_does(loaded, name: str):
    backend = loaded(name)
    for image in ("subject_image", "spatial_image", "spatial_small_image"):
        tokens = backend.numpy(backend.encode_image(INPUTS[image]))
        np.testing.assert_allclose(tokens, EXPECTED[f"tokens_{image}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_strength_goes_from_none_to_the_released_one(loaded, name: str, independent: bool):
    """At 0 the file is not even read; just above it the tokens weigh nothing; 1 is no bias at all."""
    backend, plain = loaded(name), ask({"conds": []}, num_steps=1)
    without = run(backend, plain)
    absent = OminiControl("nowhere.safetensors", picture("subject_image"), scale=0)
    np.testing.assert_array_equal(run(backend, plain.replace(plugins=[absent])), without)
    weak, strong = (
        run(backend, plain.replace(plugins=[subject(scale=scale, independent=independent)]))
        for scale in (1e-20, 1.0)
    )
    np.testing.assert_allclose(weak, without, rtol=0, atol=1e-4)  # e^-46 of the softmax
    assert np.abs(strong - without).max() > 0.1  # 0.4 in four steps


@pytest.mark.parametrize("name", BACKENDS)
def test_a_loras_change_stays_out_of_the_condition(loaded, name: str, tmp_path):
    """A style LoRA whose modules the adapter does not touch: the released code lets it into the condition."""
    width = 64
    style = {
        "transformer.transformer_blocks.0.ff.net.0.proj.lora_A.weight": np.ones((1, width), np.float32),
        "transformer.transformer_blocks.0.ff.net.0.proj.lora_B.weight": np.ones((4 * width, 1), np.float32),
    }
    save_file(style, tmp_path / "style.safetensors")
    backend, kept = loaded(name), []
    for loras in ([], [Lora(tmp_path / "style.safetensors", 1.0)]):
        with backend.lock, backend.plugged(loras):
            text = backend.encode_prompt(CASES["prompt"])
            size = CASES["width"], CASES["height"]
            run = Run([1.0, 0.0], *size, text, None, CASES["guidance"], size)
            runner = backend.make_runner(subject(independent=True), run)
            (hook,) = runner.add(0, None, negative=False).conditions
            kept.append([backend.numpy(array) for i in sorted(hook) for array in hook[i](None, None)[:2]])
    for alone, beside in zip(*kept, strict=True):
        np.testing.assert_array_equal(alone, beside)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_order_of_plugins_means_nothing_and_nothing_of_them_stays(loaded, name: str):
    backend = loaded(name)
    before = run(backend, ask({"conds": []}, num_steps=1))
    case = CASES["cases"]["subject_and_spatial"] | {"style": "style", "infu": {"sc": 1.0}}
    request = ask(case, num_steps=2)
    latents = run(backend, request)
    turned = run(backend, request.replace(plugins=request.plugins[::-1]))
    np.testing.assert_allclose(turned, latents, rtol=0, atol=1e-5)  # sums in another order
    np.testing.assert_array_equal(run(backend, request), latents)

    def stop(step, *_):
        if step == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate(request, backend, on_step=stop)
    np.testing.assert_array_equal(run(backend, ask({"conds": []}, num_steps=1)), before)


@pytest.mark.parametrize("name", BACKENDS)
def test_two_pictures_of_odd_size_are_those_of_their_seeds(loaded, name: str):
    request = ask(CASES["cases"]["subject_delta_own_width"], width=75, height=131, num_steps=2, seed=4)
    pair = generate(request.replace(num_images=2), loaded(name))
    alone = generate(request.replace(seed=5), loaded(name))
    assert pair.pixels.shape == (2, 131, 75, 3)
    np.testing.assert_array_equal(pair.latents[1], alone.latents[0])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_negative_prompt_is_steered_by_the_picture_too(loaded, name: str):
    """Equal prompts make equal passes, so their difference steers nothing; without the picture in the
    negative pass it would steer by the picture."""
    case = ask(CASES["cases"]["spatial"], num_steps=1)
    both = case.replace(negative_prompt=CASES["prompt"], true_cfg_scale=3.0)
    np.testing.assert_allclose(run(loaded(name), both), run(loaded(name), case), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_quantised_base_follows_the_picture(name: str):
    """8 bits move the latents by .05; another picture or none by .5 and more."""
    backend = load_backend(name, **FOLDERS, dtype="float32", quantize=8)
    latents = run(backend, ask(CASES["cases"]["subject_delta_0_-32"]))
    error = np.abs(latents - EXPECTED["subject_delta_0_-32"]).max()
    assert error < 0.2 < np.abs(EXPECTED["none"] - EXPECTED["subject_delta_0_-32"]).max()


REFUSED = [
    (
        GOLDEN / "lora/one_peft.safetensors",
        r"one_peft\.safetensors is a LoRA for the whole model, .*Lora\(path\)",
    ),
    (GOLDEN / "lora/foreign/bfl_control.safetensors", "a control picture's latents"),
    (GOLDEN / "lora/foreign/controlnet.safetensors", "a ControlNet"),
    (GOLDEN / "lora/foreign/xlabs_ip_adapter.safetensors", "an IP-Adapter"),
    (GOLDEN / "lora/foreign/sdxl_kohya.safetensors", "Stable Diffusion XL"),
    (GOLDEN / "lora/broken/legacy.pt", "legacy.pt"),
    (GOLDEN / "nowhere.safetensors", "no LoRA file 'nowhere.safetensors'"),
]


@pytest.mark.parametrize(("path", "sentence"), REFUSED)
def test_a_foreign_file_is_refused_by_name(loaded, path, sentence: str):
    plugin = OminiControl(path, picture("subject_image"))
    with pytest.raises(InfuError, match=sentence):
        generate(ask({"conds": []}, plugins=[plugin]), loaded("pytorch"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": None}, "picture"),
        ({"position_delta": (1, 2, 3)}, "rows and columns"),
        ({"position_delta": (0.5, 0)}, "position_delta"),
        ({"position_scale": 0}, "position_scale"),
        ({"scale": -1}, "scale"),
        ({"image_guidance": float("nan")}, "image_guidance"),
    ],
)
def test_a_wrong_value_is_told(changes: dict, sentence: str):
    with pytest.raises(InfuError, match=sentence):
        OminiControl(**{"path": SUBJECT, "image": picture("subject_image")} | changes)


def test_image_guidance_has_one_value(loaded):
    plugins = [subject(image_guidance=1.5), subject(image_guidance=2.0)]
    with pytest.raises(InfuError, match="image_guidance"):
        generate(ask({"conds": []}, plugins=plugins), loaded("pytorch"))


def test_released_files_tell_where_their_pictures_lie():
    def delta(name: str) -> tuple[int, int]:
        return OminiControl(f"/models/{name}.safetensors", picture("subject_image")).position_delta

    assert delta("subject_512") == (0, 32) and delta("subject_1024_beta") == (0, -32)
    assert delta("canny") == delta("depth") == delta("my_own") == (0, 0)


def test_a_picture_beside_keeps_its_shape_and_one_on_top_takes_that_of_the_output():
    photo = Image.linear_gradient("L").resize((1600, 900)).convert("RGB")
    beside = read_condition(OminiControl(SUBJECT, photo, position_delta=(0, 32)), 96, 128)
    assert beside.shape == (384, 688, 3)  # 16:9, no more pixels than 512 x 512 has
    small = read_condition(OminiControl(SUBJECT, photo.resize((50, 34)), position_delta=(0, 32)), 96, 128)
    assert small.shape == (32, 48, 3)
    on_top = read_condition(OminiControl(SUBJECT, photo), 96, 128)
    assert on_top.shape == (128, 96, 3)
    assert (on_top[0, :, 0] < 5).all() and (on_top[-1, :, 0] > 250).all()  # its middle, from top to bottom
    half = read_condition(OminiControl(SUBJECT, photo, position_scale=2.0), 96, 128)
    assert half.shape == (64, 48, 3)


def test_tokens_are_moved_and_then_spread():
    plugin = OminiControl(SUBJECT, picture("subject_image"), position_delta=(1, -2), position_scale=2.0)
    places = place_tokens(plugin, 32, 48)  # 2 columns, 3 rows
    expected = [[0, 2 * (r + 1) + 0.5, 2 * (c - 2) + 0.5] for r in range(3) for c in range(2)]
    np.testing.assert_array_equal(places, expected)


def test_the_released_adapters_fit_flux_at_full_size(tmp_path):
    """A file of the released modules on FLUX.1-dev's shapes, of rank 1: every tensor is used, at strength 1
    whatever alpha says."""
    manifest = json.loads((GOLDEN.parent / "manifests/flux1_dev_transformer.json").read_text())
    shapes = {
        name.removesuffix(".weight"): tuple(shape)
        for name, shape in manifest.items()
        if name.endswith(".weight")
    }
    state = {}
    for module in filter(RELEASED_OMINICONTROL.fullmatch, shapes):
        outputs, inputs = shapes[module]
        state[f"transformer.{module}.lora_A.weight"] = np.ones((1, inputs), ml_dtypes.bfloat16)
        state[f"transformer.{module}.lora_B.weight"] = np.ones((outputs, 1), ml_dtypes.bfloat16)
        state[f"transformer.{module}.alpha"] = np.full(1, 8, np.float32)
    save_file(state, tmp_path / "subject_512.safetensors")
    file = read_lora(tmp_path / "subject_512.safetensors", {"transformer": shapes})
    changes = read_adapter(file)
    assert len(changes) == 1 + 19 * 6 + 38 * 6 and not file.unused
    assert {change.factor for change in changes.values()} == {1.0}


def test_the_command_line_takes_an_adapter_and_its_picture(tmp_path):
    file = tmp_path / "subject: 512.safetensors"
    file.write_bytes(SUBJECT.read_bytes())
    picture("subject_image").save(tmp_path / "cup.png")
    short = PictureOptions(ominicontrol=[f"{file}:0.5:{tmp_path}/cup.png", f"{file}::{tmp_path}/cup.png"])
    assert [(plugin.path, plugin.scale) for plugin in short.request().plugins] == [
        (str(file), 0.5),
        (str(file), 1.0),
    ]
    written = {"ominicontrol": str(file), "image": f"{tmp_path}/cup.png", "position_delta": [0, -4]}
    (long,) = PictureOptions(plugin=[json.dumps(written)]).request().plugins
    assert long.position_delta == (0, -4) and long.settings()["ominicontrol"] == file.name
    for wrong, sentence in ((str(file), "FILE:SCALE:PICTURE"), (f"{file}:1:{tmp_path}/no.png", "no.png")):
        with pytest.raises(InfuError, match=sentence):
            PictureOptions(ominicontrol=[wrong]).request()
