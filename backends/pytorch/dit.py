"""FLUX's DiT over diffusers' modules: our forward, one function per block kind, shared with InfuseNet.

diffusers builds, loads and quantises the modules (`FluxTransformer2DModel`, `FluxControlNetModel`); what is
constant over a picture (modulation of all steps, context embedding, RoPE) is made once, not per step.
Formulas: black-forest-labs/flux `model.py`, `modules/layers.py`. B batch, L image, T text tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infu.hooks import NOTHING, Additions

EACH = (
    slice(None),
    None,
)  # in place of a step: sample b of a batch has a time of its own, the b-th (training)
NORM_EPS = 1e-6  # of the blocks' LayerNorms, which have no weights
FLOAT16_MAX = 65504  # the text stream of a float16 run reaches it; diffusers clips there too


@dataclass(frozen=True, eq=False)
class Modulation:
    """(N, D) each, N steps: LayerNorm(x) * scale + shift, then x + gate * f. `scale` holds the 1 already."""

    shift: Tensor
    scale: Tensor
    gate: Tensor | None


Branch = Callable[[Tensor], Tensor]  # queries (B, rows, H, D / H) -> (B, rows, D)
Condition = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor, float]
]  # keys, values (B, S, H, D / H), a number
Pair = tuple[Modulation, Modulation]  # of a block's attention and of its MLP


@dataclass(frozen=True, eq=False)
class Constants:
    """What a network needs at every step of one picture, made by `make_constants`."""

    text: Tensor  # (1, T, D)
    rope: tuple[Tensor, Tensor]  # cos and sin, float32 (T + L, 1, d / 2) of the head size d
    doubles: list[
        tuple[tuple[Modulation, Modulation], tuple[Modulation, Modulation]]
    ]  # image, text: attn, MLP
    singles: list[Modulation]
    out: Modulation | None  # of the DiT's last layer; InfuseNet has none
    control: Tensor | None = None  # (1, L, D), what control LoRAs add to the embedded latents


@dataclass(frozen=True, eq=False)
class Residuals:
    """What is added to the image tokens after each block: one sample (1, L, D) per several blocks."""

    doubles: Sequence[Tensor]
    singles: Sequence[Tensor]

    def to(self, dtype: torch.dtype) -> "Residuals":
        return Residuals([x.to(dtype) for x in self.doubles], [x.to(dtype) for x in self.singles])


def make_constants(
    network: nn.Module,
    sigmas: Sequence[float],
    width: int,
    height: int,
    states: Tensor,
    pooled: Tensor,
    guidance_scale: float,
    first: Tensor | None = None,
) -> Constants:
    """`states` (1, T, joint width) and `pooled` (1, P) in the network's dtype; `sigmas` N + 1 floats, the
    last one (0) is the end and no step. `guidance_scale` is not used where the config has no guidance.
    `first` (1, 1, D): a token that goes before the embedded text."""
    temb = embed_time(network, sigmas[:-1], pooled, guidance_scale)
    doubles = [
        (modulate_twice(block.norm1.linear(temb)), modulate_twice(block.norm1_context.linear(temb)))
        for block in network.transformer_blocks
    ]
    singles = [modulate(block.norm.linear(temb)) for block in network.single_transformer_blocks]
    out = None
    if hasattr(network, "norm_out"):
        scale, shift = network.norm_out.linear(temb).chunk(2, dim=-1)  # diffusers' order, not BFL's
        out = Modulation(shift, scale + 1, None)
    text = network.context_embedder(states)  # (1, T, D)
    if first is not None:
        text = torch.cat([first, text], dim=1)
    ids = torch.cat(
        [states.new_zeros(text.shape[1], 3, dtype=torch.float32), make_ids(width, height, states.device)]
    )
    return Constants(text, make_rope(network, ids), doubles, singles, out)


def embed_time(network: nn.Module, sigmas: Sequence[float], pooled: Tensor, guidance_scale: float) -> Tensor:
    """What every modulation is made of, (N, D) of N `sigmas`."""
    timestep = (torch.tensor(sigmas, device=pooled.device) * 1000).to(network.dtype) / 1000  # as released
    timestep = timestep * 1000  # (N,)
    if not network.config.guidance_embeds:
        return F.silu(network.time_text_embed(timestep, pooled))
    guidance = torch.tensor([guidance_scale], device=pooled.device).to(network.dtype) * 1000
    return F.silu(network.time_text_embed(timestep, guidance, pooled))


def modulate(values: Tensor) -> Modulation:
    """(N, 3 D) -> the modulation."""
    shift, scale, gate = values.chunk(3, dim=-1)
    return Modulation(shift, scale + 1, gate)


def modulate_twice(values: Tensor) -> Pair:
    """(N, 6 D) -> the modulation of the attention and of the MLP."""
    attn, mlp = values.chunk(2, dim=-1)
    return modulate(attn), modulate(mlp)


def make_ids(width: int, height: int, device) -> Tensor:
    """The positions (0, row, column) of a picture's tokens of 16 pixels, row by row, (L, 3)."""
    rows, columns = height // 16, width // 16
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)
    return ids.flatten(0, 1)


