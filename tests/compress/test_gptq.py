"""Weights on a 4-bit grid."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.compress.quantize.gptq import find_grid, quantize, round_to_nearest
from thrifty.compress.quantize.int4 import HIGHEST, LOWEST, Grid, output_error

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
    plain = output_error(weights, round_to_nearest(weights, 64).dequantize(), inputs)
    better = output_error(weights, quantize(weights, inputs, 64).dequantize(), inputs)
    assert better < 0.35 * plain


def test_with_inputs_that_tell_nothing_it_is_no_worse_than_rounding() -> None:
    weights, inputs = draw(64, 128), np.eye(128, dtype=np.float32)
    assert output_error(
        weights, quantize(weights, inputs, 32).dequantize(), inputs
    ) <= 1.01 * output_error(weights, round_to_nearest(weights, 32).dequantize(), inputs)


def test_columns_that_are_never_fed_do_no_harm() -> None:
    inputs = correlated(128)
    inputs[40:60] = 0
    inputs[:, 40:60] = 0
    weights = draw(16, 128)
    found = quantize(weights, inputs, 64)
    assert np.isfinite(found.dequantize()).all()
    assert output_error(weights, found.dequantize(), inputs) < 0.05
    nothing = quantize(weights, np.zeros((128, 128), np.float32), 64)
    assert np.abs(nothing.dequantize() - weights).max() < 0.02


def test_rows_of_zeros_stay_zeros() -> None:
    weights = draw(8, 64)
    weights[3] = 0
    for found in (quantize(weights, correlated(64), 32), round_to_nearest(weights, 32)):
        assert (found.dequantize()[3] == 0).all()


@pytest.mark.parametrize("grid", list(Grid))
def test_a_searched_grid_is_at_least_as_good_as_the_plain_one(grid: Grid) -> None:
    weights, ones = draw(200, 64) + np.float32(0.004), np.ones(64, np.float32)

    def cost(found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        step, zero = (x.astype(np.float32)[:, None] for x in found)
        codes = np.clip(np.rint(weights / step + zero), LOWEST, HIGHEST)
        return (((codes - zero) * step - weights) ** 2).sum(axis=1)

    plain = cost(find_grid(weights, ones, grid, np.ones(1, np.float32)))
    searched = cost(find_grid(weights, ones, grid))
    assert (searched <= plain + 1e-9).all()
    assert searched.mean() < 0.95 * plain.mean()


def test_a_wider_grid_fits_weights_that_are_not_around_zero() -> None:
    weights = draw(200, 64) + np.float32(0.05)
    errors = [
        np.abs(round_to_nearest(weights, 32, grid).dequantize() - weights).mean() for grid in Grid
    ]
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]


@pytest.mark.parametrize("grid", list(Grid))
def test_what_a_grid_takes_is_counted(grid: Grid) -> None:
    more = {Grid.SYMMETRIC: 0, Grid.ZERO_POINTS: 4, Grid.OFFSETS: 16}[grid]
    found = quantize(draw(24, 128), correlated(128), 32, grid)
    assert (found.grid, found.bits_per_weight) == (grid, 4 + (16 + more) / 32)
    assert found.codes.min() >= LOWEST
    assert found.codes.max() <= HIGHEST


def test_weights_that_lie_on_a_grid_of_four_bits_stay_there() -> None:
    # As GGUF's Q4_1 keeps them: in groups of 32, from the least to the most in fifteen steps.
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (48, 4, 32))
    codes[:, :, 0], codes[:, :, 1] = 0, 15
    steps = rng.uniform(0.001, 0.01, (48, 4, 1)).astype(np.float16).astype(np.float32)
    least = (-steps * rng.uniform(2, 13, (48, 4, 1))).astype(np.float16).astype(np.float32)
    weights = (codes * steps + least).reshape(48, 128).astype(np.float32)
    inputs = np.eye(128, dtype=np.float32)
    found = quantize(weights, inputs, 32, Grid.OFFSETS)
    assert output_error(weights, found.dequantize(), inputs) < 1e-5
    other = quantize(weights, inputs, 32, Grid.ZERO_POINTS)
    assert output_error(weights, other.dequantize(), inputs) > 1e-3


def test_groups_of_one_value_keep_it() -> None:
    for value in (0.0, 0.25, -3.0):
        weights = np.full((4, 64), value, np.float32)
        for grid in Grid:
            found = quantize(weights, correlated(64), 32, grid).dequantize()
            np.testing.assert_allclose(found, weights, rtol=2e-3)


def test_weights_are_not_changed_and_shapes_must_fit() -> None:
    weights = draw(8, 64)
    before = weights.copy()
    quantize(weights, correlated(64), 32)
    assert (weights == before).all()
    with pytest.raises(ValueError, match="groups of 48"):
        quantize(weights, correlated(64), 48)
    with pytest.raises(ValueError, match="inputs"):
        quantize(weights, correlated(32), 32)
