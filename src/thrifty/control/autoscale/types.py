"""What the autoscaler takes and gives. All times are in seconds.

To use it: make one `Autoscaler`; about once a second, and at once when a request arrives at a version
without replicas, call `step` with one `Observation` for each version; bring the number of its replicas
to `Decision.count`, and pass that number as `Observation.count` from then on. Replicas that are
draining are on their way out and count nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Key = tuple[str, str]
"""Deployment and label of a version."""


@dataclass(frozen=True)
class Bounds:
    """How many replicas may run, starting ones included."""

    fewest: int
    most: int
    idle_after_s: float = 300.0
    """With `fewest` 0: none are wanted after so long without a request."""


@dataclass(frozen=True)
class Objective:
    """What 95 of 100 requests should stay within; None: no objective. Both are greater than 0."""

    ttft_p95_s: float | None = None
    """From arrival to the first token, waiting included."""
    tpot_p95_s: float | None = None
    """For each further token."""

    @property
    def is_set(self) -> bool:
        """Whether there is any."""
        return self.ttft_p95_s is not None or self.tpot_p95_s is not None


@dataclass(frozen=True)
class Resources:
    """What one replica takes, or what there is for all. A need of 0 takes nothing."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: float = 0.0
    per_hour: float = 0.0


UNBOUNDED = Resources(*(float("inf"),) * 4)


@dataclass(frozen=True)
class Demand:
    """What has arrived and been answered so far. The first group are totals, which only ever grow
    (the autoscaler uses differences); the second is the state now.

    The sums are over answers of warmed-up replicas: the first few answers of a new replica are left
    out, because they are slower. Histograms have the buckets of `thrifty.db.demand.find_bucket`; an
    empty tuple says that there is none.
    """

    arrivals: float
    """Requests that have arrived and need a replica, whether it exists or not."""
    answered: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    held_s: float = 0.0
    """Time that answers spent at their replica, from sending to the last byte."""
    streamed: float = 0.0
    """Answers whose first token was seen."""
    begin_s: float = 0.0
    """Their time at the replica until the first token, without waiting in the gateway."""
    timed: float = 0.0
    """Answers whose further tokens were timed."""
    token_s: float = 0.0
    """Their mean time for each further token."""
    begin_buckets: tuple[float, ...] = ()
    token_buckets: tuple[float, ...] = ()
    ttft_buckets: tuple[float, ...] = ()
    """From arrival to the first token, waiting included; to report, not to decide."""
    busy_s: float = 0.0
    """The integral over time of the number of requests at replicas."""
    elapsed_s: float | None = None
    """How much time the totals cover. None: up to the time of the step."""

    held: int = 0
    """Requests that wait because no replica is ready."""
    queued: int = 0
    """Requests that wait for a slot."""
    in_flight: int = 0
    """Requests at replicas."""

    @property
    def waiting(self) -> int:
        """Requests that are not at a replica yet."""
        return self.held + self.queued


@dataclass(frozen=True)
class Observation:
    """One version, as it is now."""

    key: Key
    revision: str
    """What was learned is forgotten when this changes: it is another model or engine."""
    bounds: Bounds
    count: int
    """How many replicas are wanted now: the last decision, whoever made it."""
    ready: int
    starting: int
    """Replicas that run and are not ready yet, or are being started."""
    demand: Demand | None
    """None: figures are missing or stale; the number is then left as it is, unless it is 0 and
    requests are `held`."""
    objective: Objective = Objective()
    slots: int | None = None
    """How many requests each replica takes at once; more wait in the gateway. None: all of them."""
    concurrency: int = 32
    """Where `slots` is None: how many requests a replica should have at once at most."""
    start_times_s: tuple[float, ...] = ()
    """How long replicas took from their start until they were ready: those that became ready since
    the last step."""
    start_hint_s: float = 10.0
    """How long a start is expected to take before one was seen."""
    priority: int = 0
    need: Resources = Resources()
    """What each replica takes."""
    held: int = 0
    """Requests that wait for a replica, as far as is known where `demand` is not."""


@dataclass(frozen=True)
class Prediction:
    """What to expect of a number of replicas at the demand that was decided on."""

    replicas: int
    utilisation: float
    """The demand over what the replicas can serve. 1 and more: they cannot keep up."""
    ttft_p95_s: float | None = None
    """None: not known yet."""
    tpot_p95_s: float | None = None
    concurrency: float = 0.0
    """Requests at each replica, on average."""


@dataclass(frozen=True)
class Decision:
    """How many replicas of a version should run, and why."""

    key: Key
    count: int
    before: int
    reason: str
    """For people: what the number follows from."""
    wanted: int = 0
    """As many as the objective needs, before bounds and capacity."""
    limit: str | None = None
    """What keeps `count` below `wanted`: the bound, or which resource is short."""
    unreachable: str | None = None
    """Why no number of replicas meets the objective here."""
    prediction: Prediction | None = None
    """Of `count` replicas; None before anything is known."""
    measured_ttft_p95_s: float | None = None
    """Of the streams of the last minutes, waiting included; None: there were too few."""
    arrivals_per_s: float = 0.0
    """The rate that was decided on."""
    start_s: float = 0.0
    """How long a replica is expected to take until it is ready."""

    @property
    def changes(self) -> bool:
        """Whether another number of replicas is wanted than before."""
        return self.count != self.before


@dataclass
class Direction:
    """Which way the number of replicas went last."""

    last: int = 0
    """1: up, -1: down, 0: it has not changed yet."""
    turned_up_s: float = field(default=float("-inf"))
    """When it last turned from down to up."""
