"""The recipe of training, on the golden model: what the loss is, what trains, and what comes out of it."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import GOLDEN
from torch import nn

from backends import load_backend
from backends.pytorch import dit
from backends.pytorch.load import build_transformer, load_network
from infu import GenerationRequest, generate
from infu.hooks import Additions
from infu.noise import pack_latents
from infu.training.config import ProjectionSettings
from infu.training.ip_adapter import AdapterLoss, IPAdapter, make_adapter, to_file
from infu.training.loss import Batch, ControlNetLoss, InfuseLoss, by_time, draw_noise, flow_error, mix
from infu.training.networks import load_trained, make_infusenet, make_projection, save_release

SIZE = (64, 80)
TOKENS = 20
GUIDANCE = 2.0


def random_batch(size: int, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=random)

    tokens = draw(TOKENS, 64), draw(TOKENS, 64)
    return Batch(*SIZE, *tokens, nn.functional.normalize(draw(512)), draw(7, 48), draw(32))


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return load_network("transformer", GOLDEN / "base/transformer", GOLDEN / "base", torch.float32, "cpu")


def make_trainee(base: nn.Module, guidance: float = GUIDANCE) -> InfuseLoss:
    projection = make_projection(512, 48, width=64, depth=2, num_heads=1, num_tokens=8, seed=0)
    return InfuseLoss(make_infusenet(base, (3, 3)), projection, base, guidance)


def unset_outputs(trainee: InfuseLoss) -> None:
    """Outputs away from zero, as after some steps: only then does a gradient reach all of InfuseNet."""
    outputs = (*trainee.infusenet.controlnet_blocks, *trainee.infusenet.controlnet_single_blocks)
    for module in outputs:
        nn.init.normal_(module.weight, std=0.05, generator=torch.Generator().manual_seed(3))


def test_the_batched_forward_is_diffusers_own_for_every_sample(base: nn.Module):
    """A time, a caption and a face for each sample, and the residuals spread as diffusers spreads them."""
    trainee, batch, times = make_trainee(base), random_batch(3), [0.2, 0.5, 0.9]
    unset_outputs(trainee)
    noisy = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    ours = trainee.velocity(batch, noisy, times)
    rows, columns = SIZE[1] // 16, SIZE[0] // 16
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).view(
        -1, 2
    )
    positions = torch.cat([torch.zeros(TOKENS, 1), grid], dim=1)
    identity = trainee.projection(batch.embedding)
    same = {
        "hidden_states": noisy,
        "timestep": torch.tensor(times),
        "pooled_projections": batch.pooled,
        "img_ids": positions,
        "return_dict": False,
    }
    doubles, singles = trainee.infusenet(
        controlnet_cond=batch.control,
        encoder_hidden_states=identity,
        txt_ids=torch.zeros(8, 3),
        guidance=torch.ones(3),
        **same,
    )
    (theirs,) = base(
        encoder_hidden_states=batch.states,
        txt_ids=torch.zeros(7, 3),
        guidance=torch.full((3,), GUIDANCE),
        controlnet_block_samples=doubles,
        controlnet_single_block_samples=singles,
        **same,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)  # of size 1; a wrong time is off by 1e-2
    assert (ours - base_velocity(base, batch, noisy, times)).abs().max() > 1e-2  # the residuals do something


def base_velocity(base: nn.Module, batch: Batch, noisy: torch.Tensor, times: list[float]) -> torch.Tensor:
    constants = dit.make_constants(base, [*times, 0.0], *SIZE, batch.states, batch.pooled, GUIDANCE)
    return dit.velocity(base, constants, dit.EACH, noisy)


def test_before_the_first_step_the_velocity_is_the_plain_bases_bit_for_bit(base: nn.Module):
    trainee, batch, times = make_trainee(base), random_batch(2), [0.3, 0.8]
    noisy = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(trainee.velocity(batch, noisy, times), base_velocity(base, batch, noisy, times))


def test_infusenet_starts_as_blocks_spread_over_the_bases_depth(base: nn.Module):
    """5 and 7 blocks, three to a residual: 2 and 3 of them, those that each residual enters first."""
    network = make_infusenet(base, (3, 3))
    for kind, starts in (("transformer_blocks", (0, 3)), ("single_transformer_blocks", (0, 3, 6))):
        ours, theirs = getattr(network, kind), getattr(base, kind)
        assert len(ours) == len(starts)
        for block, start in zip(ours, starts, strict=True):
            expected = theirs[start].state_dict()
            assert all(torch.equal(value, expected[name]) for name, value in block.state_dict().items())
    assert torch.equal(network.x_embedder.weight, base.x_embedder.weight)


def test_beside_flux_the_networks_have_the_released_names_and_shapes():
    config = {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}
    with torch.device("meta"):
        networks = {
            "infusenet": make_infusenet(build_transformer(config), (5, 4)),
            "image_proj": make_projection(512, 4096, **dict(ProjectionSettings()), seed=0),
        }
    for name, network in networks.items():
        released = json.loads((GOLDEN.parent / f"manifests/{name}.json").read_text())
        assert {key: list(value.shape) for key, value in network.state_dict().items()} == released


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_infusenet_and_projection_get_a_gradient(base: nn.Module, checkpointing: bool):
    trainee, batch = make_trainee(base), random_batch(2)
    unset_outputs(trainee)
    for network in (base, trainee.infusenet) if checkpointing else ():
        network.enable_gradient_checkpointing()
    times, noise = draw_noise(0, [0, 1], batch.latents.shape[1:])
    trainee(batch, noise, times).mean().backward()
    base.disable_gradient_checkpointing()
    assert all(parameter.grad is None for parameter in base.parameters())
    own = dict(trainee.named_parameters())
    assert not any(parameter is other for parameter in own.values() for other in base.parameters())
    assert [name for name, parameter in own.items() if parameter.grad is None] == []
    # The text half of the last double block reaches the single ones; nothing here is dead weight.
    assert [name for name, parameter in own.items() if not parameter.grad.any()] == []


def test_gradient_checkpointing_changes_no_gradient(base: nn.Module):
    gradients = []
    for checkpointing in (False, True):
        trainee, batch = make_trainee(base), random_batch(2)
        unset_outputs(trainee)
        for network in (base, trainee.infusenet) if checkpointing else ():
            network.enable_gradient_checkpointing()
        times, noise = draw_noise(0, [0, 1], batch.latents.shape[1:])
        trainee(batch, noise, times).mean().backward()
        gradients.append([parameter.grad for parameter in trainee.parameters()])
    base.disable_gradient_checkpointing()
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences(base: nn.Module):
    """Along the gradient itself the loss rises by the gradient's length: (f(x + h d) - f(x - h d)) / 2 h."""
    trainee, batch = make_trainee(base), random_batch(2)
    unset_outputs(trainee)
    times, noise = draw_noise(0, [0, 1], batch.latents.shape[1:])
    trainee(batch, noise, times).mean().backward()
    parameters = list(trainee.parameters())
    length = sum(p.grad.square().sum() for p in parameters).sqrt().item()

    def shifted(h: float) -> float:
        with torch.no_grad():
            for p in parameters:
                p += h / length * p.grad
            return trainee(batch, noise, times).mean().item()

    h = 0.01
    slope = (shifted(h) - shifted(-2 * h)) / (2 * h)
    assert slope == pytest.approx(length, rel=1e-2) and length > 0.1


