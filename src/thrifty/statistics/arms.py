"""The difference between two arms of an experiment that chance assigns with known shares.

The estimator is the augmented inverse-propensity one of Robins, Rotnitzky and Zhao (1994), whose terms
are a martingale around the difference under known shares; Waudby-Smith et al. (arXiv:2103.06476,
section 3) put an asymptotic confidence sequence around it. It departs from them in two points:
each term is weighted by p(1-p), so that observations at a share of 1% do not drown those at 25%,
and the means that augment it are running means of the arms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.statistics.asymptotic import mixture_radius, tune_rho

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

TRAIN = 30
"""So many observations only teach the arms' means."""
MIN_ARM = 100
"""With fewer observations in an arm the limit theorem says little: the sequence is everything."""
MIN_BLOCKS = 20
TUNED_BLOCKS = 60.0
TUNED_WEIGHT = 600.0
"""The sum of p(1-p) at which the sequence is narrowest: 3,200 observations at a share of 25%."""


@dataclass(frozen=True)
class ArmDifference:
    """The mean of the treated arm less that of the other, after each observation; shapes (..., n).
    Before anything can be said, `estimate` is 0 and `weight` 0.
    """

    estimate: FloatArray
    variance: FloatArray
    """Of one unit of weight."""
    weight: FloatArray
    """The sum of p(1-p): it takes the place of the number of observations."""
    treated: FloatArray
    """Observations in the treated arm so far."""
    others: FloatArray

    def bounds(self, alpha: float) -> tuple[FloatArray, FloatArray]:
        """The ends of two one-sided confidence sequences, each of which ever misses the difference
        with a chance of at most `alpha`. Infinite while an arm has fewer than `MIN_ARM` observations.
        """
        weight = np.maximum(self.weight, 1e-12)
        rho = tune_rho(TUNED_WEIGHT, alpha, sides=1)
        radius = mixture_radius(weight, self.variance, alpha, rho, sides=1)
        known = (self.treated >= MIN_ARM) & (self.others >= MIN_ARM) & (self.weight > 0)
        low = np.where(known, self.estimate - radius, -np.inf)
        high = np.where(known, self.estimate + radius, np.inf)
        return low, high


@dataclass(frozen=True)
class BlockDifference:
    """As `ArmDifference`, after each block of time in which both arms were observed; shapes (b,)."""

    estimate: FloatArray
    variance: FloatArray
    """Of one block of average weight."""
    count: FloatArray
    """The effective number of blocks."""

    def bounds(self, alpha: float) -> tuple[FloatArray, FloatArray]:
        """As `ArmDifference.bounds`; infinite before `MIN_BLOCKS`."""
        count = np.maximum(self.count, 1e-12)
        rho = tune_rho(TUNED_BLOCKS, alpha, sides=1)
        radius = mixture_radius(count, self.variance, alpha, rho, sides=1)
        known = np.arange(1, len(count) + 1) >= MIN_BLOCKS
        low = np.where(known, self.estimate - radius, -np.inf)
        return low, np.where(known, self.estimate + radius, np.inf)


def compare_blocks(
    values: FloatArray, treated: BoolArray, blocks: npt.NDArray[np.int64]
) -> BlockDifference:
    """The difference between the arms by blocks of time.

    What happens to a server (a pause, a busy neighbour) happens to all that it answers then, so that
    single observations of its times are not independent of each other, however they were assigned.
    Blocks are, if they are longer than that: each gives one difference, weighted by the numbers of
    observations in it (n1 n0 / (n1 + n0)), which do not depend on what was observed.

    Args:
        values: What was observed, shape (n,).
        treated: Whether each is in the treated arm, shape (n,).
        blocks: The block of each, in any numbering that rises with time, shape (n,).
    """
    _, place = np.unique(blocks, return_inverse=True)
    size = int(place.max()) + 1 if len(place) else 0
    ours = np.bincount(place, treated, size)
    others = np.bincount(place, ~treated, size)
    both = (ours > 0) & (others > 0)
    sums = np.bincount(place, values * treated, size), np.bincount(place, values * ~treated, size)
    ours, others = ours[both], others[both]
    change = sums[0][both] / ours - sums[1][both] / others
    weight = ours * others / (ours + others)
    total, squares = np.cumsum(weight), np.cumsum(weight**2)
    estimate = np.cumsum(weight * change) / total
    spread = (
        np.cumsum((weight * change) ** 2)
        - 2 * estimate * np.cumsum(weight**2 * change)
        + estimate**2 * squares
    )
    return BlockDifference(estimate, np.maximum(spread, 0.0) / squares, total**2 / squares)


def compare_arms(values: FloatArray, treated: BoolArray, shares: FloatArray) -> ArmDifference:
    """The difference between the arms after each observation.

    Args:
        values: What was observed, shape (..., n), in the order of arrival.
        treated: Whether each is in the treated arm, of the same shape.
        shares: The chance with which it was assigned to that arm, above 0 and below 1; of a shape
            that fits. It must not depend on the observation itself.
    """
    if values.shape != treated.shape:
        raise ValueError(f"shapes {values.shape} and {treated.shape} differ")
    shares = np.broadcast_to(np.asarray(shares, dtype=float), values.shape)
    if shares.size and not (np.min(shares) > 0 and np.max(shares) < 1):
        raise ValueError("shares must be above 0 and below 1")
    in_arm = treated.astype(float)
    mean_treated, count_treated = _means_before(values, in_arm)
    mean_others, count_others = _means_before(values, 1 - in_arm)
    weight = shares * (1 - shares)
    weight[..., :TRAIN] = 0.0
    term = (
        weight * (mean_treated - mean_others)
        + in_arm * (1 - shares) * (values - mean_treated)
        - (1 - in_arm) * shares * (values - mean_others)
    )
    term[..., :TRAIN] = 0.0
    total = np.cumsum(weight, axis=-1)
    safe = np.maximum(total, 1e-12)
    estimate = np.cumsum(term, axis=-1) / safe
    squares = (
        np.cumsum(term**2, axis=-1)
        - 2 * estimate * np.cumsum(term * weight, axis=-1)
        + estimate**2 * np.cumsum(weight**2, axis=-1)
    )
    variance = np.maximum(squares, 0.0) / safe
    return ArmDifference(
        estimate, variance, total, count_treated + in_arm, count_others + (1 - in_arm)
    )


def _means_before(values: FloatArray, in_arm: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The mean of an arm's values before each observation (that of both arms while it has none), and
    their number.
    """
    count = np.cumsum(in_arm, axis=-1) - in_arm
    total = np.cumsum(values * in_arm, axis=-1) - values * in_arm
    place = np.arange(values.shape[-1])
    pooled = (np.cumsum(values, axis=-1) - values) / np.maximum(place, 1)
    return np.where(count > 0, total / np.maximum(count, 1), pooled), count
