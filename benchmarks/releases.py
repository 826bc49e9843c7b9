"""Simulated releases: how often they err, and how soon they decide.

    python benchmarks/releases.py --replays 1000

Each replay is a release by the default plan, looked at after every conversation: 5,000 of them at a
share of 1%, 1,000 at 5% (50 with the candidate, as the plan asks), and up to 14,000 at 25%. 80 of 100
conversations are liked, 1 of 500 has a failed request, and times (five
conversations a second) and cost are lognormal; an equal
version draws from the same distributions, a worse one is liked by 5 points less. With a judge, the
paired shadow comes first: 11 of 100 pairs are discordant, and the candidate loses as many as it wins,
or 5 points more. The error budget is shared as in the product, whose functions decide here.

"Time to the decision" is that of a canary which begins at 25%, and of the shadow alone, beside tests of
fixed size at the same level and 95% power. Counts do not depend on the machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from statistics import NormalDist, median
from typing import Any

import numpy as np
import numpy.typing as npt

from common import finish, parse_arguments, say
from thrifty.release.evidence import SIGNS
from thrifty.release.plan import ACCEPTANCE, COST, ERRORS, JUDGED, TPOT, TTFT, parse_plan
from thrifty.statistics import (
    betting_evidence,
    compare_arms,
    compare_blocks,
    excess_evidence,
    split_budget,
)

Array = npt.NDArray[Any]

LIKED, DROP, FAILS = 0.8, 0.05, 0.002
DISCORDANT = 0.11
SPREADS = {TTFT: 0.5, TPOT: 0.2, COST: 0.6}
"""Standard deviations of logarithms."""
STEPS = ((0.01, 5000), (0.05, 1000), (0.25, 14_000))
PER_BLOCK = 75
"""Conversations in a block of time: five a second."""
CHUNK = 25
POWER = 0.95
NEVER = 10**9


def first_true(found: Array) -> Array:
    """The number of the first observation at which something holds, in each replay."""
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, NEVER)


def simulate_canary(
    rng: np.random.Generator,
    replays: int,
    drop: float,
    plan: Any,
    steps: tuple[tuple[float, int], ...] = STEPS,
    promote_after: int | None = None,
) -> list[tuple[str, int, str]]:
    """The outcome of each replay, after how many conversations, and the metric that decided.
    `promote_after` is where the shadow has shown the primary metric not to be worse.
    """
    tolerances = plan.metrics
    names = list(tolerances)
    levels = split_budget(plan.alpha, names[0], names[1:])
    shares = np.concatenate([np.full(count, share) for share, count in steps])
    begin = sum(count for _, count in steps[:-1])
    found: list[tuple[str, int, str]] = []
    while len(found) < replays:
        size = min(CHUNK, replays - len(found))
        treated = rng.random((size, len(shares))) < shares
        chance = np.where(treated, LIKED - drop, LIKED)
        values = {ACCEPTANCE: (rng.random(treated.shape) < chance).astype(float)}
        for name, spread in SPREADS.items():
            values[name] = rng.normal(0.0, spread, treated.shape)
        worse = {ERRORS: find_failures(rng, treated, shares, tolerances[ERRORS], levels[ERRORS])}
        promoted = np.full(size, NEVER)
        for name, drawn in values.items():
            if name in (TTFT, TPOT):
                worse[name] = find_slow(drawn, treated, tolerances[name], levels[name])
                continue
            low, high = compare_arms(drawn, treated, shares).bounds(levels[name])
            gain_low, gain_high = (low, high) if SIGNS[name] > 0 else (-high, -low)
            allowed = tolerances[name] if name == ACCEPTANCE else math.log1p(tolerances[name])
            worse[name] = first_true(gain_high < -allowed)
            if name == plan.primary_metric:
                good = gain_low > -plan.margin
                good[:, :begin] = False
                promoted = first_true(good)
        if promote_after is not None:
            promoted = np.full(size, promote_after)
        for place in range(size):
            metric = min(worse, key=lambda name: worse[name][place])
            if worse[metric][place] <= promoted[place] and worse[metric][place] < NEVER:
                found.append(("rolled back", int(worse[metric][place]), metric))
            elif promoted[place] < NEVER:
                found.append(("promoted", int(promoted[place]), plan.primary_metric))
            else:
                found.append(("inconclusive", len(shares), ""))
    return found


def find_slow(values: Array, treated: Array, tolerance: float, level: float) -> Array:
    """When each replay calls the candidate slower, by blocks of time."""
    blocks = np.arange(values.shape[1]) // PER_BLOCK
    found = np.full(len(values), NEVER)
    for place, row in enumerate(values):
        low, _ = compare_blocks(row, treated[place], blocks).bounds(level)
        slow = np.flatnonzero(low > math.log1p(tolerance))
        if len(slow):
            found[place] = (slow[0] + 1) * PER_BLOCK
    return found


def find_failures(
    rng: np.random.Generator, treated: Array, shares: Array, tolerance: float, level: float
) -> Array:
    """When each replay calls the candidate's failures too many."""
    failed = rng.random(treated.shape) < FAILS
    found = np.full(len(treated), NEVER)
    bar = math.log(1 / level)
    for place, fails in enumerate(failed):
        at = np.flatnonzero(fails)
        evidence = np.zeros(len(at))
        for share in np.unique(shares):
            here = shares[at] == share
            hits = np.cumsum(here & treated[place][at])
            evidence += excess_evidence(hits, np.cumsum(here), float(share))
        ours = np.cumsum(treated[place])[at]
        rate = np.cumsum(treated[place][at]) / np.maximum(ours, 1)
        others = np.cumsum(~treated[place][at]) / np.maximum(at + 1 - ours, 1)
        bad = np.flatnonzero((evidence >= bar) & (rate - others > tolerance))
        if len(bad):
            found[place] = at[bad[0]] + 1
    return found


