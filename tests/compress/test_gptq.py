"""Weights on a 4-bit grid."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.compress.quantize.gptq import (
    HIGHEST,
    LOWEST,
    find_scales,
    output_error,
    quantize,
    round_to_nearest,
)
from thrifty.compress.quantize.sensitivity import choose_eight_bits, eight_bits

RNG = np.random.default_rng(11)


def draw(rows: int, columns: int) -> np.ndarray:
    return RNG.normal(0, 0.02, (rows, columns)).astype(np.float32)


def correlated(columns: int, rank: int = 12) -> np.ndarray:
    """The mean of x x^T for inputs that lie near few directions, as activations do."""
    basis = RNG.normal(0, 1, (columns, rank))
    x = RNG.normal(0, 1, (4000, rank)) @ basis.T + RNG.normal(0, 0.1, (4000, columns))
    return (x.T @ x / len(x)).astype(np.float32)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_codes_and_scales_stand_for_the_weights(group: int) -> None:
    weights = draw(24, 256)
    found = round_to_nearest(weights, group)
    assert found.codes.min() >= LOWEST
    assert found.codes.max() <= HIGHEST
    assert (found.group, found.scales.shape) == (group, (24, 256 // group))
    assert found.bits_per_weight == 4 + 16 / group
    # No weight is further off than half a step, but for the end of the grid that has no mirror.
    steps = np.abs(np.repeat(found.scales.astype(np.float32), group, axis=1))
    assert (np.abs(found.dequantize() - weights) <= steps * 1.001).all()
    assert (np.abs(found.dequantize() - weights) <= steps * 0.501).mean() > 0.98


def test_errors_that_are_passed_on_cost_less_where_it_counts() -> None:
    weights, inputs = draw(96, 256), correlated(256)
    plain = output_error(weights, round_to_nearest(weights, 64), inputs)
    better = output_error(weights, quantize(weights, inputs, 64), inputs)
    assert better < 0.35 * plain


def test_with_inputs_that_tell_nothing_it_is_no_worse_than_rounding() -> None:
    weights, inputs = draw(64, 128), np.eye(128, dtype=np.float32)
    assert output_error(weights, quantize(weights, inputs, 32), inputs) <= 1.01 * output_error(
        weights, round_to_nearest(weights, 32), inputs
    )


def test_columns_that_are_never_fed_do_no_harm() -> None:
    inputs = correlated(128)
    inputs[40:60] = 0
    inputs[:, 40:60] = 0
    weights = draw(16, 128)
    found = quantize(weights, inputs, 64)
    assert np.isfinite(found.dequantize()).all()
    assert output_error(weights, found, inputs) < 0.05
    nothing = quantize(weights, np.zeros((128, 128), np.float32), 64)
    assert np.abs(nothing.dequantize() - weights).max() < 0.02


def test_rows_of_zeros_stay_zeros() -> None:
    weights = draw(8, 64)
    weights[3] = 0
    for found in (quantize(weights, correlated(64), 32), round_to_nearest(weights, 32)):
        assert (found.dequantize()[3] == 0).all()


def test_a_searched_scale_is_at_least_as_good_as_the_plain_one() -> None:
    weights, ones = draw(200, 64), np.ones(64, np.float32)

    def cost(scales: np.ndarray) -> np.ndarray:
        step = scales.astype(np.float32)[:, None]
        return ((np.clip(np.rint(weights / step), LOWEST, HIGHEST) * step - weights) ** 2).sum(
            axis=1
        )

    plain = cost(find_scales(weights, ones, np.ones(1, np.float32)))
    searched = cost(find_scales(weights, ones))
    assert (searched <= plain + 1e-9).all()
    assert searched.mean() < 0.95 * plain.mean()


def test_weights_are_not_changed_and_shapes_must_fit() -> None:
    weights = draw(8, 64)
    before = weights.copy()
    quantize(weights, correlated(64), 32)
    assert (weights == before).all()
    with pytest.raises(ValueError, match="groups of 48"):
        quantize(weights, correlated(64), 48)
    with pytest.raises(ValueError, match="inputs"):
        quantize(weights, correlated(32), 32)


def test_eight_bits_go_where_they_save_most_and_the_budget_is_kept() -> None:
    codes = {name: round_to_nearest(draw(16, columns), 64) for name, columns in
             (("a", 64), ("b", 64), ("c", 256))}  # fmt: skip
    costs = {"a": 0.001, "b": 0.02, "c": 0.03}

    def bits(kept: set[str]) -> float:
        total = sum((eight_bits(c) if n in kept else c.bits_per_weight) * c.codes.size
                    for n, c in codes.items())  # fmt: skip
        return total / sum(c.codes.size for c in codes.values())

    assert choose_eight_bits(costs, codes, 4.0) == set()
    assert choose_eight_bits(costs, codes, 5.0) == {"b"}
    assert choose_eight_bits(costs, codes, 9.0) == {"a", "b", "c"}
    for budget in (4.3, 4.9, 5.5, 6.5, 7.5):
        assert bits(choose_eight_bits(costs, codes, budget)) <= max(budget, 4.25)
