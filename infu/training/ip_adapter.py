"""An IP-Adapter (arXiv 2308.06721): decoupled attention to tokens of a picture, in every block of the frozen
base. The layout is InstantX's FLUX.1-dev-IP-Adapter, the paper's "FLUX.1-dev IPA": for style with SigLIP's
vector, for identity, to compare with, with the face embedding in its place."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.pytorch.dit import Branch
from backends.pytorch.plugins.ip_adapter import attend
from infu.hooks import Additions
from infu.training.loss import Batch, FlowLoss
from infu.weights.ip_adapter import NORM_EPS
from infu.whole import write_whole


class IPAdapter(nn.Module):
    """Vector (B, E) -> a branch for each block of the base. Attributes are the names of InstantX's file."""

    def __init__(
        self, embedding_size: int, hidden: int, num_tokens: int, joint: int, width: int, blocks: int
    ):
        """`joint`: the width of a token; `width`: the base's; `blocks`: double and single ones together."""
        super().__init__()
        self.num_tokens = num_tokens
        self.image_proj = nn.ModuleDict(
            {
                "proj": nn.Sequential(
                    nn.Linear(embedding_size, hidden),
                    nn.GELU(approximate="none"),
                    nn.Linear(hidden, num_tokens * joint),
                ),
                "norm": nn.LayerNorm(joint, eps=NORM_EPS),
            }
        )
        self.ip_adapter = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(joint, width, bias=False) for name in ("to_k_ip", "to_v_ip")})
            for _ in range(blocks)
        )

    def tokens(self, embedding: Tensor) -> Tensor:
        """(B, E) -> (B, num_tokens, joint)."""
        return self.image_proj["norm"](
            self.image_proj["proj"](embedding).unflatten(-1, (self.num_tokens, -1))
        )

    def branches(self, embedding: Tensor, num_heads: int, scale: float) -> Sequence[Branch]:
        tokens = self.tokens(embedding)
        made = []
        for block in self.ip_adapter:
            k, v = (
                block[name](tokens).unflatten(-1, (num_heads, -1)).transpose(1, 2)
                for name in ("to_k_ip", "to_v_ip")
            )  # (B, H, tokens, d)
            made.append(partial(attend, k=F.rms_norm(k, k.shape[-1:], eps=NORM_EPS), v=v, scale=scale))
        return made


def make_adapter(base: nn.Module, embedding_size: int, num_tokens: int, seed: int) -> IPAdapter:
    """An untrained one beside `base`, float32. Values start from zero: the first step is the plain base's."""
    config = base.config
    blocks = config.num_layers + config.num_single_layers
    width = config.num_attention_heads * config.attention_head_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = IPAdapter(
            embedding_size, 2 * embedding_size, num_tokens, config.joint_attention_dim, width, blocks
        )
    for block in adapter.ip_adapter:
        nn.init.zeros_(block["to_v_ip"].weight)
    return adapter


def to_file(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """An `IPAdapter`'s state -> what InstantX's `ip-adapter.bin` holds."""
    kinds = ("image_proj", "ip_adapter")
    return {
        kind: {n.removeprefix(f"{kind}."): t for n, t in state.items() if n.startswith(f"{kind}.")}
        for kind in kinds
    }


def save_adapter(folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """The state of an `AdapterLoss` -> `ip-adapter.bin` in `folder`."""
    own = {n.removeprefix("adapter."): t.detach().to("cpu", dtype).contiguous() for n, t in state.items()}
    write_whole(folder / "ip-adapter.bin", lambda path: torch.save(to_file(own), path))


class AdapterLoss(FlowLoss):
    """The same loss with an IP-Adapter in InfuseNet's place."""

    def __init__(self, adapter: IPAdapter, base: nn.Module, guidance_scale: float):
        super().__init__(base, guidance_scale)
        self.adapter = adapter

    def velocity(self, batch: Batch, noisy: Tensor, times: Sequence[float]) -> Tensor:
        base = self.base
        embedding = batch.embedding.to(self.adapter.image_proj["norm"].weight.dtype)
        branches = self.adapter.branches(embedding, base.config.num_attention_heads, 1.0)
        return self.run_base(batch, noisy, times, Additions(branches=(dict(enumerate(branches)),)))
