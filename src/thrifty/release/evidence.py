"""What is known of a candidate: each metric with an interval and a verdict, valid at every look.

The canary's metrics are differences between conversations that chance sent to the candidate and to
the other versions, by asymptotic confidence sequences; failures are counted exactly. The paired
shadow's metric is tested on the pairs that one version won. `alpha` is split over all metrics, and a
verdict is one-sided: `worse` and `not worse` err with that chance each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from thrifty.release.chances import find_chance, find_rate
from thrifty.release.conversations import Conversation
from thrifty.release.plan import (
    ACCEPTANCE,
    COST,
    ERRORS,
    JUDGED,
    RATED,
    RATIO_ALPHA,
    TPOT,
    TTFT,
    ReleasePlan,
)
from thrifty.statistics import (
    ArmDifference,
    BlockDifference,
    betting_evidence,
    bound_share,
    compare_arms,
    compare_blocks,
    excess_evidence,
    ratio_evidence,
    split_budget,
)

BLOCK_S = 15.0
"""Times are compared by blocks of so long: see `statistics.compare_blocks`."""
BETTER, NOT_WORSE, WORSE, INCONCLUSIVE = "better", "not worse", "worse", "inconclusive"
NOTHING_WORSE = "nothing worse"
"""Of a release that guards alone decide: times, cost and scores rule out a loss beyond what is tolerated
and the margin, and nothing is worse."""
SIGNS = {ACCEPTANCE: 1.0, RATED: 1.0, TTFT: -1.0, TPOT: -1.0, COST: -1.0}
"""Which way is good: 1 where more is better."""
ABSOLUTE = (ACCEPTANCE, RATED)
"""Differences of these are not relative."""


@dataclass(frozen=True)
class MetricEvidence:
    """One metric. Differences are the candidate less the others; relative ones for times and cost."""

    metric: str
    verdict: str
    difference: float | None
    low: float | None
    high: float | None
    """The ends of two one-sided sequences at `level`; None: not known yet."""
    level: float
    candidate: float | None
    """Its own mean, where it is one."""
    others: float | None
    candidate_count: int
    others_count: int


@dataclass(frozen=True)
class Evidence:
    """All metrics, and whether the shares are as planned."""

    metrics: dict[str, MetricEvidence]
    ratio_broken: bool = False
    assigned: tuple[int, int] = (0, 0)
    """Conversations that went to the candidate, and all."""
    expected: float = 0.0
    """How many should have gone to the candidate."""
    requests: int = 0
    left_out: int = 0
    pairs: int = 0
    silent_pairs: int = 0
    """Those about which the judge said nothing usable; they are no evidence."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "metrics": {name: asdict(one) for name, one in self.metrics.items()},
            "conversations": {"candidate": self.assigned[0], "all": self.assigned[1],
                              "expected": round(self.expected, 1), "as_planned": not self.ratio_broken},
            "requests": self.requests, "left_out": self.left_out, "pairs": self.pairs,
            "silent_pairs": self.silent_pairs,
        }  # fmt: skip


def weigh(
    plan: ReleasePlan,
    measured: Sequence[Conversation],
    judged: Sequence[Conversation],
    shares: Sequence[float],
    outcomes: Sequence[int],
    rated: Sequence[Conversation] = (),
    control: Callable[[Conversation], bool] | None = None,
) -> dict[str, MetricEvidence]:
    """The evidence of each metric of the plan, the primary one first.

    Args:
        plan: The plan.
        measured: Conversations whose requests are complete, in order.
        judged: Conversations with feedback, in order.
        shares: The candidate's share in each step.
        outcomes: Pairs about which the judge said something, in order: 1, 0 or -1.
        rated: Conversations of which an answer was scored, in order.
        control: Of a bandit: whether a conversation is in the control slice, half of which is the
            candidate's. Acceptance and scores are of that slice alone.
    """
    tolerances = plan.metrics
    names = list(tolerances)
    levels = split_budget(plan.alpha, names[0], names[1:])
    scored = [find_chance(share) for share in shares]
    fair = list(shares)
    if control is not None:
        judged = [one for one in judged if control(one)]
        rated = [one for one in rated if control(one)]
        # Of the others' half, as many are scored as at the share that there was.
        scored = [0.5 / (0.5 + 0.5 * find_rate(share)) for share in shares]
        fair = [0.5] * len(shares)
    columns: dict[
        str, tuple[Sequence[Conversation], Callable[[Conversation], float], Sequence[float]]
    ] = {
        ACCEPTANCE: (judged, lambda one: one.liked, fair),
        RATED: (rated, lambda one: one.rated, scored),
        TTFT: (measured, lambda one: _mean(one.log_ttft), shares),
        TPOT: (measured, lambda one: _mean(one.log_tpot), shares),
        COST: (measured, _log_cost, shares),
    }
    found = {}
    for name, level in levels.items():
        if name == JUDGED:
            found[name] = weigh_pairs(outcomes, tolerances[name], plan.margin, level)
        elif name == ERRORS:
            found[name] = weigh_failures(measured, shares, tolerances[name], level)
        else:
            rows, read, chances = columns[name]
            found[name] = weigh_arms(
                name, rows, read, chances, tolerances[name], plan.margin, level
            )
    return found


