"""How far two who judge the same things agree beyond chance."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with its 95% interval, and the plain share of agreement."""

    kappa: float
    """1: they always agree; 0: no more than by chance. NaN where both always say the same one
    thing, so that agreement says nothing."""
    low: float
    high: float
    agreement: float
    count: int


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Kappa:
    """The agreement of two judges on the same items.

    Cohen 1960; the standard error is the large-sample one of Fleiss, Cohen and Everitt (1969,
    equation 13), which holds for any kappa.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} judgements are not pairs")
    count = len(first)
    if not count:
        return Kappa(math.nan, -1.0, 1.0, math.nan, 0)
    kinds = {kind: place for place, kind in enumerate(dict.fromkeys([*first, *second]))}
    table = np.zeros((len(kinds), len(kinds)))
    for one, other in zip(first, second, strict=True):
        table[kinds[one], kinds[other]] += 1
    table /= count
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    agreed, chance = float(np.trace(table)), float(rows @ columns)
    if chance >= 1.0:
        return Kappa(math.nan, -1.0, 1.0, agreed, count)
    kappa = (agreed - chance) / (1 - chance)
    sums = rows[None, :] + columns[:, None]
    diagonal = np.diag(table) @ ((1 - chance) - (rows + columns) * (1 - agreed)) ** 2
    others = (1 - agreed) ** 2 * float(((table - np.diag(np.diag(table))) * sums**2).sum())
    rest = (agreed * chance - 2 * chance + agreed) ** 2
    variance = max(0.0, float(diagonal) + others - rest) / (count * (1 - chance) ** 4)
    half = Z_95 * math.sqrt(variance)
    return Kappa(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), agreed, count)