def test_times_are_logit_normal_and_noise_depends_on_nothing_but_the_position():
    times, noise = draw_noise(7, range(20_000), (2,))
    logits = np.log(np.array(times) / (1 - np.array(times)))
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03  # four standard errors
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    shifted, _ = draw_noise(7, range(20_000), (2,), time_mean=2.0)
    logits = [np.log(np.array(t) / (1 - np.array(t))) for t in (times, shifted)]
    np.testing.assert_allclose(logits[1] - logits[0], 2, atol=1e-6)
    alone, again = draw_noise(7, [11], (2,))
    assert alone[0] == times[11] and torch.equal(again[0], noise[11])
    assert draw_noise(8, [11], (2,))[0] != alone


def test_the_loss_of_the_true_velocity_is_zero_and_bins_hold_every_sample():
    latents, noise = torch.randn(3, 4, 64), torch.randn(3, 4, 64)
    times = [0.0, 0.5, 1.0]
    mixed = mix(latents, noise, times)
    assert torch.equal(mixed[0], latents[0]) and torch.equal(mixed[2], noise[2])
    # From z_t along the true velocity for -t is x0 again.
    torch.testing.assert_close(mixed[1] - 0.5 * (noise - latents)[1], latents[1], rtol=0, atol=1e-6)
    assert flow_error(noise - latents, latents, noise).max() == 0
    torch.testing.assert_close(flow_error(noise - latents + 2, latents, noise), torch.full((3,), 4.0))
    sums, counts = by_time([0.0, 0.05, 0.999999, 1.0], [1.0, 2.0, 3.0, 4.0])
    assert counts == [2, *[0] * 8, 2] and sums == [3.0, *[0.0] * 8, 7.0]


