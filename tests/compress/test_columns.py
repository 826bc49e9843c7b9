"""Removal of columns, and the compensation by the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.compress.prune.columns import keep_columns, remove_columns


def draw(rows: int, columns: int, seed: int, rank: int | None = None):
    """A matrix, inputs for it, and the mean of their outer products."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(rows, columns)).astype(np.float32)
    x = rng.normal(size=(4 * columns, rank or columns))
    if rank:
        x = x @ rng.normal(size=(rank, columns))
    return weights, x, (x.T @ x / len(x)).astype(np.float32)


def outputs_error(weights, x, kept, new):
    whole = x @ weights.T
    return float(((whole - x[:, kept] @ new.T) ** 2).sum() / (whole**2).sum())


def test_columns_that_others_can_stand_in_for_cost_nothing() -> None:
    # Inputs of rank 4: any 4 independent columns determine the others.
    weights, x, moment = draw(5, 16, 1, rank=4)
    found = remove_columns(weights, moment, 1, 8)
    assert len(found.kept) == 8
    assert found.weights.shape == (5, 8)
    assert outputs_error(weights, x, found.kept, found.weights) < 1e-3
    assert found.error < 1e-3
    plain = outputs_error(weights, x, found.kept, weights[:, found.kept])
    assert plain > 0.1, "without compensation, the error is large"


def test_columns_without_weight_go_first() -> None:
    weights, _, moment = draw(5, 12, 2)
    weights[:, [3, 7]] = 0
    assert set(remove_columns(weights, moment, 1, 10).kept) == set(range(12)) - {3, 7}


def test_units_go_whole() -> None:
    weights, x, moment = draw(6, 16, 3)
    weights[:, 4:8] *= 0.01
    found = remove_columns(weights, moment, 4, 3)
    assert found.kept.tolist() == [0, 2, 3]
    columns = [0, 1, 2, 3, *range(8, 16)]
    assert found.error == pytest.approx(
        outputs_error(weights, x, columns, found.weights), rel=1e-3, abs=1e-5
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), columns=st.integers(2, 40), share=st.floats(0.05, 0.99))
def test_what_stays_is_at_least_as_good_as_leaving_it_alone(
    seed: int, columns: int, share: float
) -> None:
    weights, x, moment = draw(7, columns, seed)
    keep = max(1, int(share * columns))
    found = remove_columns(weights, moment, 1, keep)
    assert len(set(found.kept.tolist())) == keep
    assert np.isfinite(found.weights).all()
    alone = outputs_error(weights, x, found.kept, weights[:, found.kept])
    assert found.error <= alone + 0.02
    same = keep_columns(weights, moment, found.kept)
    assert same.error == pytest.approx(found.error, abs=0.02)


def test_nothing_is_lost_where_nothing_goes() -> None:
    weights, _, moment = draw(4, 8, 5)
    found = remove_columns(weights, moment, 1, 8)
    np.testing.assert_array_equal(found.weights, weights)
    assert found.error == 0
