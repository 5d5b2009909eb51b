"""What a file is that is not what was asked for, told by its tensors' names: a table of signs."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infu.errors import BrokenFile

OTHER_LORAS = (  # what a name holds -> what the file is for; the first that is found, from top to bottom
    (r"lora_te2_text_model|text_encoder_2\.text_model|lora_unet_(in|out)put_blocks", "Stable Diffusion XL"),
    (r"(^|[._])(down|up|input|output)_blocks[._]|(^|[._])mid(dle)?_block[._]", "Stable Diffusion 1 or 2"),
    (r"joint_blocks[._]|joint_transformer_blocks[._]", "Stable Diffusion 3"),
    (r"to_qkv_mlp_proj|(double|single)_stream_modulation|\.ff(_context)?\.linear_in", "FLUX.2"),
    (r"individual_token_refiner", "HunyuanVideo"),
    (r"distilled_guidance_layer", "Chroma"),
    (r"(^|[._])blocks[._]\d+[._](cross_attn|self_attn|ffn)[._]", "Wan"),
    (r"transformer_blocks[._]\d+[._]((img|txt)_mlp[._]net|(img|txt)_mod[._]1)", "Qwen-Image"),
)  # fmt: skip
OTHER_KINDS = (  # what a name holds -> what the file is, and what to do
    (r"ip_adapter", "an IP-Adapter, not a LoRA", "Use it as an IP-Adapter."),
    (r"(^|\.)controlnet_", "a ControlNet, not a LoRA", "Use it as a ControlNet."),
    (r"\.oft_(blocks|diag|R|r)\b", "an OFT adapter, which is not supported", "Use a LoRA, LoHa or LoKr."),
    (r"\.(a1|b1)\.weight$", "a GLoRA, which is not supported", "Use a LoRA, LoHa or LoKr."),
    (r"\.(lokr_t2|hada_t[12]|lora_mid\.weight)$", "an adapter with Tucker cores, made for convolutions",
     "FLUX has none: use another file."),
    (r"^(clip_l|clip_g|t5|t5xxl|emb_params)$", "a textual inversion (an embedding), not a LoRA",
     "Embeddings are not supported."),
    (r"^(model\.diffusion_model\.)?(img_in|x_embedder)\.weight$|\.attn\.to_q\.weight$|_attn\.qkv\.weight$",
     "a whole model, not a LoRA", "Give it as transformer_path."),
)  # fmt: skip
OTHER_BASES = (  # the same for a network of a model; `{}` is the file
    (r"(single|double)_stream_modulation|to_qkv_mlp_proj", "{} is FLUX.2, another architecture than FLUX.1."),
    (r"distilled_guidance_layer", "{} is Chroma, which has no guidance or modulation of FLUX.1's kind."),
    (r"joint_(transformer_)?blocks\.", "{} is Stable Diffusion 3."),
    (r"label_emb\.|conditioner\.embedders\.1|add_embedding\.", "{} is Stable Diffusion XL."),
    (r"(^|\.)(input_blocks|down_blocks\.\d+\.attentions)\.", "{} is a Stable Diffusion."),
    (r"^redux_(up|down)\.", "{} is FLUX.1 Redux, an adapter for pictures as prompts, not a model."),
    (r"\.lora_(A|B|down|up)\b|\.lokr_w|\.hada_w|_lora\d?\.(down|up)\.",
     "{} is a LoRA, not a model: give it with --lora, or as Lora(path)."),
    (r"^pulid_", "{} is PuLID, a plug-in, not a model."),
    (r"ip_adapter", "{} is an IP-Adapter, a plug-in, not a model."),
    (r"bitsandbytes__|\.(absmax|quant_map)$",
     "{} is quantised by bitsandbytes (nf4 or fp4), which is not supported."),
    (r"\.(qweight|wscales|smooth_factor)$", "{} is quantised by SVDQuant, which is not supported."),
    (r"\._(data|scale)$", "{} is quantised by optimum-quanto, which is not supported."),
    (r"\.weight_scale_2$", "{} is quantised in nvfp4, which is not supported."),
)  # fmt: skip
OTHER_FILES = (  # what a name holds -> a file that is used elsewhere than as a base or LoRA
    (r"^image_proj\.(latents|proj_in)", "InfiniteYou's projection of the face (image_proj_model.bin)"),
    (r"ip_adapter", "an IP-Adapter"),
    (r"^pulid_", "PuLID"),
    (r"^visual\.blocks\.\d+\.attn\.inner_attn_ln", "EVA02-CLIP, PuLID's image encoder"),
)
OTHER_NETWORKS = (  # the same for what is a base, a LoRA or beside one, where something else was asked for
    (r"(^|[._])controlnet_", "a ControlNet"),
    (r"\.lora_(A|B|down|up)\b|\.lokr_w|\.hada_w", "a LoRA"),
    (r"(^|\.)(double_blocks|transformer_blocks)\.", "a whole model"),
    (r"^(vision_model|text_model|visual)\.", "a CLIP"),
)
PIPELINES = {  # `_class_name` of a folder's model_index.json -> what it is
    "FluxFillPipeline": "FLUX.1 Fill, made for inpainting",
    "FluxControlPipeline": "FLUX.1 Canny or Depth",
    "FluxKontextPipeline": "FLUX.1 Kontext, made for editing pictures",
    "FluxPriorReduxPipeline": "FLUX.1 Redux, an adapter for pictures as prompts",
    "Flux2Pipeline": "FLUX.2",
    "ChromaPipeline": "Chroma",
    "StableDiffusionPipeline": "Stable Diffusion",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
}
CHANNELS = {384: "FLUX.1 Fill, made for inpainting", 128: "FLUX.1 Canny or Depth"}  # that a transformer reads
INSTEAD_OF_CONTROLNET = (
    "Give a ControlNet made for FLUX.1: XLabs', InstantX's or Shakker's, or another in diffusers' names."
)
INSTEAD = "InfiniteYou needs FLUX.1-dev, Krea-dev, schnell or a fine-tune of one, in bf16, fp8 or GGUF."


def name_file(weights: Iterable[str]) -> str | None:
    """What a file is that is used, but neither as a base nor as a LoRA."""
    names = list(weights)
    return next((what for sign, what in OTHER_FILES if any(re.search(sign, name) for name in names)), None)


def name_weights(weights: Iterable[str]) -> str | None:
    """What a file is, for a reader that wants another; None where no sign says so."""
    names = list(weights)
    signs = (*OTHER_FILES, *OTHER_NETWORKS)
    return next((what for sign, what in signs if any(re.search(sign, name) for name in names)), None)


def refuse_weights(file: str, weights: Any, part: str) -> None:
    """Raise `BrokenFile`, saying what the file is, where its tensors tell that it is not `part` of FLUX.1."""
    instead = INSTEAD_OF_CONTROLNET if part == "controlnet" else INSTEAD
    for sign, what in OTHER_BASES:
        if any(re.search(sign, name) for name in weights):
            raise BrokenFile(f"{what.format(file)} {instead}")
    if part == "transformer":
        if any(name.startswith("controlnet_") for name in weights):
            raise BrokenFile(f"{file} is a ControlNet or InfuseNet, not a base model. {INSTEAD}")
        told = f"{file} {weights.metadata.get('modelspec.architecture', '')}"
        if "kontext" in told.lower():  # its tensors are exactly dev's
            raise BrokenFile(f"{file} is {PIPELINES['FluxKontextPipeline']}. {INSTEAD}")


def refuse_quantisation(file: str, layer: str, kind: str) -> None:
    what = f"{kind!a:.40} ({layer!a:.100})"  # as a file's header spells them, whatever stands there
    raise BrokenFile(f"{file} is quantised in {what}, which is not supported. {INSTEAD}")


def refuse_channels(file: str, channels: int | None) -> None:
    """Raise `BrokenFile` for a transformer that reads more than the noise: so many `channels`."""
    if channels in CHANNELS:
        raise BrokenFile(f"{file} is {CHANNELS[channels]}. {INSTEAD}")


def refuse_pipeline(folder: Path) -> None:
    """Raise `BrokenFile` where a folder's `model_index.json` names another model than FLUX.1."""
    try:
        kind = json.loads((folder / "model_index.json").read_bytes())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no whole model, or an index that says nothing: its parts are looked at
    if kind in PIPELINES:
        raise BrokenFile(f"{folder.name!r} is {PIPELINES[kind]}. {INSTEAD}")


def name_foreign_lora(keys: Iterable[str]) -> str | None:
    """A sentence about a file that is no LoRA for FLUX.1; None where no sign says so."""
    keys = list(keys)
    for sign, model in OTHER_LORAS:
        if any(re.search(sign, key) for key in keys):
            return f"This LoRA was made for {model}, not for FLUX.1. Choose one that was made for FLUX.1."
    for sign, what, advice in OTHER_KINDS:
        if any(re.search(sign, key) for key in keys):
            return f"The file is {what}. {advice}"
    return None
