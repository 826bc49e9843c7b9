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
