"""Paired tests: whether a version is not worse by a margin, whether it is worse, and many at once.

For data that is looked at once, unlike what else is in this package. All p-values are one-sided.
Shares are compared on the same items, so that only items on which the two versions differ carry
information.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def p_not_worse(gained: int, lost: int, count: int, margin: float) -> float:
    """The p-value of "the new share is lower by `margin` or more", from the items that only the new
    version has right (`gained`), those that only the old one has (`lost`), and all (`count`).

    Tango 1998 (Statistics in Medicine 17:891), a score test that holds its level where few items
    differ. 1 for no items.
    """
    if count == 0:
        return 1.0
    # The likeliest share of gained items if the true difference is -margin.
    a = 2.0 * count
    b = -gained - lost + (2.0 * count - lost + gained) * margin
    c = -gained * margin * (1.0 - margin)
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = count * (2 * share + margin * (1 - margin))
    if variance <= 0:
        return 1.0
    return _upper_tail((gained - lost + count * margin) / math.sqrt(variance))


def p_worse(gained: int, lost: int) -> float:
    """The p-value of "the new version is not worse": the exact sign test of the items on which they
    differ. McNemar 1947.
    """
    count = gained + lost
    ways = sum(math.comb(count, more) for more in range(lost, count + 1))
    return min(1.0, float(ways / 2**count))


def p_mean_not_worse(change: float, stderr: float, margin: float) -> float:
    """The p-value of "a mean fell by `margin` or more", for its `change` and the standard error of
    that. 1 without a standard error, unless nothing changed at all.
    """
    if not stderr > 0:
        return 0.0 if change == 0 and stderr == 0 else 1.0
    return _upper_tail((change + margin) / stderr)


def p_mean_worse(change: float, stderr: float) -> float:
    """The p-value of "a mean did not fall"."""
    if not stderr > 0:
        return 1.0
    return _upper_tail(-change / stderr)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted so that the chance of any false rejection is bounded. Holm 1979."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def count_needed(discordant: float, margin: float, alpha: float, power: float = 0.8) -> int:
    """About how many items it takes to show that an equal version is not worse by `margin`, where
    this share of the items differs.
    """
    variance = max(discordant, 0.02)
    return math.ceil((_quantile(1 - alpha) + _quantile(power)) ** 2 * variance / margin**2)


def _upper_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


def _quantile(share: float) -> float:
    """The standard normal quantile."""
    return NormalDist().inv_cdf(share)
