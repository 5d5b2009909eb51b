"""FLUX's modules by name: BFL's spelling, as tables, -> diffusers' modules. No size stands in a table.

One module of BFL's may hold several of diffusers', one after another in its rows
(black-forest-labs/flux `model.py`; diffusers `convert_flux_to_diffusers.py`).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
TEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
DOUBLE = {  # double_blocks.{i}.KEY is transformer_blocks.{i}.VALUES
    "img_attn.qkv": QKV,
    "txt_attn.qkv": TEXT_QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
SINGLE = {  # single_blocks.{i}.KEY is single_transformer_blocks.{i}.VALUES
    "linear1": (*QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SIDE_OUTSIDE = tuple(name for name in OUTSIDE if not name.startswith("final_layer"))  # a ControlNet's
SWAPPED = ("norm_out.linear",)  # BFL: shift, then scale; diffusers: scale, then shift
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")  # of queries and keys
XLABS_DOUBLE = {  # x-flux's processors: 1 is the image stream, 2 the text stream
    "processor.qkv_lora1": QKV,
    "processor.qkv_lora2": TEXT_QKV,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.proj_lora2": ("attn.to_add_out",),
}
XLABS_SINGLE = {"processor.qkv_lora": QKV, "processor.proj_lora": ("proj_out",)}
BLOCKS = (
    ("double_blocks", "transformer_blocks", DOUBLE),
    ("single_blocks", "single_transformer_blocks", SINGLE),
)
XLABS_BLOCKS = (
    ("double_blocks", "transformer_blocks", XLABS_DOUBLE),
    ("single_blocks", "single_transformer_blocks", XLABS_SINGLE),
)


@dataclass(frozen=True)
class Target:
    """Where the rows of one module of a file go: to these modules, in this order; `swapped`: the two halves
    of the rows are exchanged."""

    modules: tuple[str, ...]
    swapped: bool = False


def bfl_targets(modules: Iterable[str], blocks=BLOCKS) -> dict[str, Target]:
    """BFL's module name -> diffusers', for a network that has these `modules`, all of a name's or none."""
    there = set(modules)
    targets = {
        bfl: Target((name,), name in SWAPPED)
        for bfl, name in OUTSIDE.items()
        if name in there and blocks is BLOCKS
    }
    for bfl_blocks, our_blocks, table in blocks:
        for i in block_numbers(there, our_blocks):
            for key, values in table.items():
                names = tuple(f"{our_blocks}.{i}.{value}" for value in values)
                if there.issuperset(names):
                    targets[f"{bfl_blocks}.{i}.{key}"] = Target(names)
    return targets


def block_numbers(names: Iterable[str], blocks: str) -> list[int]:
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def count_blocks(names: Collection[str]) -> tuple[int, int]:
    """How many double and how many single blocks there are, by diffusers' names."""
    double, single = (
        len(block_numbers(names, kind)) for kind in ("transformer_blocks", "single_transformer_blocks")
    )
    return double, single


def spellings(modules: Iterable[str]) -> dict[str, Target]:
    """Every name by which a LoRA file may call a module of FLUX's: diffusers', BFL's, XLabs', and each with
    underscores for dots."""
    modules = list(modules)
    names = {name: Target((name,)) for name in modules}
    names |= bfl_targets(modules) | bfl_targets(modules, XLABS_BLOCKS)
    return with_underscores(names)


def encoder_spellings(modules: Iterable[str]) -> dict[str, Target]:
    """The same for a text encoder: CLIP's names with and without the `text_model.` of older transformers."""
    names = {}
    for module in modules:
        short = module.removeprefix(CLIP_PREFIX)
        names[short] = names[CLIP_PREFIX + short] = Target((module,))
    return with_underscores(names)


CLIP_PREFIX = "text_model."


def with_underscores(names: Mapping[str, Target]) -> dict[str, Target]:
    return {name.replace(".", "_"): target for name, target in names.items()} | dict(names)


# The other networks of a model.

VAE = (  # BFL's autoencoder -> diffusers', from left to right; `{last - i}`: counted from the other end
    (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", r".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", r".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.{last - \1}.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.{last - \1}.upsamplers.0."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
    (r"coder\.norm_out\.", r"coder.conv_norm_out."),
)
XLABS_HINT = (  # x-flux's ControlNets -> diffusers' (`ControlNetConditioningEmbedding`); odd numbers are SiLU
    (r"^pos_embed_input\.", "controlnet_x_embedder."),
    (r"^input_hint_block\.0\.", "input_hint_block.conv_in."),
    (r"^input_hint_block\.14\.", "input_hint_block.conv_out."),
    *((rf"^input_hint_block\.{2 * i + 2}\.", f"input_hint_block.blocks.{i}.") for i in range(6)),
)
T5_GGUF = (  # llama.cpp's T5 encoder -> transformers'
    (r"^token_embd\.", "shared."),
    (r"^enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"^enc\.blk\.(\d+)\.attn_([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^enc\.blk\.(\d+)\.attn_rel_b\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^enc\.blk\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^enc\.blk\.(\d+)\.ffn_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^enc\.blk\.(\d+)\.ffn_gate\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^enc\.blk\.(\d+)\.ffn_up\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^enc\.blk\.(\d+)\.ffn_down\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


def rename(name: str, table: Iterable[tuple[str, str]], last: int = 0) -> str:
    """A tensor's name by a table of patterns. `last`: the last stage's number, for those counted back."""
    for sign, new in table:
        name = re.sub(sign, new, name)
    return re.sub(r"\{last - (\d+)\}", lambda found: str(last - int(found[1])), name)
