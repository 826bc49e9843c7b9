"""Money is divided so that nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.cost.amounts import HOUR_MS, price_time, split, to_amount, to_nanos

WEIGHTS = st.lists(st.floats(0, 1e12) | st.integers(0, 10**12), min_size=1, max_size=30)


@given(st.integers(0, 10**15), WEIGHTS)
def test_parts_add_up_and_are_in_proportion(total: int, weights: list[float]) -> None:
    parts = split(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        if whole > 0:
            assert part == pytest.approx(total * weight / whole, abs=1 + total * 1e-12)


def test_what_is_left_goes_to_the_largest_remainders() -> None:
    assert split(10, [1, 1, 1]) == [4, 3, 3]
    assert split(1, [1, 3]) == [0, 1]
    assert split(5, [0, 0]) == [5, 0]
    assert split(0, []) == []
    with pytest.raises(ValueError, match="nobody"):
        split(1, [])


def test_an_hour_costs_its_price() -> None:
    assert price_time(HOUR_MS, 0.4) == to_nanos(0.4) == 400_000_000
    assert to_amount(price_time(HOUR_MS // 2, 0.4)) == 0.2
