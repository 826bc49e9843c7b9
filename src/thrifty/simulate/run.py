"""A whole simulation: a trace under several policies, and how many replicas it takes.

Each policy runs alone over the same trace, on replicas with the same rates. `fixed_max` keeps as
many replicas as there may be, `fixed_least` the least number that holds the objective.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from thrifty.errors import SimulationError
from thrifty.simulate.ours import Autoscaled
from thrifty.simulate.outcome import Outcome
from thrifty.simulate.rivals import Capacity, Dynamo, Hpa, Kpa, SkyServe
from thrifty.simulate.scaler import MOST, Bounds, FixedCount, Objective, Scaler, ScalingCase
from thrifty.simulate.sizing import find_count, profile_replica
from thrifty.simulate.trace import TraceFaults, TraceOptions, TraceRequest, read_trace
from thrifty.simulate.world import Setup, simulate
from thrifty.types import OnProgress, ignore_progress

OURS = "autoscale"
FIXED_MAX, FIXED_LEAST, FIXED = "fixed_max", "fixed_least", "fixed:"
RIVALS: dict[str, Callable[[Capacity, Setup], Scaler]] = {
    "hpa": lambda capacity, setup: Hpa(capacity),
    "kpa": lambda capacity, setup: Kpa(capacity),
    "skyserve": lambda capacity, setup: SkyServe(capacity),
    "dynamo": lambda capacity, setup: Dynamo(capacity, setup.objective),
}
POLICIES = (OURS, *RIVALS, FIXED_MAX, FIXED_LEAST)
SAMPLE = 2000
"""Requests of the trace by which a replica is profiled."""
PIECES = 240
"""Pieces of the timeline, about."""


@dataclass(frozen=True)
class SimulateRequest:
    """What to simulate."""

    trace: Path
    options: TraceOptions
    setups: Sequence[Setup]
    """One for each kind of replica. Policies are compared on the first."""
    policies: Sequence[str] = POLICIES


@dataclass(frozen=True)
class TraceSummary:
    """A trace as it was used, scaled and cut."""

    path: str
    requests: int
    duration_s: float
    prompt_tokens_mean: float
    answer_tokens_mean: float
    shares_beginnings: bool
    """Whether it says which prompts begin alike."""
    faults: TraceFaults
    sample: Sequence[TraceRequest] = field(repr=False, default=())
    """Some of its requests, in their order."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": self.path,
            "requests": self.requests,
            "duration_s": self.duration_s,
            "prompt_tokens_mean": self.prompt_tokens_mean,
            "answer_tokens_mean": self.answer_tokens_mean,
            "shares_beginnings": self.shares_beginnings,
            "skipped_rows": self.faults.count,
            "skipped": self.faults.shown,
        }


