"""IP-Adapters of XLabs and InstantX on both backends: their released code's latents (golden/plugins,
golden/instantx_ip_adapter), transformers' image encoders, the full-size manifests, and what is refused."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FOLDERS, GOLDEN
from PIL import Image

from backends import load_backend
from backends.mlx.load import find_places
from backends.mlx.plugins import ip_adapter as mlx_adapter
from backends.mlx.plugins.vision import ClipVision, SiglipVision
from backends.mlx.plugins.vision import encode_picture as mlx_encode
from backends.pytorch.backend import PytorchBackend, on_device
from backends.pytorch.load import build_empty
from backends.pytorch.plugins import ip_adapter as pytorch_adapter
from backends.pytorch.plugins.vision import build_vision
from backends.pytorch.plugins.vision import encode_picture as pytorch_encode
from infu import Cancelled, GenerationRequest, InfuError, IPAdapter, Lora, generate
from infu.batch import read_batch
from infu.cache import Cache
from infu.errors import BrokenFile, InvalidRequest, MissingFile, NotEnoughMemory, UnknownName
from infu.models import IP_ADAPTERS, find_ip_adapter
from infu.options import PictureOptions
from infu.vision import prepare
from infu.weights.files import ArrayFile
from infu.weights.ip_adapter import read_adapter, sort_tensors
from infu.weights.vision import read_vision

XLABS, INSTANTX = GOLDEN / "plugins", GOLDEN / "instantx_ip_adapter"
STYLE = XLABS / "ip_adapter.safetensors"
CLIP, SIGLIP = XLABS / "image_encoder", INSTANTX / "picture" / "image_encoder"
CASES = {folder: json.loads((folder / "cases.json").read_text()) for folder in (XLABS, INSTANTX)}
MANIFESTS = Path(__file__).parent / "manifests"
BOTH = pytest.mark.parametrize("backend", ["pytorch", "mlx"], indirect=True)
SMALL = dict(prompt="a lake", width=70, height=90, seed=3, num_steps=2)  # no multiples of 16


@pytest.fixture(scope="module")
def backend(request):
    return load_backend(request.param, **FOLDERS, dtype="float32")


def ask(folder: Path, name: str, arrays, **adapter) -> GenerationRequest:
    """A golden case's request, with this adapter."""
    case = CASES[folder][name]
    person = {}
    if "embedding" in arrays:
        points = arrays["keypoints"]
        person = {"id_embedding": arrays["embedding"], "control_keypoints": points if len(points) else None}
    return GenerationRequest(
        prompt=case["prompt"],
        width=case["w"],
        height=case["h"],
        num_steps=case["steps"],
        guidance_scale=case["g"],
        seed=0,
        negative_prompt=case.get("neg_prompt"),
        true_cfg_scale=case.get("true_gs", case.get("true_cfg", 1.0)),
        true_cfg_start_step=case.get("cfg_start", 0),
        infusenet_conditioning_scale=case.get("sc", 1.0),
        plugins=[IPAdapter(**adapter)],
        **person,
    )


def assert_golden(request: GenerationRequest, backend, arrays, atol: float) -> None:
    result = generate(request, backend, noise=arrays["noise"])
    np.testing.assert_allclose(result.latents, arrays["latents"], rtol=0, atol=atol)
    np.testing.assert_allclose(result.pixels[0], arrays["image"], rtol=0, atol=1e-4)


@BOTH
@pytest.mark.parametrize("name", ["ipa", "ipa_cfg", "infu_ipa"])
def test_xlabs_adapter_is_the_released_codes(name: str, backend):
    """x-flux's own loop; without the adapter in the negative pass, or with zeros, `ipa_cfg` is off by 3."""
    arrays = dict(np.load(XLABS / f"{name}.npz"))
    case = CASES[XLABS][name]
    request = ask(
        XLABS,
        name,
        arrays,
        path=STYLE,
        image=arrays["style_image"],
        image_encoder=CLIP,
        scale=case["ip_scale"],
        negative_scale=case.get("neg_ip_scale", 1.0),
    )
    assert_golden(request, backend, arrays, 1e-4)


@BOTH
def test_vectors_stand_for_their_pictures(backend):
    arrays, case = dict(np.load(XLABS / "ipa_cfg.npz")), CASES[XLABS]["ipa_cfg"]
    vectors = {name: arrays[name] for name in ("image_embeds", "neg_image_embeds")}
    scales = dict(scale=case["ip_scale"], negative_scale=case["neg_ip_scale"])
    vectors["negative_image_embeds"] = vectors.pop("neg_image_embeds")
    assert_golden(ask(XLABS, "ipa_cfg", arrays, path=STYLE, **vectors, **scales), backend, arrays, 1e-4)


