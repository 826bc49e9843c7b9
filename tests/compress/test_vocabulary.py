"""Smaller vocabularies: closed under merges, able to write every text, and consistent files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.artifacts.models import Llama
from tests.compress.small_bpe import (
    SPECIAL,
    WORDS,
    make_byte_fallback,
    make_byte_level,
    plan_of,
    sentences,
)
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.compress.prune.token_choice import (
    TokenParts,
    choose_tokens,
    count_tokens_of,
    describe_uncuttable,
    find_indispensable,
    read_merges,
    weigh_tokens,
)
from thrifty.compress.prune.vocabulary import (
    KEPT_TOKENS,
    KeptTokens,
    cut_tokenizer,
    keep_tokens,
    write_kept,
)
from thrifty.compress.prune.vocabulary_plan import choose_cut, make_forecast
from thrifty.errors import CompressionError
from thrifty.evaluate.narrowed import NarrowedVocabulary, find_narrowed
from thrifty.text.tokenizer import TextTokenizer

MAKERS = {"byte-level": make_byte_level, "byte-fallback": make_byte_fallback}
KEPT = 360


@cache
def make(kind: str) -> tuple[Tokenizer, Tokenizer, KeptTokens, NarrowedVocabulary]:
    """A tokenizer, its smaller form, which tokens stay, and how both relate."""
    whole = MAKERS[kind]()
    plan = plan_of(whole)
    parts = TokenParts(plan)
    counts = count_tokens_of((whole.encode(one).ids for one in sentences(3, 300)), 700)
    weights = weigh_tokens({"text": (1.0, counts)}, parts.ids.values())
    kept = KeptTokens(tuple(choose_tokens(parts, weights, find_indispensable(plan, ()), KEPT)))
    narrow = Tokenizer.from_str(json.dumps(cut_tokenizer(plan, kept)))
    narrowed = find_narrowed(TextTokenizer(whole, None), TextTokenizer(narrow, None))
    assert narrowed is not None
    return whole, narrow, kept, narrowed


def read(tokenizer: Tokenizer, text: str) -> str:
    """What is read back of a text."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*WORDS, " ", "\n", "<|end|>", "é", "世界", "🦙"])).map("".join),
)


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_every_text_is_written_and_read_as_before(kind: str, text: str) -> None:
    whole, narrow, _, _ = make(kind)
    assert read(narrow, text) == read(whole, text)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_fewest_tokens_still_write_every_text(kind: str) -> None:
    whole = MAKERS[kind]()
    plan = plan_of(whole)
    needed = find_indispensable(plan, ())
    chosen = choose_tokens(TokenParts(plan), np.zeros(700), needed, len(needed))
    narrow = Tokenizer.from_str(json.dumps(cut_tokenizer(plan, KeptTokens(tuple(chosen)))))
    for text in ("the quick  brown fox", " a\n", "世界 é 🦙"):
        assert read(narrow, text) == text


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_a_text_whose_tokens_all_stay_has_the_same_ones(kind: str, text: str) -> None:
    whole, narrow, kept, _ = make(kind)
    ids = whole.encode(text).ids
    new = kept.new_ids
    if all(one in new for one in ids):
        assert narrow.encode(text).ids == [new[one] for one in ids]


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, flags=st.integers(0, 2**32 - 1))
def test_windows_are_aligned(kind: str, text: str, flags: int) -> None:
    """Both tokenizations hold the same text, and predictions at one place have read the same."""
    whole, _, _, narrowed = make(kind)
    ids = np.array(whole.encode(text).ids, np.int64)
    if len(ids) < 2:
        return
    counted = np.random.default_rng(flags).random(len(ids) - 1) < 0.7
    shared = narrowed.align(ids, counted)
    old_bytes, new_bytes = narrowed.bytes_of(ids), narrowed.own_bytes_of(shared.tokens)
    assert b"".join(old_bytes) == b"".join(new_bytes)
    for place, own in enumerate(shared.places):
        if own >= 0:
            assert b"".join(old_bytes[: place + 1]) == b"".join(new_bytes[: own + 1])
    # Whatever the model says, the whole text has the sum of it.
    logprobs = np.random.default_rng(1).normal(-3, 1, len(shared.tokens) - 1).astype(np.float32)
    found = shared.sum_over_text(logprobs)
    first = int((shared.own_groups == shared.groups[0]).argmax())
    if counted[0]:
        assert found.sum() == pytest.approx(logprobs[first:].sum(), rel=1e-3, abs=1e-3)
    if (narrowed.new_ids(ids) >= 0).all():
        np.testing.assert_allclose(found, logprobs, rtol=1e-6)


