"""Evidence from counts: too many of one kind, and shares other than planned.

Both are mixtures of likelihood ratios (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021,
section 4), exact for every number of observations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

NODES = 128
"""Points of the mixture over shares. Any mixture is valid; more points lose less with many counts."""
HALVINGS = 40
"""Of the search for the end of an interval."""
RATIO_PRIOR = 100.0
"""How firmly the mixture of `ratio_evidence` holds to the plan, in observations."""


def excess_evidence(
    hits: npt.ArrayLike, count: npt.ArrayLike, share: float, *, nodes: int = NODES
) -> FloatArray:
    """Evidence against the hypothesis that each of `count` is a hit with a chance of at most `share`.

    A uniform mixture over shares above that. With `share` of 1/2 it is the sequential sign test on
    discordant pairs: hits are pairs that one version lost, `count` those that either won. With the
    planned share of traffic, hits are failures of one version among all failures.

    Args:
        hits: How many were hits so far, any shape.
        count: How many there were, of the same shape.
        share: Above 0 and below 1.
        nodes: Points of the mixture.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share is {share}; it must be above 0 and below 1")
    hits_of, count_of = np.asarray(hits, dtype=float), np.asarray(count, dtype=float)
    places, weights = _find_nodes(nodes)
    chances = share + (1 - share) * (places + 1) / 2
    up, down = np.log(chances / share), np.log1p(-chances) - math.log1p(-share)
    ratios = hits_of[..., None] * up + (count_of - hits_of)[..., None] * down
    ratios += np.log(weights / 2)
    most = ratios.max(axis=-1)
    evidence: FloatArray = most + np.log(np.exp(ratios - most[..., None]).sum(axis=-1))
    return evidence


def bound_share(hits: int, count: int, alpha: float) -> float:
    """The largest share that `excess_evidence` excludes with 1 - `alpha`: a lower bound of the chance
    of a hit, valid however often one looks. 0 where it excludes none.
    """
    bar, low, high = math.log(1 / alpha), 0.0, hits / count if count else 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if 0 < middle < 1 and float(excess_evidence(hits, count, middle)) >= bar:
            low = middle
        else:
            high = middle
    return low


def share_interval(hits: int, count: int, alpha: float) -> tuple[float, float]:
    """The ends of a confidence sequence for a share, from the numbers so far.

    A share is kept while the likelihood of the numbers, in the mean over all shares (Jeffreys'
    prior), is less than 1/alpha times that under it: Robbins 1970, section 2. Only the numbers count,
    not their order, so that it can be read from sums. At 1,000 observations it is half as wide again
    as an interval that is valid at one look.

    Args:
        hits: How many were hits so far.
        count: How many there were; 0 gives (0, 1).
        alpha: The chance that the sequence ever misses the share.
    """
    if not 0 <= hits <= count or not 0 < alpha < 1:
        raise ValueError(f"{hits} of {count} at alpha {alpha} cannot be")
    if not count:
        return 0.0, 1.0
    mixed = _log_beta(hits + 0.5, count - hits + 0.5) - _log_beta(0.5, 0.5)
    bar = mixed - math.log(1 / alpha)
    best = hits / count

    def is_kept(share: float) -> bool:
        likelihood = hits * math.log(share) if hits else 0.0
        likelihood += (count - hits) * math.log1p(-share) if hits < count else 0.0
        return likelihood > bar

    def search(out: float, inside: float) -> float:
        for _ in range(HALVINGS):
            middle = (out + inside) / 2
            out, inside = (out, middle) if is_kept(middle) else (middle, inside)
        return out

    low = search(0.0, best) if hits else 0.0
    high = search(1.0, best) if hits < count else 1.0
    return low, high


def difference_evidence(hits: int, count: int, other_hits: int, other_count: int) -> float:
    """Evidence that a share is greater than another one, from the numbers so far of both.

    Each side's numbers are predicted by a mixture over all shares (Jeffreys' prior), and compared with
    the likelihood under the best one share for both: whatever that share is, the ratio is at most a
    test martingale (Wasserman, Ramdas and Balakrishnan, "Universal inference", PNAS 117, 2020,
    section 8). It may be read after each observation of either side, in any order and in any
    proportion. 0 or less where the share is not greater.
    """
    if not 0 <= hits <= count or not 0 <= other_hits <= other_count:
        raise ValueError(f"{hits} of {count} and {other_hits} of {other_count} cannot be")
    if not count or not other_count or hits * other_count <= other_hits * count:
        return 0.0
    both, total = hits + other_hits, count + other_count
    rest = total - both
    best = both * math.log(both / total) + (rest * math.log(rest / total) if rest else 0.0)
    mixed = sum(
        _log_beta(some + 0.5, of - some + 0.5) - _log_beta(0.5, 0.5)
        for some, of in ((hits, count), (other_hits, other_count))
    )
    return mixed - best


def ratio_evidence(steps: Sequence[tuple[int, int, float]]) -> float:
    """Evidence that observations were assigned in other shares than planned.

    A Beta mixture around the plan for each step, multiplied: Lindon and Malek, "Anytime-valid
    inference for multinomial count data", NeurIPS 2022, equation 8, with two categories.

    Args:
        steps: For each step with a planned share: how many were assigned to it, out of how many, and
            that share, above 0 and below 1.
    """
    total = 0.0
    for hits, count, share in steps:
        if not 0 < share < 1 or not 0 <= hits <= count:
            raise ValueError(f"{hits} of {count} with a share of {share} cannot be")
        first, second = RATIO_PRIOR * share, RATIO_PRIOR * (1 - share)
        total += _log_beta(first + hits, second + count - hits) - _log_beta(first, second)
        total -= hits * math.log(share) + (count - hits) * math.log1p(-share)
    return total


@functools.cache
def _find_nodes(count: int) -> tuple[FloatArray, FloatArray]:
    """Points between -1 and 1 and their weights (Gauss and Legendre)."""
    places, weights = np.polynomial.legendre.leggauss(count)
    return places, weights


def _log_beta(first: float, second: float) -> float:
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)
