"""Runs the autoscaler: from what gateways count and fleets see to counts in the desired state.

About once a second, and at once when a request waits at a version without replicas: gateways say
so, and within a tenth of a second the database does. What it changes is a change of the desired
state like any other, with who and why; the control loop carries it out. It starts with the counts
that are desired, so that a controller that was killed in the middle of it continues where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from thrifty.control.autoscale.meter import Meter
from thrifty.control.autoscale.policy import Autoscaler
from thrifty.control.autoscale.types import (
    Bounds,
    Decision,
    Key,
    Objective,
    Observation,
    Prediction,
    Resources,
)
from thrifty.control.loop import ControlLoop
from thrifty.control.reconcile import find_cpus
from thrifty.db import Database
from thrifty.db.demand import read_demand
from thrifty.db.desired import AUTOSCALE, Desired, DesiredChange, change_desired, read_history
from thrifty.db.desired_state import DesiredCapacity, DesiredDeployment, DesiredVersion
from thrifty.db.scaling import ScalingRow, save_scaling
from thrifty.engines.machine import Machine, available_memory_bytes
from thrifty.engines.registry import find_engine
from thrifty.errors import DatabaseError
from thrifty.fleet.base import ObservedReplica
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

STEP_S = 1.0
WAKE_S = 0.1
"""How often gateways' figures are read while a version has no replica."""
TELL_S = 5.0
"""Decisions that change nothing are written this often, for `thrifty status`."""
LEAST_START_S = 0.1
"""A replica that was ready sooner had been adopted, not started."""
WHO = "autoscaler"
LOOK_BACK = 40
"""How many changes of a deployment are read to find which way its counts went."""
MAX_WHY = 500


