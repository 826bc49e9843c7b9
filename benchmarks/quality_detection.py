"""How soon a version that became worse is told, and how often one that did not is.

    python benchmarks/quality_detection.py

Simulated, because what counts is chance: a version whose answers users accept 80% of the time serves
on, and beside it one with 75%, looked at after every 50 conversations, for ever. The same code decides
as in a service (`quality.worse`). Beside it: a test with a fixed horizon (two proportions, the level
and the number of conversations chosen beforehand for a power of 90%), which may be looked at once.
Then 1,000 replays in which nothing is worse, each of 20,000 conversations looked at 400 times, with all
14 figures; and 1,000 months of unchanged days, each compared with the week before (`quality.drift`).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from common import figure, finish, parse_arguments, say
from thrifty.db.quality_sums import SumRow
from thrifty.observe.rollups.sketch import make_sketch
from thrifty.quality.detect import FAULTS
from thrifty.quality.drift import ANSWERS, compare_periods, make_period
from thrifty.quality.figures import ENGAGEMENT
from thrifty.quality.worse import ALPHA, FIGURE_ALPHA, compare_share

REPLAYS = 1000
SHARE, DROP = 0.80, 0.05
EVERY, MOST = 50, 20_000
OTHERS = 3
"""The other version has so many times the conversations: the new one has a share of 25%."""
KNOWN = (0, 20_000)
"""Conversations of the other version before the new one begins."""
USUAL = dict.fromkeys(FAULTS, 0.02) | dict.fromkeys(ENGAGEMENT, 0.05) | {"accepted": SHARE}
LEAST_DROP = 0.03
"""`alerts.quality_drop`, as it is by default."""
DAYS, A_DAY = 37, 400
"""A month of looks, after a week that the first is compared with; conversations of each day."""


def upper_bound(hits: int, count: int) -> float:
    """The upper end of the exact 95% interval (Clopper and Pearson, two-sided)."""
    low, high = hits / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(
            math.exp(
                math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
                + k * math.log(middle) + (count - k) * math.log1p(-middle)
            )
            for k in range(hits + 1)
        )  # fmt: skip
        low, high = (middle, high) if tail > 0.025 else (low, middle)
    return high


def find_told(chance: np.random.Generator, share: float, known: int) -> int | None:
    """After how many of its conversations a version is told to be worse in what users accept."""
    others, other_count = int(chance.binomial(known, SHARE)), known
    hits, count = 0, 0
    while count < MOST:
        hits += int(chance.binomial(EVERY, share))
        count += EVERY
        others += int(chance.binomial(EVERY * OTHERS, SHARE))
        other_count += EVERY * OTHERS
        theirs = {"accepted": [float(other_count), float(others), 0.0, 0.0]}
        ours = {"accepted": [float(count), float(hits), 0.0, 0.0]}
        if compare_share(ours, theirs, "accepted", LEAST_DROP) is not None:
            return count
    return None


def plan_fixed(known: int, level: float, power: float = 0.9) -> int:
    """The conversations that a one-sided test of two proportions needs, looked at once."""
    need = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(power)
    worse = SHARE - DROP
    for count in range(EVERY, 10**6, EVERY):
        other_count = known + OTHERS * count
        pooled = (other_count * SHARE + count * worse) / (other_count + count)
        if need * math.sqrt(pooled * (1 - pooled) * (1 / other_count + 1 / count)) <= DROP:
            return count
    return 10**6


def measure_delay(replays: int, known: int) -> dict[str, Any]:
    """How many conversations it takes, over replays."""
    told = [find_told(np.random.default_rng(seed), SHARE - DROP, known) for seed in range(replays)]
    found = sorted(one if one is not None else MOST * 10 for one in told)
    rank = 1.96 * math.sqrt(replays) / 2
    ends = [found[max(0, min(replays - 1, int(replays / 2 + side * rank)))] for side in (-1, 1)]
    return {
        "known": known, "replays": replays, "median": found[replays // 2],
        "median_low": ends[0], "median_high": ends[1], "p90": found[int(replays * 0.9)],
        "told": sum(one is not None for one in told),
        "fixed_horizon": plan_fixed(known, FIGURE_ALPHA),
        "fixed_horizon_one_figure": plan_fixed(known, ALPHA),
    }  # fmt: skip


def count_false_alarms(replays: int, known: int) -> int:
    """Replays in which some figure of a version that is like the other is ever called worse."""
    return sum(
        any(
            _is_ever_told(np.random.default_rng([10_000 + seed, place]), name, share, known)
            for place, (name, share) in enumerate(USUAL.items())
        )
        for seed in range(replays)
    )


def _is_ever_told(chance: np.random.Generator, name: str, share: float, known: int) -> bool:
    looks = MOST // EVERY
    counts = EVERY * np.arange(1, looks + 1)
    other_counts = known + OTHERS * counts
    hits = np.cumsum(chance.binomial(EVERY, share, looks))
    others = chance.binomial(known, share) + np.cumsum(
        chance.binomial(EVERY * OTHERS, share, looks)
    )
    # Evidence enough for an alarm needs more than 3 standard errors; other looks need no arithmetic.
    pooled = (hits + others) / (counts + other_counts)
    error = np.sqrt(pooled * (1 - pooled) * (1 / counts + 1 / other_counts)) + 1e-12
    apart = np.abs(hits / counts - others / other_counts) / error > 3
    return any(
        compare_share(
            {name: [float(counts[at]), float(hits[at]), 0.0, 0.0]},
            {name: [float(other_counts[at]), float(others[at]), 0.0, 0.0]},
            name,
            1e-9,
        )
        is not None
        for at in np.flatnonzero(apart)
    )


def make_day(chance: np.random.Generator, day: int, changes: float = 0.0) -> SumRow:
    """The sums of one day."""
    values = {
        "completion_tokens": np.ceil(chance.lognormal(5, 0.8, A_DAY)),
        "word_length": chance.normal(4.6, 0.4, A_DAY),
        "distinct_words": np.round(chance.beta(20, 6, A_DAY) * 50) / 50,
    }
    sketches = {name: make_sketch(list(some)).encode() for name, some in values.items()}
    counts = {
        name: [float(A_DAY), float(chance.binomial(A_DAY, USUAL[name] + changes)), 0.0, 0.0]
        for name in FAULTS
    }
    return SumRow(day, "chat", "a", counts, sketches)


def count_drift_alarms(replays: int) -> int:
    """Months of unchanged days with an alarm on any day."""
    alarms = 0
    for seed in range(replays):
        chance = np.random.default_rng(20_000 + seed)
        days = [make_day(chance, day) for day in range(DAYS)]
        alarms += any(
            any(
                one[5]
                for one in compare_periods(
                    make_period(days[at - 7 : at]), make_period([days[at]]), list(ANSWERS),
                    list(FAULTS),
                )
            )
            for at in range(7, DAYS)
        )  # fmt: skip
    return alarms


def measure_drift_power(replays: int) -> float:
    """The share of days on which five points more of each fault are told."""
    told = 0
    for seed in range(replays):
        chance = np.random.default_rng(30_000 + seed)
        before = [make_day(chance, day) for day in range(7)]
        now = make_day(chance, 7, changes=DROP)
        found = compare_periods(
            make_period(before), make_period([now]), list(ANSWERS), list(FAULTS)
        )
        told += any(one[5] for one in found)
    return told / replays


def main() -> None:
    arguments = parse_arguments(__doc__ or "", rounds=REPLAYS)
    replays = arguments.rounds
    table = [["what", "result"]]
    record: dict[str, Any] = {"replays": replays, "share": SHARE, "drop": DROP, "delays": []}
    figures = []

    def note(what: str, result: str) -> None:
        table.append([what, result])
        say(f"{what}: {result}")

    for known in KNOWN:
        one = measure_delay(replays, known)
        record["delays"].append(one)
        note(
            f"worse by {DROP:.0%}, {known} conversations of the other version known",
            f"told after {one['median']} conversations ({one['median_low']} to "
            f"{one['median_high']}), 90% of replays within {one['p90']}; fixed horizon "
            f"{one['fixed_horizon']}, of one figure alone {one['fixed_horizon_one_figure']}",
        )
        ratio = one["median"] / one["fixed_horizon"]
        figures.append(
            figure(
                f"conversations until a version worse by 5 points is told, over a fixed horizon "
                f"({known} of the other known)", [ratio], "stated", True, "{:.2f}",
            )
        )  # fmt: skip
    for name, alarms in (
        *(
            (f"unchanged replays, {known} known", count_false_alarms(replays, known))
            for known in KNOWN
        ),
        ("unchanged months of drift looks", count_drift_alarms(replays)),
    ):
        bound = upper_bound(alarms, replays)
        record[name] = {"alarms": alarms, "upper": bound}
        note(name, f"{alarms} of {replays} with a false alarm; upper 95% bound {bound:.2%}")
        figures.append(
            figure(f"{name} with a false alarm, upper bound", [bound], "<= 0.02 x", bound <= 0.02,
                   "{:.4f}")
        )  # fmt: skip
    record["drift_power"] = measure_drift_power(min(replays, 200))
    note("a day with 5 points more of every fault is told", f"{record['drift_power']:.1%}")
    finish("quality_detection", record, table, figures, save=not arguments.no_save)


if __name__ == "__main__":
    main()
