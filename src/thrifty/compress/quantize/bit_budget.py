"""Which form each matrix takes, so that all together keep within a budget of bits."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

SLACK = 1e-9
"""Of the budget: what sums of fractions may be off by."""


@dataclass(frozen=True)
class FormatOption(Generic[T]):
    """One form of a matrix."""

    form: T
    bits: float
    """All that the matrix takes."""
    cost: float
    """What it costs the model."""


def choose(
    choices: Mapping[str, Sequence[FormatOption[T]]], budget: float
) -> dict[str, FormatOption[T]]:
    """One choice for each matrix, with at most `budget` bits in all and as little cost as can be told:
    from the smallest of each, the step that saves most for its bits is taken, while one fits.

    Raises `ValueError` where even the smallest take more.
    """
    hulls = {name: _keep_hull(found) for name, found in choices.items()}
    taken = dict.fromkeys(hulls, 0)
    spent = sum(hull[0].bits for hull in hulls.values())
    most = budget * (1 + SLACK)
    if spent > most:
        raise ValueError(f"the smallest take {spent:g} bits, not {budget:g}")
    steps: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        hull, at = hulls[name], taken[name]
        if at + 1 < len(hull):
            saved = hull[at].cost - hull[at + 1].cost
            heapq.heappush(steps, (-saved / (hull[at + 1].bits - hull[at].bits), name))

    for name in hulls:
        offer(name)
    while steps:
        _, name = heapq.heappop(steps)
        hull, at = hulls[name], taken[name]
        more = hull[at + 1].bits - hull[at].bits
        if spent + more <= most:
            taken[name], spent = at + 1, spent + more
            offer(name)
    return {name: hull[taken[name]] for name, hull in hulls.items()}


def _keep_hull(choices: Sequence[FormatOption[T]]) -> list[FormatOption[T]]:
    """Those that some budget would take, from the smallest: each saves less for its bits than the one
    before.
    """
    hull: list[FormatOption[T]] = []
    for one in sorted(choices, key=lambda c: (c.bits, c.cost)):
        if hull and one.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _slope(hull[-2], one) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(one)
    return hull


def _slope(a: FormatOption[T], b: FormatOption[T]) -> float:
    return (a.cost - b.cost) / (b.bits - a.bits)