class Scaling:
    """See the module's docstring. Used on the controller's event loop."""

    def __init__(
        self,
        database: Callable[[], Database],
        loop: ControlLoop,
        machine: Machine,
        count_gateways: Callable[[], int],
    ) -> None:
        """`count_gateways` says how many gateway workers run, and so should report."""
        self._database = database
        self._loop = loop
        self._machine = machine
        self._count_gateways = count_gateways
        self._policy = Autoscaler()
        self._meter = Meter()
        self._starts: dict[str, float] = {}
        """How long each replica took to become ready, the last time."""
        self._restored: set[Key] = set()
        self._changed_s: dict[Key, float] = {}
        self._told: Mapping[Key, ScalingRow] = {}
        self._told_s = 0.0
        self._stepped_s = 0.0
        self._woken = asyncio.Event()
        self._wakes: Counter[Key] = Counter()
        self._awake: set[Key] = set()

    def wake(self) -> None:
        """A gateway says that a request waits at a version without replicas: look at once."""
        self._woken.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAKE_S):
                    await self._woken.wait()
            self._woken.clear()
            targets = list_targets(self._loop.desired.deployments)
            if (not targets and not self._told) or self._loop.standing_by:
                continue
            try:
                await self._turn(targets)
            except (DatabaseError, sqlite3.Error, OSError):
                # The control loop says why; without figures nothing changes.
                continue
            except Exception:
                # A fault of ours in one step must not end all later ones.
                log.exception("a step of the autoscaler failed")
                await asyncio.sleep(STEP_S)

    async def _turn(self, targets: Sequence[Target]) -> None:
        due = time.monotonic() - self._stepped_s >= STEP_S
        if not due and all(target.version.replicas.count for target in targets):
            return
        rows = await asyncio.to_thread(read_demand, self._database())
        now_s = time.monotonic()
        self._meter.take(rows, now_s)
        self._loop.work = self._meter.read_work(now_s)
        woken = any(
            row.figures.held
            for row in rows
            for target in targets
            if target.key == (row.deployment, row.version) and not target.version.replicas.count
        )
        if not (due or woken):
            return
        self._stepped_s = now_s
        await self._restore(targets)
        decisions = self._decide(targets, now_s)
        await self._write(decisions)
        await self._tell(targets, decisions, now_s)

    # What is seen

    def _decide(self, targets: Sequence[Target], now_s: float) -> list[Decision]:
        copies: dict[Key, list[ObservedReplica]] = {target.key: [] for target in targets}
        others: list[ObservedReplica] = []
        for copy in self._loop.observe():
            if not copy.leaving:
                place = copy.key.deployment, copy.key.version
                copies.get(place, others).append(copy)
        started = self._note_starts([one for found in copies.values() for one in found])
        needs = {target.key: self._measure_need(target, copies[target.key]) for target in targets}
        observations = [
            self._observe(target, copies[target.key], needs[target.key], started, now_s)
            for target in targets
        ]
        decisions = self._policy.step(
            now_s, observations, self._find_capacity(targets, needs, copies)
        )
        for decision in decisions:
            if decision.changes:
                self._changed_s[decision.key] = time.time()
            # What was decided a moment ago may not be among what is desired yet.
            if decision.count and not decision.before and decision.key not in self._awake:
                self._wakes[decision.key] += 1
        self._awake = {decision.key for decision in decisions if decision.count}
        return decisions

    def _observe(
        self,
        target: Target,
        copies: Sequence[ObservedReplica],
        need: Resources,
        started: Mapping[Key, tuple[float, ...]],
        now_s: float,
    ) -> Observation:
        version = target.version
        fewest, most = version.replicas.bounds
        ready, starting = count_copies(copies)
        if target.key not in self._loop.step.waiting:
            # Those that were decided on and have not begun are about to.
            broken = len(copies) - ready - starting
            starting = max(starting, version.replicas.count - ready - broken)
        return Observation(
            key=target.key,
            revision=version.revision,
            bounds=Bounds(fewest, most, version.replicas.idle_after_s or math.inf),
            count=version.replicas.count,
            ready=ready,
            starting=starting,
            demand=self._meter.read(target.key, self._count_gateways(), now_s),
            held=self._meter.count_held(target.key, now_s),
            objective=Objective(version.slo.ttft_p95_s, version.slo.tpot_p95_s),
            slots=version.settings.slots,
            concurrency=version.settings.batch_slots,
            start_times_s=started.get(target.key, ()),
            priority=target.deployment.settings.priority,
            need=need,
        )

    def _note_starts(self, copies: Sequence[ObservedReplica]) -> dict[Key, tuple[float, ...]]:
        """How long replicas took that have become ready since the last step."""
        found: dict[Key, tuple[float, ...]] = {}
        known, self._starts = self._starts, {}
        for copy in copies:
            name, took_s = copy.row.id, copy.ready_after_s
            if took_s > 0.0:
                self._starts[name] = took_s
            is_new = took_s >= LEAST_START_S and known.get(name) != took_s
            if is_new and copy.state is ReplicaState.READY:
                key = copy.key.deployment, copy.key.version
                found[key] = (*found.get(key, ()), took_s)
        return found

    # What there is room for

    def _measure_need(self, target: Target, copies: Sequence[ObservedReplica]) -> Resources:
        """What each copy of a version takes."""
        version, capacity = target.version, self._capacity
        size = find_cpus(version, self._loop.desired.deployments, self._loop.cores)
        traits = find_engine(version.engine).traits
        counts = capacity.cpus is not None or version.replicas.cpus is not None
        used = [copy.row.memory_bytes or 0 for copy in copies if copy.state is ReplicaState.READY]
        memory = max(used, default=0) or self._loop.estimate_memory(version.artifact)
        share = size / max(1, len(self._machine.cores))
        return Resources(
            float(size) if counts or traits.loads_model else 0.0,
            float(version.replicas.gpus),
            float(memory),
            capacity.price_per_hour * share if capacity.per_hour is not None else 0.0,
        )

    @property
    def _capacity(self) -> DesiredCapacity:
        service = self._loop.desired.service
        return service.capacity if service is not None else DesiredCapacity()

    def _find_capacity(
        self,
        targets: Sequence[Target],
        needs: Mapping[Key, Resources],
        copies: Mapping[Key, Sequence[ObservedReplica]],
    ) -> Resources:
        """What the autoscaled versions may take: what there is, less what fixed ones take."""
        bounds, desired = self._capacity, self._loop.desired.deployments
        # Versions with an objective are among the targets, whether their count is fixed or not.
        fixed = [
            (version, self._measure_need(Target(deployment, version), ()))
            for deployment in desired.values()
            for version in deployment.versions
            if not version.urls and (deployment.name, version.label) not in needs
        ]
        cores = self._loop.cores
        cpus = float(bounds.cpus or (math.inf if cores is None else cores))
        cpus -= sum(need.cpus * version.copies for version, need in fixed)
        gpus = math.inf if bounds.gpus is None else float(bounds.gpus)
        gpus -= sum(need.gpus * version.copies for version, need in fixed)
        per_hour = math.inf if bounds.per_hour is None else bounds.per_hour
        per_hour -= sum(need.per_hour * version.copies for version, need in fixed)
        wanted = sum(
            needs[target.key].memory_bytes * target.version.replicas.count for target in targets
        )
        used = sum(copy.row.memory_bytes or 0 for found in copies.values() for copy in found)
        # What runs keeps its memory, however little is free at the moment.
        memory = math.inf
        if cores is not None:
            memory = max(wanted, float(used + available_memory_bytes()))
        if bounds.memory_bytes is not None:
            taken = sum(need.memory_bytes * version.copies for version, need in fixed)
            memory = min(memory, bounds.memory_bytes - taken)
        return Resources(cpus, gpus, memory, per_hour)

    # What is done

    async def _write(self, decisions: Sequence[Decision]) -> None:
        """Make new counts the desired state, one change for each deployment."""
        moved = {decision.key: decision for decision in decisions if decision.changes}
        for name in dict.fromkeys(key[0] for key in moved):
            mine = {key[1]: one for key, one in moved.items() if key[0] == name}
            why = "; ".join(describe(one) for one in mine.values())[:MAX_WHY]
            log.info("%s: %s", name, why)

            def decide(
                state: Desired, name: str = name, mine: Mapping[str, Decision] = mine
            ) -> list[DesiredChange]:
                there = state.deployments.get(name)
                return [] if there is None else [DesiredChange(name, set_counts(there, mine))]

            await asyncio.to_thread(
                change_desired, self._database(), decide, kind=AUTOSCALE, who=WHO, why=why
            )
        if moved:
            self._loop.changed.set()

    async def _tell(
        self, targets: Sequence[Target], decisions: Sequence[Decision], now_s: float
    ) -> None:
        """Write the decisions for people to read, when they have changed or now and then."""
        rows = {}
        copies = [one for one in self._loop.observe() if not one.leaving]
        for target, decision in zip(targets, decisions, strict=True):
            mine = [c for c in copies if (c.key.deployment, c.key.version) == target.key]
            row = make_row(target, decision, mine, self._changed_s.get(target.key))
            rows[target.key] = msgspec.structs.replace(row, wakes=self._wakes[target.key])
        news = {
            key: (row.count, row.ready, row.limit, row.unreachable) for key, row in rows.items()
        }
        olds = {
            key: (row.count, row.ready, row.limit, row.unreachable)
            for key, row in self._told.items()
        }
        if news != olds or now_s - self._told_s >= TELL_S:
            await asyncio.to_thread(save_scaling, self._database(), rows)
            self._told, self._told_s = rows, now_s

    async def _restore(self, targets: Sequence[Target]) -> None:
        """Continue with the direction that an earlier controller went."""
        for target in targets:
            if target.key in self._restored:
                continue
            self._restored.add(target.key)
            last, turned_up_at_s = await asyncio.to_thread(
                read_direction, self._database(), target.key
            )
            ago_s = None if turned_up_at_s is None else max(0.0, time.time() - turned_up_at_s)
            self._policy.restore(target.key, target.version.revision, last, ago_s)


