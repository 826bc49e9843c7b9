"""Estimates with intervals: drops, costs, and which candidate is certainly better than another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from thrifty.evaluate.gate import drop_of_ratio

CONFIDENCE = 0.95
TRIAL_SPREAD = 0.05
"""By how much the speeds of equal replicas differ from one start to the next, as a share. It is added
to the spread within a measurement, which cannot see it."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; infinite ends say that nothing is known."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """As JSON, which has no infinity: null."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def z_of(tests: int) -> float:
    """Standard errors in half of an interval, so that `tests` upper ends hold together with 97.5%
    confidence, as one 95% interval does (Bonferroni). The pick is one of several that were tested,
    and the luckiest of them must not pass for the best.
    """
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, tests))


def t_of(z: float, freedom: int) -> float:
    """Student's quantile at the probability of the normal quantile `z`: exact for one and two degrees
    of freedom, else by Abramowitz & Stegun 26.7.5.
    """
    n = max(1, freedom)
    if n <= 2:
        p = NormalDist().cdf(z)
        spread = 2 * p - 1
        return math.tan(math.pi * spread / 2) if n == 1 else spread * math.sqrt(2 / (1 - spread**2))
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def find_drop(ratio: float, stderr: float, windows: int, z: float) -> Interval:
    """The drop of a perplexity ratio. Its error comes from few windows, so Student's distribution
    is used, on the logarithm.
    """
    if not math.isfinite(stderr) or windows < 2:
        return Interval(drop_of_ratio(ratio), 0.0, 1.0)
    half = t_of(z, windows - 1) * stderr / ratio
    low, high = ratio * math.exp(-half), ratio * math.exp(min(half, 50.0))
    return Interval(drop_of_ratio(ratio), drop_of_ratio(low), drop_of_ratio(high))


def find_lost(kept: int, right: int, z: float) -> Interval:
    """The share of `right` answers that are lost. Wilson 1927."""
    if right == 0:
        return Interval(0.0, 0.0, 1.0)
    lost = (right - kept) / right
    square = z**2 / right
    centre = (lost + square / 2) / (1 + square)
    half = z * math.sqrt(lost * (1 - lost) / right + square / (4 * right)) / (1 + square)
    return Interval(lost, max(0.0, min(lost, centre - half)), min(1.0, max(lost, centre + half)))


def find_cost(speed: Interval, price_per_hour: float) -> Interval:
    """What a million tokens cost at a speed in tokens per second within the objective."""

    def cost(tokens_per_s: float) -> float:
        return price_per_hour / (tokens_per_s * 3600) * 1e6 if tokens_per_s > 0 else math.inf

    low = speed.low * (1 - TRIAL_SPREAD)
    return Interval(cost(speed.value), cost(speed.high * (1 + TRIAL_SPREAD)), cost(low))


def find_worst(drops: Mapping[str, Interval]) -> tuple[str, Interval] | None:
    """The name and drop of what drops most; None if nothing was measured."""
    worst = max(drops, key=lambda name: drops[name].value, default=None)
    return None if worst is None else (worst, drops[worst])


def read_drops(found: Mapping[str, Any], z: float) -> dict[str, Interval]:
    """The drops of domains, from each one's ratio, standard error and number of windows."""
    return {
        name: find_drop(one["perplexity_ratio"], one["perplexity_ratio_stderr"], one["windows"], z)
        for name, one in found.items()
    }


def is_beyond(drops: Mapping[str, Interval], bound: float) -> bool:
    """Whether a drop is certainly larger than the bound."""
    return any(one.low > bound for one in drops.values())


def is_within(drops: Mapping[str, Interval], bound: float) -> bool:
    """Whether all drops are certainly within the bound."""
    return bool(drops) and all(one.high <= bound for one in drops.values())


def predict_drop(drop: float, tokens: int, more_tokens: int) -> float:
    """The least drop that can be hoped for with more distillation: the log of the perplexity ratio
    falls no faster than with the square root of the tokens.
    """
    log_ratio = -math.log(max(1e-9, 1 - min(drop, 1 - 1e-9)))
    return 1 - math.exp(-log_ratio * math.sqrt(tokens / more_tokens))
