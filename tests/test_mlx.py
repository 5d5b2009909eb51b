"""The MLX backend: precision, quantisation, LoRA, memory, threads, what one request leaves to the next."""

import gc
import importlib.util
import json
import math
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden import FOLDERS, GOLDEN, KOHYA, LORA_CASES, PEFT, read_golden
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from backends import load_backend
from backends.mlx import dit, infusenet, load, t5
from backends.mlx.quantise import quantise_layers
from backends.mlx.save import save_quantised
from backends.mlx.stream import is_modulation as is_modulation_layer
from backends.mlx.stream import stream_layers
from infu import Cancelled, GenerationRequest, InfuError, Lora, generate
from infu.mac import MODULATIONS, SIZES, draw_table, is_modulation, mac_needed
from infu.memory import memory_needed, read_networks, weight_bytes
from infu.models import locate
from infu.pipeline import stream
from infu.weights.files import open_weights
from infu.weights.lora import read_lora

ROOT = Path(__file__).parents[1]
SMALL = GenerationRequest(  # a second: few tokens, few steps
    "A man",
    id_embedding=np.linspace(-1, 1, 512),
    width=64,
    height=64,
    seed=3,
    num_steps=3,
    max_sequence_length=16,
)


@pytest.fixture(scope="module")
def backend():
    return load_backend("mlx", **FOLDERS, dtype="float32")


@pytest.fixture(scope="module")
def small(backend):
    return generate(SMALL, backend).pixels


# Precision.


@pytest.fixture(scope="module")
def in_bfloat16():
    return {name: load_backend(name, **FOLDERS, dtype="bfloat16") for name in ("mlx", "pytorch")}


@pytest.mark.parametrize("case", ["plain", "control", *LORA_CASES])
def test_bfloat16_is_as_near_the_golden_picture_as_pytorchs(in_bfloat16, case):
    golden = read_golden(case)
    errors = {}
    for name, loaded in in_bfloat16.items():
        pixels = generate(golden.request, loaded, noise=golden.noise).pixels
        errors[name] = np.abs(pixels[0] - golden.image).mean()
    assert 0 < errors["mlx"] < 1.5 * errors["pytorch"]  # measured: 0.99 to 1.02


@pytest.mark.parametrize("shape", [(64, 64), (80, 112)])
def test_compiled_steps_are_the_plain_ones(backend, shape):
    request = SMALL.replace(width=shape[0], height=shape[1])
    compiled = generate(request, backend).latents
    mx.disable_compile()
    try:
        backend._compile()
        plain = generate(request, backend).latents
    finally:
        mx.enable_compile()
        backend._compile()
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


# Quantisation.


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (6, 0.03), (4, 0.12), (3, 0.25)])
def test_a_quantised_layer_of_fluxs_width_has_the_error_of_its_bits(bits, error, dtype):
    weight = np.random.default_rng(0).standard_normal((96, 3072), np.float32) / math.sqrt(3072)
    x = mx.array(np.random.default_rng(1).standard_normal((5, 3072), np.float32)).astype(dtype)
    layer = load.load_weights(quantise_layers(Block(), bits), {"block.weight": weight}, dtype)
    exact = x.astype(mx.float32) @ mx.array(weight).T
    relative = (mx.linalg.norm(layer.block(x) - exact) / mx.linalg.norm(exact)).item()
    assert error / 2 < relative < error  # formats.md: about .006, .022, .09, .19; bfloat16 adds .003


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Linear(3072, 96, bias=False)


