"""CLIP's text encoder: token ids -> the pooled vector (arXiv 2103.00020; FLUX reads nothing else of it).

Attributes carry transformers' names (`CLIPTextModel`).
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from backends.mlx.layers import gelu_tanh, split_heads


@dataclass(frozen=True)
class CLIPConfig:
    """The fields of `config.json` that the encoder is built from."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    layer_norm_eps: float
    hidden_act: str
    eos_token_id: int


ACTIVATIONS = {"quick_gelu": nn.gelu_fast_approx, "gelu": nn.gelu, "gelu_pytorch_tanh": gelu_tanh}
LEGACY_EOS = 2  # written into OpenAI's configs by mistake; transformers then takes the largest id, so do we


class CLIP(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.eos_token_id = config.eos_token_id
        self.text_model = TextModel(config)

    def __call__(self, ids: mx.array) -> mx.array:
        """ids (B, T), T up to 77 -> pooled (B, D): the last state where the text ends."""
        ends = mx.argmax(ids if self.eos_token_id == LEGACY_EOS else ids == self.eos_token_id, axis=1)
        return self.text_model(ids)[mx.arange(len(ids)), ends]


class TextModel(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, mask="causal")
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, ids: mx.array) -> mx.array:
        return self.final_layer_norm(self.encoder(self.embeddings(ids)))


class Embeddings(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, ids: mx.array) -> mx.array:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class Encoder(nn.Module):
    """The text's; with no mask and a `VisionConfig` the image encoders' (plugins/vision.py)."""

    def __init__(self, config: CLIPConfig, mask: str | None):
        super().__init__()
        self.layers = [Layer(config, mask) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    def __init__(self, config: CLIPConfig, mask: str | None):
        super().__init__()
        D = config.hidden_size
        self.layer_norm1 = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.self_attn = Attention(D, config.num_attention_heads, mask)
        self.layer_norm2 = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, mask: str | None):
        super().__init__()
        self.num_heads, self.mask = num_heads, mask
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (split_heads(f(x), self.num_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=self.mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.activation(self.fc1(x)))