@dataclass(frozen=True)
class Target:
    """A version that the autoscaler looks after."""

    deployment: DesiredDeployment
    version: DesiredVersion

    @property
    def key(self) -> Key:
        """Deployment and label."""
        return self.deployment.name, self.version.label


def list_targets(deployments: Mapping[str, DesiredDeployment]) -> list[Target]:
    """The versions whose counts the autoscaler owns, and those with an objective, whose latencies it
    predicts.
    """
    return [
        Target(deployment, version)
        for deployment in deployments.values()
        for version in deployment.versions
        if not version.urls and (version.replicas.is_autoscaled or version.slo.is_set)
    ]


def count_copies(copies: Sequence[ObservedReplica]) -> tuple[int, int]:
    """How many are ready, and how many start."""
    states = [copy.state for copy in copies]
    return states.count(ReplicaState.READY), states.count(ReplicaState.STARTING)


def set_counts(there: DesiredDeployment, decisions: Mapping[str, Decision]) -> DesiredDeployment:
    """A deployment with the counts that were decided on, by label, within the bounds that it has."""

    def set_count(version: DesiredVersion) -> DesiredVersion:
        decision, replicas = decisions.get(version.label), version.replicas
        if decision is None or not replicas.is_autoscaled:
            return version
        return replace(version, replicas=replace(replicas, count=replicas.clamp(decision.count)))

    return replace(there, versions=tuple(map(set_count, there.versions)))