@pytest.mark.parametrize(("bits", "most"), [(8, 8.6), (4, 4.6)])
def test_the_large_networks_take_the_bits_promised_at_full_size(bits, most):
    flux = (128, 24, 4096, 768, True, (16, 56, 56))
    networks = [
        dit.DiT(dit.FluxConfig(64, 19, 38, *flux)),
        infusenet.InfuseNet(dit.FluxConfig(64, 4, 10, *flux)),
        t5.T5(t5.T5Config(32128, 4096, 64, 10240, 24, 64, 32, 128, 1e-6)),
    ]
    numbers = stored = 0
    for network in networks:
        for _, module in quantise_layers(network, bits).named_modules():
            if isinstance(module, nn.QuantizedLinear):
                numbers += module.weight.size * 32 // bits
                stored += (
                    module.weight.size * 32 + 2 * module.scales.size * 16
                )  # packed; scales, biases in bfloat16
            elif isinstance(module, nn.Linear):
                numbers, stored = numbers + module.weight.size, stored + module.weight.size * 16
    assert numbers > 19e9 and stored / numbers <= most


@pytest.mark.parametrize(("bits", "mean"), [(8, 0.002), (6, 0.006), (4, 0.025), (3, 0.06)])
def test_quantised_models_stay_near_the_golden_picture_and_are_saved_bit_for_bit(bits, mean, tmp_path):
    golden = read_golden("plain")
    quantised = load_backend("mlx", **FOLDERS, dtype="float32", quantize=bits)
    pixels = generate(golden.request, quantised, noise=golden.noise).pixels
    assert np.abs(pixels[0] - golden.image).mean() < mean  # measured: .0008, .0034, .013, .030
    save_quantised(locate(**FOLDERS), tmp_path / "saved", bits, "float32")
    folders = {"base_model_path": tmp_path / "saved/base", "model_dir": tmp_path / "saved/InfiniteYou"}
    saved = load_backend("mlx", **folders, dtype="float32")
    assert np.array_equal(generate(SMALL, saved).latents, generate(SMALL, quantised).latents)


def test_a_quantised_folder_says_what_it_holds_and_is_not_quantised_again(tmp_path):
    folder = tmp_path / "saved"
    save_quantised(locate(base_model_path=FOLDERS["base_model_path"]), folder, 4)
    assert json.loads((folder / "base/transformer/config.json").read_text())["quantization"]["bits"] == 4
    original = (GOLDEN / "base/transformer/diffusion_pytorch_model.safetensors").stat().st_size
    assert (
        folder / "base/transformer/model.safetensors"
    ).stat().st_size < 0.25 * original  # 4.5 of 32 bits, and biases
    with pytest.raises(InfuError, match="holds weights of 4 bits, which cannot become 8"):
        load_backend("mlx", base_model_path=folder / "base", quantize=8)
    with pytest.raises(InfuError, match="exists already"):
        save_quantised(locate(base_model_path=FOLDERS["base_model_path"]), folder, 4)


