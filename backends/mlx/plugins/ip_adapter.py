"""An IP-Adapter (arXiv 2308.06721) on the DiT: a picture's tokens, which the image's queries attend to.

Its keys and values are all that the steps need: they are made once, layer by layer from the file, so the
adapter itself (5.3 GB of InstantX's) never stands in memory.
"""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.base import Backend
from backends.mlx.dit import DiT
from backends.mlx.layers import split_heads
from backends.mlx.load import to_array
from backends.mlx.plugins.vision import encode_picture
from infu import ip_adapter
from infu.cache import digest, identify
from infu.hooks import Additions, Run, Runner
from infu.plugins import IPAdapter
from infu.weights.ip_adapter import NORM_EPS, AdapterFile, Layer

KeysValues = list[tuple[mx.array, mx.array]]  # of each block, (1, H, tokens, d)


def make_runner(backend: Backend, base: DiT, dtype: mx.Dtype, plugin: IPAdapter, run: Run) -> Runner:
    """`base`: the DiT that it is for, which computes in `dtype`."""
    path, file = ip_adapter.open_adapter(plugin, backend)

    def attend_to(vectors: np.ndarray, scale: float) -> Additions:
        def make() -> KeysValues:
            return make_keys(file, backend.array(vectors), base.config.num_attention_heads)

        made = backend.cache("ip_adapter", (identify(path), digest(vectors)), make)
        branches = {
            i: partial(attend, k=k.astype(dtype), v=v.astype(dtype), scale=scale)
            for i, (k, v) in enumerate(made)
        }
        return Additions(branches=(branches,)) if file.instantx else Additions(after=(branches,))

    return ip_adapter.make_runner(plugin, run, path, file, partial(encode_picture, backend), attend_to)


def make_keys(file: AdapterFile, vectors: mx.array, num_heads: int) -> KeysValues:
    """vectors float32 (k, E) -> keys and values of the tokens of all k pictures together, float32."""
    tokens = make_tokens(file, vectors).flatten(0, 1)[None]  # (1, k T, W)
    made = []
    for of_keys, of_values in zip(file.keys, file.values, strict=True):
        k, v = (split_heads(linear(tokens, layer), num_heads) for layer in (of_keys, of_values))
        made.append((mx.fast.rms_norm(k, None, NORM_EPS) if file.instantx else k, v))
        mx.eval(made[-1])  # so that one layer at a time is in memory
    return made


def make_tokens(file: AdapterFile, vectors: mx.array) -> mx.array:
    """vectors float32 (k, E) -> tokens (k, T, W)."""
    *before, (weight, bias) = file.projector
    for layer in before:
        vectors = nn.gelu(linear(vectors, layer))  # by erf
    W, tokens = file.token_width, []
    for start in range(0, file.num_tokens * W, W):  # a token at a time: 2.4 GB in all
        tokens.append(linear(vectors, (weight[start : start + W], bias[start : start + W])))
        mx.eval(tokens[-1])
    scale, shift = (to_array(array).astype(mx.float32) for array in file.norm)
    return mx.fast.layer_norm(mx.stack(tokens, axis=1), scale, shift, NORM_EPS)


def linear(x: mx.array, layer: Layer) -> mx.array:
    weight, bias = (None if array is None else to_array(array).astype(mx.float32) for array in layer)
    return x @ weight.T if bias is None else x @ weight.T + bias


def attend(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """q (B, H, rows, d), k and v (B, H, tokens, d) -> scale * attention (B, rows, D)."""
    y = mx.fast.scaled_dot_product_attention(q.astype(k.dtype), k, v, scale=q.shape[-1] ** -0.5)
    return scale * y.transpose(0, 2, 1, 3).flatten(2)
