"""One version of a deployment: everything that its answers depend on.

Each version has its own replicas, health, load, router with learned state, slots and honoured
fields. Versions share nothing, so one cannot disturb the measurements of another, and the answer of
one is never returned for another.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from thrifty.db.fleet import DeploymentSettings, ReplicaRow, VersionRow, VersionSettings
from thrifty.db.scaling import ScalingRow
from thrifty.gateway.state.concurrency import ConcurrencyLimiter
from thrifty.gateway.state.demand import Demand
from thrifty.gateway.state.estimate import Estimator
from thrifty.gateway.state.health import Health
from thrifty.gateway.state.policy import RoutingPolicy
from thrifty.gateway.state.replica import Replica, merge_replica
from thrifty.gateway.state.router import Router
from thrifty.openai.fields import GATEWAY_FIELDS
from thrifty.types import ReplicaState
from thrifty.untrusted_text import sanitize_line

_CANNOT_START = (ReplicaState.FAILED, ReplicaState.CRASH_LOOP)
MAX_FAULT_CHARS = 300
_FOLDERS = re.compile(r"(?:/[\w.@+-]+)+/(?=[\w.@+-])")
MakePolicy = Callable[[str], RoutingPolicy]
"""Makes a routing policy from the name that specs use."""


@dataclass
class Version:
    """A version in this worker."""

    deployment: str
    row: VersionRow
    limits: DeploymentSettings
    """The deployment's policies and limits, which apply to each of its versions."""
    router: Router
    concurrency: ConcurrencyLimiter
    """The slots of its replicas and the queue for them."""
    honours: frozenset[str] | None
    """Request fields that its engine honours; None if only the external server knows."""
    health: Health = field(default_factory=Health)
    estimator: Estimator = field(default_factory=Estimator)
    replicas: dict[str, Replica] = field(default_factory=dict)
    ready: list[Replica] = field(default_factory=list)
    """Replicas that receive traffic. Replaced by a new list whenever they change."""
    demand: Demand = field(default_factory=Demand)
    """What is asked of it, for the autoscaler."""
    waiting: int = 0
    """Requests that wait for a replica to become ready."""
    full: int = 0
    """The number of replicas without a free slot."""
    fault: str | None = None
    """Why its replicas cannot start, in their own words; None if they can, or one is ready."""
    start_s: float = 0.0
    """How long a replica takes to become ready, as learned; 0 if unknown."""
    wakes: int = 0
    """How often requests have woken it, in all workers."""
    woken_s: float = 0.0
    """When the first request was held while no replica was ready; 0 if none was."""
    label: str = field(init=False)
    """The label in headers, metrics, traffic weights and logs."""
    revision: str = field(init=False)
    """Changes whenever answers may change."""
    settings: VersionSettings = field(init=False)
    """Its engine's capabilities, and its prices."""
    identity: str = field(init=False)
    """Part of the cache key; unique to this version and revision."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.take_row(self.row)

    def take_row(self, row: VersionRow) -> None:
        """Apply a new row. What every request reads is kept in attributes."""
        self.row = row
        self.label, self.revision, self.settings = row.label, row.revision, row.settings
        self.identity = f"{self.deployment}/{row.label}/{row.revision}"

    @property
    def context_length(self) -> int | None:
        """The longest prompt and answer together, in tokens, that each replica can hold; None if
        only the external server knows.
        """
        facts = [replica.load.get("facts") or {} for replica in self.ready]
        known = [self.settings.context_length, *(fact.get("context_length") for fact in facts)]
        return min((int(length) for length in known if length), default=None)

    @property
    def asleep(self) -> bool:
        """Whether it has no ready replica by intent: a request that waits for it wakes one."""
        return self.settings.wakes and not self.ready and self.fault is None

    @property
    def available(self) -> bool:
        """Whether requests may be sent to it, or wait for it to wake."""
        return bool(self.ready) or self.asleep

    @property
    def held(self) -> int:
        """Requests that wait because no replica is ready."""
        return 0 if self.ready else self.waiting + len(self.concurrency.queue)

    def note_held(self, now_s: float) -> None:
        """Record that a request is held while no replica is ready."""
        if not self.woken_s:
            self.woken_s = now_s

    def estimate_start_s(self, now_s: float) -> float:
        """How long it still takes until a replica is ready, by the learned time; 0 if unknown, or
        if one is ready.
        """
        if self.ready or not self.start_s:
            return 0.0
        passed_s = now_s - self.woken_s if self.woken_s else 0.0
        return max(0.0, self.start_s - passed_s)

    def take_scaling(self, row: ScalingRow | None) -> None:
        """Apply what the autoscaler says of it, if it says anything."""
        if row is not None:
            self.start_s, self.wakes = row.start_s, row.wakes

    def candidates(self, excluded: set[str]) -> list[Replica]:
        """Ready replicas that are not excluded. Unhealthy replicas are left out, and so are those
        without a free slot if there are others.
        """
        if not excluded and not self.full and self.health.all_healthy:
            return self.ready
        ready: Sequence[Replica]
        ready = [replica for replica in self.ready if replica.id not in excluded]
        if not self.health.all_healthy:
            ready = self.health.choose_from(ready, time.monotonic())
        slots = self.settings.slots
        if self.full and slots is not None:
            ready = [replica for replica in ready if replica.in_flight < slots] or ready
        return list(ready)

    def note_begun(self, replica: Replica, now_s: float) -> None:
        """Update the counts of full and busy replicas after a request was counted against one."""
        self.demand.begin(now_s)
        if replica.in_flight == self.settings.slots:
            self.full += 1

    def note_ended(self, replica: Replica, began_s: float, now_s: float) -> None:
        """Update the counts of full and busy replicas after a request ended that began at
        `began_s`.
        """
        self.demand.end(began_s, now_s)
        slots = self.settings.slots
        if slots is not None and replica.in_flight == slots - 1:
            self.full = max(0, self.full - 1)

    def ready_ids(self) -> set[str]:
        """The ids of the replicas that receive traffic."""
        return {replica.id for replica in self.ready}

    def resize(self, workers: int) -> None:
        """Set the limiter's capacity for this worker, one of `workers`."""
        slots = self.settings.slots
        if slots is None:
            self.full = 0
            # Without a ready replica, requests wait in the queue all the same.
            self.concurrency.resize(None if self.ready else 0)
            return
        self.full = sum(1 for replica in self.ready if replica.in_flight >= slots)
        count = len(self.ready)
        if not self.health.all_healthy:
            count -= self.health.count_ejected(self.ready_ids())
        self.concurrency.resize(-(-slots * count // workers))

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait until a replica becomes ready or the version changes; False after `timeout_s`."""
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Wake waiting requests, so that they check again."""
        self._changed.set()

    def take_replicas(self, rows: Sequence[ReplicaRow]) -> list[Replica]:
        """Apply the replicas of new rows; returns those that are gone. Replicas that remain keep
        their counters.
        """
        known = self.replicas
        self.replicas = {row.id: merge_replica(known.get(row.id), row) for row in rows}
        prefixes = self.router.learned.prefixes
        for replica in known.values():
            if self.replicas.get(replica.id) is not replica:
                prefixes.leave(replica.slot)
                self.health.forget(replica.id)
        for replica in self.replicas.values():
            replica.load_path = self.settings.load_path
            if replica.slot not in prefixes:
                replica.slot = prefixes.join()
            cache_tokens = (replica.load.get("facts") or {}).get("kv_cache_tokens")
            if cache_tokens:
                self.router.set_capacity(replica, float(cache_tokens))
        self.health.keep_only(self.replicas.keys())
        # During an in-place update, replicas of the old revision only finish their requests.
        ready = [
            replica
            for replica in self.replicas.values()
            if replica.state == ReplicaState.READY and replica.revision == self.revision
        ]
        if ready != self.ready:
            self.ready = ready
        self.fault = None if ready else _find_fault(rows, self.revision)
        if ready:
            self.woken_s = 0.0
        if ready or self.fault is not None:
            self.wake()
        return [known[name] for name in known if name not in self.replicas]


def _find_fault(rows: Sequence[ReplicaRow], revision: str) -> str | None:
    """The reason of a replica that cannot start, for clients: its last line, files without their
    folders. Operators read all of it in `thrifty status`.
    """
    for row in rows:
        if row.revision == revision and row.state in _CANNOT_START:
            lines = (row.message or "").strip().splitlines() or ["no reason is known"]
            return sanitize_line(_FOLDERS.sub("", lines[-1]), MAX_FAULT_CHARS)
    return None


def merge_version(
    known: Version | None,
    deployment: str,
    row: VersionRow,
    limits: DeploymentSettings,
    make_policy: MakePolicy,
) -> Version:
    """The version for a row: a new one, or `known` changed in place, so that requests in progress
    see the change and learned state is kept.
    """
    honours = row.settings.honours
    honoured = None if honours is None else frozenset(honours) | GATEWAY_FIELDS
    if known is None:
        router = Router(make_policy(limits.routing))
        limiter = ConcurrencyLimiter(f"{deployment}/{row.label}")
        return Version(deployment, row, limits, router, limiter, honoured)
    if known.limits.routing != limits.routing:
        known.router = Router(make_policy(limits.routing))
        for replica in known.replicas.values():
            replica.slot = -1
    known.limits, known.honours = limits, honoured
    known.take_row(row)
    known.wake()
    return known
