"""Blocks for ahead-of-time compilation: what is exported computes what the blocks compute, for other numbers
of tokens and another block's weights. Compiling takes minutes and is not done here."""

import numpy as np
import pytest
import torch

from backends import load_backend
from backends.pytorch import dit
from backends.pytorch.ahead import Ahead, export_blocks
from infu import GenerationRequest, Lora, generate
from infu.models import MINI

REALISM = MINI / "InfiniteYou/supports/optional_loras/flux_realism_lora.safetensors"


@pytest.fixture(scope="module")
def backend():
    return load_backend("pytorch", dtype="float32")


def test_an_exported_block_takes_any_number_of_tokens_and_another_blocks_weights(backend):
    network, other = backend._dit.arrive(), backend._infusenet.arrive()
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    heads, size = network.config.num_attention_heads, network.config.attention_head_dim
    D, L, T = heads * size, 240, 9
    table = [dit.Modulation(*(numbers(2, D) for _ in range(3))) for _ in range(4)]
    rope = numbers(T + L, 1, size // 2), numbers(T + L, 1, size // 2)
    cases = {
        "doubles": (dit.double_block, numbers(1, L, D), numbers(1, T, D), (table[:2], table[2:]), 1, rope),
        "singles": (dit.single_block, numbers(1, T + L, D), table[0], 1, rope),
    }
    for name, exported in export_blocks(network):
        kind, *inputs = cases[name]
        ahead = Ahead(other)
        wrapped = getattr(ahead, name)[-1]
        program = exported.module()
        program.load_state_dict(wrapped.state_dict())
        wrapped.forward = program
        with torch.no_grad():
            made, wanted = ahead.run(kind, wrapped.block, *inputs), kind(wrapped.block, *inputs)
        for one, two in zip(made, wanted, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)  # numbers around 1, float32
        assert torch.isfinite(torch.cat([part.flatten() for part in made])).all()


def test_a_picture_through_the_blocks_plain_tensors_is_the_same_with_a_lora_too(backend):
    embedding = np.ones(backend.faces.embedding_size)
    request = GenerationRequest("x", id_embedding=embedding, width=64, height=80, num_steps=2, seed=1)
    requests = [request, request.replace(plugins=(Lora(REALISM),)), request.replace(max_sequence_length=1)]
    plain = [generate(asked, backend).pixels for asked in requests]
    networks = [backend._dit.arrive(), backend._infusenet.arrive()]
    for network in networks:
        network.ahead = (Ahead(network),)
    through = [generate(asked, backend).pixels for asked in requests]
    for network in networks:
        del network.ahead
    for one, two in zip(plain, through, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    assert (plain[0] != plain[1]).any()