def describe(decision: Decision) -> str:
    """A decision that changes something, for the history."""
    return f"{decision.key[1]}: {decision.before} -> {decision.count}, {decision.reason}"


def read_direction(database: Database, key: Key) -> tuple[int, float | None]:
    """Which way the autoscaler changed a count last, and when it turned from down to up (seconds
    since 1970), as far as the history says. Raises `DatabaseError`.
    """
    deployment, label = key
    last, turned_up_at_s, before = 0, None, None
    for change in reversed(read_history(database, deployment, LOOK_BACK)):
        state = change.state if isinstance(change.state, DesiredDeployment) else None
        version = state.find_version(label) if state is not None else None
        count = version.replicas.count if version is not None else None
        if change.kind == AUTOSCALE and count is not None and before is not None:
            way = (count > before) - (count < before)
            if way > 0 and last < 0:
                turned_up_at_s = change.at_s
            last = (way if count else 0) if way else last
        before = count
    return last, turned_up_at_s


def make_row(
    target: Target,
    decision: Decision,
    copies: Sequence[ObservedReplica],
    changed_s: float | None,
) -> ScalingRow:
    """A decision as it is shown."""
    version, found = target.version, decision.prediction or Prediction(0, math.inf)
    fewest, most = version.replicas.bounds
    ready, starting = count_copies(copies)
    return ScalingRow(
        deployment=target.deployment.name,
        version=version.label,
        count=decision.count,
        needed=decision.wanted,
        fewest=fewest,
        most=most,
        ready=ready,
        starting=starting,
        reason=decision.reason,
        limit=decision.limit,
        unreachable=decision.unreachable,
        ttft_p95_s=_finite(found.ttft_p95_s),
        tpot_p95_s=_finite(found.tpot_p95_s),
        utilisation=_finite(found.utilisation),
        ttft_objective_s=version.slo.ttft_p95_s,
        tpot_objective_s=version.slo.tpot_p95_s,
        measured_ttft_p95_s=decision.measured_ttft_p95_s,
        arrivals_per_s=decision.arrivals_per_s,
        start_s=decision.start_s,
        changed_s=changed_s,
    )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