def simulate_shadow(
    rng: np.random.Generator, replays: int, drop: float, plan: Any
) -> list[tuple[str, int]]:
    """The verdict of each replay of a paired shadow, and after how many pairs."""
    levels = split_budget(plan.alpha, JUDGED, [n for n in plan.metrics if n != JUDGED])
    bar = math.log(1 / levels[JUDGED])
    pairs = plan.shadow.pairs
    drawn = rng.random((replays, pairs))
    lost = drawn < (DISCORDANT + drop) / 2
    won = ~lost & (drawn < DISCORDANT)
    losses, wins = lost.cumsum(axis=1), won.cumsum(axis=1)
    worse = np.full(replays, NEVER)
    better = np.full(replays, NEVER)
    for place in range(replays):
        count = losses[place] + wins[place]
        worse[place] = first_true((excess_evidence(losses[place], count, 0.5) >= bar)[None])[0]
        better[place] = first_true((excess_evidence(wins[place], count, 0.5) >= bar)[None])[0]
    scores = (1.0 + won - lost) / 2
    good = first_true(betting_evidence(scores, (1 - plan.margin) / 2) >= bar)
    good = np.minimum(good, better)
    found = []
    for bad_at, good_at in zip(worse, good, strict=True):
        if min(bad_at, good_at) == NEVER:
            found.append(("inconclusive", pairs))
        else:
            found.append(("worse", int(bad_at)) if bad_at <= good_at else ("good", int(good_at)))
    return found


def simulate_judged(
    rng: np.random.Generator, replays: int, drop: float, plan: Any
) -> list[tuple[str, int, str]]:
    """Releases with a judge: the shadow, then the canary as long as the plan asks at least."""
    shadows = simulate_shadow(rng, replays, drop, plan)
    passed = sum(verdict == "good" for verdict, _ in shadows)
    steps = (*STEPS[:-1], (0.25, 4 * plan.step.conversations))
    total = sum(count for _, count in steps)
    rest = simulate_canary(rng, passed, drop, plan, steps, promote_after=total)
    left = iter(rest)
    return [
        next(left) if verdict == "good" else ("rolled back" if verdict == "worse" else verdict, n, JUDGED)
        for verdict, n in shadows
    ]  # fmt: skip


def upper_bound(count: int, total: int, confidence: float = 0.95) -> float:
    """The upper end of a one-sided interval for a share. Clopper and Pearson 1934."""
    if count == total:
        return 1.0
    low, high = count / total, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(math.comb(total, k) * middle**k * (1 - middle) ** (total - k)
                   for k in range(count + 1))  # fmt: skip
        low, high = (middle, high) if tail > 1 - confidence else (low, middle)
    return high


def fixed_canary(level: float) -> int:
    """Conversations of a fixed test of two proportions at a share of 25%, one-sided."""
    z = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(POWER)
    worse = LIKED - DROP
    variance = worse * (1 - worse) / 0.25 + LIKED * (1 - LIKED) / 0.75
    return math.ceil(z**2 * variance / DROP**2)


def fixed_pairs(level: float) -> int:
    """Pairs of a fixed McNemar test, one-sided (Connor 1987)."""
    normal = NormalDist()
    root = normal.inv_cdf(1 - level) * math.sqrt(DISCORDANT)
    root += normal.inv_cdf(POWER) * math.sqrt(DISCORDANT - DROP**2)
    return math.ceil(root**2 / DROP**2)


