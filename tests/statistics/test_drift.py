"""Tests of change, against others' implementations and by simulation."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from thrifty.statistics.drift import (
    adjust_benjamini_hochberg,
    compare_counts,
    compare_vectors,
    fisher_exact,
)


def test_kolmogorov_smirnov_against_permutations() -> None:
    chance = np.random.default_rng(1)
    for shift in (0.0, 0.15, 0.3):
        both = np.concatenate([chance.normal(0, 1, 150), chance.normal(shift, 1, 250)])
        place = np.searchsorted(np.sort(both), both)

        def compare(order: np.ndarray) -> tuple[float, float]:
            ours, others = order[:150], order[150:]
            return compare_counts(*(np.bincount(one, minlength=400) for one in (ours, others)))

        distance, p_value = compare(place)
        others = [compare(chance.permutation(place))[0] for _ in range(1000)]
        share = sum(one >= distance - 1e-9 for one in others) / 1000
        assert p_value == pytest.approx(share, abs=0.05)
    assert compare_counts([0, 0], [1, 2]) == (0.0, 1.0)
    # Values of Smirnov's table: 1.358 leaves 5% above it, 1.628 one percent.
    for scaled, tail in ((1.358, 0.05), (1.628, 0.01), (2.0, 0.00067)):
        count = 10**8
        step = int(scaled * count / (count / 2) ** 0.5)
        counts = (
            np.array([count // 2 + step, count // 2 - step]),
            np.array([count // 2, count // 2]),
        )
        assert compare_counts(*counts)[1] == pytest.approx(tail, rel=0.02)


def test_fisher_against_every_table() -> None:
    for hits, count, other, other_count in ((3, 10, 9, 12), (0, 50, 6, 40), (20, 60, 21, 31)):
        total = hits + other
        ways = {
            k: comb(count, k) * comb(other_count, total - k)
            for k in range(max(0, total - other_count), min(total, count) + 1)
        }
        whole = sum(ways.values())
        below = sum(way for k, way in ways.items() if k <= hits) / whole
        above = sum(way for k, way in ways.items() if k >= hits) / whole
        wanted = min(1.0, 2 * min(below, above))
        assert fisher_exact(hits, count, other, other_count) == pytest.approx(wanted)


def test_benjamini_hochberg() -> None:
    assert adjust_benjamini_hochberg([0.01, 0.04, 0.03, 0.2]) == pytest.approx(
        [0.04, 0.16 / 3, 0.16 / 3, 0.2]
    )
    assert adjust_benjamini_hochberg([]) == []


def test_vectors_change_sides_by_groups() -> None:
    """Copies of a few vectors look like many: only their groups tell how few they are."""
    chance = np.random.default_rng(2)
    alone = by_group = 0
    for seed in range(40):
        some = np.repeat(chance.normal(0, 1, (6, 8)), 10, axis=0)
        others = np.repeat(chance.normal(0, 1, (6, 8)), 10, axis=0)
        groups = np.repeat(np.arange(6), 10), np.repeat(np.arange(6, 12), 10)
        each = np.arange(60), np.arange(60, 120)
        alone += compare_vectors(some, others, each, permutations=99, seed=seed).p_value <= 0.05
        found = compare_vectors(some, others, groups, permutations=99, seed=seed)
        by_group += found.p_value <= 0.05
    assert alone > 30
    assert by_group <= 6
    moved = compare_vectors(
        chance.normal(0, 1, (60, 8)), chance.normal(0.7, 1, (60, 8)),
        (np.arange(60), np.arange(60, 120)), permutations=999,
    )  # fmt: skip
    assert moved.p_value == 0.001
    assert moved.squared > 0.01
