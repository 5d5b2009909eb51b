"""Prompt -> CLIP and T5 token ids, straight from the model's own tokenizer files with `tokenizers`.

A folder with `tokenizer.json` is read as it is; CLIP's `vocab.json` + `merges.txt` and T5's `spiece.model`
are built into the same tokenizer that transformers' converters make of them.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from infu.errors import BrokenFile, MissingFile

T5_SENTINELS = 100  # `<extra_id_99>` ... `<extra_id_0>` follow the pieces of every T5 vocabulary
CLIP_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # openai/CLIP simple_tokenizer.py


class Tokenizers:
    """The two tokenizers of one model. `t5_length`: tokens of the T5 prompt where a request names none."""

    def __init__(self, clip_folder: Path, t5_folder: Path, t5_length: int):
        self._clip, self._t5 = read_clip(clip_folder), read_t5(t5_folder)
        clip, t5 = read_settings(clip_folder), read_settings(t5_folder)
        self.clip_length = int(clip.get("model_max_length", 77))
        self.t5_length = min(t5_length, int(t5.get("model_max_length", t5_length)))
        self._clip_start = special_id(self._clip, clip, "bos_token", "<|startoftext|>")
        self._clip_end = special_id(self._clip, clip, "eos_token", "<|endoftext|>")
        self._clip_pad = special_id(self._clip, clip, "pad_token", "<|endoftext|>")
        self._t5_end = special_id(self._t5, t5, "eos_token", "</s>")
        self._t5_pad = special_id(self._t5, t5, "pad_token", "<pad>")

    def clip(self, prompt: str) -> np.ndarray:
        """int64 (1, 77): start, the prompt as far as it fits, end, padding."""
        ids = self._clip.encode(clean(prompt), add_special_tokens=False).ids[: self.clip_length - 2]
        return padded([self._clip_start, *ids, self._clip_end], self.clip_length, self._clip_pad)

    def t5(self, prompt: str, length: int | None = None) -> np.ndarray:
        """int64 (1, length): the prompt as far as it fits, end, padding. `length` None: the model's own."""
        length = length or self.t5_length
        ids = self._t5.encode(clean(prompt), add_special_tokens=False).ids[: length - 1]
        return padded([*ids, self._t5_end], length, self._t5_pad)

    def notes(self, prompt: str, length: int | None = None) -> list[str]:
        """What a user should know: where T5's limit cuts the prompt."""
        length = length or self.t5_length
        encoding = self._t5.encode(clean(prompt), add_special_tokens=False)
        if len(encoding.ids) <= length - 1:
            return []
        unread = clean(prompt)[encoding.offsets[length - 1][0] :].strip()
        shown = unread if len(unread) <= 60 else unread[:57] + "..."
        return [
            f"The prompt has {len(encoding.ids)} tokens and {length - 1} are read. "
            f"Not read, from here on: “{shown}”. Shorten the prompt to have it all read."
        ]


def clean(prompt: str) -> str:
    """Lone surrogates, which JSON can carry and UTF-8 cannot, become the replacement character."""
    return prompt.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def padded(ids: list[int], length: int, pad: int) -> np.ndarray:
    return np.array([ids + [pad] * (length - len(ids))], np.int64)


def read_settings(folder: Path) -> dict:
    """`special_tokens_map.json` and `tokenizer_config.json`, the second winning; either may be absent."""
    settings = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            try:
                settings.update(json.loads((folder / name).read_text(encoding="utf-8")))
            except ValueError:
                raise BrokenFile(f"{folder.name}/{name} is damaged. Download the tokenizer again.") from None
    return settings


def special_id(tokenizer: Tokenizer, settings: dict, key: str, usual: str) -> int:
    token = settings.get(key) or usual
    token = token["content"] if isinstance(token, dict) else token
    index = tokenizer.token_to_id(token)
    if index is None:
        raise BrokenFile(f"The tokenizer does not know its own {key}. Download the tokenizer again.")
    return index


def read_clip(folder: Path) -> Tokenizer:
    """CLIP's tokenizer from `tokenizer.json`, else from `vocab.json` and `merges.txt`."""
    if (folder / "tokenizer.json").is_file():
        return read_tokenizer_json(folder)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        raise MissingFile(f"{folder.name!r} needs tokenizer.json, or vocab.json and merges.txt. {AGAIN}")
    try:
        model = BPE.from_file(str(vocab), str(merges), unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    except Exception as error:  # the Rust side raises bare Exception
        raise BrokenFile(f"{folder.name!r} holds a damaged vocabulary. {AGAIN}") from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return tokenizer


def read_t5(folder: Path) -> Tokenizer:
    """T5's tokenizer from `tokenizer.json`, else from SentencePiece's `spiece.model`."""
    if (folder / "tokenizer.json").is_file():
        return read_tokenizer_json(folder)
    if not (folder / "spiece.model").is_file():
        raise MissingFile(f"{folder.name!r} needs tokenizer.json or spiece.model. {AGAIN}")
    try:
        pieces, charsmap = read_sentencepiece((folder / "spiece.model").read_bytes())
        pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(T5_SENTINELS))]
        tokenizer = Tokenizer(Unigram(pieces, unk_id=[piece for piece, _ in pieces].index("<unk>")))
        steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    except Exception as error:  # struct.error, ValueError, IndexError, and the Rust side's bare Exception
        raise BrokenFile(f"{folder.name}/spiece.model is damaged. {AGAIN}") from error
    steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *(piece for piece, _ in pieces[-T5_SENTINELS:])])
    return tokenizer


def read_tokenizer_json(folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the Rust side raises bare Exception
        raise BrokenFile(f"{folder.name}/tokenizer.json is damaged. {AGAIN}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


AGAIN = "Run `python -m infu download`, or copy the folder again."


def read_sentencepiece(raw: bytes) -> tuple[list[tuple[str, float]], bytes]:
    """SentencePiece's `ModelProto` -> [(piece, score)], and the normaliser's precompiled character map
    (sentencepiece_model.proto: pieces are field 1, the normaliser is field 3)."""
    pieces, charsmap = [], b""
    for field, value in read_fields(raw):
        if field == 1:
            piece = dict(read_fields(value))
            pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece.get(2, b"\0" * 4))[0]))
        elif field == 3:
            charsmap = dict(read_fields(value)).get(2, b"")
    return pieces, charsmap


def read_fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """A protobuf message -> its fields' numbers and raw values (protobuf.dev, "Encoding")."""
    at = 0
    while at < len(raw):
        key, at = read_varint(raw, at)
        kind = key & 7
        if kind == 0:
            start = at
            _, at = read_varint(raw, at)
        elif kind in (1, 5):
            start, at = at, at + (8 if kind == 1 else 4)
        elif kind == 2:
            length, start = read_varint(raw, at)
            at = start + length
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(raw):
            raise ValueError("truncated")
        yield key >> 3, raw[start:at]


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
