"""Cores are shared so that replicas do not fight over them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from thrifty.fleet.cores import choose_cores, share_evenly


def place(cores: list[int], sizes: list[int]) -> list[list[int]]:
    """The cores of copies that start one after the other."""
    used: Counter[int] = Counter()
    found = []
    for size in sizes:
        found.append(choose_cores(cores, used, size))
        used.update(found[-1])
    return found


def test_copies_get_neighbouring_cores_that_nobody_has() -> None:
    assert place([0, 1, 2, 3], [2, 2]) == [[0, 1], [2, 3]]
    assert place([0, 1, 2, 3, 4], [3, 2]) == [[0, 1, 2], [3, 4]]
    assert place([4, 6, 8], [3]) == [[4, 6, 8]]
    assert place([0, 1, 2, 3], [1, 1]) == [[0], [1]]
    assert place([0, 1], [8, 8]) == [[0, 1], [0, 1]]


def test_a_copy_that_comes_later_takes_what_one_that_went_has_left() -> None:
    assert choose_cores([0, 1, 2, 3], {0: 1, 1: 1}, 2) == [2, 3]
    assert choose_cores([0, 1, 2, 3], {2: 1, 3: 1}, 2) == [0, 1]
    assert choose_cores([0, 1, 2], {0: 1, 1: 1}, 2) == [1, 2]


def test_an_even_share_is_at_least_one_core() -> None:
    assert share_evenly(8, 2) == (4, 0)
    assert share_evenly(8, 3) == (2, 2)
    assert share_evenly(2, 5) == (1, 0)
    assert share_evenly(4, 0) == (4, 0)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=32, unique=True), st.integers(1, 20))
def test_every_copy_gets_cores_and_none_is_overloaded(cores: list[int], copies: int) -> None:
    cores = sorted(cores)
    base, more = share_evenly(len(cores), copies)
    shares = place(cores, [base + (index < more) for index in range(copies)])
    used = Counter(core for share in shares for core in share)
    assert set(used) <= set(cores)
    assert all(shares)
    if copies <= len(cores):
        assert set(used.values()) == {1}
        assert set(used) == set(cores)
    else:
        assert max(used.values()) - min(used.values()) <= 1
