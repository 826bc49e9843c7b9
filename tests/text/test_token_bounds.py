"""No text has fewer tokens than is said of it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import llama_metadata, make_gpt2_metadata
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.text.token_bounds import NFC_FACTOR, TokenBound, find_bound


def bound_of(tokenizer: Tokenizer) -> TokenBound:
    return find_bound(tokenizer, tokenizer.get_vocab())


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {"bytes": make_tokenizer().tokenizer}
    kinds = {
        "smollm": make_gpt2_metadata(400, "smollm"),
        "qwen2": make_gpt2_metadata(400, "qwen2"),
        "llama-bpe": make_gpt2_metadata(400, "llama-bpe"),
        "llama": llama_metadata(add_bos_token=False),
    }
    for name, metadata in kinds.items():
        path = folder / f"{name}.gguf"
        Llama(layers=1).write_gguf(path, extra=metadata)
        made[name] = build_tokenizer(GgufFile(path))
    return made


def without_letters(tokenizer: Tokenizer, letters: str) -> Tokenizer:
    """A byte-level tokenizer that lacks the tokens of some bytes, as that of SmolLM2."""
    plan = json.loads(tokenizer.to_str())
    merges = [m for m in plan["model"]["merges"] if not any(c in "".join(m) for c in letters)]
    vocabulary = plan["model"]["vocab"]
    kept = {t: i for t, i in vocabulary.items() if not any(c in t for c in letters)}
    plan["model"] |= {"merges": merges, "vocab": kept}
    return Tokenizer.from_str(json.dumps(plan))


TEXT = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="abcl \n\t\x04éE\u0301\u212b\u1fbe\u0341\u0308", max_size=60),
    st.lists(st.sampled_from(["<|im_end|>", "the", " quick", "    ", "11", "東京", "🦙", "</s>"]),
             max_size=20).map("".join),
)  # fmt: skip


@given(text=TEXT)
def test_no_text_has_fewer_tokens(tokenizers: dict[str, Tokenizer], text: str) -> None:
    for name, tokenizer in tokenizers.items():
        least = bound_of(tokenizer).count_least(text)
        assert least <= len(tokenizer.encode(text, add_special_tokens=False).ids), name
        assert (least > 0) == bool(text), name


@given(text=TEXT)
def test_bytes_without_a_token_do_not_count(tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = without_letters(tokenizers["smollm"], "aĄ")
    bound = bound_of(tokenizer)
    assert bound.unknown == b"\x04a"
    assert bound.count_least("a\x04" * 1000) == 0
    assert bound.count_least(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert bound_of(without_letters(tokenizers["qwen2"], "a")) == TokenBound()


def test_bounds_are_useful(tokenizers: dict[str, Tokenizer]) -> None:
    for name, tokenizer in tokenizers.items():
        text = "a quick brown fox " * 1000
        count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        assert count / 60 < bound_of(tokenizer).count_least(text), name


WORDS = ["hello", "##lo", "wor", "##ld", "7", ".", "▁", "▁hello", "▁wor", "ld", "a", "b"]
WORD_PIECE = models.WordPiece(
    {word: index for index, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"
)
UNIGRAM = models.Unigram([("<unk>", 0.0), *((word, -1.0) for word in WORDS)], 0)


def make_word_tokenizer(model: Any, normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), "[SEP]"])
    return tokenizer


BERT = make_word_tokenizer(
    WORD_PIECE, normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
)
ROBERTA = make_word_tokenizer(
    UNIGRAM,
    normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
    pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
)  # fmt: skip
SPLIT = make_word_tokenizer(UNIGRAM, None, pre_tokenizers.Metaspace())
WORDY = st.one_of(
    TEXT,
    st.lists(st.sampled_from(["hello", "world", " ", "  ", "\n", "<mask>", "[SEP]", "é", "e\u0301", "\u200b",
                              "\x00", "ﬁ", "x" * 300, "7", "."]), max_size=30).map("".join),
)  # fmt: skip


@given(text=WORDY)
def test_no_text_has_fewer_tokens_than_words(text: str) -> None:
    for tokenizer in (BERT, ROBERTA, SPLIT):
        bound = bound_of(tokenizer)
        assert bound == TokenBound(splits_words=True)
        assert bound.count_least(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids)


def test_words_are_counted_as_far_as_it_matters() -> None:
    assert bound_of(BERT).count_least("hello world " * 1000) == 2000
    assert bound_of(BERT).count_least("hello world " * 1000, enough=513) == 513
    assert bound_of(BERT).count_least("é ... " * 1000) == 0


@pytest.mark.parametrize(
    "tokenizer",
    [
        make_word_tokenizer(WORD_PIECE, normalizers.Replace("a", ""), pre_tokenizers.Whitespace()),
        make_word_tokenizer(WORD_PIECE, None, pre_tokenizers.Split(Regex(r"\w+"), "removed")),
        make_word_tokenizer(UNIGRAM, None, pre_tokenizers.Metaspace(split=False)),
        make_word_tokenizer(UNIGRAM, normalizers.Replace(" ", "▁"), None),
    ],
    ids=range(4),
)
def test_words_are_not_counted_where_they_may_be_joined_or_dropped(tokenizer: Tokenizer) -> None:
    assert bound_of(tokenizer) == TokenBound()


def test_words_are_not_counted_where_a_token_holds_several() -> None:
    tokenizer = make_word_tokenizer(WORD_PIECE, None, pre_tokenizers.Whitespace())
    tokenizer.add_tokens(["hello world"])
    assert bound_of(tokenizer) == TokenBound()


def test_composed_text_is_not_as_short_as_the_bound() -> None:
    """How much NFC can shorten a text at most, over all characters."""
    longest: dict[str, int] = {}
    whole = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    for character in whole:
        parts = unicodedata.normalize("NFD", character)
        if len(parts) == 1:
            longest[parts] = max(longest.get(parts, 0), len(character.encode()))
    worst = 1.0
    for character in whole:
        parts = unicodedata.normalize("NFD", character)
        before = sum(longest[part] for part in parts)
        assert len(character.encode()) <= before
        if unicodedata.normalize("NFC", character) == character:
            worst = max(worst, before / len(character.encode()))
    assert 1 < worst < NFC_FACTOR


def change(part: str, value: Any) -> Tokenizer:
    tokenizer = make_tokenizer().tokenizer
    setattr(tokenizer, part, value)
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        change("normalizer", normalizers.Strip()),
        change("normalizer", normalizers.NFKC()),
        change("normalizer", normalizers.Replace("a", "")),
        change("normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
        change("pre_tokenizer", pre_tokenizers.Whitespace()),
        change(
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(r"\s"), "removed"), pre_tokenizers.ByteLevel()]
            ),
        ),
        change("pre_tokenizer", None),
        Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
        Tokenizer(models.Unigram([("a", 0.0)], 0)),
    ],
    ids=range(9),
)
def test_nothing_is_said_of_tokenizers_that_shrink_text(tokenizer: Tokenizer) -> None:
    assert bound_of(tokenizer) == TokenBound()


def test_nothing_is_said_where_tokens_absorb_space() -> None:
    tokenizer = make_tokenizer().tokenizer
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True)])
    assert bound_of(tokenizer) == TokenBound()


def test_sentencepieces_without_all_bytes_have_no_bound(tmp_path: Path) -> None:
    pieces = llama_metadata()
    pieces["tokenizer.ggml.tokens"] = [
        "<0x100>" if piece == "<0xFE>" else "x" if piece == "<0x41>" else piece
        for piece in pieces["tokenizer.ggml.tokens"]
    ]
    Llama(layers=1).write_gguf(tmp_path / "m.gguf", extra=pieces)
    assert bound_of(build_tokenizer(GgufFile(tmp_path / "m.gguf"))) == TokenBound()
