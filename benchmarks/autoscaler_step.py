"""What a step of the autoscaler costs at 1,024 replicas.

    python benchmarks/autoscaler_step.py

A step decides for all versions. Three services are measured, each in a state as it is after minutes
of load: one version with 1,024 replicas; 16 versions with 64 each; and these again with less capacity
than they need, so that it is shared out. Nothing is rounded off: rates, histograms and fits are full.
Each round times 200 steps after as many that are not timed. Nothing else runs.
"""

from __future__ import annotations

import math
import random
import time

from common import figure, finish, in_turns, parse_arguments, show_spread, spread
from thrifty.control.autoscale.policy import Autoscaler
from thrifty.control.autoscale.types import (
    UNBOUNDED,
    Bounds,
    Demand,
    Objective,
    Observation,
    Resources,
)
from thrifty.db.demand import BUCKETS, find_bucket

REPLICAS = 1024
STEPS = 200
SLOTS, HOLD_S, BEGIN_S, TOKEN_S, TOKENS = 8, 3.0, 0.2, 0.03, 96
BAR_MS = 5.0


def make_demand(step: int, rate: float, chance: random.Random) -> Demand:
    """What is counted of a version after so many seconds at that rate."""
    total = rate * step + math.sqrt(rate * step) * chance.gauss(0, 1) * 0.1
    begin, token = [0.0] * BUCKETS, [0.0] * BUCKETS
    for share in (0.7, 1.0, 1.4):
        begin[find_bucket(BEGIN_S * share)] += total / 3
        token[find_bucket(TOKEN_S * share)] += total / 3
    return Demand(
        arrivals=total, answered=total, output_tokens=total * TOKENS, held_s=total * HOLD_S,
        streamed=total, begin_s=total * BEGIN_S, timed=total, token_s=total * TOKEN_S,
        begin_buckets=tuple(begin), token_buckets=tuple(token), ttft_buckets=tuple(begin),
        busy_s=total * HOLD_S, in_flight=round(rate * HOLD_S), queued=chance.randint(0, 3),
    )  # fmt: skip


def make_observation(label: str, replicas: int, demand: Demand) -> Observation:
    """A version as it is seen."""
    return Observation(
        key=("deployment", label),
        revision="r",
        bounds=Bounds(1, 2 * replicas),
        count=replicas,
        ready=replicas,
        starting=0,
        demand=demand,
        objective=Objective(1.0, 0.1),
        slots=SLOTS,
        need=Resources(1.0),
    )


def time_steps(versions: int, capacity: Resources = UNBOUNDED) -> float:
    """Milliseconds for one step, on average."""
    policy, chance = Autoscaler(), random.Random(versions)
    each = REPLICAS // versions
    rate = 0.8 * each * SLOTS / HOLD_S
    took_s = 0.0
    for step in range(1, 2 * STEPS + 1):
        seen = [
            make_observation(f"v{index}", each, make_demand(step, rate, chance))
            for index in range(versions)
        ]
        began_s = time.perf_counter()
        policy.step(float(step), seen, capacity)
        took_s += (time.perf_counter() - began_s) * (step > STEPS)
    return took_s / STEPS * 1e3


def main() -> None:
    arguments = parse_arguments(__doc__ or "", rounds=5)
    scarce = Resources(REPLICAS * 0.7, math.inf, math.inf, math.inf)
    times = in_turns(arguments.rounds, {
        "1 version of 1,024 replicas": lambda: time_steps(1),
        "16 versions of 64": lambda: time_steps(16),
        "16 versions of 64, capacity for 70%": lambda: time_steps(16, scarce),
    })  # fmt: skip
    table = [["service", "ms a step"], *([name, show_spread(ms)] for name, ms in times.items())]
    worst = [max(values) for values in zip(*times.values(), strict=True)]
    figures = [
        figure(
            "a step of the autoscaler at 1,024 replicas, the slowest of three services, over 5 ms",
            [ms / BAR_MS for ms in worst], "<= 1 x", max(worst) <= BAR_MS,
        ),
    ]  # fmt: skip
    record = {"replicas": REPLICAS, "steps": STEPS,
              "times_ms": {name: spread(values) for name, values in times.items()}}  # fmt: skip
    finish(
        "autoscaler_step", record, [list(row) for row in table], figures, save=not arguments.no_save
    )


if __name__ == "__main__":
    main()
