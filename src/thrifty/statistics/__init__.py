"""Statistics that stay valid however often one looks at them. NumPy alone; plain arrays in, arrays
out.

A *confidence sequence* is an interval for each number of observations so that all of them together
hold the true value with the stated probability. *Evidence* is the logarithm of a test martingale: the
chance that it ever reaches log(1/alpha) under the hypothesis is at most alpha (Ville 1939). Both
may be read after each observation, and acted on at once.
"""

from thrifty.statistics.agreement import Kappa, cohen_kappa
from thrifty.statistics.arms import (
    MIN_ARM,
    MIN_BLOCKS,
    ArmDifference,
    BlockDifference,
    compare_arms,
    compare_blocks,
)
from thrifty.statistics.asymptotic import mixture_radius, tune_rho
from thrifty.statistics.bounded import betting_evidence, betting_interval, empirical_bernstein
from thrifty.statistics.counts import (
    bound_share,
    difference_evidence,
    excess_evidence,
    ratio_evidence,
    share_interval,
)
from thrifty.statistics.error_budget import split_budget
from thrifty.statistics.predicted import PredictedMean, predicted_mean

__all__ = [
    "MIN_ARM",
    "MIN_BLOCKS",
    "ArmDifference",
    "BlockDifference",
    "Kappa",
    "PredictedMean",
    "betting_evidence",
    "betting_interval",
    "bound_share",
    "cohen_kappa",
    "compare_arms",
    "compare_blocks",
    "difference_evidence",
    "empirical_bernstein",
    "excess_evidence",
    "mixture_radius",
    "predicted_mean",
    "ratio_evidence",
    "share_interval",
    "split_budget",
    "tune_rho",
]
