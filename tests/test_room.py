"""What plug-ins take of memory: counted from files as safetensors, diffusers and the manifests count it, held
as the backends hold it; and a request for which there is no room is refused before it starts."""

import gc
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from golden import FOLDERS, GOLDEN
from plugin_cases import PLUGINS, read_case
from safetensors.numpy import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from backends import load_backend
from backends.pytorch.load import build_infusenet
from backends.pytorch.plugins.ip_adapter import make_keys
from infu import IPAdapter, Lora, OminiControl, PuLID, generate, plugin_sizes, room
from infu.cache import identify
from infu.errors import NotEnoughMemory
from infu.info import draw_report, needed_here
from infu.mac import mac_needed
from infu.memory import RELEASED, Beside, memory_needed
from infu.plugin_sizes import Base, list_known, measure_plugin
from infu.weights.ip_adapter import read_adapter

BASE = Base(width=64, blocks=12, dtype="float32")  # the golden one
UNION = Beside("union", plugin_sizes.UNION)
FLUX = {  # of diffusers' FluxControlNetModel beside FLUX.1-dev
    "patch_size": 1, "in_channels": 64, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}  # fmt: skip


def read_manifest(name: str) -> dict[str, list[int]]:
    return json.loads((Path(__file__).parent / "manifests" / f"{name}.json").read_text())


# Sizes.


@pytest.mark.parametrize(
    ("name", "doubles", "singles", "more"),
    [
        ("union-pro-2", 6, 0, {}),
        ("union", 5, 10, {"num_mode": 10}),
        ("xlabs-canny", 2, 0, {"conditioning_embedding_channels": 16}),
    ],
)
def test_known_controlnets_are_diffusers_own(name: str, doubles: int, singles: int, more: dict):
    with torch.device("meta"):
        network = build_infusenet(FLUX | {"num_layers": doubles, "num_single_layers": singles} | more)
    known, residuals = plugin_sizes.CONTROLNETS[name]
    assert known.total == sum(p.numel() for p in network.parameters())
    assert residuals == doubles + singles
    linear = [p for n, p in network.named_parameters() if "block" in n and p.dim() == 2 and "bias" not in n]
    assert known.packed == sum(p.numel() for p in linear)


def test_known_adapters_and_encoders_are_the_released_checkpoints():
    count = {name: sum(map(math.prod, read_manifest(name).values())) for name in (
        "pulid_flux_v0.9.1", "eva02_clip_l_336_visual", "siglip_so400m_patch14_384_vision",
    )}  # fmt: skip
    assert plugin_sizes.PULID_NUMBERS == count["pulid_flux_v0.9.1"]
    assert plugin_sizes.EVA_NUMBERS == count["eva02_clip_l_336_visual"]
    encoder, blocks, tokens = plugin_sizes.IP_ADAPTERS["instantx"]
    assert encoder == count["siglip_so400m_patch14_384_vision"]
    adapter = read_manifest("instantx_ip_adapter")
    assert sum("to_k_ip" in name for name in adapter["ip_adapter"]) == blocks
    assert adapter["image_proj"]["proj.2.weight"][0] == 4096 * tokens
    large = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
        projection_dim=768,
    )  # fmt: skip
    with torch.device("meta"):
        clip = CLIPVisionModelWithProjection(large)
    assert plugin_sizes.IP_ADAPTERS["xlabs"][0] == sum(p.numel() for p in clip.parameters())


def test_a_published_plug_in_takes_its_weights_but_an_adapter_only_keys_and_values():
    """InstantX's file is 5.3 GB: 2.65 billion numbers."""
    gigabytes = {one.name: one.weights("bfloat16", None) / 1e9 for one, _ in list_known(864, 1152)}
    assert gigabytes["ControlNet union-pro"] == pytest.approx(6.60, abs=0.01)
    assert gigabytes["PuLID 0.9.1"] == pytest.approx(2 * (0.571 + 0.304), abs=0.01)
    assert gigabytes["IP-Adapter instantx"] == pytest.approx(4 * 0.428 + 57 * 128 * 3072 * 12e-9, abs=0.01)


