"""How few replicas the autoscaler needs beside the rules of others, on recorded traffic.

    python benchmarks/autoscaling.py [--starts 5,60]

Simulated (`thrifty simulate`), with the rates of SmolLM2-135M in 8 bits on two AVX512 cores, from 1
to 64 replicas that take 5 s or a minute to start, over an hour of each trace with twice its requests.
The first ten minutes count for nobody: a trace is cut out of traffic that had been going on.
The objective is twice the 95th percentile of the times that requests have without load. Beside ours
are HPA, KPA, SkyServe's and Dynamo's rules with their default constants, on the same fleet.

The rival to beat is the one with the fewest replica hours among those that hold the objective (95% of
requests), or, where none does, the one with the highest share.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from msgspec.structs import replace

from common import figure, find_trace, finish, parse_arguments, say
from simulated_routing import RATES, TOKENS
from thrifty.simulate.outcome import Outcome
from thrifty.simulate.run import (
    FIXED_MAX,
    OURS,
    RIVALS,
    SimulateRequest,
    run_simulation,
)
from thrifty.simulate.scaler import Bounds, FixedCount, Objective
from thrifty.simulate.sizing import ATTAINED
from thrifty.simulate.trace import TraceFaults, TraceOptions, read_trace
from thrifty.simulate.world import Setup, simulate

MOST = 64
SCALE = 2.0
WARM_UP_S = 600.0
WITHIN = 0.01
"""Ours may attain so much less than the rival."""


def find_objective(kind: str, setup: Setup) -> Objective:
    """Twice what requests take without load: a trace that is played a hundred times slower."""
    options = TraceOptions(speed=0.01, tokens=TOKENS[kind])
    found = simulate(
        read_trace(find_trace(kind), options, TraceFaults()), setup, FixedCount(MOST), "alone"
    )
    return Objective(2 * found.ttft_p95_s, 2 * found.tpot_p95_s)


def choose_rival(rivals: dict[str, Outcome]) -> Outcome:
    """The one to beat."""
    holding = [one for one in rivals.values() if one.slo_attainment >= ATTAINED]
    if holding:
        return min(holding, key=lambda one: one.replica_hours)
    return max(rivals.values(), key=lambda one: one.slo_attainment)


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=3, starts=(str, "5,60", "Seconds that replicas take to start.")
    )
    table: list[tuple[str, ...]] = [
        ("trace", "start, s", "policy", "within objective", "TTFT p95, s", "replicas", "replica hours",
         "turns an hour")
    ]  # fmt: skip
    figures, record = [], {}
    policies = (OURS, *RIVALS, FIXED_MAX)
    for kind in TOKENS:
        path = find_trace(kind)
        objective = find_objective(kind, Setup(RATES, Objective(), Bounds(MOST, MOST)))
        for start_s in (float(part) for part in options.starts.split(",")):
            ratios, turns, gaps = [], [], []
            for seed in range(options.rounds):
                setup = Setup(
                    replace(RATES, start_s=start_s), objective, Bounds(1, MOST), seed=seed,
                    warm_up_s=WARM_UP_S,
                )  # fmt: skip
                trace = TraceOptions(scale=SCALE, tokens=TOKENS[kind], seed=seed)
                found = run_simulation(SimulateRequest(path, trace, [setup], policies)).policies
                ours = found[OURS]
                rival = choose_rival({name: found[name] for name in RIVALS})
                ratios.append(ours.replica_hours / rival.replica_hours)
                turns.append(ours.changes_of_direction_per_hour)
                gaps.append(ours.slo_attainment - rival.slo_attainment)
                record[f"{kind}, start {start_s:g} s, seed {seed}"] = {
                    "rival": rival.name,
                    "policies": {name: _strip(outcome) for name, outcome in found.items()},
                }
                if not seed:
                    table += [
                        (kind, f"{start_s:g}", name, f"{one.slo_attainment:.1%}",
                         f"{one.ttft_p95_s:.2f}", f"{one.min_replicas} to {one.max_replicas}",
                         f"{one.replica_hours:.2f}", f"{one.changes_of_direction_per_hour:.1f}")
                        for name, one in found.items()
                    ]  # fmt: skip
                say(f"{kind}, start {start_s:g} s: round {seed + 1} of {options.rounds} done")
            where = f"simulated, trace `{kind}`, start in {start_s:g} s"
            enough = min(gaps) >= -WITHIN
            figures += [
                figure(f"{where}: replica hours over the best of HPA, KPA, SkyServe and Dynamo",
                       ratios, "<= 0.9 x, within one point of its attainment",
                       max(ratios) <= 0.9 and enough),
                {"figure": f"{where}: attainment less that rival's, in points",
                 "measured": f"{100 * min(gaps):+.1f} at least", "bar": ">= -1", "met": enough},
                {"figure": f"{where}: changes of direction an hour",
                 "measured": f"{max(turns):.1f} at most", "bar": "<= 6", "met": max(turns) <= 6},
            ]  # fmt: skip
            record[f"objective, {kind}"] = dataclasses.asdict(objective)
    finish(
        "autoscaling", {"rounds": options.rounds, "runs": record}, table, figures,
        save=not options.no_save,
    )  # fmt: skip


def _strip(found: Outcome) -> dict[str, Any]:
    """An outcome without its course, which is long."""
    return {key: value for key, value in found.as_dict().items() if key != "timeline"}


if __name__ == "__main__":
    main()
