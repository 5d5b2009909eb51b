"""An IP-Adapter (arXiv 2308.06721) on the DiT: a picture's tokens, which the image's queries attend to.

Its keys and values are all that the steps need: they are made once, layer by layer from the file, so the
adapter itself (5.3 GB of InstantX's) never stands in memory.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.base import Backend
from backends.pytorch.plugins.vision import encode_picture
from backends.pytorch.tensors import to_tensor
from infu import ip_adapter
from infu.cache import digest, identify
from infu.hooks import Additions, Run, Runner
from infu.plugins import IPAdapter
from infu.weights.ip_adapter import NORM_EPS, AdapterFile, Layer

KeysValues = list[tuple[Tensor, Tensor]]  # of each block, (1, H, tokens, d)


def make_runner(backend: Backend, base: nn.Module, plugin: IPAdapter, run: Run) -> Runner:
    """`base`: the DiT that it is for."""
    path, file = ip_adapter.open_adapter(plugin, backend)
    num_heads = base.config.num_attention_heads

    def attend_to(vectors: np.ndarray, scale: float) -> Additions:
        key = (identify(path), digest(vectors))
        made = backend.cache("ip_adapter", key, lambda: make_keys(file, backend.array(vectors), num_heads))
        branches = {
            i: partial(attend, k=k.to(base.dtype), v=v.to(base.dtype), scale=scale)
            for i, (k, v) in enumerate(made)
        }
        return Additions(branches=(branches,)) if file.instantx else Additions(after=(branches,))

    return ip_adapter.make_runner(plugin, run, path, file, partial(encode_picture, backend), attend_to)


def make_keys(file: AdapterFile, vectors: Tensor, num_heads: int) -> KeysValues:
    """vectors float32 (k, E) -> keys and values of the tokens of all k pictures together, float32."""
    tokens = make_tokens(file, vectors).flatten(0, 1)[None]  # (1, k T, W)
    made = []
    for of_keys, of_values in zip(file.keys, file.values, strict=True):
        k, v = (
            linear(tokens, layer).unflatten(-1, (num_heads, -1)).transpose(1, 2)
            for layer in (of_keys, of_values)
        )
        made.append((F.rms_norm(k, k.shape[-1:], eps=NORM_EPS) if file.instantx else k, v))
    return made


def make_tokens(file: AdapterFile, vectors: Tensor) -> Tensor:
    """vectors float32 (k, E) -> tokens (k, T, W)."""
    *before, (weight, bias) = file.projector
    for layer in before:
        vectors = F.gelu(linear(vectors, layer), approximate="none")
    W = file.token_width
    rows = [slice(t * W, t * W + W) for t in range(file.num_tokens)]  # a token at a time: 2.4 GB in all
    tokens = torch.stack([linear(vectors, (weight[r], bias[r])) for r in rows], dim=1)
    scale, shift = (to_tensor(array).to(vectors) for array in file.norm)
    return F.layer_norm(tokens, (W,), scale, shift, eps=NORM_EPS)


def linear(x: Tensor, layer: Layer) -> Tensor:
    weight, bias = (None if array is None else to_tensor(array).to(x) for array in layer)
    return F.linear(x, weight, bias)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q (B, rows, H, d), k and v (B, H, tokens, d) -> scale * attention (B, rows, D)."""
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.to(q.dtype), v.to(q.dtype))
    return scale * y.transpose(1, 2).flatten(2)
