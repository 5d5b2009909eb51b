"""FLUX's DiT: latents and the constants of one picture -> velocity; its blocks are also InfuseNet's.

Follows black-forest-labs/flux `model.py`, `modules/layers.py`; attributes carry diffusers' names
(`FluxTransformer2DModel`). B batch, N steps, L image tokens, T text tokens, D width, H heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx.layers import gelu_tanh, split_heads
from infu.hooks import NOTHING, Additions

Branch = Callable[[mx.array], mx.array]  # queries (B, H, rows, D / H), float32 -> (B, rows, D)
Condition = Callable[[mx.array, mx.array], tuple[mx.array, mx.array, float]]  # keys, values (B, H, S, D / H)
NORM_EPS = 1e-6  # of every norm in this network; MLX's own defaults are 1e-5
TIME_WIDTH = 256  # sinusoids of a timestep or guidance, 128 frequencies
ROPE_THETA = 10_000


@dataclass(frozen=True)
class FluxConfig:
    """The fields of `config.json` that the DiT and InfuseNet are built from."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    guidance_embeds: bool
    axes_dims_rope: Sequence[int]

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


OLD_CONFIG = {"axes_dims_rope": (16, 56, 56)}  # FLUX.1-dev's own config.json, of diffusers 0.30, lacks it


class Constants(NamedTuple):
    """What a network needs at every step of one picture. A tuple, because `mx.compile` looks into tuples.

    `make_constants` gives modulations of all steps, (N, B, 1, k D); `at(step)` those of one, (B, 1, k D).
    """

    txt: mx.array  # (B, T, D)
    rope: mx.array  # complex64 (T + L, d / 2) of the head size d
    doubles: list[tuple[mx.array, mx.array]]  # image, text: shift, scale, gate of the attention, of the MLP
    singles: list[mx.array]  # shift, scale, gate
    out: (
        mx.array | None
    )  # scale, shift (diffusers' order, not BFL's) of the DiT's last norm; InfuseNet has none
    control: mx.array | None = None  # (B, L, D), what control LoRAs add to the embedded latents

    def at(self, step: int) -> "Constants":
        doubles = [(img[step], txt[step]) for img, txt in self.doubles]
        singles = [modulation[step] for modulation in self.singles]
        return self._replace(
            doubles=doubles, singles=singles, out=None if self.out is None else self.out[step]
        )


class Residuals(NamedTuple):
    """What is added to the image tokens after each block: one sample (B, L, D) per several blocks."""

    doubles: Sequence[mx.array]
    singles: Sequence[mx.array]


class DiT(nn.Module):
    def __init__(self, config: FluxConfig):
        super().__init__()
        self.config = config
        D = config.width
        self.time_text_embed = TimeTextEmbed(config)
        self.context_embedder = nn.Linear(config.joint_attention_dim, D)
        self.x_embedder = nn.Linear(config.in_channels, D)
        self.transformer_blocks = [DoubleBlock(config) for _ in range(config.num_layers)]
        self.single_transformer_blocks = [SingleBlock(config) for _ in range(config.num_single_layers)]
        self.norm_out = Modulation(D, 2)
        self.proj_out = nn.Linear(D, config.in_channels)

    def __call__(self, latents: mx.array, constants: Constants, additions: Additions = NOTHING) -> mx.array:
        """latents (B, L, 64) in the weights' dtype, `constants` of this step -> velocity (B, L, 64).
        A branch gets queries (B, H, rows, D / H), float32."""
        img, txt, rope = self.x_embedder(latents), constants.txt, constants.rope
        if constants.control is not None:
            img = img + constants.control
        depth = len(self.transformer_blocks)
        doubles = [residuals.doubles for residuals in additions.residuals if residuals.doubles]
        for i, block in enumerate(self.transformer_blocks):
            hooks = {hook: additions.at(hook, i) for hook in ("branches", "after", "conditions")}
            img, txt = block(img, txt, *constants.doubles[i], rope, **hooks)
            added = [function(img) for function in additions.at("functions", i)]
            for x in (*added, *(sample_for(samples, i, depth) for samples in doubles)):
                img = img + x
        x, T = mx.concatenate([txt, img], axis=1), txt.shape[1]  # (B, T + L, D)
        singles = [residuals.singles for residuals in additions.residuals if residuals.singles]
        for i, block in enumerate(self.single_transformer_blocks):
            hooks = {hook: additions.at(hook, depth + i) for hook in ("branches", "conditions")}
            x = block(x, constants.singles[i], rope, **hooks)
            added = [function(x[:, T:]) for function in additions.at("functions", depth + i)]
            for y in (*added, *(sample_for(s, i, len(self.single_transformer_blocks)) for s in singles)):
                x[:, T:] += y
        scale, shift = mx.split(constants.out, 2, axis=-1)
        return self.proj_out(modulated_norm(x[:, T:], shift, scale))


