"""Paired tests hold their level, and agree with slow references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.statistics.paired import (
    adjust_holm,
    count_needed,
    p_mean_not_worse,
    p_mean_worse,
    p_not_worse,
    p_worse,
)


def score(gained: int, lost: int, count: int, margin: float) -> float:
    """Tango's statistic with the likeliest shares found on a grid."""
    best, likeliest = -math.inf, 0.0
    same = count - gained - lost
    for share in np.linspace(1e-9, (1 - margin) / 2 - 1e-9, 20_001):
        found = gained * math.log(share) + lost * math.log(share + margin)
        found += same * math.log(1 - 2 * share - margin)
        if found > best:
            best, likeliest = found, float(share)
    variance = count * (2 * likeliest + margin - margin**2)
    return (gained - lost + count * margin) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("gained", "lost", "count", "margin"),
    [(5, 9, 100, 0.05), (0, 3, 40, 0.1), (7, 2, 60, 0.05), (1, 1, 300, 0.05), (30, 30, 300, 0.1)],
)
def test_non_inferiority_is_tangos(gained: int, lost: int, count: int, margin: float) -> None:
    expected = 0.5 * math.erfc(score(gained, lost, count, margin) / math.sqrt(2))
    assert p_not_worse(gained, lost, count, margin) == pytest.approx(expected, rel=2e-3)


def test_a_version_that_is_worse_by_the_margin_passes_no_more_often_than_it_may() -> None:
    rng = np.random.default_rng(7)
    margin, count, rounds = 0.05, 300, 4000
    for gained in (0.0, 0.05, 0.15):
        cells = rng.multinomial(count, [gained, gained + margin, 1 - 2 * gained - margin], rounds)
        passed = [p_not_worse(int(a), int(b), count, margin) <= 0.05 for a, b, _ in cells]
        # Three standard errors of 4000 rounds above the level.
        assert np.mean(passed) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)
    cells = rng.multinomial(count, [0.05, 0.05, 0.9], 500)
    equal = [p_not_worse(int(a), int(b), count, margin) <= 0.05 for a, b, _ in cells]
    assert np.mean(equal) > 0.75, "an equal version passes"


def test_the_sign_test_counts_every_way() -> None:
    for gained, lost in itertools.product(range(5), range(5)):
        ways = [sum(flips) >= lost for flips in itertools.product((0, 1), repeat=gained + lost)]
        assert p_worse(gained, lost) == pytest.approx(np.mean(ways))
    assert p_worse(0, 0) == 1


def test_nothing_is_shown_by_nothing() -> None:
    assert p_not_worse(0, 0, 0, 0.05) == 1
    assert p_mean_not_worse(0.0, math.nan, 0.05) == 1
    assert p_mean_worse(-1.0, 0.0) == 1
    assert p_mean_not_worse(0.0, 0.0, 0.05) == 0, "the same model"
    assert p_mean_not_worse(-0.2, 0.0, 0.05) == 1


def test_means_are_compared_with_the_margin() -> None:
    assert p_mean_not_worse(-0.01, 0.02, 0.05) == pytest.approx(0.02275, abs=1e-4)
    assert p_mean_worse(-0.0392, 0.02) == pytest.approx(0.025, abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_step_by_step(values: list[float]) -> None:
    adjusted = adjust_holm(values)
    for alpha in (0.01, 0.05, 0.3):
        rejected: set[int] = set()
        order = sorted(range(len(values)), key=lambda at: values[at])
        for rank, at in enumerate(order):
            if values[at] * (len(values) - rank) > alpha:
                break
            rejected.add(at)
        assert {at for at, value in enumerate(adjusted) if value <= alpha} == rejected
    assert all(a >= v for a, v in zip(adjusted, values, strict=True))


def test_needed_items_are_told() -> None:
    assert count_needed(0.11, 0.05, 0.05) == pytest.approx(272, abs=2)
