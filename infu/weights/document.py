"""docs/files.md out of the tables that the readers use: `python -m infu.weights.document > docs/files.md`."""

from collections.abc import Iterable

from infu.weights import checkpoint, files, foreign, gguf, lora, lora_module, names

HEAD = """# Files that InfU reads

Written by `python -m infu.weights.document` from the tables that the readers use; a test holds that it is
up to date. `python -m infu inspect FILE` says what a file is, how much of it matches, and the memory it
will need.

## Base models

FLUX.1-dev, FLUX.1-Krea-dev, FLUX.1-schnell and fine-tunes of them: a folder or hub repository in
diffusers' layout (one file or shards) as `--base_model_path`; or one network from a file of its own, the
rest from the base. A file is known by its tensors, never by its name. A checkpoint file may be the base
itself: `--base_model_path all_in_one.safetensors` takes every network that it holds, and what it lacks
(configs and tokenizers, perhaps the VAE and text encoders) from FLUX.1-dev on the hub. As
`--transformer_path` the same file gives the transformer alone. A transformer without a guidance embedding
is a schnell: 256 T5 tokens, sigmas not shifted.
"""
STORED = """
Numbers are read as float32, float16, bfloat16, fp8 (e4m3fn, e5m2: plain, or times the scales that ComfyUI
writes as `{scales}`), or GGUF: {kinds}. fp8 and GGUF stay as they are in memory and become numbers layer
by layer (`quantize` packs them anew); Q8_0 and Q4_0 are multiplied as they are on MLX. safetensors, GGUF and
torch files ({torch}) are read; nothing is ever unpickled.
"""
LORA = """
## LoRA

Several at once, in any order, at any strength from -10 to 10. A key is a prefix, a module's name and an
ending:

"""
FORMULAS = """
The module's name is diffusers' or BFL's, with dots or underscores. W is the weight, s the strength; rank
is that of each module, and alpha the module's own, else that of the file's header
(`lora_adapter_metadata`, `ss_network_alpha`), else the rank.

- **LoRA**: W + s alpha / rank up down. A bias of `up` is added to the bias, times s alpha / rank.
- **LoKr**: W + s kron(w1, w2), times alpha / rank where a part is factored.
- **LoHa**: W + s alpha / rank (w1_a w1_b) * (w2_a w2_b), element by element.
- **DoRA**: V = W + the change; W + s (V magnitude / |V| - W). The lengths are those of rows where the
  magnitudes are (out, 1) or (out), of columns where they are (1, in).
- **Differences**: W + s `diff`, bias + s `diff_b`; of norms and embeddings too.
- **Norms of queries and keys**, whole: W + s (`norm` - W).
- **Control LoRAs** (BFL's Canny, Depth; an x_embedder of twice the columns) follow a picture of edges or
  depth, made beforehand: `--lora FILE:SCALE:PICTURE`, `Lora(FILE, SCALE, PICTURE)`. It is cut to the output's
  shape about its middle, and its latents are read by the second half of the columns; the base reads it,
  InfuseNet never. Without a picture such a file is refused.

Parts for CLIP and T5 change how the prompt is encoded. Keys that fit nothing are named in the notes; a
file of which nothing fits, whose shapes are another model's, that lacks half a pair or has NaN is
refused.

## BFL's names

"""


def make_document() -> str:
    """The whole of docs/files.md."""
    scales = "`, `".join(checkpoint.SCALES)
    kinds = ", ".join((*gguf.PLAIN, *gguf.HALVES))
    torch_files = ", ".join(f"`{suffix}`" for suffix in files.TORCH_SUFFIXES)
    lines = [
        HEAD,
        *table(("network", "prefix in a file of several", "a tensor it always has"), list_networks()),
        STORED.format(scales=scales, kinds=kinds, torch=torch_files),
        "Refused by name, with what would work instead:\n",
        *("- " + what.format("It") for _, what in foreign.OTHER_BASES),
        *(f"- {what} (a transformer that reads {n} channels)." for n, what in foreign.CHANNELS.items()),
        *(f"- {what} (`{kind}` in model_index.json)." for kind, what in foreign.PIPELINES.items()),
        LORA,
        *table(("prefix", "written by", "network"), list_prefixes()),
        "",
        *table(("tensor", "endings"), list_endings()),
        FORMULAS,
        *table(("BFL", "diffusers"), list_modules()),
        "",
        "Refused by name: LoRAs of " + ", ".join(model for _, model in foreign.OTHER_LORAS) + ";",
        "; ".join(what for _, what, _ in foreign.OTHER_KINDS) + ".",
    ]
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip() + "\n"


def list_networks() -> Iterable[tuple[str, ...]]:
    for part, title in checkpoint.TITLES.items():
        prefixes = ", ".join(code(prefix) for prefix in checkpoint.PREFIXES[part]) or "none"
        yield title, prefixes, code(checkpoint.SIGNS[part])


def list_prefixes() -> Iterable[tuple[str, ...]]:
    for prefix, who, network in lora.PREFIXES:
        yield code(prefix) if prefix else "none", who, lora.NETWORKS[network]


def list_endings() -> Iterable[tuple[str, ...]]:
    for role, endings in lora_module.ENDINGS.items():
        yield role, ", ".join(code(ending) for ending in endings)


def list_modules() -> Iterable[tuple[str, ...]]:
    for blocks, ours, parts in (*names.BLOCKS, *names.XLABS_BLOCKS):
        for key, values in parts.items():
            yield code(f"{blocks}.i.{key}"), ", ".join(code(f"{ours}.i.{value}") for value in values)
    for key, value in names.OUTSIDE.items():
        yield code(key), code(value) + (" (halves exchanged)" if value in names.SWAPPED else "")


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    print(make_document(), end="")