def numbers_in(*files: Path) -> int:
    return sum(tensor.size for file in files for tensor in load_file(file).values())


@pytest.fixture(scope="module")
def backend():
    return load_backend("pytorch", **FOLDERS, dtype="float32")


@pytest.mark.parametrize("case", ["union", "pro2", "xlabs"])
def test_a_controlnet_is_counted_as_the_backend_holds_it(backend, case: str):
    request, golden = read_case(case)
    (plugin,) = request.plugins
    measured = measure_plugin(plugin, BASE, *request.run_size)
    path = Path(plugin.path)
    file = path if path.is_file() else next(path.glob("*.safetensors"))
    assert measured.network.total == numbers_in(file)
    generate(request, backend, golden["noise"])
    held = backend.network("controlnet", path, lambda: pytest.fail("it was not kept"))
    assert measured.weights("float32", None) == pytest.approx(held.nbytes, rel=0.01)
    packed = [measured.weights("float32", bits) for bits in (4, 8, None)]
    assert 0 < packed[0] < packed[1] < packed[2]


def test_an_ip_adapter_is_its_image_encoder_and_keys_and_values():
    path, folder = PLUGINS / "ip_adapter.safetensors", PLUGINS / "image_encoder"
    file = read_adapter(path)
    vectors = torch.zeros(1, file.embedding_size)
    keys = sum(k.nbytes + v.nbytes for k, v in make_keys(file, vectors, num_heads=4))
    picture = np.zeros((32, 32, 3), np.uint8)
    tensors = load_file(folder / "model.safetensors")
    encoder = sum(tensor.size for name, tensor in tensors.items() if "position_ids" not in name)
    for pictures in (1, 2):
        plugin = IPAdapter(path, [picture] * pictures, image_encoder=folder)
        kept = measure_plugin(plugin, BASE, 64, 64).kept
        assert kept == 4 * encoder + 2 * pictures * keys  # made in float32, used in float32
    plugin = IPAdapter(path, image_embeds=vectors.numpy())
    assert measure_plugin(plugin, BASE, 64, 64).kept == 2 * keys


def test_pulid_is_its_cross_attentions_and_with_a_photograph_what_looks_at_it():
    (path,) = (GOLDEN / "pulid/checkpoint").glob("*.safetensors")
    tensors = load_file(path)
    attentions = sum(tensor.size for name, tensor in tensors.items() if name.startswith("pulid_ca"))
    plugin = PuLID(path, id_tokens=np.zeros((4, 8), np.float32))
    assert measure_plugin(plugin, replace(BASE, dtype="bfloat16"), 64, 64).kept == 2 * attentions
    assert attentions < sum(tensor.size for tensor in tensors.values())


def test_loras_and_pictures_of_objects_are_counted():
    path = GOLDEN / "ominicontrol/subject.safetensors"
    numbers = numbers_in(path)
    assert measure_plugin(Lora(path), BASE, 64, 64).kept == 4 * numbers
    picture = np.zeros((32, 32, 3), np.uint8)
    beside, on = (
        measure_plugin(OminiControl(path, picture, position_delta=delta), BASE, 64, 96)
        for delta in ((0, 32), (0, 0))
    )
    assert beside.kept == on.kept == 4 * numbers
    assert beside.working / on.working == 512 * 512 / (64 * 96)  # the largest picture; the output's own size


# Beside the model.


@pytest.mark.parametrize(("quantize", "size"), [(None, 6.60), (4, 1.93)])
def test_a_controlnet_is_quantised_and_offloaded_as_infusenet_is(quantize: int | None, size: float):
    ways = (None, "model", "sequential")
    plain, with_one = (
        {way: memory_needed(None, quantize=quantize, offload=way, beside=beside) for way in ways}
        for beside in ((), [UNION])
    )
    more = {way: (with_one[way]["device"] - plain[way]["device"]) / 1e9 for way in ways}
    assert more == pytest.approx({None: size, "model": size, "sequential": 0.0}, abs=0.01)
    assert (with_one["model"]["main"] - plain["model"]["main"]) / 1e9 == pytest.approx(size, abs=0.01)
    on_mac = mac_needed(None, quantize=quantize, beside=[UNION]) - mac_needed(None, quantize=quantize)
    assert on_mac / 1e9 == pytest.approx(size, abs=0.01)