def weigh_arms(
    metric: str,
    rows: Sequence[Conversation],
    read: Callable[[Conversation], float],
    shares: Sequence[float],
    tolerance: float,
    margin: float,
    level: float,
) -> MetricEvidence:
    """A metric with a value for each conversation."""
    values = np.array([read(one) for one in rows], dtype=float)
    known = np.isfinite(values)
    values = values[known]
    treated = np.array([one.treated for one in rows], dtype=bool)[known]
    chances = np.array([shares[one.step] for one in rows], dtype=float)[known]
    counts = int(treated.sum()), int((~treated).sum())
    relative = metric not in ABSOLUTE
    means = (
        _back(float(values[treated].mean()), relative) if counts[0] else None,
        _back(float(values[~treated].mean()), relative) if counts[1] else None,
    )
    if not len(values):
        return MetricEvidence(metric, INCONCLUSIVE, None, None, None, level, *means, *counts)
    found: ArmDifference | BlockDifference
    if metric in (TTFT, TPOT):
        times = np.array([one.first_s for one in rows], dtype=float)[known]
        found = compare_blocks(values, treated, (times // BLOCK_S).astype(np.int64))
    else:
        found = compare_arms(values, treated, chances)
    lows, highs = found.bounds(level)
    if not len(lows):
        return MetricEvidence(metric, INCONCLUSIVE, None, None, None, level, *means, *counts)
    low, high, estimate = float(lows[-1]), float(highs[-1]), float(found.estimate[-1])
    if SIGNS[metric] > 0:
        gain_low, gain_high = low, high
        worse, slack = tolerance, margin
    else:
        gain_low, gain_high = -high, -low
        worse, slack = math.log1p(tolerance), math.log1p(margin)
    verdict = INCONCLUSIVE
    if gain_high < -worse:
        verdict = WORSE
    elif gain_low > 0:
        verdict = BETTER
    elif gain_low > -slack:
        verdict = NOT_WORSE
    return MetricEvidence(
        metric, verdict, _show(estimate, relative), _show(low, relative), _show(high, relative),
        level, *means, *counts,
    )  # fmt: skip


def weigh_failures(
    rows: Sequence[Conversation], shares: Sequence[float], tolerance: float, level: float
) -> MetricEvidence:
    """Conversations with a failed request.

    If versions fail alike, each failing conversation is the candidate's with the chance of its
    share, whatever the rate of failures. The candidate is worse where too many are its own, and its
    rate is higher by more than what is tolerated.
    """
    failed = [one for one in rows if one.failures]
    evidence = 0.0
    for place, share in enumerate(shares):
        if 0 < share < 1:
            there = [one for one in failed if one.step == place]
            hits = sum(one.treated for one in there)
            evidence += float(excess_evidence(hits, len(there), share))
    counts = sum(one.treated for one in rows), sum(not one.treated for one in rows)
    failures = sum(one.treated for one in failed), sum(not one.treated for one in failed)
    rates = [part / whole if whole else None for part, whole in zip(failures, counts, strict=True)]
    first, second = rates
    difference = None if first is None or second is None else first - second
    worse = evidence >= math.log(1 / level) and difference is not None and difference > tolerance
    verdict = WORSE if worse else INCONCLUSIVE
    return MetricEvidence(ERRORS, verdict, difference, None, None, level, first, second, *counts)


def weigh_pairs(
    outcomes: Sequence[int], tolerance: float, margin: float, level: float
) -> MetricEvidence:
    """Pairs of answers about which a judge said something. The difference is the share won less the
    share lost. Leaving out the other pairs makes no loss look smaller: of all pairs it would be a
    smaller share.

    What the pairs have once proved stands: the chance of an error is bounded over all looks together
    (Ville's inequality), so that a pair that comes later takes no verdict back. Its bounds are those
    of the share won of the pairs that either won so far, by the test that decides, times the share of
    such pairs.
    """
    count = len(outcomes)
    if not count:
        return MetricEvidence(JUDGED, INCONCLUSIVE, None, None, None, level, None, None, 0, 0)
    results = np.array(outcomes, dtype=float)
    won, lost = np.cumsum(results > 0), np.cumsum(results < 0)
    wins, losses = int(won[-1]), int(lost[-1])
    bar = math.log(1 / level)
    difference = (wins - losses) / count
    verdict = INCONCLUSIVE
    if excess_evidence(lost, won + lost, 0.5).max() >= bar and difference < -tolerance:
        verdict = WORSE
    elif excess_evidence(won, won + lost, 0.5).max() >= bar:
        verdict = BETTER
    elif betting_evidence((results + 1) / 2, (1 - margin) / 2).max() >= bar:
        verdict = NOT_WORSE
    decided, low, high = wins + losses, -1.0, 1.0
    if decided:
        low = decided / count * (2 * bound_share(wins, decided, level) - 1)
        high = decided / count * (1 - 2 * bound_share(losses, decided, level))
    return MetricEvidence(
        JUDGED, verdict, difference, low, high, level, wins / count, losses / count, count, count
    )


def check_ratio(
    assigned: dict[int, list[int]], shares: Sequence[float]
) -> tuple[bool, tuple[int, int], float]:
    """Whether conversations went to the candidate in other shares than planned; how many went to it
    and how many there were; and how many of them it should have been.
    """
    steps = [
        (counts[0], counts[1], shares[place])
        for place, counts in sorted(assigned.items())
        if 0 < shares[place] < 1
    ]
    broken = ratio_evidence(steps) >= math.log(1 / RATIO_ALPHA)
    total = sum(one[0] for one in steps), sum(one[1] for one in steps)
    return broken, total, sum(count * share for _, count, share in steps)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _log_cost(one: Conversation) -> float:
    return math.log(one.cost / one.costed) if one.costed and one.cost > 0 else math.nan


def _back(value: float, relative: bool) -> float:
    return math.exp(value) if relative else value


def _change(value: float, relative: bool) -> float:
    """A difference of logarithms as a relative change."""
    return math.expm1(min(value, 700.0)) if relative else value


def _show(value: float, relative: bool) -> float | None:
    """An end of an interval, or its middle; None where it is not known."""
    return _change(value, relative) if math.isfinite(value) else None
