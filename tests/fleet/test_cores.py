"""Cores are shared so that replicas do not fight over them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from thrifty.fleet.cores import share_cores


def test_cores_are_split_evenly_and_in_one_piece() -> None:
    assert share_cores([0, 1, 2, 3], 2) == [[0, 1], [2, 3]]
    assert share_cores([0, 1, 2, 3, 4], 2) == [[0, 1, 2], [3, 4]]
    assert share_cores([4, 6, 8], 1) == [[4, 6, 8]]


def test_a_wish_is_granted_and_wraps_around() -> None:
    assert share_cores([0, 1, 2, 3], 2, wanted=1) == [[0], [1]]
    assert share_cores([0, 1], 2, wanted=8) == [[0, 1], [0, 1]]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=64, unique=True), st.integers(1, 40))
def test_every_copy_gets_cores_and_none_is_overloaded(cores: list[int], copies: int) -> None:
    shares = share_cores(sorted(cores), copies)
    assert len(shares) == copies
    used = Counter(core for share in shares for core in share)
    assert set(used) <= set(cores)
    assert all(shares)
    if copies <= len(cores):
        assert set(used.values()) == {1}
        assert set(used) == set(cores)
    else:
        assert max(used.values()) - min(used.values()) <= 1