@pytest.fixture(scope="module")
def released(base: nn.Module, tmp_path_factory):
    """A model of two versions as training saves it, its outputs away from zero."""
    folder = tmp_path_factory.mktemp("InfiniteYou")
    for version in ("sim_stage1", "aes_stage2"):
        trainee = make_trainee(base)
        unset_outputs(trainee)
        config = trainee.infusenet.config
        save_release(folder, version, trainee.state_dict(), config, torch.float32)
    return folder, trainee


@pytest.mark.parametrize("name", ["pytorch", "mlx"])
def test_what_is_saved_makes_pictures_on_both_backends(released, name: str):
    folder, _ = released
    random = np.random.default_rng(0)
    embedding = random.standard_normal(512).astype(np.float32)
    request = GenerationRequest(prompt="A man", id_embedding=embedding / np.linalg.norm(embedding), width=64,
                                height=80, seed=1, num_steps=2)  # fmt: skip
    paths = {"base_model_path": GOLDEN / "base", "model_dir": folder, "dtype": "float32"}
    backend = load_backend(name, **paths)
    reference = load_backend("pytorch", **paths, model_version="sim_stage1")
    assert backend.model_versions == ("aes_stage2", "sim_stage1")
    picture = generate(request, backend).pixels
    np.testing.assert_allclose(picture, generate(request, reference).pixels, rtol=0, atol=1e-4)
    plain = generate(request.replace(infusenet_conditioning_scale=0.0), backend).pixels
    assert np.abs(picture - plain).max() > 1e-3


@pytest.mark.filterwarnings(
    "ignore:.*FluxPosEmbed:FutureWarning"
)  # diffusers warns about an import of its own
def test_what_is_saved_loads_into_the_released_codes_own_classes(released):
    from diffusers import FluxControlNetModel

    folder, trainee = released
    version = folder / "infu_flux_v1.0" / "aes_stage2"
    network = FluxControlNetModel.from_pretrained(version / "InfuseNetModel")
    expected = trainee.infusenet.state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    state = torch.load(version / "image_proj_model.bin", weights_only=True)["image_proj"]
    manifest = json.loads((GOLDEN.parent / "manifests/image_proj.json").read_text())
    assert {name for name in state} == {
        name for name in manifest if not name.startswith(("layers.2", "layers.3"))
    }
    assert all(torch.equal(value, trainee.projection.state_dict()[name]) for name, value in state.items())


def test_stage_2_starts_from_stage_1s_weights(released):
    folder, trainee = released
    infusenet, projection = load_trained(folder / "infu_flux_v1.0" / "sim_stage1")
    for ours, theirs in ((infusenet, trainee.infusenet), (projection, trainee.projection)):
        assert all(torch.equal(v, theirs.state_dict()[n]) for n, v in ours.state_dict().items())
        assert all(parameter.requires_grad for parameter in ours.parameters())


