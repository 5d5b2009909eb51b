"""Captions -> a CLIP-like and a T5-like tokenizer folder, in the files that FLUX.1-dev has."""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram

from infu.prompt import CLIP_WORD

CLIP_SIZE = 1000  # at most: every word of the captions, and its parts
WORD = r"[\w-]+"
UNLIKELY = -12.0  # log probability of a letter by itself: below every word's
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_LENGTH, T5_LENGTH = 77, 40


def make_clip_tokenizer(captions: Iterable[str], folder: Path) -> None:
    """Byte-level BPE with an end-of-word mark: any text can be read, known words are one token."""
    tokenizer = Tokenizer(BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for letter in [*pre_tokenizers.ByteLevel.alphabet()]:  # a letter that ends a word is a token of its own
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    vocabulary |= {START: len(vocabulary), END: len(vocabulary) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    write_settings(folder, "CLIPTokenizer", CLIP_LENGTH, special)


def make_t5_tokenizer(captions: Iterable[str], folder: Path) -> None:
    """Unigram pieces, as SentencePiece has them: every word of the captions, and what spells any other word.
    (Its trainer, made for millions of sentences, tears the few words of ours apart.)"""
    counts = Counter(word for caption in captions for word in re.findall(WORD, caption))
    total = sum(counts.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", math.log(count / total)) for word, count in counts.most_common()]
    pieces += [(letter, UNLIKELY) for letter in ("▁", *string.printable.strip())]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_settings(folder, "T5Tokenizer", T5_LENGTH, special)


def write_settings(folder: Path, kind: str, length: int, special: dict[str, str]) -> None:
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    settings = {"tokenizer_class": kind, "model_max_length": length, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
