"""What a file is that is not what was asked for, told by its tensors' names: a table of signs."""

import re
from collections.abc import Iterable

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
