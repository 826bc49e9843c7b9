"""Estimates with their uncertainty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.evaluate.statistics import (
    mean_of_clusters,
    paired_difference,
    proportion,
    rank_correlation,
)


def test_the_error_of_a_mean_counts_passages_not_tokens() -> None:
    """Passages of identical tokens contain no more information than one token each."""
    rng = np.random.default_rng(3)
    passages = rng.normal(1, 0.5, 40)
    values = np.repeat(passages, 100)
    found = mean_of_clusters(values, np.full(40, 100.0))
    assert found.mean == pytest.approx(passages.mean())
    assert found.stderr == pytest.approx(passages.std(ddof=1) / math.sqrt(40), rel=1e-6)


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        sizes = rng.integers(20, 60, 50)
        levels = np.repeat(rng.normal(0, 1, 50), sizes)
        values = levels + rng.normal(0, 1, len(levels))
        found = mean_of_clusters(values, sizes.astype(float))
        held += abs(found.mean) < 1.96 * found.stderr
    assert 0.90 < held / 400 < 0.98


def test_one_passage_falls_back_to_its_tokens() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    found = mean_of_clusters(values, np.array([4.0]))
    assert found.stderr == pytest.approx(values.std(ddof=1) / 2)
    assert math.isnan(mean_of_clusters(values[:1], np.array([1.0])).stderr)
    assert math.isnan(mean_of_clusters(values[:0], np.array([])).mean)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # From Wilson's formula, computed independently.
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_shares_have_wilsons_interval(hits: int, count: int, low: float, high: float) -> None:
    found = proportion(hits, count)
    assert (found.share, found.count) == (hits / count, count)
    assert (found.low, found.high) == (
        pytest.approx(low, abs=1e-4),
        pytest.approx(high, abs=1e-4),
    )


@given(st.integers(0, 500), st.integers(0, 500))
def test_shares_lie_in_their_intervals(hits: int, more: int) -> None:
    found = proportion(hits, hits + more)
    if found.count:
        assert 0 <= found.low <= found.share <= found.high <= 1


def test_pairs_count_flips_both_ways() -> None:
    candidate = np.array([1, 1, 0, 0, 1, 1.0])
    reference = np.array([1, 0, 1, 0, 0, 1.0])
    found = paired_difference(candidate, reference)
    assert (found.gained, found.lost) == (2, 1)
    assert found.difference == pytest.approx(1 / 6)
    assert found.low < found.difference < found.high


def test_the_interval_of_pairs_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(600):
        draws = rng.random(150)
        # 60% both correct, 8% only the candidate, 12% only the reference.
        candidate = (draws < 0.68).astype(float)
        reference = ((draws < 0.60) | ((draws >= 0.68) & (draws < 0.80))).astype(float)
        found = paired_difference(candidate, reference)
        held += found.low < -0.04 < found.high
    assert 0.93 < held / 600 < 0.985


def test_not_inferior_needs_evidence_not_only_a_good_mean() -> None:
    few, many = np.tile([1.0, 0.0], 10), np.tile([1.0, 0.0], 2000)
    assert not paired_difference(few, few).is_not_inferior(0.02)
    assert paired_difference(many, many).is_not_inferior(0.02)
    worse = many.copy()
    worse[:200] = 0
    assert not paired_difference(worse, many).is_not_inferior(0.02)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="not pairs"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_ranks_share_ties() -> None:
    assert rank_correlation(np.array([1, 2, 3.0]), np.array([10, 20, 30.0])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3.0]), np.array([9, 4, 1.0])) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert rank_correlation(np.array([1, 5, 5, 9.0]), np.array([1, 2, 3, 4.0])) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )
