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
) -> Constants:
    """`states` (1, T, joint width) and `pooled` (1, P) in the network's dtype; `sigmas` N + 1 floats, the
    last one (0) is the end and no step. `guidance_scale` is not used where the config has no guidance."""
    dtype = network.dtype
    timestep = (torch.tensor(sigmas[:-1], device=states.device) * 1000).to(dtype) / 1000  # as released
    timestep = timestep * 1000  # (N,)
    if network.config.guidance_embeds:
        guidance = torch.tensor([guidance_scale], device=states.device).to(dtype) * 1000
        temb = network.time_text_embed(timestep, guidance, pooled)  # (N, D)
    else:
        temb = network.time_text_embed(timestep, pooled)  # (N, D)
    temb = F.silu(temb)
    doubles = [
        (modulate_twice(block.norm1.linear(temb)), modulate_twice(block.norm1_context.linear(temb)))
        for block in network.transformer_blocks
    ]
    singles = []
    for block in network.single_transformer_blocks:
        shift, scale, gate = block.norm.linear(temb).chunk(3, dim=-1)
        singles.append(Modulation(shift, scale + 1, gate))
    out = None
    if hasattr(network, "norm_out"):
        scale, shift = network.norm_out.linear(temb).chunk(2, dim=-1)  # diffusers' order, not BFL's
        out = Modulation(shift, scale + 1, None)
    rope = make_rope(network, states.shape[1], width, height, states.device)
    return Constants(network.context_embedder(states), rope, doubles, singles, out)


def modulate_twice(values: Tensor) -> tuple[Modulation, Modulation]:
    """(N, 6 D) -> the modulation of the attention and of the MLP."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = values.chunk(6, dim=-1)
    return Modulation(shift, scale + 1, gate), Modulation(mlp_shift, mlp_scale + 1, mlp_gate)


def make_rope(network: nn.Module, num_text: int, width: int, height: int, device) -> tuple[Tensor, Tensor]:
    """Positions (0, 0, 0) for text and (0, row, column) for image tokens of 16 pixels -> cos, sin."""
    rows, columns = height // 16, width // 16
    ids = torch.zeros(num_text + rows * columns, 3, device=device)
    grid = ids[num_text:].view(rows, columns, 3)
    grid[..., 1] = torch.arange(rows, device=device)[:, None]
    grid[..., 2] = torch.arange(columns, device=device)
    cos, sin = network.pos_embed(ids)  # float32 (T + L, d), each number twice
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
        hooks = {"branches": additions.at("branches", i), "after": additions.at("after", i)}
        img, txt = run(
            dit, double_block, block, img, txt, constants.doubles[i], step, constants.rope, **hooks
        )
        added = [function(img) for function in additions.at("functions", i)]
        for x in (*added, *(sample_for(samples, i, depth) for samples in doubles)):
            img = img + x
    x, T = torch.cat([txt, img], dim=1), txt.shape[1]  # (1, T + L, D)
    singles = [residuals.singles for residuals in additions.residuals if residuals.singles]
    for i, block in enumerate(dit.single_transformer_blocks):
        hooks = {"branches": additions.at("branches", depth + i)}
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
) -> tuple[Tensor, Tensor]:
    """img (1, L, D), txt (1, T, D) -> both again. The hooks are `Additions`'s, of this block."""
    (img_attn, img_mlp), (txt_attn, txt_mlp) = modulations
    attn, T = block.attn, txt.shape[1]
    x, c = norm(img, img_attn, step), norm(txt, txt_attn, step)

    q = torch.cat(
        [attn.norm_added_q(heads(attn, attn.add_q_proj(c))), attn.norm_q(heads(attn, attn.to_q(x)))], 1
    )
    k = torch.cat(
        [attn.norm_added_k(heads(attn, attn.add_k_proj(c))), attn.norm_k(heads(attn, attn.to_k(x)))], 1
    )
    v = torch.cat([heads(attn, attn.add_v_proj(c)), heads(attn, attn.to_v(x))], dim=1)  # (1, T + L, H, D / H)
    y = attention(q, k, v, rope)  # (1, T + L, D)
    own, query = y[:, T:], q[:, T:]
    for branch in branches:
        own = own + branch(query)

    img = torch.addcmul(img, img_attn.gate[step], attn.to_out[0](own))
    img = torch.addcmul(img, img_mlp.gate[step], block.ff(norm(img, img_mlp, step)))
    for branch in after:
        img = img + branch(query)
    txt = torch.addcmul(txt, txt_attn.gate[step], attn.to_add_out(y[:, :T]))
    txt = torch.addcmul(txt, txt_mlp.gate[step], block.ff_context(norm(txt, txt_mlp, step)))
    return img, finite_text(txt)


def single_block(
    block: nn.Module, x: Tensor, modulation: Modulation, step: int, rope, branches: Sequence[Branch] = ()
) -> Tensor:
    """x (1, T + L, D), text first -> the same again."""
    attn = block.attn
    h = norm(x, modulation, step)
    q, k = attn.norm_q(heads(attn, attn.to_q(h))), attn.norm_k(heads(attn, attn.to_k(h)))
    y = attention(q, k, heads(attn, attn.to_v(h)), rope)
    for branch in branches:
        y = y + branch(q)
    y = block.proj_out(torch.cat([y, F.gelu(block.proj_mlp(h), approximate="tanh")], dim=-1))
    return finite_text(torch.addcmul(x, modulation.gate[step], y))


def norm(x: Tensor, modulation: Modulation, step: int) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(modulation.shift[step], x, modulation.scale[step])


def heads(attn: nn.Module, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1))  # (B, L, H, D / H)


def attention(q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """q, k, v (B, L, H, d) -> (B, L, H d); positions by rotation, in float32."""
    q, k = rotate(q, rope), rotate(k, rope)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return y.transpose(1, 2).flatten(2)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE (arXiv 2104.09864) on neighbouring pairs of x (B, L, H, d); cos, sin (L, 1, d / 2)."""
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, L, H, d / 2)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def finite_text(x: Tensor) -> Tensor:
    return x.clip(-FLOAT16_MAX, FLOAT16_MAX) if x.dtype == torch.float16 else x
