"""A teacher that reads a student's text in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from tests.compress.test_vocabulary import MAKERS, TEXTS, make
from thrifty.evaluate.narrowed_teacher import NarrowedTeacher, read_own_text
from thrifty.evaluate.scorer import TopTokens
from thrifty.evaluate.windows import TokenArray


class Drawn:
    """A teacher whose predictions are drawn by what it has read."""

    label, identity, context_length = "drawn", "drawn", 10_000

    def __init__(self, size: int) -> None:
        self.vocab_size = size
        self.read: list[int] = []

    def predict(self, tokens: Sequence[int]) -> Any:
        seed = [int(one) for one in tokens]
        logits = np.random.default_rng(seed).normal(0, 3, self.vocab_size)
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        self.read = tokens.tolist()
        full = np.stack([self.predict(tokens[: at + 1]) for at in range(len(tokens) - 1)])
        ids = np.argsort(-full, axis=1)[:, :k]
        target = np.take_along_axis(full, tokens[1:, None], 1)[:, 0]
        return TopTokens(ids, np.take_along_axis(full, ids, 1), target, full[list(rows)])

    def close(self) -> None:
        pass


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_it_reads_its_own_tokens_and_predicts_the_students(kind: str, text: str) -> None:
    whole, narrow, _, narrowed = make(kind)
    tokens = np.array(narrow.encode(text).ids, np.int64)
    own = whole.encode(text).ids
    if len(tokens) < 2 or len(own) < 2:
        return
    teacher = Drawn(whole.get_vocab_size())
    made = NarrowedTeacher(teacher, narrowed)  # type: ignore[arg-type]
    k = 8
    found = made.rank(tokens, k, range(len(tokens) - 1))
    assert teacher.read == own
    assert len(found.ids) == len(tokens) - 1
    assert np.isfinite(found.target).all()
    np.testing.assert_allclose(np.exp(found.full).sum(axis=1), 1, rtol=1e-3)
    for place in range(len(tokens) - 1):
        assert len(set(found.ids[place].tolist())) == k
        np.testing.assert_allclose(
            found.full[place, found.ids[place]], found.logprobs[place], atol=1e-4
        )
        assert found.full[place, tokens[place + 1]] == pytest.approx(found.target[place], abs=1e-4)


def test_within_a_removed_token_each_piece_has_what_the_tokens_have_that_go_on_so() -> None:
    whole, narrow, _, narrowed = make("byte-level")
    removed = {index: pieces for index, pieces in narrowed.spell_removed() if len(pieces) > 1}
    index = next(one for one, pieces in removed.items() if len(pieces) > 2)
    before = narrow.encode(" the").ids
    tokens = np.array([*before, *removed[index]], np.int64)
    text = read_own_text(narrowed, tokens)
    assert text.tokens[-1] == index
    teacher = Drawn(whole.get_vocab_size())
    found = NarrowedTeacher(teacher, narrowed).rank(tokens, 8, range(len(tokens) - 1))  # type: ignore[arg-type]
    predicted = np.exp(teacher.predict(text.tokens[:-1]).astype(np.float64))
    for count in range(1, len(removed[index])):
        written = removed[index][:count]
        same = {
            one: pieces for one, pieces in removed.items()
            if len(pieces) > count and pieces[:count] == written
        }  # fmt: skip
        going = sum(predicted[one] for one in same if same[one][count] == removed[index][count])
        expected = going / sum(predicted[one] for one in same)
        place = len(before) + count - 1
        assert np.exp(found.target[place]) == pytest.approx(expected, rel=1e-3)


def test_text_that_is_one_token_to_the_teacher_is_learned_from_evenly() -> None:
    whole, _, _, narrowed = make("byte-level")
    tokens = next(
        text for _, pieces in narrowed.spell_removed() if len(pieces) > 1
        for text in [np.array(pieces, np.int64)] if len(read_own_text(narrowed, text).tokens) == 1
    )  # fmt: skip
    found = NarrowedTeacher(Drawn(whole.get_vocab_size()), narrowed).rank(tokens, 4, [0])  # type: ignore[arg-type]
    assert np.isfinite(found.logprobs).all()
    assert found.full.shape == (1, narrowed.size)
