"""Token ids against transformers' own tokenizers, for both file layouts of T5."""

import shutil

import pytest
from golden import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPTokenizer

from infu.errors import BrokenFile, MissingFile
from infu.prompt import Tokenizers

CLIP, T5 = GOLDEN / "base" / "tokenizer", GOLDEN / "base" / "tokenizer_2"
OURS = Tokenizers(CLIP, T5, 512)
CLIP_ORACLE, T5_ORACLE = CLIPTokenizer.from_pretrained(CLIP), AutoTokenizer.from_pretrained(T5)
TEXTS = [
    "A man, portrait, cinematic",
    "  Ünïcode  ½ ﬁ 日本語 double  spaces\n\ttab ",
    "a <extra_id_3> b </s> c <|endoftext|> d",
    "",
    "It's 2's the QUICK brown-fox's",
    "emoji 😀 \u200b zero",
    "x " * 700,
]


def check(text: str) -> None:
    clip = CLIP_ORACLE(text, padding="max_length", max_length=77, truncation=True).input_ids
    t5 = T5_ORACLE(text, padding="max_length", max_length=512, truncation=True).input_ids
    assert OURS.clip(text).tolist() == [clip]
    assert OURS.t5(text).tolist() == [t5]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(text):
    check(text)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60))
def test_any_text_has_the_ids_of_transformers(text):
    check(text)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    shutil.copy(T5 / "spiece.model", folder)
    return Tokenizers(CLIP, folder, 512)


@given(st.text(max_size=60))
def test_spiece_alone_gives_the_ids_of_tokenizer_json(spiece, text):
    assert spiece.t5(text).tolist() == OURS.t5(text).tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_spiece_alone_gives_the_ids_of_tokenizer_json_for_known_texts(spiece, text):
    assert spiece.t5(text).tolist() == OURS.t5(text).tolist()


def test_tokenizer_json_alone_is_enough(tmp_path):
    shutil.copy(T5 / "tokenizer.json", tmp_path)
    assert Tokenizers(CLIP, tmp_path, 512).t5("a man").tolist() == OURS.t5("a man").tolist()


def test_the_user_is_told_which_words_t5_does_not_read():
    assert OURS.notes("a man") == []
    (note,) = OURS.notes("word " * 8 + "these are not read", 9)
    assert "not read" in note and "8 are read" in note


def test_lone_surrogates_do_not_crash():
    assert OURS.t5("a \ud800 b").shape == (1, 512)


@given(st.binary(max_size=200))
def test_a_damaged_spiece_is_named(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "spiece.model").write_bytes(raw)
    with pytest.raises(BrokenFile, match="spiece.model"):
        Tokenizers(CLIP, folder, 512)


def test_missing_tokenizer_files_are_named(tmp_path):
    with pytest.raises(MissingFile, match="spiece.model"):
        Tokenizers(CLIP, tmp_path, 512)
    with pytest.raises(MissingFile, match="vocab.json"):
        Tokenizers(tmp_path, T5, 512)