def rate_figure(what: str, count: int, total: int) -> dict[str, Any]:
    """How often something went wrong, held to 2% by its upper bound."""
    bound = upper_bound(count, total)
    return {"figure": what, "measured": f"{count} of {total} (upper 95% bound {bound:.2%})",
            "bar": "upper bound <= 2%", "met": bound <= 0.02}  # fmt: skip


def time_figures(
    what: str, times: list[int], fixed: int, bar: int, unit: str
) -> list[dict[str, Any]]:
    """How soon it is decided, and beside a test of fixed size."""
    middle = median(times)
    low, high = np.quantile(times, [0.05, 0.95])
    ratio = middle / fixed
    return [
        {"figure": f"{what}: {unit} until a 5-point drop is told, median",
         "measured": f"{middle:,.0f} (5% to 95%: {low:,.0f} to {high:,.0f})",
         "bar": f"<= {bar:,}", "met": middle <= bar},
        {"figure": f"{what}: over a fixed test of 95% power at the same level ({fixed:,} {unit})",
         "measured": f"{ratio:.2f} x", "bar": "<= 0.8 x", "met": ratio <= 0.8},
    ]  # fmt: skip


def main() -> None:
    arguments = parse_arguments(
        __doc__ or "", rounds=1, replays=(int, 1000, "Releases of each kind."),
        seed=(int, 21, "The same seed gives the same counts."),
    )  # fmt: skip
    replays = arguments.replays
    plain = parse_plan({})
    judged = parse_plan({"shadow": {"judge": "module:function"}})
    kinds: dict[str, Callable[[np.random.Generator], list[tuple[str, int, str]]]] = {
        "equal, acceptance": lambda rng: simulate_canary(rng, replays, 0.0, plain),
        "5 points worse, acceptance": lambda rng: simulate_canary(rng, replays, DROP, plain),
        "equal, judged": lambda rng: simulate_judged(rng, replays, 0.0, judged),
        "5 points worse, judged": lambda rng: simulate_judged(rng, replays, DROP, judged),
    }  # fmt: skip
    table = [["release", "promoted", "rolled back", "inconclusive", "median", "rolled back by"]]
    record: dict[str, Any] = {"replays": replays, "seed": arguments.seed, "outcomes": {}}
    counts: dict[str, Counter[str]] = {}
    for place, (name, simulate) in enumerate(kinds.items()):
        say(f"{name}: {replays} releases")
        outcomes = simulate(np.random.default_rng([arguments.seed, place]))
        counts[name] = Counter(outcome for outcome, _, _ in outcomes)
        by = Counter(metric for outcome, _, metric in outcomes if outcome == "rolled back")
        middle = median(count for _, count, _ in outcomes)
        table.append(
            [name, *(str(counts[name][one]) for one in ("promoted", "rolled back", "inconclusive")),
             f"{middle:,.0f}", ", ".join(f"{m} {c}" for m, c in by.most_common())]
        )  # fmt: skip
        record["outcomes"][name] = {"counts": dict(counts[name]), "by": dict(by), "median": middle}
    say("time to the decision")
    rng = np.random.default_rng([arguments.seed, 9])
    level = split_budget(plain.alpha, ACCEPTANCE, [n for n in plain.metrics if n != ACCEPTANCE])
    canary = simulate_canary(rng, replays, DROP, plain, ((0.25, 20_000),))
    canary_times = [n if outcome == "rolled back" else NEVER for outcome, n, _ in canary]
    shadow = simulate_shadow(rng, replays, DROP, judged)
    shadow_times = [n if verdict == "worse" else NEVER for verdict, n in shadow]
    record["canary_times"], record["shadow_times"] = canary_times, shadow_times
    figures = [
        rate_figure("false rollback of an equal version, by acceptance",
                    counts["equal, acceptance"]["rolled back"], replays),
        rate_figure("false rollback of an equal version, with a judge",
                    counts["equal, judged"]["rolled back"], replays),
        rate_figure("a version 5 points worse promoted, by acceptance",
                    counts["5 points worse, acceptance"]["promoted"], replays),
        rate_figure("a version 5 points worse promoted, with a judge",
                    counts["5 points worse, judged"]["promoted"], replays),
        *time_figures("paired shadow, 11% discordant", shadow_times,
                      fixed_pairs(level[ACCEPTANCE]), 520, "pairs"),
        *time_figures("canary at 25%", canary_times, fixed_canary(level[ACCEPTANCE]), 4500,
                      "requests"),
    ]  # fmt: skip
    finish("releases", record, table, figures, save=not arguments.no_save)


if __name__ == "__main__":
    main()
