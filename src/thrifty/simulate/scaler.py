"""What a scaling policy sees of a simulated fleet, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from thrifty.db.demand import Figures
from thrifty.simulate.rates import ReplicaRates

MOST = 1024
"""Replicas in a simulation."""


@dataclass(frozen=True)
class Objective:
    """The times to hold, in seconds; None: any."""

    ttft_s: float | None = None
    """For the 95th percentile of the time to the first token, from the arrival at the gateway."""
    tpot_s: float | None = None
    """For the 95th percentile of the time for each further token."""

    def is_met_by(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether one request was within the objective."""
        return not (
            (self.ttft_s is not None and ttft_s > self.ttft_s)
            or (self.tpot_s is not None and tpot_s > self.tpot_s)
        )


@dataclass(frozen=True)
class Bounds:
    """How few and how many replicas there may be; those that start count."""

    low: int
    high: int


@dataclass(frozen=True)
class ReplicaLoad:
    """The load of one ready replica."""

    running: int
    prefill_tokens: float
    """Tokens of prompts that it still has to compute, by the router's count."""


@dataclass(frozen=True)
class Seen:
    """The fleet at one moment, and what happened since the moment before."""

    now_s: float
    passed_s: float
    """Seconds since the last one; 0 for the first."""
    ready: int
    starting: int
    draining: int
    running: int
    """Requests at replicas."""
    queued: int
    """Requests that wait in the gateway."""
    concurrency: float
    """Requests that were there at once, queued ones included, as a mean over `passed_s`."""
    arrived: int
    prompt_tokens: int
    """Of the requests that arrived."""
    ended: int
    answer_tokens: int
    """Of the requests that ended."""
    ttft_s: tuple[float, ...]
    """Times to first tokens that came, with the time in the queue."""
    tpot_s: tuple[float, ...]
    """Mean times for further tokens, of requests that ended."""
    loads: tuple[ReplicaLoad, ...]
    """Of the ready replicas."""
    start_times_s: tuple[float, ...]
    """How long replicas that became ready had taken to start."""
    read_demand: Callable[[], Figures]
    """The figures that the gateway would write now for the autoscaler."""

    @property
    def wanted(self) -> int:
        """Replicas that are to stay: ready ones and those that start."""
        return self.ready + self.starting


class Scaler(Protocol):
    """Decides how many replicas there should be. A simulation calls it every `interval_s`."""

    interval_s: float
    wakes_at_once: bool
    """Whether it is asked as soon as a request arrives where there is no replica."""

    def decide(self, seen: Seen) -> int:
        """The number of replicas to have; those that start count, those that drain do not. It is
        bounded by the caller.
        """
        ...


@dataclass(frozen=True)
class ScalingCase:
    """What a policy is made for."""

    rates: ReplicaRates
    objective: Objective
    bounds: Bounds


class FixedCount:
    """Always as many."""

    interval_s = 3600.0
    wakes_at_once = False

    def __init__(self, count: int) -> None:
        self._count = count

    def decide(self, seen: Seen) -> int:
        """The number it was made with."""
        return self._count
