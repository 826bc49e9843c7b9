"""Words as numbers, signatures and sequences, against the slow and obvious way."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.curate.made import VOCABULARY, edit, jaccard, write_text
from thrifty.curate.sketch import (
    choose_banding,
    digest_words,
    estimate_recall,
    find_sequences,
    find_words,
    hash_text,
    list_unique,
    measure_overlap,
    sign,
)

TEXTS = st.lists(st.text(alphabet="aB1_ ,.\nüÄé", max_size=30), min_size=1, max_size=6)


@given(TEXTS)
def test_words_are_those_of_a_regular_expression(texts: list[str]) -> None:
    words = find_words(texts)
    expected = [re.findall(r"\w+", text.lower()) for text in texts]
    assert np.diff(words.starts).tolist() == [len(one) for one in expected]
    flat = [word for one in expected for word in one]
    assert words.lengths.tolist() == [len(word) for word in flat]
    # Equal words have equal numbers, and others have others.
    numbers = dict(zip(flat, words.hashes.tolist(), strict=True))
    assert [numbers[word] for word in flat] == words.hashes.tolist()
    assert len(set(numbers.values())) == len(numbers)


@given(TEXTS)
def test_what_is_found_does_not_depend_on_the_batch(texts: list[str]) -> None:
    whole = find_words(texts)
    sequences, starts = find_sequences(whole, 3)
    banding = choose_banding(0.8)
    keys, digests = sign(sequences, starts, banding), digest_words(whole)
    for number, text in enumerate(texts):
        alone = find_words([text])
        own, own_starts = find_sequences(alone, 3)
        assert own.tolist() == sequences[starts[number] : starts[number + 1]].tolist()
        assert (sign(own, own_starts, banding)[:, 0] == keys[:, number]).all()
        assert (digest_words(alone)[0] == digests[number]).all()


def test_sequences_do_not_cross_texts_and_short_texts_are_one() -> None:
    words = find_words(["a b c d", "a b", "", "b c d"])
    sequences, starts = find_sequences(words, 3)
    assert starts.tolist() == [0, 2, 3, 3, 4]
    assert sequences[1] == sequences[3]
    assert find_sequences(words, 3, short=False)[1].tolist() == [0, 2, 2, 2, 3]


def test_scripts_without_spaces_have_a_word_for_each_character() -> None:
    assert len(find_words(["北京 is 大"]).hashes) == 4
    # A character whose lower case is longer must not shift the texts behind it.
    assert np.diff(find_words(["İ i", "a b c"]).starts).tolist() == [2, 3]


def test_checksums_see_words_and_their_order_alone() -> None:
    digests = digest_words(find_words(["Hello, World!", "hello world", "world hello", "hello"]))
    assert (digests[0] == digests[1]).all()
    assert len({tuple(one) for one in digests.tolist()}) == 3
    assert hash_text("ann") == hash_text("ann") != hash_text("nan")


def test_overlap_is_the_jaccard_similarity() -> None:
    rng = random.Random(3)
    for _ in range(20):
        text = write_text(rng, 100)
        other = edit(rng, text, rng.uniform(0.3, 0.95))
        values, starts = list_unique(*find_sequences(find_words([text, other]), 5))
        found = measure_overlap(values[: starts[1]], values[starts[1] :])
        assert found == pytest.approx(jaccard(text, other))


def test_banding_finds_what_it_says() -> None:
    """At the stated similarity; and few of the pairs that are far from it."""
    rng = random.Random(4)
    banding = choose_banding(0.8)
    assert estimate_recall(0.8, banding) >= 0.995
    hits = {0.8: 0, 0.4: 0}
    for similarity in hits:
        for _ in range(200):
            text = " ".join(rng.choices(VOCABULARY, k=150))
            other = edit(rng, text, similarity)
            keys = sign(*find_sequences(find_words([text, other]), 5), banding)
            hits[similarity] += bool((keys[:, 0] == keys[:, 1]).any())
    assert hits[0.8] >= 195
    assert hits[0.4] <= 60
