"""Confidence sequences and evidence for the mean of values between 0 and 1.

Valid for every number of observations, without any assumption but the bounds and that each value
has the same conditional mean. Waudby-Smith and Ramdas, "Estimating means of bounded random variables
by betting", JRSS B 86 (2024).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

MAX_BERNSTEIN_BET = 0.5
"""The paper's c for the empirical-Bernstein sequence."""
MAX_SHARE = 0.75
"""The most of its wealth that a bet may lose at once; below 1, so that it never loses all."""
GRID = 1000
"""Candidate means of `betting_interval`; its ends are rounded outwards to this grid."""


def empirical_bernstein(values: FloatArray, alpha: float) -> tuple[FloatArray, FloatArray]:
    """The lower and upper ends of a confidence sequence for the mean, each of the shape of `values`.

    Predictable plug-in empirical-Bernstein sequence (theorem 2, equations 14 and 15). The ends only
    move inwards.

    Args:
        values: Shape (..., n), each from 0 to 1, in the order of their arrival.
        alpha: The chance that the sequence ever misses the mean.
    """
    _check(values, alpha)
    count = np.arange(1, values.shape[-1] + 1)
    before_mean, before_variance = _running_moments(values)
    bet = np.sqrt(2 * np.log(2 / alpha) / (before_variance * count * np.log1p(count)))
    bet = np.minimum(bet, MAX_BERNSTEIN_BET)
    spread = 4 * (values - before_mean) ** 2
    penalty = (-np.log1p(-bet) - bet) / 4
    total = np.cumsum(bet, axis=-1)
    centre = np.cumsum(bet * values, axis=-1) / total
    radius = (np.log(2 / alpha) + np.cumsum(spread * penalty, axis=-1)) / total
    low = np.maximum.accumulate(np.maximum(centre - radius, 0.0), axis=-1)
    high = np.minimum.accumulate(np.minimum(centre + radius, 1.0), axis=-1)
    return low, high


def betting_evidence(values: FloatArray, mean: float) -> FloatArray:
    """Evidence, of the shape of `values`, against the hypothesis that their mean is at most `mean`.

    The logarithm of a gambler's wealth who bets on larger values: each bet is the growth-optimal one
    for the mean and variance of the values before it, approximately (aGRAPA, section B.3), and never
    negative. For "at least", pass `1 - values` and `1 - mean`.

    Args:
        values: Shape (..., n), each from 0 to 1.
        mean: The hypothesis, above 0 and below 1.
    """
    _check(values, 0.5)
    if not 0 < mean < 1:
        raise ValueError(f"the mean is {mean}; it must be above 0 and below 1")
    before_mean, before_variance = _running_moments(values)
    gain = before_mean - mean
    bet = np.clip(gain / (before_variance + gain**2), 0.0, MAX_SHARE / mean)
    evidence: FloatArray = np.cumsum(np.log1p(bet * (values - mean)), axis=-1)
    return evidence


def betting_interval(
    values: FloatArray, alpha: float, *, grid: int = GRID
) -> tuple[FloatArray, FloatArray]:
    """The lower and upper ends of a confidence sequence for the mean of one series.

    The hedged capital process (theorem 3, equations 24 and 26): a candidate mean is kept while
    neither of two gamblers, who bet on larger and smaller values with half of the wealth each, has
    multiplied the wealth by 1/alpha. Narrower than `empirical_bernstein`; takes `grid` times the
    memory.

    Args:
        values: Shape (n,), each from 0 to 1.
        alpha: The chance that the sequence ever misses the mean.
        grid: The number of candidate means.
    """
    _check(values, alpha)
    if values.ndim != 1:
        raise ValueError(f"one series is needed, not the shape {values.shape}")
    count = np.arange(1, len(values) + 1)
    _, before_variance = _running_moments(values)
    bet = np.sqrt(2 * np.log(2 / alpha) / (before_variance * count * np.log1p(count)))
    means = (np.arange(grid) + 0.5) / grid
    change = values[:, None] - means
    up = np.minimum(bet[:, None], MAX_SHARE / means)
    down = np.minimum(bet[:, None], MAX_SHARE / (1 - means))
    wealth = np.maximum(
        np.cumsum(np.log1p(up * change), axis=0), np.cumsum(np.log1p(-down * change), axis=0)
    )
    kept = np.maximum.accumulate(wealth, axis=0) < np.log(2 / alpha)
    any_kept = kept.any(axis=1)
    first = np.argmax(kept, axis=1)
    last = grid - 1 - np.argmax(kept[:, ::-1], axis=1)
    # Where nothing is left, the bounds were broken; an empty interval says so.
    low = np.where(any_kept, first / grid, np.nan)
    high = np.where(any_kept, (last + 1) / grid, np.nan)
    return low, high


def _running_moments(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and variance of the values before each one, with half a value's worth of a prior (the
    paper's equation 15).
    """
    count = np.arange(1, values.shape[-1] + 1)
    mean = (0.5 + np.cumsum(values, axis=-1)) / (count + 1)
    variance = (0.25 + np.cumsum((values - mean) ** 2, axis=-1)) / (count + 1)
    return _delay(mean, 0.5), _delay(variance, 0.25)


def _delay(values: FloatArray, first: float) -> FloatArray:
    """Each value in the next one's place."""
    start = np.full((*values.shape[:-1], 1), first)
    return np.concatenate([start, values[..., :-1]], axis=-1)


def _check(values: FloatArray, alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 1")
    if values.size and not (np.min(values) >= 0 and np.max(values) <= 1):
        raise ValueError("the values must be from 0 to 1; scale them by their bounds")