def test_folding_keeps_all_probability_and_gives_it_to_first_pieces() -> None:
    whole, narrow, kept, narrowed = make("byte-level")
    size = whole.get_vocab_size()
    logits = np.random.default_rng(5).normal(0, 3, (70, size))
    logprobs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    folded = narrowed.fold(logprobs)
    np.testing.assert_allclose(np.exp(folded).sum(axis=1), 1, rtol=1e-4)
    plain = np.zeros((70, len(kept.old_ids)))
    for token, index in whole.get_vocab().items():
        first = narrow.token_to_id(token)
        if first is None:
            first = narrow.model.tokenize(token)[0].id
        plain[:, first] += np.exp(logprobs[:, index])
    np.testing.assert_allclose(np.exp(folded), plain, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_stays_is_closed_and_the_rest_goes(kind: str) -> None:
    whole, narrow, kept, _ = make(kind)
    plan = plan_of(narrow)
    vocabulary = plan["model"]["vocab"]
    assert narrow.get_vocab_size() == KEPT == len(kept.old_ids)
    made = {left + right for left, right in read_merges(plan)}
    merged = {left + right for left, right in read_merges(plan_of(whole))}
    for left, right in read_merges(plan):
        assert {left, right, left + right} <= vocabulary.keys()
    assert all(token in made for token in vocabulary if token in merged)
    frequent = whole.encode(" the").ids
    assert narrow.encode(" the").ids == [kept.new_ids[one] for one in frequent]
    if kind == "byte-level":
        assert [narrow.token_to_id(one) for one in SPECIAL] == list(range(KEPT - 3, KEPT))


def test_several_merges_to_one_token_keep_those_that_are_used() -> None:
    """As in tokenizers that were converted from tiktoken's files: all pairs are merges."""
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    plan = plan_of(make_byte_level())
    plan["model"] |= {"vocab": {one: n for n, one in enumerate(tokens)}, "merges": merges}
    plan["added_tokens"] = []
    assert TokenParts(plan).find_needed("abc") == {"abc", "ab", "c", "a", "b"}


def test_files_of_a_model_agree(tmp_path: Path) -> None:
    whole, narrow, kept, _ = make("byte-level")
    last = whole.get_vocab_size() - 1
    model = Llama(vocab=last + 1, tied=False)
    folder = model.write_safetensors(tmp_path / "m", eos_token_id=last, bos_token_id=last - 2)
    whole.save(str(folder / "tokenizer.json"))
    added = {str(index): {"content": one.content} for index, one in
             whole.get_added_tokens_decoder().items()}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": SPECIAL[-1], "added_tokens_decoder": added})
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [last], "bad_words_ids": [[last, last - 1]], "top_k": 50})
    )
    before = load_decoder(folder)
    found = keep_tokens(before, kept)
    write_kept(folder, folder, kept, last + 1)
    assert found.shape.vocab_size == KEPT
    assert found.shape.eos_token_ids == (KEPT - 1,)
    assert found.shape.bos_token_id == KEPT - 3
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_array_equal(
            found.tensors.read_tensor(name), before.tensors.read_tensor(name)[list(kept.old_ids)]
        )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert list(config["added_tokens_decoder"]) == [str(KEPT - 3 + n) for n in range(3)]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {
        "eos_token_id": [KEPT - 1], "bad_words_ids": [[KEPT - 1, KEPT - 2]], "top_k": 50,
    }  # fmt: skip
    assert json.loads((folder / KEPT_TOKENS).read_text()) == {
        "tokens_before": last + 1, "kept": list(kept.old_ids),
    }  # fmt: skip
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert loaded.get_vocab() == narrow.get_vocab()


def test_the_beginning_of_a_text_gets_its_new_id() -> None:
    whole, narrow, kept, _ = make("byte-fallback")
    assert whole.encode("the").ids[0] == 1
    assert narrow.encode("the").ids[0] == kept.new_ids[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Unigram"}, "of the kind Unigram"),
        ({"type": "WordPiece"}, "of the kind WordPiece"),
        ({"end_of_word_suffix": "</w>"}, "marks where words begin or end"),
        ({}, "no tokens for single bytes"),
    ],
)
def test_tokenizers_that_cannot_be_cut_are_said(change: dict[str, Any], message: str) -> None:
    plan = plan_of(make_byte_level())
    plan["pre_tokenizer"] = {"type": "Whitespace"}
    plan["model"] |= change
    assert message in (describe_uncuttable(plan) or "")
    with pytest.raises(CompressionError, match=message):
        TokenParts(plan)


def test_too_few_tokens_are_said() -> None:
    plan = plan_of(make_byte_level())
    with pytest.raises(CompressionError, match="259 tokens must stay"):
        choose_tokens(TokenParts(plan), np.zeros(700), find_indispensable(plan, ()), 100)


def test_other_tokenizers_are_not_related() -> None:
    whole, _, _, _ = make("byte-level")
    other, narrow, _, _ = make("byte-fallback")
    assert find_narrowed(TextTokenizer(whole, None), TextTokenizer(narrow, None)) is None
    assert find_narrowed(TextTokenizer(narrow, None), TextTokenizer(other, None)) is None


class Cut:
    """A vocabulary of a plan."""

    def __init__(self, share: float) -> None:
        self.share = share


class Cuts:
    """Vocabularies that make up for these shares."""

    def __init__(self, *shares: float) -> None:
        self._cuts = [(share, Cut(share)) for share in shares]

    def list_cuts(self, excess: float) -> Any:
        return iter(self._cuts)


@pytest.mark.parametrize(
    ("shares", "loss_of_all", "expected"),
    [((1.0, 0.5), 0.01, 1.0), ((1.0, 0.8, 0.6, 0.4), 4.0, 0.6), ((1.0, 0.5), 400.0, None),
     ((), 0.0, None)],
)  # fmt: skip
def test_what_costs_least_is_taken(
    shares: tuple[float, ...], loss_of_all: float, expected: float | None
) -> None:
    """Layers cost the square of what is taken from them; tokens the sixth power."""
    forecast = make_forecast(0.25, 1.0)
    assert forecast(0.5) == pytest.approx(0.25)
    found = choose_cut(
        Cuts(*shares), 1.0, lambda cut: loss_of_all * cut.share**6, forecast  # type: ignore
    )  # fmt: skip
    assert (None if found is None else found.share) == expected  # type: ignore[attr-defined]
