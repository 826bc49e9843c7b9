"""Log-probabilities read from logits: which are largest, and what they come to."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.graphs.logits import LogitReader, find_largest

pytestmark = pytest.mark.engine


def test_log_probabilities_are_those_of_a_plain_softmax() -> None:
    logits = np.random.default_rng(3).normal(0, 9, (7, 301)).astype(np.float32)
    ids = np.argsort(logits, axis=1)[:, ::-1][:, [0, 1, 300]].astype(np.int64)
    found, top, normalizer = LogitReader(301, {}).look_up(logits, ids)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, np.take_along_axis(exact, ids, 1), atol=1e-5)
    np.testing.assert_array_equal(top, ids[:, 0])
    np.testing.assert_allclose((logits - normalizer), exact, atol=1e-5)


@pytest.mark.parametrize(("size", "k"), [(30, 5), (64, 64), (640, 9), (4097, 64), (70_001, 64)])
def test_the_largest_logits_are_those_of_a_plain_sort(size: int, k: int) -> None:
    logits = np.random.default_rng(size).normal(0, 3, (17, size)).astype(np.float32)
    logits[0] = np.sort(logits[0])[::-1]
    logits[1] = np.sort(logits[1])
    found = find_largest(logits, k)
    np.testing.assert_array_equal(found, np.argsort(-logits, axis=1)[:, :k])


def test_logits_that_are_alike_give_as_many_ids_as_asked_for() -> None:
    found = find_largest(np.zeros((3, 700), np.float32), 8)
    assert all(len(set(row)) == 8 for row in found.tolist())
