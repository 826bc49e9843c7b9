"""How much one replica can take, and how many it takes for an objective."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from thrifty.simulate.outcome import Outcome
from thrifty.simulate.rivals import Capacity
from thrifty.simulate.scaler import Bounds, FixedCount
from thrifty.simulate.trace import TraceRequest
from thrifty.simulate.world import Setup, simulate
from thrifty.types import OnProgress, ignore_progress

ATTAINED = 0.95
"""An objective on 95th percentiles is held if this share of requests is within it."""
PROFILED = 1500
"""Requests in each trial of a profile."""
TRIALS = 12
LEAST_RATE, MOST_RATE = 1e-4, 1e5
"""Requests a second between which the capacity of a replica is sought."""

MakeRequests = Callable[[], Iterator[TraceRequest]]


def profile_replica(sample: Sequence[TraceRequest], setup: Setup) -> Capacity | None:
    """The load that one replica takes within the objective: `sample`'s requests with random gaps
    (Poisson), faster and faster. None if a single request at a time is beyond the objective.
    """
    best: Capacity | None = None
    rng = random.Random(f"{setup.seed}/profile")
    gaps = [rng.expovariate(1.0) for _ in range(PROFILED)]
    low, high = _guess_rates(sample, setup)
    for _ in range(TRIALS):
        rate = (low * high) ** 0.5
        found = _try_rate(sample, gaps, rate, setup)
        if found is None:
            high = rate
        else:
            low, best = rate, found
    return best


def _guess_rates(sample: Sequence[TraceRequest], setup: Setup) -> tuple[float, float]:
    """Between which rates the capacity must be: from a hundredth of what full slots would do."""
    rates = setup.rates
    prompt = sum(request.prompt_tokens for request in sample) / len(sample)
    answer = sum(request.answer_tokens for request in sample) / len(sample)
    fastest_s = rates.idle_ttft_s + answer * min(rates.tpot_s.values()) + 1e-9
    alone_s = rates.fixed_s + prompt * rates.prefill_s + answer * rates.tpot_at(1)
    low = max(LEAST_RATE, 0.01 / max(alone_s, 1e-9))
    return low, min(MOST_RATE, 2 * rates.slots / fastest_s)


def _try_rate(
    sample: Sequence[TraceRequest], gaps: Sequence[float], rate: float, setup: Setup
) -> Capacity | None:
    """What was there at once at this rate, if the objective was held."""

    def requests() -> Iterator[TraceRequest]:
        at_s = 0.0
        for number, gap in enumerate(gaps):
            yield sample[number % len(sample)]._replace(at_s=at_s)
            at_s += gap / rate

    misses = (1 - ATTAINED) * len(gaps)
    one = replace(setup, bounds=Bounds(1, 1), first=1, warm_up_s=0.0, most_misses=misses)
    found = simulate(requests(), one, FixedCount(1), "profile")
    if found.slo_attainment < ATTAINED:
        return None
    # Little's law.
    request_s = found.ttft_mean_s + found.tpot_mean_s * found.answer_tokens_mean
    return Capacity(rate, max(1.0, rate * request_s))


def find_count(
    make_requests: MakeRequests,
    setup: Setup,
    *,
    expected: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> Outcome | None:
    """The least number of replicas, always running, that holds the objective; None if even
    `bounds.high` do not. A few more replicas are assumed never to do worse.
    """
    low, high = max(1, setup.bounds.low), setup.bounds.high
    misses = (1 - ATTAINED) * expected if expected else math.inf

    def run(count: int) -> Outcome:
        fixed = replace(setup, bounds=Bounds(count, count), first=count, most_misses=misses)
        return simulate(
            make_requests(), fixed, FixedCount(count), f"fixed_{count}",
            expected=expected, on_progress=on_progress,
        )  # fmt: skip

    # Doubling first: large fleets take longer to simulate.
    best, at = None, low
    while best is None:
        found = run(at)
        if found.slo_attainment >= ATTAINED:
            best = found
        elif at >= high:
            return None
        else:
            low, at = at + 1, min(high, at * 2)
    high = at
    while low < high:
        middle = (low + high) // 2
        found = run(middle)
        if found.slo_attainment >= ATTAINED:
            best, high = found, middle
        else:
            low = middle + 1
    return best
