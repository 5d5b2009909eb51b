"""The schedule and the noise against diffusers' scheduler and mathematics."""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from golden import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from infu.flow import make_sigmas, read_scheduler
from infu.noise import make_noise, pack_latents, unpack_latents

DEV = GOLDEN / "base" / "scheduler" / "scheduler_config.json"


@pytest.mark.parametrize("num_steps", [1, 4, 30])
@pytest.mark.parametrize("num_tokens", [16, 256, 3888, 16384])
def test_sigmas_are_those_of_diffusers(num_steps, num_tokens):
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(DEV.parent)
    mu = 0.5 + (1.15 - 0.5) * (num_tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    ours = make_sigmas(num_steps, num_tokens, read_scheduler(DEV))
    np.testing.assert_allclose(ours, scheduler.sigmas.numpy(), rtol=0, atol=1e-6)  # float32 against float64


def test_schnell_is_not_shifted(tmp_path):
    config = tmp_path / "scheduler_config.json"
    config.write_text('{"use_dynamic_shifting": false, "shift": 1.0}')
    assert make_sigmas(4, 4096, read_scheduler(config)) == [1.0, 0.75, 0.5, 0.25, 0.0]


@given(st.integers(1, 200), st.integers(16, 16384))
def test_sigmas_fall_from_one_to_zero(num_steps, num_tokens):
    sigmas = make_sigmas(num_steps, num_tokens, read_scheduler(DEV))
    assert len(sigmas) == num_steps + 1 and sigmas[0] == 1 and sigmas[-1] == 0
    assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))


@given(st.integers(0, 2**32 - 1))
def test_a_seed_makes_the_same_noise_whatever_was_made_before(seed):
    first = make_noise(seed, 64, 96)
    make_noise(seed + 1, 64, 64)
    assert first.shape == (1, 16, 12, 8) and first.dtype == np.float32
    assert np.array_equal(first, make_noise(seed, 64, 96))


def test_noise_is_standard_normal():
    noise = make_noise(7, 1024, 1024)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01  # 262,144 numbers: deviation .002


@given(st.integers(1, 5), st.integers(1, 5))
def test_unpacking_undoes_packing(rows, columns):
    latents = np.random.default_rng(0).standard_normal((2, 16, rows * 2, columns * 2), dtype=np.float32)
    assert np.array_equal(unpack_latents(pack_latents(latents), columns * 16, rows * 16), latents)


def test_packed_channels_are_in_the_order_channel_row_column():
    latents = np.arange(16 * 2 * 2, dtype=np.float32).reshape(1, 16, 2, 2)
    assert np.array_equal(pack_latents(latents)[0, 0], np.arange(64))