def make_rope(network: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (S, 3), those of text (0, 0, 0) -> cos, sin."""
    cos, sin = network.pos_embed(ids)  # float32 (S, d), each number twice
    return cos[:, None, ::2].contiguous(), sin[:, None, ::2].contiguous()


def velocity(
    dit: nn.Module, constants: Constants, step: int, latents: Tensor, additions: Additions = NOTHING
) -> Tensor:
    """latents (1, L, 64) in the network's dtype -> velocity (1, L, 64). A batch of B with `EACH` as step.
    A branch gets queries (B, rows, H, D / H)."""
    blocks, depth = dit.transformer_blocks, len(dit.transformer_blocks)
    img, txt = dit.x_embedder(latents), constants.text
    if constants.control is not None:
        img = img + constants.control
    doubles = [residuals.doubles for residuals in additions.residuals if residuals.doubles]
    for i, block in enumerate(blocks):
        hooks = {hook: additions.at(hook, i) for hook in ("branches", "after", "conditions")}
        img, txt = run(
            dit, double_block, block, img, txt, constants.doubles[i], step, constants.rope, **hooks
        )
        added = [function(img) for function in additions.at("functions", i)]
        for x in (*added, *(sample_for(samples, i, depth) for samples in doubles)):
            img = img + x
    x, T = torch.cat([txt, img], dim=1), txt.shape[1]  # (1, T + L, D)
    singles = [residuals.singles for residuals in additions.residuals if residuals.singles]
    for i, block in enumerate(dit.single_transformer_blocks):
        hooks = {hook: additions.at(hook, depth + i) for hook in ("branches", "conditions")}
        x = run(dit, single_block, block, x, constants.singles[i], step, constants.rope, **hooks)
        added = [function(x[:, T:]) for function in additions.at("functions", depth + i)]
        for y in (*added, *(sample_for(s, i, len(dit.single_transformer_blocks)) for s in singles)):
            x[:, T:] += y
    return dit.proj_out(norm(x[:, T:], constants.out, step))


def run(network: nn.Module, block_kind: Callable, *inputs, **hooks: Sequence[Callable]):
    """One block. Where gradients are wanted and `network.enable_gradient_checkpointing()` was called, what it
    computes is dropped and computed again on the way back. `ahead`, where the network has it, is its compiled
    blocks (ahead.py), which know no hooks."""
    hooked = any(hooks.values())
    if hooked:
        block_kind = partial(block_kind, **hooks)
    if network.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(block_kind, *inputs, use_reentrant=False)
    ahead = getattr(network, "ahead", None)
    return block_kind(*inputs) if ahead is None or hooked else ahead[0].run(block_kind, *inputs)


def sample_for(samples: Sequence[Tensor], block: int, num_blocks: int) -> Tensor:
    """The residual of base block `block`: sample j where j = block // ceil(blocks / samples)."""
    return samples[block // -(-num_blocks // len(samples))]


def double_block(
    block: nn.Module,
    img: Tensor,
    txt: Tensor,
    modulations,
    step: int,
    rope,
    branches: Sequence[Branch] = (),
    after: Sequence[Branch] = (),
    conditions: Sequence[Condition] = (),
) -> tuple[Tensor, Tensor]:
    """img (1, L, D), txt (1, T, D) -> both again. The hooks are `Additions`'s, of this block."""
    (img_attn, _), (txt_attn, txt_mlp) = modulations
    attn, T = block.attn, txt.shape[1]
    pairs = zip(
        project_text(attn, norm(txt, txt_attn, step)), project(attn, norm(img, img_attn, step)), strict=True
    )
    q, k, v = (torch.cat(pair, dim=1) for pair in pairs)  # (1, T + L, H, D / H)
    y = attention(q, k, v, rope, conditions)  # (1, T + L, D)
    own, query = y[:, T:], q[:, T:]
    for branch in branches:
        own = own + branch(query)

    img = finish_double(block, img, own, modulations[0], step)
    for branch in after:
        img = img + branch(query)
    txt = torch.addcmul(txt, txt_attn.gate[step], attn.to_add_out(y[:, :T]))
    txt = torch.addcmul(txt, txt_mlp.gate[step], block.ff_context(norm(txt, txt_mlp, step)))
    return img, finite_text(txt)


def finish_double(block: nn.Module, img: Tensor, y: Tensor, modulations: Pair, step: int) -> Tensor:
    """Image tokens (1, L, D) after the double block in which their attention's output is `y`."""
    attn, mlp = modulations
    img = torch.addcmul(img, attn.gate[step], block.attn.to_out[0](y))
    return torch.addcmul(img, mlp.gate[step], block.ff(norm(img, mlp, step)))


def single_block(
    block: nn.Module,
    x: Tensor,
    modulation: Modulation,
    step: int,
    rope,
    branches: Sequence[Branch] = (),
    conditions: Sequence[Condition] = (),
) -> Tensor:
    """x (1, T + L, D), text first -> the same again."""
    h = norm(x, modulation, step)
    q, k, v = project(block.attn, h)
    y = attention(q, k, v, rope, conditions)
    for branch in branches:
        y = y + branch(q)
    return finish_single(block, x, h, y, modulation, step)


def finish_single(
    block: nn.Module, x: Tensor, h: Tensor, y: Tensor, modulation: Modulation, step: int
) -> Tensor:
    """x (1, S, D) after the single block in which its norm is `h` and its attention's output `y`."""
    y = block.proj_out(torch.cat([y, F.gelu(block.proj_mlp(h), approximate="tanh")], dim=-1))
    return finite_text(torch.addcmul(x, modulation.gate[step], y))


def project(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Modulated image tokens (of a single block: any) (1, S, D) -> queries, keys, values (1, S, H, D / H)."""
    q, k = attn.norm_q(heads(attn, attn.to_q(x))), attn.norm_k(heads(attn, attn.to_k(x)))
    return q, k, heads(attn, attn.to_v(x))


def project_text(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a double block's text tokens, which have weights of their own there."""
    q, k = (
        attn.norm_added_q(heads(attn, attn.add_q_proj(x))),
        attn.norm_added_k(heads(attn, attn.add_k_proj(x))),
    )
    return q, k, heads(attn, attn.add_v_proj(x))


def norm(x: Tensor, modulation: Modulation, step: int) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(modulation.shift[step], x, modulation.scale[step])


def heads(attn: nn.Module, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1))  # (B, L, H, D / H)


def attention(
    q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor], conditions: Sequence[Condition] = ()
) -> Tensor:
    """q, k, v (B, L, H, d) -> (B, L, H d); positions by rotation, in float32."""
    q, k = rotate(q, rope), rotate(k, rope)
    return attend(q, (k, v, 0.0), *(condition(k, v) for condition in conditions))


def attend(q: Tensor, *seen: tuple[Tensor, Tensor, float]) -> Tensor:
    """q (B, L, H, d) over groups of keys and values (B, S, H, d), each with a number that is added to all its
    scores -> (B, L, H d)."""
    keys, values, numbers = zip(*seen, strict=True)
    k, v = (group[0] if len(group) == 1 else torch.cat(group, dim=1) for group in (keys, values))
    bias = None
    if any(numbers):
        bias = torch.cat([k.new_full((1, k.shape[1]), x) for k, x in zip(keys, numbers, strict=True)], dim=1)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias)
    return y.transpose(1, 2).flatten(2)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE (arXiv 2104.09864) on neighbouring pairs of x (B, L, H, d); cos, sin (L, 1, d / 2)."""
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, L, H, d / 2)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def finite_text(x: Tensor) -> Tensor:
    return x.clip(-FLOAT16_MAX, FLOAT16_MAX) if x.dtype == torch.float16 else x