@pytest.mark.parametrize("offload", [None, "model", "sequential"])
def test_what_is_kept_is_on_the_device_whatever_is_offloaded(offload: str | None):
    one = Beside("PuLID", kept=1_000_000_000, host=300_000_000, working=20_000_000)
    plain = memory_needed(None, offload=offload)
    needed = memory_needed(None, offload=offload, beside=[one])
    more = {kind: needed[kind] - plain[kind] for kind in ("device", "main", "shared")}
    assert more == {"device": 1_020_000_000, "main": 300_000_000, "shared": 1_320_000_000}
    on_mac = mac_needed(None, offload=offload, beside=[one]) - mac_needed(None, offload=offload)
    assert on_mac == more["shared"]


# Refusals.


@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_a_request_without_room_for_its_plug_ins_is_refused_before_it_starts(name: str, monkeypatch):
    backend = load_backend(name, **FOLDERS, dtype="float32")
    request, golden = read_case("infu_union")
    beside = room.measure_request(request, backend)
    machine = {"device": None, "device_memory": None, "memory": 0, "usable": 0, "available": 0}
    needed = needed_here(backend.files, machine, "float32", None, backend.offload, request.run_size, beside)
    seen = []

    def run(usable: int, request):
        monkeypatch.setattr(room, "read_machine", lambda: machine | {"usable": usable})
        return generate(request, backend, golden["noise"], lambda *step: seen.append(step))

    with pytest.raises(NotEnoughMemory, match=r"plug-ins take of it: ControlNet union .* GB\. Leave one out"):
        run(needed["shared"] - 1, request)
    assert not seen
    twice = room.measure_request(request.replace(plugins=[*request.plugins] * 2), backend)
    assert [one.network for one in twice] == [beside[0].network, None]  # it is loaded once
    result = run(needed["shared"], request)
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)
    run(0, request.replace(plugins=[]))  # without them nothing is asked
    (union,) = request.plugins
    run(0, request.replace(plugins=[replace(union, scale=0)]))


@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_networks_that_lie_unused_go_where_a_new_one_has_no_room(name: str, monkeypatch):
    backend = load_backend(name, **FOLDERS, dtype="float32")
    (first, _), (second, golden) = read_case("xlabs"), read_case("pro2")

    def kept() -> list[bool]:
        paths = [Path(request.plugins[0].path) for request in (first, second)]
        return [backend._networks.holds("controlnet", identify(path)) for path in paths]

    for request in (first, second):
        generate(request.replace(num_steps=1), backend)
    assert kept() == [True, True]  # there is room for both
    backend.drop_networks()
    generate(first.replace(num_steps=1), backend)
    held = backend.network("controlnet", first.plugins[0].path, pytest.fail)
    network = weakref.ref(held[0] if name == "mlx" else held)
    del held
    full = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: full)
    generate(first.replace(num_steps=1), backend)
    assert kept() == [True, False] and network() is not None  # loaded already, it needs no further room
    result = generate(second, backend, golden["noise"])
    gc.collect()
    assert kept() == [False, True] and network() is None
    np.testing.assert_allclose(result.latents, golden["latents"], rtol=0, atol=1e-4)


def test_further_people_are_counted_as_far_as_they_run_at_once(backend, monkeypatch):
    request, _ = read_case("two_people")
    (people,) = room.measure_request(request, backend)
    assert people.working > 0
    monkeypatch.setattr(room, "TOKENS_AT_ONCE", 1)
    assert room.measure_request(request, backend) == []


def test_info_tells_of_the_plug_ins(monkeypatch, tmp_path):
    from infu.info import describe_installation

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    told = describe_installation("aes_stage2", base_model_path=GOLDEN / "base")
    assert {plugin["name"] for plugin in told["plugins"]} > {"ControlNet union-pro-2", "PuLID 0.9.1"}
    assert RELEASED["infusenet"].total < told["plugins"][0]["memory"]
    assert "  ControlNet union      7.0 GB      not here" in draw_report(told)
