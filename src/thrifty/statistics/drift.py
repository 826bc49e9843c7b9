"""Whether two samples come from one distribution: the tests, and their correction for being many.

For data that is looked at once; whoever looks again and again divides the level by the looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
PIECE = 500
"""Permutations that are tried together."""
TERMS = 100
"""Of the series of Kolmogorov's distribution, which converges after a few."""


def compare_counts(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov test on counts in the same ordered bins: the greatest distance
    between the two distributions (0 to 1), and the p-value of "they are one".

    The p-value is the one of the limit (Smirnov 1948), with Stephens' correction for small samples
    (1970). Bins only make the distance smaller, so that it errs to the safe side. 1 for no values.

    Args:
        first: How many values of the first sample are in each bin, shape (b,).
        second: The same of the second sample.
    """
    one, other = np.asarray(first, float), np.asarray(second, float)
    if one.shape != other.shape:
        raise ValueError(f"shapes {one.shape} and {other.shape} differ")
    n, m = float(one.sum()), float(other.sum())
    if not n or not m:
        return 0.0, 1.0
    distance = float(np.abs(np.cumsum(one) / n - np.cumsum(other) / m).max())
    root = math.sqrt(n * m / (n + m))
    scaled = (root + 0.12 + 0.11 / root) * distance
    return distance, _kolmogorov_tail(scaled)


def _kolmogorov_tail(value: float) -> float:
    if value < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * value) ** 2) for k in range(1, TERMS + 1))
    return min(1.0, max(0.0, 2.0 * float(sum(terms))))


def fisher_exact(hits: int, count: int, other_hits: int, other_count: int) -> float:
    """The p-value of "both shares are the same": twice the smaller tail of Fisher's exact test
    (1934), at most 1.
    """
    if not 0 <= hits <= count or not 0 <= other_hits <= other_count:
        raise ValueError(f"{hits} of {count} and {other_hits} of {other_count} cannot be")
    total, both = hits + other_hits, count + other_count
    low, high = max(0, total - other_count), min(total, count)
    places = range(low, high + 1)
    logs = np.array([_log_ways(count, k) + _log_ways(other_count, total - k) for k in places])
    chances = np.exp(logs - _log_ways(both, total))
    at = hits - low
    return min(1.0, 2 * min(float(chances[: at + 1].sum()), float(chances[at:].sum())))


def _log_ways(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def adjust_benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted so that the expected share of false ones among those at most alpha is at
    most alpha. Benjamini and Hochberg 1995.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda at: p_values[at], reverse=True)
    adjusted, least = [0.0] * count, 1.0
    for rank, at in enumerate(order):
        least = min(least, p_values[at] * count / (count - rank))
        adjusted[at] = least
    return adjusted


@dataclass(frozen=True)
class MeanDiscrepancy:
    """How far two sets of vectors are apart."""

    squared: float
    """The unbiased estimate of the squared maximum mean discrepancy; it may be below 0."""
    p_value: float


def compare_vectors(
    first: FloatArray,
    second: FloatArray,
    groups: Sequence[IntArray],
    *,
    permutations: int = 50_000,
    extremes: int = 20,
    seed: int = 0,
) -> MeanDiscrepancy:
    """The maximum mean discrepancy between two sets of vectors, with a permutation test.

    Gretton, Borgwardt, Rasch, Schoelkopf and Smola, JMLR 13 (2012), equation 3, with a Gaussian
    kernel whose width is the median distance. Vectors of one group (a conversation) depend on each
    other, so that groups change sides as a whole.

    Args:
        first: Shape (n, d).
        second: Shape (m, d).
        groups: The group of each vector of both sets, shapes (n,) and (m,).
        permutations: At most so many; the smallest p-value is 1 / (permutations + 1).
        extremes: After so many that are as far apart, no more are tried: the p-value is then their
            number over the permutations it took (Besag and Clifford 1991).
        seed: Of the permutations.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return MeanDiscrepancy(0.0, 1.0)
    kernel = _make_kernel(np.concatenate([first, second]))
    np.fill_diagonal(kernel, 0.0)
    side = np.concatenate([np.ones(n), np.zeros(m)])
    _, place = np.unique(np.concatenate(list(groups)), return_inverse=True)
    chance = np.random.default_rng(seed)
    sizes = np.bincount(place)
    squared = float(_discrepancies(kernel, side[None])[0])
    extreme = done = 0
    while done < permutations:
        count = min(PIECE, permutations - done)
        sides = _deal(chance, sizes, n, count)[:, place]
        (far,) = np.nonzero(_discrepancies(kernel, sides) >= squared - 1e-12)
        if extreme + len(far) >= extremes:
            last = done + int(far[extremes - extreme - 1]) + 1
            return MeanDiscrepancy(squared, extremes / last)
        extreme, done = extreme + len(far), done + count
    return MeanDiscrepancy(squared, (1 + extreme) / (permutations + 1))


def _deal(chance: np.random.Generator, sizes: IntArray, wanted: int, count: int) -> FloatArray:
    """Sides of the groups, by chance and `count` times: groups are on the first side until it has as
    many vectors as wanted, or just more. Shape (count, groups).
    """
    order = chance.permuted(np.tile(np.arange(len(sizes)), (count, 1)), axis=1)
    before = np.cumsum(sizes[order], axis=1) - sizes[order]
    sides = np.zeros((count, len(sizes)))
    np.put_along_axis(sides, order, (before < wanted).astype(float), axis=1)
    return sides


def _make_kernel(vectors: FloatArray) -> FloatArray:
    squares = (vectors**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * vectors @ vectors.T, 0.0)
    above = distances[np.triu_indices(len(vectors), 1)]
    width = float(np.median(above)) or 1.0
    kernel: FloatArray = np.exp(-distances / width)
    return kernel


def _discrepancies(kernel: FloatArray, sides: FloatArray) -> FloatArray:
    """The unbiased estimate for each row of `sides`; the kernel's diagonal is 0."""
    n = sides.sum(axis=1)
    m = sides.shape[1] - n
    reach = sides @ kernel
    within = (reach * sides).sum(axis=1)
    between = reach.sum(axis=1) - within
    rest = kernel.sum() - within - 2 * between
    values: FloatArray = (
        within / np.maximum(n * (n - 1), 1)
        + rest / np.maximum(m * (m - 1), 1)
        - 2 * between / np.maximum(n * m, 1)
    )
    return values
