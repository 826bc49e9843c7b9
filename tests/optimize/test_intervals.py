"""Intervals of drops and costs, against tables and simulations."""

from __future__ import annotations

import math

import pytest

from thrifty.optimize.intervals import (
    Interval,
    find_cost,
    find_drop,
    find_lost,
    is_beyond,
    is_within,
    predict_drop,
    t_of,
    z_of,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (7, 2.365), (30, 2.042)]
)
def test_students_quantile_is_that_of_tables(freedom: int, quantile: float) -> None:
    assert t_of(z_of(1), freedom) == pytest.approx(quantile, rel=0.01)


def test_more_tests_take_wider_intervals() -> None:
    assert z_of(1) == pytest.approx(1.96, abs=0.001)
    assert z_of(4) == pytest.approx(2.498, abs=0.001)


def test_a_drop_has_an_interval_that_narrows_with_windows() -> None:
    few, many = (find_drop(1.05, 0.01, windows, 1.96) for windows in (4, 40))
    assert few.value == many.value == pytest.approx(1 - 1 / 1.05)
    assert few.low < many.low < many.value < many.high < few.high
    assert find_drop(0.9, 0.01, 40, 1.96).low == 0
    # One window says nothing about the spread.
    assert find_drop(1.05, 0.01, 1, 1.96) == Interval(pytest.approx(1 - 1 / 1.05), 0.0, 1.0)


def test_lost_answers_are_never_certain_from_few() -> None:
    assert find_lost(0, 0, 1.96) == Interval(0.0, 0.0, 1.0)
    none_of_100 = find_lost(100, 100, z_of(4))
    assert none_of_100.low == 0
    assert none_of_100.high == pytest.approx(0.0587, abs=0.001)
    some = find_lost(90, 100, 1.96)
    assert some.low < 0.1 < some.high


def test_what_serves_nothing_costs_without_end() -> None:
    cost = find_cost(Interval(0.0, 0.0, 10.0), 1.0)
    assert cost.value == cost.high == math.inf
    assert math.isfinite(cost.low)
    assert cost.as_dict()["value"] is None
    assert find_cost(Interval(100.0, 100.0, 100.0), 0.36).value == pytest.approx(1.0)


def test_within_and_beyond_leave_a_space_between() -> None:
    drops = {"chat": Interval(0.05, 0.02, 0.08)}
    assert is_within(drops, 0.1)
    assert not is_within(drops, 0.06)
    assert not is_beyond(drops, 0.06)
    assert is_beyond(drops, 0.01)
    assert not is_within({}, 0.1)


def test_four_times_the_tokens_halve_the_log_of_the_ratio_at_best() -> None:
    assert predict_drop(1 - 1 / 1.21, 100, 400) == pytest.approx(1 - 1 / 1.1)
