"""Where a training ends: a fitted curve with its error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.train.forecast import forecast

TOKENS = [0, 10_000, 20_000, 40_000, 70_000, 100_000]


def make_curve(offset: float, height: float, scale: float, power: float, at: float) -> float:
    return offset + height * (1 + at / scale) ** -power


@given(
    st.floats(0.05, 1), st.floats(0.1, 2), st.floats(5_000, 60_000), st.floats(0.3, 1.5),
    st.integers(0, 1000),
)  # fmt: skip
def test_power_laws_are_found_within_the_error(
    offset: float, height: float, scale: float, power: float, seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(1, 0.005, len(TOKENS))
    points = [
        (x, make_curve(offset, height, scale, power, x) * n)
        for x, n in zip(TOKENS, noise, strict=True)
    ]
    found = forecast(points, 500_000)
    assert found is not None
    value, error = found
    truth = make_curve(offset, height, scale, power, 500_000)
    assert abs(value - truth) < 5 * error + 0.02 * truth
    assert error > 0


def test_a_fifth_of_a_curve_tells_its_end() -> None:
    points = [(x, make_curve(0.3, 0.9, 15_000, 0.7, x)) for x in TOKENS]
    found = forecast(points, 500_000)
    assert found is not None
    assert found[0] == pytest.approx(make_curve(0.3, 0.9, 15_000, 0.7, 500_000), rel=0.1)


def test_more_of_the_curve_leaves_less_doubt() -> None:
    curve = [(x, make_curve(0.3, 0.9, 15_000, 0.7, x)) for x in range(0, 400_000, 20_000)]
    early, late = forecast(curve[:5], 500_000), forecast(curve, 500_000)
    assert early is not None
    assert late is not None
    assert late[1] < early[1]


@pytest.mark.parametrize("points", [[], [(0, 1.0)] * 3, [(0, 1.0)] * 9, [(1, float("nan"))] * 5])
def test_without_a_curve_there_is_no_forecast(points: list[tuple[float, float]]) -> None:
    assert forecast(points, 1000) is None