def read_adapter(folder: Path) -> IPAdapter:
    state = torch.load(folder / "ip-adapter.bin", weights_only=True)
    flat = {f"{kind}.{name}": value.float() for kind, part in state.items() for name, value in part.items()}
    hidden, size = flat["image_proj.proj.0.weight"].shape
    width, joint = flat["ip_adapter.0.to_k_ip.weight"].shape
    adapter = IPAdapter(size, hidden, len(flat["image_proj.proj.2.bias"]) // joint, joint, width, blocks=12)
    adapter.load_state_dict(flat)
    assert {kind: set(part) for kind, part in to_file(flat).items()} == {k: set(p) for k, p in state.items()}
    return adapter


@torch.inference_mode()
def test_the_attention_branch_is_instantxs(base: nn.Module):
    """InstantX's own adapter and denoising on the golden base; a query after RoPE is off by 0.4 to 1.2."""
    folder = GOLDEN / "instantx_ip_adapter"
    case, golden = json.loads((folder / "cases.json").read_text())["ipa"], np.load(folder / "ipa.npz")
    adapter = read_adapter(folder)
    embedding = torch.from_numpy(golden["image_embeds"])
    np.testing.assert_allclose(adapter.tokens(embedding), golden["ip_tokens"], rtol=0, atol=2e-5)
    branches = adapter.branches(embedding, base.config.num_attention_heads, case["scale"])
    backend = load_backend("pytorch", GOLDEN / "base", dtype="float32")
    text, sigmas = backend.encode_prompt(case["prompt"]), golden["sigmas"].tolist()
    constants = dit.make_constants(base, sigmas, case["w"], case["h"], text.states, text.pooled, case["g"])
    latents = torch.from_numpy(pack_latents(golden["noise"]))
    added = Additions(branches=(dict(enumerate(branches)),))
    for step, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        latents = latents + (following - sigma) * dit.velocity(base, constants, step, latents, added)
    np.testing.assert_allclose(latents, golden["latents"], rtol=0, atol=2e-4)
    assert np.abs(golden["latents"] - golden["latents_plain"]).max() > 0.1


@pytest.mark.parametrize("share", [(1, 0), (3, 3)])
def test_a_controlnet_starts_as_the_plain_base_and_alone_gets_a_gradient(base: nn.Module, share):
    """Whatever trains gets one: several processes wait for all of them."""
    trainee, batch = ControlNetLoss(make_infusenet(base, share), base, GUIDANCE), random_batch(2)
    batch = replace(batch, embedding=None)
    times, noise = draw_noise(0, [0, 1], batch.latents.shape[1:])
    assert torch.equal(trainee.velocity(batch, noise, times), base_velocity(base, batch, noise, times))
    for module in (*trainee.controlnet.controlnet_blocks, *trainee.controlnet.controlnet_single_blocks):
        nn.init.normal_(module.weight, std=0.05)
    trainee(batch, noise, times).mean().backward()
    assert all(parameter.grad is None for parameter in base.parameters())
    trained = {n: p.grad for n, p in trainee.controlnet.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in trained.values())
    assert trained["controlnet_x_embedder.weight"].any() and trained["context_embedder.weight"].any()


def test_an_identity_adapter_starts_as_the_plain_base_and_alone_gets_a_gradient(base: nn.Module):
    trainee, batch = AdapterLoss(make_adapter(base, 512, 8, seed=0), base, GUIDANCE), random_batch(2)
    times, noise = draw_noise(0, [0, 1], batch.latents.shape[1:])
    assert torch.equal(trainee.velocity(batch, noise, times), base_velocity(base, batch, noise, times))
    trainee(batch, noise, times).mean().backward()
    assert all(parameter.grad is None for parameter in base.parameters())
    values = [block["to_v_ip"].weight.grad for block in trainee.adapter.ip_adapter]
    assert all(gradient.any() for gradient in values)