@BOTH
@pytest.mark.parametrize("name", ["ipa", "wide", "window", "cfg", "infu_ipa", "picture"])
def test_instantx_adapter_is_the_released_codes(name: str, backend):
    """The fixtures' own tolerance: two releases of transformers' T5 alone differ by 5e-5."""
    arrays, case = dict(np.load(INSTANTX / f"{name}.npz")), CASES[INSTANTX][name]
    seen = {"image_embeds": arrays["image_embeds"]}
    if name == "picture":
        seen = {"image": arrays["picture"], "image_encoder": SIGLIP}
    window = {key: case[key] for key in ("start", "end") if key in case}
    adapter = dict(path=INSTANTX / case["checkpoint"], scale=case["scale"], **seen, **window)
    assert_golden(ask(INSTANTX, name, arrays, **adapter), backend, arrays, 1e-4)


@BOTH
def test_tokens_are_the_released_projectors(backend):
    pytorch = backend.name == "pytorch"
    make_tokens = pytorch_adapter.make_tokens if pytorch else mlx_adapter.make_tokens
    for folder, file, case in ((XLABS, STYLE, "ipa"), (INSTANTX, INSTANTX / "ip-adapter.bin", "ipa")):
        arrays = np.load(folder / f"{case}.npz")
        tokens = make_tokens(read_adapter(file), backend.array(arrays["image_embeds"]))
        np.testing.assert_allclose(backend.numpy(tokens), arrays["ip_tokens"], rtol=0, atol=2e-5)


@BOTH
def test_image_encoders_are_transformers(backend):
    """The pixels but for a rounding of float32 (a level of 255 is 0.008); a quick GELU is off by 0.02."""
    encode = pytorch_encode if backend.name == "pytorch" else mlx_encode
    clip, siglip = np.load(XLABS / "image_encoder.npz"), np.load(SIGLIP.with_suffix(".npz"))
    wanted = [(CLIP, clip["image"], clip["pixel_values"], clip["image_embeds"])]
    wanted += [(CLIP, np.zeros_like(clip["image"]), None, clip["black_image_embeds"])]
    for suffix in ("", "_2"):
        pixels, pooled = siglip[f"pixel_values{suffix}"], siglip[f"pooler_output{suffix}"]
        wanted.append((SIGLIP, siglip[f"image{suffix}"], pixels, pooled))
    for folder, picture, pixels, expected in wanted:
        if pixels is not None:
            prepared = prepare(picture, read_vision(folder).preparation)
            np.testing.assert_allclose(prepared, pixels, rtol=0, atol=1e-6)
        np.testing.assert_allclose(encode(backend, folder, picture), expected, rtol=0, atol=2e-5)


@BOTH
def test_scale_zero_is_none_bit_for_bit_and_reads_no_file(backend):
    request = GenerationRequest(**SMALL, num_images=2)
    plain = generate(request, backend)
    absent = IPAdapter("nowhere.bin", image_embeds=np.ones(3), scale=0)
    zero = generate(request.replace(plugins=[absent]), backend)
    np.testing.assert_array_equal(zero.latents, plain.latents)
    assert zero.metadata["plugins"] == [
        {"ip_adapter": "nowhere.bin", "scale": 0, "start": 0, "end": 1, "negative_scale": 1}
    ]
    outside = style(start=0.8, end=0.9)  # between the two steps
    np.testing.assert_array_equal(
        generate(request.replace(plugins=[outside]), backend).latents, plain.latents
    )


def style(**fields) -> IPAdapter:
    vector = np.load(XLABS / "ipa.npz")["image_embeds"]
    return IPAdapter(STYLE, image_embeds=vector, **fields)


def face(**fields) -> IPAdapter:
    vector = np.load(INSTANTX / "ipa.npz")["image_embeds"]
    return IPAdapter(INSTANTX / "ip-adapter.bin", image_embeds=vector, **fields)


@BOTH
def test_a_batch_is_its_single_runs_and_adapters_in_any_order_are_one(backend):
    request = GenerationRequest(**SMALL, num_images=2, plugins=[style(scale=0.5), face(scale=0.7)])
    both = generate(request, backend)
    assert both.pixels.shape == (2, 90, 70, 3)
    second = generate(request.replace(seed=4, num_images=1), backend)
    np.testing.assert_array_equal(both.latents[1:], second.latents)
    turned = generate(request.replace(plugins=[face(scale=0.7), style(scale=0.5)]), backend)
    np.testing.assert_allclose(turned.latents, both.latents, rtol=0, atol=1e-5)  # sums in another order
    alone = generate(request.replace(plugins=[style(scale=0.5)]), backend)
    assert np.abs(alone.latents - both.latents).max() > 0.01


