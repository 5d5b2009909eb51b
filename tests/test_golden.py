"""The released pipeline's pictures, from every backend and from the command line."""

import subprocess
import sys

import numpy as np
import pytest
from golden import FOLDERS, GOLDEN, LORA_CASES, read_golden
from PIL import Image

from backends import load_backend
from infu import generate

CASES = ["plain", "control", *LORA_CASES]
# Per backend: the largest difference of a float image. A wrong block or tokenizer shows as 1e-3 or more.
TOLERANCE = {"pytorch": 1e-5}


@pytest.fixture(scope="module", params=TOLERANCE)
def backend(request):
    return load_backend(request.param, **FOLDERS, dtype="float32")


@pytest.mark.parametrize("case", CASES)
def test_picture_is_the_released_pipelines(backend, case):
    golden = read_golden(case)
    result = generate(golden.request, backend, noise=golden.noise)
    np.testing.assert_allclose(result.pixels[0], golden.image, rtol=0, atol=TOLERANCE[backend.name])
    levels = np.asarray(result.image).astype(int)
    assert np.abs(levels - golden.image * 255).max() <= 1  # half of it is the rounding to 8 bits


def test_identity_tokens_and_latents_are_the_released_ones(backend):
    golden = read_golden("plain")
    tokens = backend.numpy(backend.project_identity(golden.request.id_embedding))
    np.testing.assert_allclose(tokens, golden.arrays["tokens"], rtol=0, atol=1e-5)
    result = generate(golden.request, backend, noise=golden.noise)
    np.testing.assert_allclose(result.latents, golden.arrays["latents"], rtol=0, atol=1e-4)  # of size 4
