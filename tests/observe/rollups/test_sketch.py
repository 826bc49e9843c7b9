"""Sketches keep their promise against exact percentiles, however they were merged and stored."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.observe.rollups.sketch import (
    EMPTY,
    LARGEST,
    SMALLEST,
    Sketch,
    decode_sketch,
    decode_sketches,
    extend_sketch,
    make_sketch,
    merge_sketches,
)

VALUES = st.lists(st.floats(SMALLEST, LARGEST), min_size=1, max_size=60)
SHARES = (0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


def exact(values: list[float], share: float) -> float:
    rank = max(1, math.ceil(share * len(values) - 1e-9))
    return sorted(values)[rank - 1]


def same(one: Sketch, other: Sketch) -> bool:
    return one.encode() == other.encode()


@given(VALUES, st.sampled_from(SHARES))
def test_percentiles_are_within_one_percent(values: list[float], share: float) -> None:
    found = make_sketch(values).quantile(share)
    assert found == pytest.approx(exact(values, share), rel=0.01)


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.0])
def test_percentiles_of_many_values_are_within_one_percent(spread: float) -> None:
    values = list(np.random.default_rng(5).lognormal(4.0, spread, 20_000))
    parts = [make_sketch(values[start::7]) for start in range(7)]
    merged = merge_sketches(parts)
    for share in SHARES:
        assert merged.quantile(share) == pytest.approx(exact(values, share), rel=0.01)
    assert same(merged, make_sketch(values))


@given(st.lists(st.lists(st.floats(), max_size=20), max_size=6))
def test_merging_and_storing_loses_nothing(parts: list[list[float]]) -> None:
    sketches = [make_sketch(part) for part in parts]
    stored = [one.encode() or None for one in sketches]
    again = decode_sketches(stored)
    assert all(same(*pair) for pair in zip(sketches, again, strict=True))
    assert all(same(decode_sketch(data), one) for data, one in zip(stored, again, strict=True))
    together = make_sketch([value for part in parts for value in part])
    assert same(merge_sketches(again), together)
    assert together.count == sum(math.isfinite(value) for part in parts for value in part)


@given(st.lists(st.floats(), max_size=60), st.lists(st.floats(), max_size=60))
def test_extending_gives_the_same_sketch_as_merging(old: list[float], new: list[float]) -> None:
    before = make_sketch(old).encode() or None
    merged = merge_sketches([make_sketch(old), make_sketch(new)]).encode()
    assert extend_sketch(before, new) == merged


def test_large_counts_are_stored() -> None:
    sketch = Sketch(np.array([-700, 3, 900]), np.array([1, 2**40, 127]))
    again = decode_sketch(sketch.encode())
    assert list(again.indexes) == [-700, 3, 900]
    assert list(again.counts) == [1, 2**40, 127]


def test_nothing_has_no_percentile() -> None:
    assert make_sketch([]).quantile(0.5) is None
    assert merge_sketches([]) is EMPTY
    assert decode_sketch(None) is decode_sketch(b"") is EMPTY


@pytest.mark.parametrize("data", [b"\x80", b"\x02", b"\x02\x01\x04", b"\xff" * 10 + b"\x01\x01"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="a sketch"):
        decode_sketch(data)
    with pytest.raises(ValueError, match="a sketch"):
        extend_sketch(data, [1.0] * (50 if len(data) > 9 else 1))
