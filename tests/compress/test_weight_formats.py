"""The forms of a matrix in few bits, and a budget for all of them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from thrifty.compress.quantize.awq import find_awq_scales
from thrifty.compress.quantize.bit_budget import FormatOption, choose
from thrifty.compress.quantize.gptq import round_to_nearest
from thrifty.compress.quantize.int4 import Grid, Int4Codes, output_error
from thrifty.compress.quantize.low_rank import find_low_rank
from thrifty.compress.quantize.weight_formats import (
    BASE,
    EIGHT_BITS,
    WEIGHT_FORMATS,
    Quantizer,
    WeightFormat,
)
from thrifty.errors import CompressionError

RNG = np.random.default_rng(4)


def draw(rows: int, columns: int) -> np.ndarray:
    return RNG.normal(0, 0.02, (rows, columns)).astype(np.float32)


def uneven(columns: int, loud: int = 4) -> np.ndarray:
    """The mean of x x^T where a few columns are fed values a hundred times as large."""
    sizes = np.ones(columns)
    sizes[RNG.choice(columns, loud, replace=False)] = 100
    x = RNG.normal(0, 1, (4000, columns)) * sizes
    return (x.T @ x / len(x)).astype(np.float32)


def quantizer(inputs: dict[str, np.ndarray], rows: int = 48) -> tuple[Quantizer, dict[str, Any]]:
    weights = {f"{name}.weight": draw(rows, len(found)) for name, found in inputs.items()}
    checkpoint: Any = SimpleNamespace(tensors=SimpleNamespace(read_tensor=weights.__getitem__))
    return Quantizer(checkpoint, inputs), weights


def test_loud_columns_are_made_larger_where_that_helps() -> None:
    inputs, weights = uneven(128), [draw(64, 128), draw(32, 128)]
    awq_scales = find_awq_scales(weights, inputs, 64)
    assert awq_scales is not None
    loud = np.diag(inputs) > 1000
    assert awq_scales[loud].max() < awq_scales[~loud].min(), "their inputs are made smaller"
    by = awq_scales.astype(np.float32)
    for values in weights:
        plain = output_error(values, round_to_nearest(values, 64).dequantize(), inputs)
        better = output_error(values, round_to_nearest(values / by, 64).dequantize() * by, inputs)
        assert better < 0.7 * plain


def test_where_all_columns_are_alike_or_silent_nothing_is_spread() -> None:
    assert find_awq_scales([draw(32, 64)], np.zeros((64, 64), np.float32), 32) is None
    awq_scales = find_awq_scales([draw(64, 64)], np.eye(64, dtype=np.float32), 32)
    assert awq_scales is None or np.ptp(awq_scales) == 0


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_a_correction_takes_the_largest_part_of_the_error(shape: tuple[int, int]) -> None:
    inputs, weights = uneven(shape[1]), draw(*shape)
    found = round_to_nearest(weights, 32)
    error = output_error(weights, found.dequantize(), inputs)
    errors = []
    for rank in (1, 4, 16):
        correction = find_low_rank(weights, found.dequantize(), inputs, rank)
        assert (correction.left.shape, correction.right.shape) == (
            (shape[0], rank),
            (rank, shape[1]),
        )
        both = Int4Codes(found.codes, found.scales, correction=correction)
        errors.append(output_error(weights, both.dequantize(), inputs))
        assert both.bits_per_weight == pytest.approx(
            found.bits_per_weight + (8 * rank * sum(shape) + 24 * (rank + shape[0])) / weights.size
        )
    assert error > errors[0] > errors[1] > errors[2]
    # Four loud columns: what they err by is nearly all, and four directions can hold it.
    assert errors[1] < 0.1 * error


def test_every_form_stands_for_the_matrix_and_is_weighed() -> None:
    shared = uneven(128)
    made, weights = quantizer({"q": shared, "k": shared, "o": uneven(64)})
    for name in made.names:
        weighed = list(made.weigh(name))
        assert {one.form for one in weighed} == set(WEIGHT_FORMATS)
        for one in weighed:
            found = made.make(name, one.form)
            assert found.dequantize().shape == weights[f"{name}.weight"].shape
            error = output_error(weights[f"{name}.weight"], found.dequantize(), made._inputs[name])
            assert (found.bits_per_weight, error) == (one.bits_per_weight, pytest.approx(one.error))
        errors = {one.form: one.error for one in weighed}
        assert errors[EIGHT_BITS] < errors[BASE] / 50
        assert errors[WeightFormat(Grid.SYMMETRIC, 64, True)] < errors[BASE]
    assert made._find_awq_scales("q") is made._find_awq_scales("k"), (
        "one input is awq_scales in one way"
    )


def test_forms_are_told_in_words() -> None:
    assert str(EIGHT_BITS) == "8 bits"
    assert str(WeightFormat(Grid.OFFSETS, 32, True, 8)) == (
        "offsets, groups of 32, AWQ, a correction of rank 8"
    )


def test_a_matrix_that_no_group_divides_is_refused() -> None:
    made, _ = quantizer({"odd": uneven(40)})
    with pytest.raises(CompressionError, match="odd has 40 columns"):
        list(made.weigh("odd"))


def test_a_budget_goes_where_it_saves_most() -> None:
    choices = {
        "a": [FormatOption("small", 10, 5.0), FormatOption("large", 20, 4.0)],
        "b": [
            FormatOption("small", 10, 9.0),
            FormatOption("middle", 14, 1.0),
            FormatOption("large", 20, 0.5),
        ],
        "c": [FormatOption("worse", 12, 3.0), FormatOption("only", 10, 3.0)],
    }

    def forms(budget: float) -> str:
        found = choose(choices, budget)
        assert sum(one.bits for one in found.values()) <= budget * 1.000001
        return "".join(found[name].form[0] for name in "abc")

    assert forms(30) == "sso"
    assert forms(34) == "smo"
    assert forms(44) == "lmo"
    assert forms(50) == "llo"
    with pytest.raises(ValueError, match="take 30 bits, not 29"):
        choose(choices, 29)


def test_a_budget_is_spent_nearly_as_well_as_it_can_be() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        choices = {
            name: [FormatOption(f"{bits}", bits, float(cost)) for bits, cost in
                   zip((4, 5, 6, 8), sorted(rng.exponential(1, 4), reverse=True), strict=True)]
            for name in "abcde"
        }  # fmt: skip
        budget = float(rng.integers(20, 40))
        found = sum(one.cost for one in choose(choices, budget).values())
        every = itertools.product(*choices.values())
        best = min(sum(c.cost for c in way) for way in every if sum(c.bits for c in way) <= budget)
        worst = sum(max(c.cost for c in ways) for ways in choices.values())
        assert best <= found + 1e-9
        assert found - best <= 0.25 * (worst - best)