@BOTH
def test_the_same_picture_twice_is_once(backend):
    """Softmax over tokens that are there twice is the softmax over them: mathematics, not a fixture."""
    request = GenerationRequest(**SMALL)
    once = generate(request.replace(plugins=[face()]), backend)
    two = np.repeat(np.load(INSTANTX / "ipa.npz")["image_embeds"], 2, axis=0)
    twice = generate(request.replace(plugins=[replace(face(), image_embeds=two)]), backend)
    np.testing.assert_allclose(twice.latents, once.latents, rtol=0, atol=1e-4)
    picture = np.load(XLABS / "ipa.npz")["style_image"]
    seen = IPAdapter(STYLE, image=[picture, picture[::-1]], image_encoder=CLIP)
    other = IPAdapter(STYLE, image=picture, image_encoder=CLIP)
    results = [generate(request.replace(plugins=[plugin]), backend).latents for plugin in (seen, other)]
    assert np.abs(results[0] - results[1]).max() > 1e-3


@BOTH
def test_cancelling_leaves_no_trace(backend):
    request = GenerationRequest(**SMALL)
    plain = generate(request, backend).latents

    def stop(*_):
        raise Cancelled

    with pytest.raises(Cancelled):
        generate(request.replace(plugins=[style(), face()]), backend, on_step=stop)
    np.testing.assert_array_equal(generate(request, backend).latents, plain)


@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_a_quantised_base_and_a_lora_take_it(name: str):
    backend = load_backend(
        name, GOLDEN / "base", dtype="bfloat16" if name == "mlx" else "float32", quantize=8
    )
    lora = Lora(GOLDEN / "lora_peft.safetensors", 0.5)
    request = GenerationRequest(**SMALL, plugins=[lora])
    plain = generate(request, backend).latents
    with_it = generate(request.replace(plugins=[lora, style(), face(scale=0.5)]), backend).latents
    assert np.isfinite(with_it).all() and np.abs(with_it - plain).max() > 0.01


def test_full_size_files_are_met():
    """InstantX's names and shapes, and both image encoders' on both backends, from the manifests and from
    transformers' own classes, without a number of them in memory."""
    manifest = json.loads((MANIFESTS / "siglip_so400m_patch14_384_vision.json").read_text())
    shapes = {name.removeprefix("vision_model."): tuple(shape) for name, shape in manifest.items()}
    siglip = read_vision(SIGLIP)
    sizes = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
    siglip = replace(siglip, config=replace(siglip.config, **sizes, image_size=384, patch_size=14))
    clip = read_vision(CLIP)
    sizes = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    clip = replace(clip, config=replace(clip.config, **sizes, image_size=224))
    theirs = {n: tuple(p.shape) for n, p in build_empty(build_vision, siglip).named_parameters()}
    assert theirs == shapes
    assert {n: place.shape for n, place in find_places(SiglipVision(siglip.config)).items()} == shapes
    theirs = {n: tuple(p.shape) for n, p in build_empty(build_vision, clip).named_parameters()}
    assert {n: place.shape for n, place in find_places(ClipVision(clip.config)).items()} == theirs


def test_full_size_adapters_are_read():
    """The manifest's 2,645,600,512 values, and XLabs' names as formats.md has them, each a view of one."""
    manifest = json.loads((MANIFESTS / "instantx_ip_adapter.json").read_text())
    shapes = {f"{kind}.{name}": shape for kind, part in manifest.items() for name, shape in part.items()}
    assert sum(map(math.prod, shapes.values())) == 2_645_600_512
    file = sort_tensors("ip-adapter.bin", views(shapes))
    file.check_base(19, 38, 3072)
    assert (file.instantx, file.num_tokens, file.embedding_size) == (True, 128, 1152)
    proj, norm = "ip_adapter_proj_model.proj", "ip_adapter_proj_model.norm"
    shapes = {f"{proj}.weight": (16 * 4096, 768), f"{proj}.bias": (16 * 4096,)}
    shapes |= {f"{norm}.{leaf}": (4096,) for leaf in ("weight", "bias")}
    for i, kind in itertools.product(range(19), "kv"):
        name = f"double_blocks.{i}.processor.ip_adapter_double_stream_{kind}_proj"
        shapes |= {f"{name}.weight": (3072, 4096), f"{name}.bias": (3072,)}
    file = sort_tensors("ip_adapter.safetensors", views(shapes))
    file.check_base(19, 38, 3072)
    assert (file.instantx, file.num_tokens, file.embedding_size) == (False, 16, 768)


