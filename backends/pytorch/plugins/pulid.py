"""PuLID-FLUX (arXiv 2404.16022): a face -> identity tokens (IDFormer), which cross-attentions read.

Follows ToTheBeginning/PuLID `pulid/encoders_transformer.py`; module attributes are the checkpoint's names.
B batch, V tokens of the image encoder, Q identity tokens, L image tokens, D width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from backends.pytorch.load import load_by_shapes
from backends.pytorch.plugins.eva import EvaTower
from backends.pytorch.projection import NORM_EPS, Attention, attend, make_feed_forward
from infu.pulid import PulidRunner
from infu.weights.pulid import Arrays, EvaFile, PulidFile, Shapes, count_layers


class IdFormer(nn.Module):
    """A Perceiver resampler over the face's embedding and the image encoder's states, scale by scale."""

    def __init__(self, shapes: Shapes, head: int):
        """`shapes`: of the checkpoint's tensors, by name; `head`: numbers of a head."""
        super().__init__()
        width = shapes["latents"][2]
        inner, hidden = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        self.latents = nn.Parameter(torch.empty(shapes["latents"]))
        self.proj_out = nn.Parameter(torch.empty(shapes["proj_out"]))
        self.id_embedding_mapping = make_mapping(shapes, "id_embedding_mapping")
        self.num_scales = sum(name.startswith("mapping_") and name.endswith(".0.weight") for name in shapes)
        for i in range(self.num_scales):
            self.add_module(f"mapping_{i}", make_mapping(shapes, f"mapping_{i}"))
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(width, inner, head), make_feed_forward(width, hidden)])
            for _ in range(count_layers(shapes, "layers"))
        )

    def forward(self, faces: Tensor, states: list[Tensor]) -> Tensor:
        """`faces` (B, 1280), or (B, K, 1280) of K photographs of one person, and the encoder's hidden states,
        each (B, V, E) -> identity tokens (B, Q, W)."""
        width, count = self.latents.shape[2], self.latents.shape[1]
        ids = self.id_embedding_mapping(faces).reshape(len(faces), -1, width)  # (B, 5 K, D)
        latents = torch.cat([self.latents.expand(len(faces), -1, -1), ids], dim=1)  # (B, Q + 5 K, D)
        depth = len(self.layers) // self.num_scales
        for i in range(self.num_scales):
            context = torch.cat([ids, self.get_submodule(f"mapping_{i}")(states[i])], dim=1)
            for attention, feed_forward in self.layers[i * depth : (i + 1) * depth]:
                latents = attention(context, latents) + latents
                latents = feed_forward(latents) + latents
        return latents[:, :count] @ self.proj_out


def make_mapping(shapes: Shapes, name: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in (0, 3, 6):
        outputs, inputs = shapes[f"{name}.{index}.weight"]
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs, eps=NORM_EPS), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers[:7])  # nothing after the last one


class CrossAttention(nn.Module):
    """Image tokens ask, identity tokens answer."""

    def __init__(self, shapes: Shapes, head: int):
        """`shapes`: of the checkpoint's tensors, by name; `head`: numbers of a head."""
        super().__init__()
        inner, width = shapes["to_q.weight"]
        id_width = shapes["norm1.weight"][0]
        self.head = head
        self.norm1, self.norm2 = nn.LayerNorm(id_width, eps=NORM_EPS), nn.LayerNorm(width, eps=NORM_EPS)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(id_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def read_identity(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Identity tokens (B, Q, W) -> keys and values (B, Q, inner): the same at every step."""
        return self.to_kv(self.norm1(tokens)).chunk(2, dim=-1)

    def forward(self, identity: tuple[Tensor, Tensor], img: Tensor) -> Tensor:
        """`read_identity`'s keys and values, img (B, L, D) -> what is added to img, before the weight."""
        return self.to_out(attend(self.to_q(self.norm2(img)), *identity, self.head))


def encode_face(encoder: IdFormer, eva: EvaTower, vectors: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """As `PulidRunner.encode`."""
    dtype = encoder.proj_out.dtype
    states, pooled = eva(pixels.to(dtype))
    pooled = pooled / pooled.norm(dim=-1, keepdim=True)
    faces = torch.cat([vectors.to(dtype), pooled], dim=-1)[None]  # (1, K, 1280)
    states = [state.flatten(0, 1)[None] for state in states]  # (1, K V, E)
    nobody = encoder(torch.zeros_like(faces), [torch.zeros_like(state) for state in states])
    return encoder(faces, states), nobody


class PytorchPulid(PulidRunner):
    def load_attentions(self) -> list[CrossAttention]:
        build = partial(CrossAttention, head=self.file.attention_head)
        return [self._load(build, tensors, self.file) for tensors in self.file.attentions]

    def load_encoder(self) -> IdFormer:
        return self._load(partial(IdFormer, head=self.file.encoder_head), self.file.encoder, self.file)

    def load_eva(self, file: EvaFile) -> EvaTower:
        return self._load(partial(EvaTower, head=file.head, span=file.span), file.tensors, file)

    def _load(self, build: Callable[[Shapes], nn.Module], tensors: Arrays, file: PulidFile | EvaFile):
        return load_by_shapes(build, tensors, file.name, self._dtype, self.backend.device)

    encode = staticmethod(encode_face)

    def make_function(self, attention: CrossAttention, tokens: Tensor) -> Callable[[Tensor], Tensor]:
        identity, weight = attention.read_identity(tokens.to(self._dtype)), self.plugin.id_weight
        return lambda img: weight * attention(identity, img)

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.backend.dtype)
