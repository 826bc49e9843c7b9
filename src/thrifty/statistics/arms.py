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