def views(shapes) -> ArrayFile:
    return ArrayFile({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    "path, says",
    [
        (GOLDEN / "lora_peft.safetensors", "a LoRA"),
        (GOLDEN / "base" / "transformer" / "diffusion_pytorch_model.safetensors", "a whole model"),
        (GOLDEN / "InfiniteYou" / "infu_flux_v1.0" / "aes_stage2" / "image_proj_model.bin", "projection"),
    ],
)
def test_a_foreign_file_is_named(path: Path, says: str):
    with pytest.raises(BrokenFile, match=says):
        read_adapter(path)


def test_a_file_that_is_cut_or_of_another_base_is_refused(tmp_path):
    state = torch.load(INSTANTX / "ip-adapter.bin")
    del state["ip_adapter"]["3.to_k_ip.weight"]
    torch.save(state, tmp_path / "a.bin")
    with pytest.raises(BrokenFile, match="lacks 'block.3.k.weight'"):
        read_adapter(tmp_path / "a.bin")
    file = read_adapter(STYLE)
    file.check_base(5, 7, 64)
    for base in ((6, 7, 64), (5, 7, 128)):
        with pytest.raises(BrokenFile, match="another base"):
            file.check_base(*base)
    with pytest.raises(MissingFile, match="'none.bin'"):
        read_adapter(tmp_path / "none.bin")


@BOTH
def test_the_wrong_encoder_is_told_before_the_run(backend):
    picture = np.load(XLABS / "ipa.npz")["style_image"]
    request = GenerationRequest(**SMALL)
    for plugin, says in (
        (IPAdapter(STYLE, image=picture, image_encoder=SIGLIP), "CLIP ViT-L/14"),
        (IPAdapter(INSTANTX / "ip-adapter.bin", image=picture, image_encoder=CLIP), "SigLIP so400m"),
        (IPAdapter(STYLE, image=picture, image_encoder=GOLDEN / "base" / "vae"), "not of CLIP or SigLIP"),
        (IPAdapter(STYLE, image=picture, image_encoder="nowhere"), "nowhere"),
    ):
        with pytest.raises(InfuError, match=says):
            generate(request.replace(plugins=[plugin]), backend)


@pytest.mark.parametrize(
    "fields, says",
    [
        ({}, "give either image or image_embeds"),
        ({"image": "a.png", "image_embeds": np.ones(3)}, "either"),
        ({"image_embeds": "three"}, "numbers"),
        ({"image_embeds": np.ones((1, 2, 3))}, "numbers"),
        ({"image_embeds": np.ones(3), "scale": 11}, "from -10 to 10"),
        ({"image_embeds": np.ones(3), "start": 0.6, "end": 0.5}, "must not be larger"),
        ({"image_embeds": np.full(3, np.nan)}, "finite"),
    ],
)
def test_what_no_adapter_can_be_is_said(fields: dict, says: str):
    with pytest.raises(InvalidRequest, match=says):
        IPAdapter("a.safetensors", **fields)


def test_flags_a_batchs_line_and_python_say_the_same(tmp_path):
    picture = tmp_path / "style.png"
    Image.fromarray(np.load(XLABS / "ipa.npz")["style_image"]).save(picture)
    said = IPAdapter("instantx", [picture], 0.4, 0.5, 0.1, 0.9)
    flags = PictureOptions(
        ip_adapter="instantx",
        ip_adapter_image=[picture],
        ip_adapter_scale=0.4,
        ip_adapter_negative_scale=0.5,
        ip_adapter_start=0.1,
        ip_adapter_end=0.9,
    )
    written = {"ip_adapter": "instantx", "image": ["style.png"], "scale": 0.4, "negative_scale": 0.5}
    line = {"prompt": "a lake", "plugins": [written | {"start": 0.1, "end": 0.9}]}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line))
    ((_, request),) = read_batch(tmp_path / "lines.jsonl")
    for (plugin,) in (flags.request().plugins, request.plugins):
        assert (plugin, plugin.images) == (said, said.images)
    assert PictureOptions().request().plugins == ()


def test_known_names_are_files_of_a_repository_and_others_are_told():
    for name, published in IP_ADAPTERS.items():
        assert len(published.files) == 1 and published.licence, name
        assert published.ships or "/" in published.repo, name
    with pytest.raises(UnknownName, match="xlabs"):
        find_ip_adapter("xlab")
    assert find_ip_adapter(STYLE) == STYLE
    with pytest.raises(MissingFile, match="'none.bin'"):
        find_ip_adapter("none.bin")


def test_a_full_device_is_tried_again_without_the_unused_plugins():
    class Full(PytorchBackend):
        device, kept = "cpu", []

        def __init__(self):
            self._networks = Cache(4)

        @on_device
        def compute(self, fits: bool) -> str:
            kept = self.network("ip_adapter", STYLE, lambda: None) is not None
            self.kept.append(kept)
            if kept or not fits:
                raise torch.OutOfMemoryError
            return "done"

    backend = Full()
    backend.network("ip_adapter", STYLE, lambda: read_adapter(STYLE))
    assert backend.compute(fits=True) == "done" and backend.kept == [True, False]
    with pytest.raises(NotEnoughMemory, match="smaller picture"):
        backend.compute(fits=False)