def make_constants(
    network: nn.Module,
    sigmas: Sequence[float],
    width: int,
    height: int,
    states: mx.array,
    pooled: mx.array,
    guidance_scale: float,
    first: mx.array | None = None,
) -> Constants:
    """The constants of a DiT or an InfuseNet for a picture of width x height pixels.

    `states` (B, T, joint width) and `pooled` (B, P) in the network's dtype; `sigmas` N + 1 floats, the last
    one (0) is the end and no step. `guidance_scale` is not used where the config has no guidance. `first`
    (B, 1, D): a token that goes before the embedded text.
    """
    txt = network.context_embedder(states)  # (B, T, D)
    if first is not None:
        txt = mx.concatenate([first, txt], axis=1)
    temb = nn.silu(network.time_text_embed(sigmas[:-1], guidance_scale, pooled))  # (N, B, D)
    return Constants(
        txt=txt,
        rope=make_rope(make_positions(txt.shape[1], width, height), network.config.axes_dims_rope),
        doubles=[(block.norm1(temb), block.norm1_context(temb)) for block in network.transformer_blocks],
        singles=[block.norm(temb) for block in network.single_transformer_blocks],
        out=network.norm_out(temb) if "norm_out" in network else None,
    )


def make_positions(num_text: int, width: int, height: int) -> np.ndarray:
    """Position (0, 0, 0) for text and (0, row, column) for image tokens of 16 pixels, (T + L, 3)."""
    rows, columns = height // 16, width // 16
    positions = np.zeros((num_text + rows * columns, 3))
    positions[num_text:, 1] = np.repeat(np.arange(rows), columns)
    positions[num_text:, 2] = np.tile(np.arange(columns), rows)
    return positions


def make_rope(positions: np.ndarray, axes: Sequence[int]) -> mx.array:
    """Positions (S, 3) -> cos + i sin, complex64 (S, d / 2). In float64 by numpy, since no GPU of Apple's has
    it; then rounded once (arXiv 2104.09864)."""
    angles = [
        positions[:, axis, None] * ROPE_THETA ** -(np.arange(0, size, 2) / size)  # (S, size / 2)
        for axis, size in enumerate(axes)
    ]
    return mx.array(np.exp(1j * np.concatenate(angles, axis=1)).astype(np.complex64))


