"""A small world for the policy: requests with a length, replicas with slots that take time to start.

Steps are a second long, and nothing in it is random but what a test passes in.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field

from thrifty.control.autoscale.policy import Autoscaler
from thrifty.control.autoscale.settings import Settings
from thrifty.control.autoscale.types import (
    UNBOUNDED,
    Bounds,
    Decision,
    Demand,
    Objective,
    Observation,
    Resources,
)
from thrifty.db.demand import BUCKETS, find_bucket

ONE_TO_EIGHT, ONE_SECOND, NOTHING = Bounds(1, 8), Objective(1.0, None), Resources()
TOKENS = 32
TOKEN_S = 0.03


@dataclass
class World:
    """One version. Each replica answers `slots` requests at once, each in `hold_s`."""

    bounds: Bounds = ONE_TO_EIGHT
    objective: Objective = ONE_SECOND
    slots: int = 4
    hold_s: float = 1.0
    begin_s: float = 0.1
    start_s: float = 5.0
    count: int = 1
    revision: str = "r1"
    need: Resources = NOTHING
    key: tuple[str, str] = ("chat", "a")
    policy: Autoscaler = field(default_factory=lambda: Autoscaler(Settings()))
    now_s: float = 0.0
    """The time in the world, which does not jump."""
    clock_s: float = 1000.0
    """What the policy is told."""
    waits_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ready = self.count
        self._starting: list[float] = []
        self._queue: deque[float] = deque()
        self._running: list[tuple[float, float]] = []
        """When each request will end, and how long it takes."""
        self._begin_buckets, self._ttft_buckets = [0.0] * BUCKETS, [0.0] * BUCKETS
        self.arrivals = self.answered = self.begun_s = self.held_s = self.busy_s = 0.0

    @property
    def starting(self) -> int:
        """Replicas that are not ready yet."""
        return len(self._starting)

    def observe(self, *, stale: bool = False) -> Observation:
        """What the policy sees now."""
        return Observation(
            self.key, self.revision, self.bounds, self.count, self.ready, self.starting,
            None if stale else self._demand(), self.objective, self.slots,
            start_times_s=(self.start_s,) if self.ready else (), need=self.need,
        )  # fmt: skip

    def _demand(self) -> Demand:
        waiting = len(self._queue)
        return Demand(
            arrivals=self.arrivals, answered=self.answered, output_tokens=self.answered * TOKENS,
            held_s=self.held_s, streamed=self.answered, begin_s=self.begun_s, timed=self.answered,
            token_s=self.answered * TOKEN_S, begin_buckets=tuple(self._begin_buckets),
            ttft_buckets=tuple(self._ttft_buckets), busy_s=self.busy_s,
            held=0 if self.ready else waiting, queued=waiting if self.ready else 0,
            in_flight=len(self._running),
        )  # fmt: skip

    def live(self, arrivals: int, second: float = 1.0) -> None:
        """Let a second pass with so many requests, evenly spread."""
        end_s = self.now_s + second
        self.arrivals += arrivals
        self._queue.extend(self.now_s + (i + 0.5) * second / arrivals for i in range(arrivals))
        self.ready += sum(at_s <= end_s for at_s in self._starting)
        self._starting = [at_s for at_s in self._starting if at_s > end_s]
        while self._running and self._running[0][0] <= end_s:
            freed_s, took_s = heapq.heappop(self._running)
            self.answered += 1
            self.held_s += took_s
            self.begun_s += self.begin_s
            self._begin_buckets[find_bucket(self.begin_s)] += 1
            self._fill(freed_s)
        self._fill(end_s)
        self.busy_s += len(self._running) * second
        self.now_s, self.clock_s = end_s, self.clock_s + second

    def _fill(self, now_s: float) -> None:
        while self._queue and len(self._running) < self.ready * self.slots:
            came_s = self._queue[0]
            if came_s > now_s and self._running and self._running[0][0] <= came_s:
                return
            self._queue.popleft()
            begins_s = max(came_s, now_s if came_s < now_s - 1.0 else came_s)
            self.waits_s.append(max(0.0, begins_s - came_s))
            self._ttft_buckets[find_bucket(begins_s - came_s + self.begin_s)] += 1
            heapq.heappush(self._running, (begins_s + self.hold_s, self.hold_s))

    def obey(self, decision: Decision) -> None:
        """Start and stop replicas."""
        self.count = decision.count
        self.counts.append(decision.count)
        more = self.count - self.ready - self.starting
        self._starting += [self.now_s + self.start_s] * max(0, more)
        if more < 0:
            gone = min(self.starting, -more)
            self._starting = self._starting[gone:]
            self.ready += more + gone

    def step(
        self, arrivals: int = 0, *, stale: bool = False, capacity: Resources = UNBOUNDED
    ) -> Decision:
        """A second with so many requests, and what is decided after it."""
        self.live(arrivals)
        decision = self.policy.step(self.clock_s, [self.observe(stale=stale)], capacity)[0]
        self.obey(decision)
        return decision


def count_turns(counts: list[int]) -> list[int]:
    """The steps at which the direction of a number changes."""
    turns, last = [], 0
    for step, (before, after) in enumerate(itertools.pairwise(counts)):
        way = (after > before) - (after < before)
        if way and last and way != last:
            turns.append(step)
        last = way or last
    return turns
