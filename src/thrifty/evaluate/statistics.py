"""Estimates with their uncertainty, from values measured token by token or item by item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

Z_95 = 1.959963984540054
"""Standard errors in half a two-sided 95% interval."""
BOOTSTRAP_ROUNDS = 200
"""Enough for a standard error that is accurate to about 5%."""


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error."""

    mean: float
    stderr: float


def mean_of_clusters(values: FloatArray, sizes: FloatArray) -> Mean:
    """The mean of `values`, which come in consecutive clusters of `sizes`, and its standard error.

    Tokens of one passage are correlated, so the standard error is computed over passages, as that
    of a ratio of two sums. With a single cluster, values are treated as independent.
    """
    count = len(values)
    if count == 0:
        return Mean(math.nan, math.nan)
    mean = float(np.mean(values, dtype=np.float64))
    clusters = len(sizes)
    if clusters < 2:
        if count < 2:
            return Mean(mean, math.nan)
        return Mean(mean, float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(count))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    sums = np.add.reduceat(values.astype(np.float64), starts)
    spread = np.sum((sums - mean * sizes) ** 2) * clusters / (clusters - 1)
    return Mean(mean, math.sqrt(float(spread)) / count)


@dataclass(frozen=True)
class Proportion:
    """A share of `count` items and its 95% interval. Wilson 1927."""

    share: float
    low: float
    high: float
    count: int


def proportion(hits: int, count: int) -> Proportion:
    """The share `hits` of `count`, with Wilson's interval."""
    if count == 0:
        return Proportion(math.nan, 0.0, 1.0, 0)
    share = hits / count
    square = Z_95**2 / count
    centre = (share + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    # Rounding must not move an end of the interval past the share.
    return Proportion(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)),
                      count)  # fmt: skip


@dataclass(frozen=True)
class PairedDifference:
    """How much better one model does than another on the same items."""

    difference: float
    low: float
    high: float
    gained: int
    """Items that only the candidate answers correctly."""
    lost: int
    """Items that only the reference answers correctly."""

    def is_not_inferior(self, margin: float) -> bool:
        """Whether the candidate is worse by less than `margin`, with one-sided 97.5% confidence."""
        return self.low > -margin


def paired_difference(candidate: FloatArray, reference: FloatArray) -> PairedDifference:
    """The difference between two shares on the same items (1 is right, 0 is wrong).

    The 95% interval is Agresti & Min's (2005), which adds half an item to each cell of the table.
    """
    if candidate.shape != reference.shape or candidate.ndim != 1:
        raise ValueError(f"shapes {candidate.shape} and {reference.shape} are not pairs")
    count = len(candidate)
    gained = int(np.sum((candidate > 0) & (reference <= 0)))
    lost = int(np.sum((candidate <= 0) & (reference > 0)))
    if count == 0:
        return PairedDifference(math.nan, -1.0, 1.0, 0, 0)
    b, c, n = gained + 0.5, lost + 0.5, count + 2.0
    centre = (b - c) / n
    half = Z_95 * math.sqrt(max(0.0, b + c - (b - c) ** 2 / n)) / n
    return PairedDifference(
        (gained - lost) / count, max(-1.0, centre - half), min(1.0, centre + half), gained, lost
    )


def mean_with_interval(values: FloatArray) -> Proportion:
    """The mean of a metric that has a number for each item, and its 95% interval."""
    found = mean_of_clusters(values, np.ones(len(values)))
    half = Z_95 * found.stderr
    return Proportion(found.mean, found.mean - half, found.mean + half, len(values))


def paired_means(candidate: FloatArray, reference: FloatArray) -> PairedDifference:
    """The difference between two means on the same items, with its 95% interval. Gained and lost
    are the items on which the candidate has a higher or lower value.
    """
    change = candidate - reference
    found = mean_with_interval(change)
    gained, lost = int(np.sum(change > 0)), int(np.sum(change < 0))
    return PairedDifference(found.share, found.low, found.high, gained, lost)


def bootstrap_pair(
    candidate: Sequence[Any],
    reference: Sequence[Any],
    aggregate: Callable[[list[Any]], float],
    rounds: int = BOOTSTRAP_ROUNDS,
) -> tuple[Proportion, Proportion, PairedDifference]:
    """Scores that are not means over items (a corpus' BLEU, a perplexity), and their difference.

    The 95% intervals come from resampling the items, the same for both models. Efron & Tibshirani
    1993.
    """
    count = len(candidate)
    scores = [float(aggregate(list(items))) for items in (candidate, reference)]
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(rounds if count > 1 else 0):
        at = generator.integers(0, count, count)
        drawn.append([float(aggregate([items[i] for i in at])) for items in (candidate, reference)])
    if not drawn:
        half, spread = [math.inf, math.inf], math.inf
    else:
        table = np.array(drawn)
        half = [Z_95 * float(np.std(table[:, side], ddof=1)) for side in (0, 1)]
        spread = Z_95 * float(np.std(table[:, 0] - table[:, 1], ddof=1))
    new, old = (
        Proportion(score, score - side, score + side, count)
        for score, side in zip(scores, half, strict=True)
    )
    difference = scores[0] - scores[1]
    return new, old, PairedDifference(difference, difference - spread, difference + spread, 0, 0)


def jackknife(
    measure: Callable[[Any], float], without: Sequence[npt.NDArray[np.bool_]]
) -> tuple[float, float]:
    """An estimate from all values, and its standard error from estimates without groups of values.

    `measure` takes a mask of the values to use. Quenouille 1949; Tukey 1958.
    """
    whole = measure(np.ones_like(without[0]))
    parts = np.array([measure(keep) for keep in without])
    count = len(parts)
    spread = (count - 1) / count * np.sum((parts - parts.mean()) ** 2)
    return whole, math.sqrt(float(spread))


def rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Spearman's rank correlation; ties get their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: FloatArray = (ends - (counts - 1) / 2)[inverse]
    return ranks