def sample_for(samples: Sequence[mx.array], block: int, num_blocks: int) -> mx.array:
    """The residual of base block `block`: sample j where j = block // ceil(blocks / samples)."""
    return samples[block // -(-num_blocks // len(samples))]


class TimeTextEmbed(nn.Module):
    def __init__(self, config: FluxConfig):
        super().__init__()
        self.timestep_embedder = Embedder(TIME_WIDTH, config.width)
        if config.guidance_embeds:
            self.guidance_embedder = Embedder(TIME_WIDTH, config.width)
        self.text_embedder = Embedder(config.pooled_projection_dim, config.width)

    def __call__(self, sigmas: Sequence[float], guidance_scale: float, pooled: mx.array) -> mx.array:
        """N sigmas and pooled text (B, P) -> (N, B, D)."""
        dtype = pooled.dtype
        timesteps = scaled_timesteps(sigmas, dtype)
        temb = self.timestep_embedder(make_sinusoids(timesteps).astype(dtype))  # (N, D)
        if "guidance_embedder" in self:
            guidance = mx.array([guidance_scale]).astype(dtype) * 1000
            temb = temb + self.guidance_embedder(make_sinusoids(guidance).astype(dtype))
        return temb[:, None] + self.text_embedder(pooled)


def scaled_timesteps(sigmas: Sequence[float], dtype: mx.Dtype) -> mx.array:
    """1000 sigma, (N,) in `dtype`, rounded thrice as the released pipeline and diffusers' network do."""
    return (mx.array(sigmas) * 1000).astype(dtype) / 1000 * 1000


def make_sinusoids(values: mx.array) -> mx.array:
    """(N,) -> float32 (N, 256): cosines, then sines."""
    half = TIME_WIDTH // 2
    exponents = -np.log(np.float32(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    # Exponents rounded to float32 as released, then exact: at a guidance of 3500, 6e-8 more would be seen.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = values.astype(mx.float32)[:, None] * mx.array(frequencies)
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=1)


class Embedder(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(nn.silu(self.linear_1(x)))


class Modulation(nn.Module):
    """silu(temb) (N, B, D) -> `chunks` shifts, scales and gates of every step, (N, B, 1, chunks D)."""

    def __init__(self, width: int, chunks: int):
        super().__init__()
        self.linear = nn.Linear(width, chunks * width)

    def __call__(self, temb: mx.array) -> mx.array:
        return self.linear(temb)[:, :, None]


class DoubleBlock(nn.Module):
    def __init__(self, config: FluxConfig):
        super().__init__()
        D = config.width
        self.norm1, self.norm1_context = Modulation(D, 6), Modulation(D, 6)
        self.attn = JointAttention(config)
        self.ff, self.ff_context = FeedForward(D), FeedForward(D)

    def __call__(
        self,
        img: mx.array,
        txt: mx.array,
        img_mod: mx.array,
        txt_mod: mx.array,
        rope: mx.array,
        branches: Sequence[Branch] = (),
        after: Sequence[Branch] = (),
        conditions: Sequence[Condition] = (),
    ) -> tuple[mx.array, mx.array]:
        """img (B, L, D), txt (B, T, D) -> both again. The hooks are `Additions`'s, of this block."""
        img_shift, img_scale, *img_rest = mx.split(img_mod, 6, axis=-1)
        txt_shift, txt_scale, txt_gate, *txt_mlp = mx.split(txt_mod, 6, axis=-1)
        x, c = modulated_norm(img, img_shift, img_scale), modulated_norm(txt, txt_shift, txt_scale)
        x, c, query = self.attn(x, c, rope, branches, conditions)
        img = self.finish(img, x, *img_rest)
        for branch in after:
            img = img + branch(query)
        return img, feed(self.ff_context, txt + txt_gate * c, *txt_mlp)

    def finish(self, img: mx.array, y: mx.array, gate: mx.array, *mlp: mx.array) -> mx.array:
        """Image tokens (B, L, D) after the block in which their attention's output is `y`."""
        return feed(self.ff, img + gate * self.attn.to_out[0](y), *mlp)


def feed(ff: nn.Module, x: mx.array, shift: mx.array, scale: mx.array, gate: mx.array) -> mx.array:
    return x + gate * ff(modulated_norm(x, shift, scale))


class JointAttention(nn.Module):
    """Text and image tokens attend to one another, each through weights of its own."""

    def __init__(self, config: FluxConfig):
        super().__init__()
        D, d = config.width, config.attention_head_dim
        self.num_heads = config.num_attention_heads
        self.norm_q, self.norm_k = nn.RMSNorm(d, eps=NORM_EPS), nn.RMSNorm(d, eps=NORM_EPS)
        self.norm_added_q, self.norm_added_k = nn.RMSNorm(d, eps=NORM_EPS), nn.RMSNorm(d, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.to_out = [nn.Linear(D, D)]
        self.to_add_out = nn.Linear(D, D)

    def __call__(
        self,
        img: mx.array,
        txt: mx.array,
        rope: mx.array,
        branches: Sequence[Branch],
        conditions: Sequence[Condition],
    ) -> tuple[mx.array, mx.array, mx.array]:
        """img (B, L, D), txt (B, T, D) -> the image's before `to_out`, the text's after it, and the image's
        queries before RoPE."""
        T, H = txt.shape[1], self.num_heads
        img_q, img_k, img_v = project(self, img)
        txt_q = normed_heads(self.norm_added_q, self.add_q_proj(txt), H)
        txt_k = normed_heads(self.norm_added_k, self.add_k_proj(txt), H)
        q = mx.concatenate([txt_q, img_q], axis=2)  # (B, H, T + L, D / H)
        k = mx.concatenate([txt_k, img_k], axis=2)
        v = mx.concatenate([split_heads(self.add_v_proj(txt), H), img_v], axis=2)
        x = attention(q, k, v, rope, conditions)  # (B, T + L, D)
        own = x[:, T:]
        for branch in branches:
            own = own + branch(img_q)
        return own, self.to_add_out(x[:, :T]), img_q


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = [GeluLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.net[2](self.net[0](x))


class GeluLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        return gelu_tanh(self.proj(x))


class SingleBlock(nn.Module):
    """Text and image in one stream; attention and MLP side by side."""

    def __init__(self, config: FluxConfig):
        super().__init__()
        D = config.width
        self.norm = Modulation(D, 3)
        self.attn = SelfAttention(config)
        self.proj_mlp = nn.Linear(D, 4 * D)
        self.proj_out = nn.Linear(5 * D, D)

    def __call__(
        self,
        x: mx.array,
        modulation: mx.array,
        rope: mx.array,
        branches: Sequence[Branch] = (),
        conditions: Sequence[Condition] = (),
    ) -> mx.array:
        """x (B, T + L, D), text first -> the same again."""
        shift, scale, gate = mx.split(modulation, 3, axis=-1)
        h = modulated_norm(x, shift, scale)
        return self.finish(x, h, self.attn(h, rope, branches, conditions), gate)

    def finish(self, x: mx.array, h: mx.array, y: mx.array, gate: mx.array) -> mx.array:
        """x (B, S, D) after the block in which its norm is `h` and its attention's output `y`."""
        y = mx.concatenate([y, gelu_tanh(self.proj_mlp(h))], axis=-1)  # (B, S, 5 D)
        return x + gate * self.proj_out(y)


class SelfAttention(nn.Module):
    def __init__(self, config: FluxConfig):
        super().__init__()
        D, d = config.width, config.attention_head_dim
        self.num_heads = config.num_attention_heads
        self.norm_q, self.norm_k = nn.RMSNorm(d, eps=NORM_EPS), nn.RMSNorm(d, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

    def __call__(
        self, x: mx.array, rope: mx.array, branches: Sequence[Branch], conditions: Sequence[Condition]
    ) -> mx.array:
        q, k, v = project(self, x)
        y = attention(q, k, v, rope, conditions)
        for branch in branches:
            y = y + branch(q)
        return y


def project(attn: nn.Module, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Modulated image tokens (of a single block: any) (B, S, D) -> queries, keys, values (B, H, S, D / H)."""
    H = attn.num_heads
    q, k = normed_heads(attn.norm_q, attn.to_q(x), H), normed_heads(attn.norm_k, attn.to_k(x), H)
    return q, k, split_heads(attn.to_v(x), H)


def normed_heads(norm: nn.Module, x: mx.array, num_heads: int) -> mx.array:
    """(B, L, D) -> float32 (B, H, L, D / H): rotation follows, and one rounding is enough."""
    return norm(split_heads(x, num_heads).astype(mx.float32))


def attention(
    q: mx.array, k: mx.array, v: mx.array, rope: mx.array, conditions: Sequence[Condition] = ()
) -> mx.array:
    """q, k float32, v (B, H, S, d) -> (B, S, H d) in v's dtype."""
    q, k = rotate(q, rope).astype(v.dtype), rotate(k, rope).astype(v.dtype)
    return attend(q, (k, v, 0.0), *(condition(k, v) for condition in conditions))


def attend(q: mx.array, *seen: tuple[mx.array, mx.array, float]) -> mx.array:
    """q (B, H, L, d) over groups of keys and values (B, H, S, d), each with a number that is added to all its
    scores -> (B, L, H d)."""
    keys, values, numbers = zip(*seen, strict=True)
    k, v = (group[0] if len(group) == 1 else mx.concatenate(group, axis=2) for group in (keys, values))
    bias = None
    if any(numbers):
        parts = [mx.full((1, k.shape[2]), x, q.dtype) for k, x in zip(keys, numbers, strict=True)]
        bias = mx.concatenate(parts, axis=1)
    x = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=bias)
    return x.transpose(0, 2, 1, 3).flatten(2)


def rotate(x: mx.array, rope: mx.array) -> mx.array:
    """RoPE: neighbouring pairs of x float32 (B, H, S, d) are complex numbers, turned by `rope` (S, d / 2)."""
    return (x.view(mx.complex64) * rope).view(mx.float32)


def modulated_norm(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    return mx.fast.layer_norm(x, None, None, NORM_EPS) * (1 + scale) + shift
