"""What routing policies are worth to 64 and to 1,024 simulated replicas.

    python benchmarks/simulated_routing.py [--sizes 64,1024]

The router's own code over replicas that exist in the simulation alone (`thrifty simulate`), with the
rates of SmolLM2-135M in 8 bits on two AVX512 cores. For each policy and trace: the highest rate, in
requests a second for each replica, at which 95% of requests are within the objective. The objective
is twice the 95th percentile of the times that requests have without load. Traces are sped up and
multiplied to that rate; the lengths of `prefixes` are divided by 8, those of `conversation` by 2.
Every round has another seed, for the order of ties and the places of copies.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from common import figure, find_trace, finish, parse_arguments, say, show_spread, spread
from thrifty.gateway.routing import POLICIES
from thrifty.simulate.outcome import Outcome
from thrifty.simulate.rates import ReplicaRates
from thrifty.simulate.run import summarize_trace
from thrifty.simulate.scaler import Bounds, FixedCount, Objective
from thrifty.simulate.sizing import ATTAINED, profile_replica
from thrifty.simulate.trace import TraceFaults, TraceOptions, read_trace
from thrifty.simulate.world import Setup, simulate

RATES = ReplicaRates(
    "SmolLM2-135M, int8", slots=32, tpot_s={1: 0.0127, 8: 0.0256, 32: 0.0756}, prefill_s=0.0004,
    fixed_s=0.01, chunk_tokens=256, cache_tokens=100_000, start_s=3.0,
)  # fmt: skip
TOKENS = {"conversation": 0.5, "prefixes": 0.125}
REQUESTS_EACH = 40
"""At least so many requests for each replica: fewer would not fill caches and queues."""
STEPS, RANGE = 7, 4.0
"""Of the search: the rate is narrowed down from a range around what one replica takes alone, a
quarter to four times that, to 2%."""


def try_rate(
    kind: str, path: Path, setup: Setup, rate: float, requests: int, duration_s: float
) -> Outcome:
    """A fleet under the trace at `rate` requests a second for each replica."""
    count = setup.bounds.high
    scale = max(1.0, REQUESTS_EACH * count / requests)
    speed = rate * count * duration_s / (requests * scale)
    options = TraceOptions(speed=speed, scale=scale, tokens=TOKENS[kind], seed=setup.seed)
    if setup.objective != Objective():
        # What has missed too much already need not be simulated to its end.
        misses = (1 - ATTAINED) * requests * scale
        setup = dataclasses.replace(setup, most_misses=misses)
    return simulate(
        read_trace(path, options, TraceFaults()), setup, FixedCount(count), setup.routing
    )


def find_rate(kind: str, path: Path, setup: Setup, each: float, trace: Any) -> float:
    """The highest rate at which the objective is held, around `each`."""
    low, high = each / RANGE, each * RANGE
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        found = try_rate(kind, path, setup, middle, trace.requests, trace.duration_s)
        if found.slo_attainment >= ATTAINED:
            low = middle
        else:
            high = middle
    return low


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=2, sizes=(str, "64,1024", "Numbers of replicas.")
    )
    table: list[tuple[str, ...]] = [("trace", "replicas", "policy", "requests/s each", "over auto")]
    record: dict[str, Any] = {}
    figures = []
    for kind in TOKENS:
        path = find_trace(kind)
        trace = summarize_trace(path, TraceOptions(tokens=TOKENS[kind]))
        free = Setup(RATES, Objective(), Bounds(64, 64), waiting=10**6, wait_timeout_s=600.0)
        alone = try_rate(kind, path, free, 0.001, trace.requests, trace.duration_s)
        objective = Objective(2 * alone.ttft_p95_s, 2 * alone.tpot_p95_s)
        capacity = profile_replica(
            trace.sample,
            dataclasses.replace(free, objective=objective),
        )
        if capacity is None:
            raise SystemExit(f"{kind}: one replica cannot hold {objective}")
        for count in (int(part) for part in options.sizes.split(",")):
            rates: dict[str, list[float]] = {name: [] for name in POLICIES}
            for seed in range(options.rounds):
                for name in POLICIES:
                    setup = dataclasses.replace(
                        free,
                        objective=objective,
                        bounds=Bounds(count, count),
                        routing=name,
                        seed=seed,
                    )
                    rates[name].append(find_rate(kind, path, setup, capacity.requests_per_s, trace))
                say(f"{kind}, {count} replicas: round {seed + 1} of {options.rounds} done")
            others = {name: values for name, values in rates.items() if name != "auto"}
            ratios = [
                ours / max(values[index] for values in others.values())
                for index, ours in enumerate(rates["auto"])
            ]
            bar = 1.3 if kind == "prefixes" else 1.0
            figures.append(
                figure(
                    f"{count} simulated replicas, trace `{kind}`: load within the objective, `auto` "
                    "over the best other policy", ratios, f">= {bar} x", min(ratios) >= bar,
                )
            )  # fmt: skip
            record[f"{kind}, {count}"] = {
                "rates": rates, "ratios": spread(ratios),
                "objective": {"ttft_s": objective.ttft_s, "tpot_s": objective.tpot_s},
            }  # fmt: skip
            table += [
                (kind, str(count), name, show_spread(values, "{:.3f}"),
                 f"{values[0] / rates['auto'][0]:.2f}")
                for name, values in rates.items()
            ]  # fmt: skip
    finish("simulated_routing", {"rounds": options.rounds, **record}, table, figures,
           save=not options.no_save)  # fmt: skip


if __name__ == "__main__":
    main()