@dataclass(frozen=True)
class Sizing:
    """How many replicas of one kind it takes to hold the objective."""

    rates: str
    capacity: Capacity | None
    """What one replica takes within the objective; None if not even a request at a time."""
    fixed: Outcome | None
    """The least number that always runs; None if the most allowed are too few."""
    autoscaled: Outcome | None
    """With the number following the load; None where `autoscale` was not asked for."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        fixed, scaled = self.fixed, self.autoscaled
        return {
            "rates": self.rates,
            "requests_per_s_each": None if self.capacity is None else self.capacity.requests_per_s,
            "fixed": None if fixed is None else {
                "replicas": fixed.max_replicas, "replica_hours": fixed.replica_hours,
                "cost": fixed.cost, "slo_attainment": fixed.slo_attainment,
            },
            "autoscaled": None if scaled is None else {
                "least": scaled.min_replicas, "most": scaled.max_replicas,
                "replica_hours": scaled.replica_hours, "cost": scaled.cost,
                "slo_attainment": scaled.slo_attainment,
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Simulated:
    """What came of it."""

    trace: TraceSummary
    setups: Sequence[Setup]
    policies: dict[str, Outcome]
    sizings: list[Sizing]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        first = self.setups[0]
        return {
            "trace": self.trace.as_dict(),
            "objective": {
                "ttft_p95_s": first.objective.ttft_s, "tpot_p95_s": first.objective.tpot_s
            },
            "bounds": {"min": first.bounds.low, "max": first.bounds.high},
            "routing": first.routing,
            "seed": first.seed,
            "rates": [msgspec.to_builtins(setup.rates, str_keys=True) for setup in self.setups],
            "policies": {name: found.as_dict() for name, found in self.policies.items()},
            "sizing": [sizing.as_dict() for sizing in self.sizings],
        }  # fmt: skip


def check_policies(names: Sequence[str]) -> list[str]:
    """The names, once each. Raises `SimulationError` for one that there is not."""
    found = []
    for name in names:
        known = name in POLICIES
        if name.startswith(FIXED):
            count = name.removeprefix(FIXED)
            known = count.isascii() and count.isdigit() and 1 <= int(count) <= MOST
        if not known:
            raise SimulationError(
                f"there is no policy {name!r}; there are {', '.join(POLICIES)}, and fixed:N for N "
                f"replicas, from 1 to {MOST}"
            )
        if name not in found:
            found.append(name)
    return found


def run_simulation(
    request: SimulateRequest, on_progress: OnProgress = ignore_progress
) -> Simulated:
    """Simulate every policy. Raises `SimulationError`."""
    names = check_policies(request.policies)
    trace = summarize_trace(request.trace, request.options)
    if any(setup.warm_up_s >= max(trace.duration_s, 1e-9) for setup in request.setups):
        raise SimulationError(
            f"the warm-up is longer than the stretch of the trace, {trace.duration_s:g} s; shorten it"
        )
    bucket_s = max(1.0, trace.duration_s / PIECES)
    setups = [replace(setup, bucket_s=bucket_s) for setup in request.setups]
    first = setups[0]

    def requests() -> Iterator[TraceRequest]:
        return read_trace(request.trace, request.options, TraceFaults())

    def run(name: str, scaler: Scaler, setup: Setup) -> Outcome:
        return simulate(
            requests(), setup, scaler, name, expected=trace.requests, on_progress=on_progress
        )

    sizings = []
    outcomes: dict[str, Outcome] = {}
    for setup in setups:
        capacity = profile_replica(trace.sample, setup)
        fixed = scaled = None
        if FIXED_LEAST in names:
            fixed = find_count(requests, setup, expected=trace.requests, on_progress=on_progress)
        if OURS in names:
            case = ScalingCase(setup.rates, setup.objective, setup.bounds)
            scaled = run(OURS, Autoscaled(case, setup.idle_after_s), setup)
        sizings.append(Sizing(setup.rates.name, capacity, fixed, scaled))
    for name in names:
        if name == OURS and (ours := sizings[0].autoscaled) is not None:
            outcomes[name] = ours
        elif name == FIXED_LEAST:
            if (least := sizings[0].fixed) is not None:
                outcomes[name] = replace(least, name=name)
        elif name == FIXED_MAX or name.startswith(FIXED):
            text = name.removeprefix(FIXED)
            count = first.bounds.high if name == FIXED_MAX else int(text)
            setup = replace(first, bounds=Bounds(count, count), first=count)
            outcomes[name] = run(name, FixedCount(count), setup)
        else:
            outcomes[name] = run(
                name, RIVALS[name](_profile_rival(trace, first, sizings[0]), first), first
            )
    return Simulated(trace, setups, outcomes, sizings)


def _profile_rival(trace: TraceSummary, setup: Setup, sizing: Sizing) -> Capacity:
    """What rivals take one replica to be able to do. Where it cannot hold the objective, that is what
    it can do at all.
    """
    capacity = sizing.capacity or profile_replica(
        trace.sample, replace(setup, objective=Objective())
    )
    if capacity is None:
        raise SimulationError(
            "one replica cannot answer these requests within limits.wait_timeout even one at a time; "
            "--tokens makes them shorter"
        )
    return capacity


def summarize_trace(path: Path, options: TraceOptions) -> TraceSummary:
    """Read a trace once: how long it is, what it holds, and some of it."""
    faults = TraceFaults()
    rng = random.Random(f"{options.seed}/sample")
    sample: list[tuple[int, TraceRequest]] = []
    count = prompt = answer = 0
    last_s, shares = 0.0, False
    for count, one in zip(itertools.count(1), read_trace(path, options, faults), strict=False):
        prompt += one.prompt_tokens
        answer += one.answer_tokens
        last_s, shares = one.at_s, shares or bool(one.blocks)
        if count <= SAMPLE:
            sample.append((count, one))
        elif (place := rng.randrange(count)) < SAMPLE:
            sample[place] = (count, one)
    sample.sort(key=lambda pair: pair[0])
    return TraceSummary(
        str(path), count, last_s, prompt / count, answer / count, shares, faults,
        [one for _, one in sample],
    )  # fmt: skip