def test_a_folder_that_cannot_be_saved_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    files, folder = locate(**FOLDERS), tmp_path / "saved"
    with pytest.raises(InfuError, match="NaN in float16"):
        save_quantised(files, folder, 4, "float16")
    (tmp_path / "file").write_text("")
    with pytest.raises(InfuError, match="'saved' cannot be written: Not a directory"):
        save_quantised(files, tmp_path / "file/saved", 4)

    def full(*_):
        raise RuntimeError("[write] Unable to write 1 bytes to file.")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(InfuError, match="'saved' cannot be written: the disk is full"):
        save_quantised(files, folder, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module", params=[mx.bfloat16, mx.float32], ids=str)
def mid_size(request, tmp_path_factory) -> Path:
    """A DiT of 43 million random numbers, stored in 16 or in 32 bits; its largest tensor is 7 MB in 16."""
    config = dict(
        in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=64, num_attention_heads=12
    )
    config |= dict(
        joint_attention_dim=512, pooled_projection_dim=256, guidance_embeds=True, axes_dims_rope=[16, 24, 24]
    )
    folder = tmp_path_factory.mktemp("mid_size")
    places = load.find_places(dit.DiT(dit.FluxConfig(**config)))
    weights = {
        name: mx.random.normal(place.shape).astype(request.param) * 0.03 for name, place in places.items()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("bits", [8, 6, 4, 3, None])
def test_loading_never_holds_more_than_the_result_and_the_largest_tensor(bits, mid_size):
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    network = load.load_dit(mid_size, mid_size, mx.bfloat16, bits)
    peak = mx.get_peak_memory() - before
    result = sum(array.nbytes for _, array in tree_flatten(network.parameters()))
    largest = 6 * 768 * 768 * 2  # a double block's modulation
    if bits is None:  # what is not packed is read whole, in the file's own precision
        largest *= open_weights(mid_size).nbytes / 86e6
    assert 43e6 * (bits or 16) / 8 <= result <= peak <= result + 1.01 * largest
    assert mx.get_cache_memory() == 0


@pytest.mark.parametrize("config", ['{"quantization": {"bits": "x"}}', '{"quantization": 3}', "[", "[]"])
def test_a_packed_folder_whose_config_says_no_bits_is_refused_in_words(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InfuError, match="in how many bits"):
        load.stored_bits(tmp_path)


def test_packed_weights_are_refused_in_words_without_their_config_and_by_pytorch(tmp_path):
    folder = tmp_path / "packed"
    save_quantised(locate(**FOLDERS), folder, 8)
    packed = folder / "base/transformer"
    file = next(packed.glob("*.safetensors"))
    with pytest.raises(InfuError, match="packed, and their config.json"):
        load_backend("mlx", **FOLDERS, transformer_path=file)
    with pytest.raises(InfuError, match="packed for MLX"):
        load_backend("pytorch", **FOLDERS, transformer_path=packed)


# LoRA.


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_lora_is_its_delta_on_every_kind_of_layer_and_leaves_no_trace(bits, small, backend):
    quantised = backend if bits is None else load_backend("mlx", **FOLDERS, dtype="float32", quantize=bits)
    before = generate(SMALL, quantised).pixels
    layer = quantised._dit.transformer_blocks[1].attn.to_q
    x = mx.array(np.random.default_rng(0).standard_normal((1, 7, 64), np.float32))
    plain = layer(x)
    name = "transformer_blocks.1.attn.to_q"
    lora = read_lora(PEFT, {"transformer": {name: (64, 64)}}).changes["transformer"][name]
    change = 0.7 * lora.factor * lora.matrix.up.astype(np.float64) @ lora.matrix.down.astype(np.float64)
    with quantised.plugged([Lora(PEFT, 0.7), Lora(KOHYA, 0)]):
        branched = quantised._dit.transformer_blocks[1].attn.to_q(x)
        assert np.abs(np.array(branched - plain) - np.array(x) @ change.T).max() < 1e-5
    assert quantised._dit.transformer_blocks[1].attn.to_q is layer
    with_lora = generate(SMALL.replace(plugins=[Lora(PEFT, 1.0), Lora(KOHYA, -0.5)]), quantised).pixels
    assert not np.array_equal(with_lora, before)
    assert np.array_equal(generate(SMALL, quantised).pixels, before)
    if bits is None:
        assert np.array_equal(before, small)


# One request after another.


def test_two_runs_are_bit_identical_and_equal_to_a_fresh_process(backend, small, tmp_path):
    def stop(step, num_steps, preview):
        assert preview().size == (8, 8)
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate(SMALL.replace(plugins=[Lora(PEFT)]), backend, on_step=stop)
    again = generate(SMALL, backend).pixels
    code = (
        "import sys; sys.path.append('tests'); import numpy as np;"
        "from test_mlx import FOLDERS, SMALL, generate, load_backend;"
        "np.save(sys.argv[1], generate(SMALL, load_backend('mlx', **FOLDERS, dtype='float32')).pixels)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "fresh.npy"], check=True, cwd=ROOT)
    assert np.array_equal(again, small) and np.array_equal(np.load(tmp_path / "fresh.npy"), small)


def test_steps_may_run_in_different_threads(backend, small):
    """As Gradio does: it asks a generator for each step in whichever of its threads is free."""
    events, failures = [], []
    run = stream(SMALL, backend)

    def advance():
        try:
            events.append(next(run))
            if len(events) <= SMALL.num_steps:
                events[-1].preview()
        except Exception as error:
            failures.append(error)

    for _ in range(SMALL.num_steps + 1):
        thread = threading.Thread(target=advance)
        thread.start()
        thread.join()
    assert failures == [] and np.array_equal(events[-1].pixels, small)


def test_a_step_is_evaluated_once_and_memory_does_not_grow(backend, monkeypatch):
    evaluations, memory = [], []
    evaluate = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: (evaluations.append(1), evaluate(*arrays)))

    def watch(step, num_steps, preview):
        memory.append(mx.get_active_memory())
        watch.counts.append(len(evaluations))

    watch.counts = []
    generate(SMALL.replace(num_steps=8), backend, on_step=watch)
    assert np.diff(watch.counts).tolist() == [1] * 7
    assert max(memory[1:]) - min(memory[1:]) < 1e5


class Counting(nn.Module):
    """A layer that counts how often it is called."""

    def __init__(self, layer: nn.Module, calls: list):
        super().__init__()
        self.layer, self.calls = layer, calls

    def __call__(self, *args):
        self.calls.append(1)
        return self.layer(*args)


def test_what_is_constant_in_a_picture_is_computed_once(backend):
    calls = {"text": [], "double": [], "single": [], "out": [], "control": []}
    both = [backend._dit, backend._infusenet]
    layers = [(network, "context_embedder", "text") for network in both]
    layers += [(network.transformer_blocks[0].norm1, "linear", "double") for network in both]
    layers += [(network.single_transformer_blocks[0].norm, "linear", "single") for network in both]
    layers += [
        (backend._dit.norm_out, "linear", "out"),
        (backend._infusenet, "controlnet_x_embedder", "control"),
    ]
    originals = [owner[name] for owner, name, _ in layers]
    for (owner, name, kind), layer in zip(layers, originals, strict=True):
        owner[name] = Counting(layer, calls[kind])
    try:
        generate(SMALL, backend)
    finally:
        for (owner, name, _), layer in zip(layers, originals, strict=True):
            owner[name] = layer
    assert {kind: len(made) for kind, made in calls.items()} == dict(
        text=2, double=2, single=2, out=1, control=1
    )


def test_a_second_picture_of_the_same_face_and_prompt_runs_no_encoder(backend, monkeypatch):
    generate(SMALL, backend)
    calls = []
    for owner in (backend._clip.network(), backend._t5.network(), backend._vae, backend._projection):
        kind = type(owner)
        name = "encode" if kind.__name__ == "VAE" else "__call__"
        original = getattr(kind, name)

        def counted(*args, kind=kind, original=original):
            calls.append(kind.__name__)
            return original(*args)

        monkeypatch.setattr(kind, name, counted)
    generate(SMALL.replace(seed=9), backend)
    assert calls == []
    generate(SMALL.replace(prompt="Another sentence"), backend)
    assert calls == ["CLIP", "T5"]


# Memory.


@pytest.mark.parametrize("bits", [None, 8])
def test_weights_left_in_their_files_change_no_number_and_are_not_in_memory(bits):
    request = SMALL.replace(plugins=[Lora(PEFT, 0.8)])  # a LoRA on streamed layers too
    pictures, memory = {}, {}
    for offload in (None, "model", "sequential"):
        gc.collect()  # what earlier tests left
        before, during = mx.get_active_memory(), []
        loaded = load_backend("mlx", **FOLDERS, dtype="float32", quantize=bits, offload=offload)
        watch = lambda *_, during=during, before=before: during.append(mx.get_active_memory() - before)  # noqa: E731
        pictures[offload] = [generate(r, loaded, on_step=watch).pixels for r in (request, SMALL, request)]
        memory[offload] = max(during)
        del loaded
    assert all(np.array_equal(pictures[None], pictures[offload]) for offload in ("model", "sequential"))
    everything = loaded_bytes("base/transformer", bits) + loaded_bytes(RELEASE / "InfuseNetModel", bits)
    assert memory[None] > everything + loaded_bytes("base/text_encoder_2", bits)
    assert memory["model"] < 0.75 * everything + REST  # 27 % are modulations
    assert (
        memory["sequential"] < 0.25 * everything + REST
    )  # T5's, CLIP's and the blocks' layers are in no memory


RELEASE = Path("InfiniteYou/infu_flux_v1.0/aes_stage2")
REST = 1.3e6  # of the tiny model: VAE, projection, a LoRA, constants and latents of a picture


def test_a_backend_that_is_let_go_of_frees_its_memory_at_once():
    gc.collect()
    before = mx.get_active_memory()
    gc.disable()
    try:
        loaded = load_backend("mlx", **FOLDERS, dtype="float32")
        generate(SMALL.replace(plugins=[Lora(PEFT)]), loaded)
        assert mx.get_active_memory() - before > 7e6
        del loaded
        assert mx.get_active_memory() - before < 1e5
    finally:
        gc.enable()


def loaded_bytes(folder: str | Path, bits: int | None) -> int:
    """Bytes of a golden network as it is loaded."""
    loader = load.load_t5 if "encoder" in str(folder) else load.load_dit
    if "Infuse" in str(folder):
        loader = load.load_infusenet
    network = loader(GOLDEN / folder, GOLDEN / folder, mx.float32, bits)
    return sum(array.nbytes for _, array in tree_flatten(network.parameters()))


def test_without_modulations_less_than_three_quarters_of_flux_stay_in_memory():
    flux = (128, 24, 4096, 768, True, (16, 56, 56))
    networks = (
        dit.DiT(dit.FluxConfig(64, 19, 38, *flux)),
        infusenet.InfuseNet(dit.FluxConfig(64, 4, 10, *flux)),
    )
    numbers = [sum(array.size for _, array in tree_flatten(network.parameters())) for network in networks]
    for network in networks:
        stream_layers(network, is_modulation_layer, lambda name, layer: layer)
    kept = [sum(array.size for _, array in tree_flatten(network.parameters())) for network in networks]
    assert sum(numbers) == 11_901_408_320 + 2_952_654_336  # tests/manifests
    assert sum(kept) <= 0.735 * sum(numbers)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("offload", [None, "model", "sequential"])
def test_the_memory_computed_from_sizes_is_what_the_loaded_networks_hold(offload, bits):
    files = locate(**FOLDERS)
    loaded = load_backend("mlx", **FOLDERS, dtype="bfloat16", quantize=bits, offload=offload)
    networks = [loaded._dit, loaded._infusenet, loaded._t5.network(), loaded._clip.network()]
    networks += [loaded._vae, loaded._projection]
    held = sum(array.nbytes for network in networks for _, array in tree_flatten(network.parameters()))
    computed = mac_needed(files, "bfloat16", bits, offload) - mac_needed(files, "bfloat16", bits, None)
    everything = sum(memory_needed(files, "bfloat16", bits)["parts"].values())
    room = [
        weight_bytes(n, network, "bfloat16", bits, network.block)
        for n, network in read_networks(files).items()
    ]
    room = max(room[:3]) if offload else 0  # for the layer at work
    # What is not packed is a tenth of the tiny model, a hundredth of FLUX, and counted at the average of all.
    assert held == pytest.approx(everything + computed - room, rel=0.14 if bits is None else 0.27)


def test_the_fastest_way_for_which_there_is_memory_is_taken_without_being_told(monkeypatch):
    needed = {
        way: mac_needed(locate(**FOLDERS), "float32", None, way) for way in (None, "model", "sequential")
    }
    assert needed[None] > needed["model"] > needed["sequential"]
    for usable, offload in ((needed[None], None), (needed["model"], "model"), (0, "sequential")):
        machine = {
            "memory": 1e12,
            "usable": usable,
            "available": 0,
            "device": "Apple GPU",
            "device_memory": None,
        }
        monkeypatch.setattr("backends.mlx.backend.read_machine", lambda machine=machine: machine)
        assert load_backend("mlx", **FOLDERS, dtype="float32").offload == offload


def test_modulations_are_counted_as_the_released_files_have_them():
    for name, manifest in (("transformer", "flux1_dev_transformer"), ("infusenet", "infusenet")):
        shapes = json.loads((ROOT / f"tests/manifests/{manifest}.json").read_text())
        counted = sum(math.prod(shape) for tensor, shape in shapes.items() if is_modulation(tensor))
        assert counted == MODULATIONS[name]


def test_the_document_for_macs_is_up_to_date():
    document = (ROOT / "docs/mac.md").read_text()
    assert all(draw_table(*size) in document for size in SIZES)


@pytest.mark.parametrize(
    ("system", "processor", "installed", "chosen"),
    [
        ("darwin", "arm64", True, "mlx"),
        ("darwin", "arm64", False, "pytorch"),
        ("darwin", "x86_64", True, "pytorch"),
        ("linux", "aarch64", True, "pytorch"),
    ],
)
def test_auto_is_mlx_on_apple_silicon_alone(system, processor, installed, chosen, monkeypatch):
    find = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "mlx" and not installed else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    for kind, backend_class in (("mlx", "MlxBackend"), ("pytorch", "PytorchBackend")):
        make = lambda *_, kind=kind, **__: kind  # noqa: E731
        monkeypatch.setattr(f"backends.{kind}.backend.{backend_class}", make)
    assert load_backend() == load_backend("auto") == chosen


def test_no_torch_is_imported_to_generate():
    code = (
        "import sys; sys.path.append('tests'); from golden import FOLDERS; from backends import load_backend;"
        "from infu import GenerationRequest, generate;"
        "request = GenerationRequest('a', width=64, height=64, num_steps=1, max_sequence_length=8);"
        "generate(request, load_backend('mlx', **FOLDERS));"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


# Failures.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quantize": 5}, "8, 6, 4 or 3 bits"),
        ({"quantize": 2}, "8, 6, 4 or 3 bits"),
        ({"dtype": "float16"}, "NaN in float16"),
    ],
)
def test_what_mlx_cannot_do_is_said_in_a_sentence(options, says):
    with pytest.raises(InfuError, match=says):
        load_backend("mlx", **FOLDERS, **options)


def test_a_failed_switch_leaves_the_working_version(tmp_path):
    for name, source in (("base", "base_model_path"), ("InfiniteYou", "model_dir")):
        shutil.copytree(FOLDERS[source], tmp_path / name)
    release = tmp_path / "InfiniteYou/infu_flux_v1.0"
    shutil.copytree(release / "aes_stage2", release / "sim_stage1")
    broken = release / "sim_stage1/InfuseNetModel/diffusion_pytorch_model.safetensors"
    tensors = load_file(broken)
    loaded = load_backend(
        "mlx", base_model_path=tmp_path / "base", model_dir=tmp_path / "InfiniteYou", dtype="float32"
    )
    before, network = generate(SMALL, loaded).pixels, loaded._dit
    save_file({name: tensor for name, tensor in tensors.items() if "controlnet_x" not in name}, broken)
    with pytest.raises(
        InfuError, match=r"missing controlnet_x_embedder\.weight, controlnet_x_embedder\.bias"
    ):
        loaded.use_version("sim_stage1")
    assert loaded.model_version == "aes_stage2" and np.array_equal(generate(SMALL, loaded).pixels, before)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, broken)
    loaded.use_version("sim_stage1")
    assert loaded.model_version == "sim_stage1" and loaded._dit is network  # the DiT stays
    assert not np.array_equal(generate(SMALL, loaded).pixels, before)


def test_the_face_embedding_must_have_the_models_length(backend):
    with pytest.raises(InfuError, match="has 192 numbers; this model's projection reads 512"):
        generate(SMALL.replace(id_embedding=np.ones(192)), backend)
