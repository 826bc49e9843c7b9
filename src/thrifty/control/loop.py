"""The control loop: it reads what is wanted, looks at what is there, and does the next step.

Each turn ends with one transaction that writes what gateways read: versions and replicas change
together, so that no gateway sees a version without the replicas that answer for it. While the database
is away, the loop goes on with the desired state that it knows; replicas that are no longer wanted
serve until gateways could be told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from thrifty.artifacts import Store
from thrifty.control.desired import make_served
from thrifty.control.reconcile import Room, SetTarget, Step, count_local_copies, reconcile
from thrifty.db import Database
from thrifty.db.desired import Desired, read_desired, read_desired_change, read_history
from thrifty.db.desired_state import (
    DesiredCapacity,
    DesiredDeployment,
    DesiredService,
    DesiredVersion,
)
from thrifty.db.fleet import DeploymentRow, FleetState, ReplicaRow
from thrifty.db.fleet_report import FleetReport, publish_fleet
from thrifty.db.replica_spans import MACHINE, Holding, SpanRecorder
from thrifty.engines.base import DEFAULT_KV_BYTES, Served, count_kv_bytes
from thrifty.engines.machine import Machine, available_memory_bytes
from thrifty.engines.registry import find_engine
from thrifty.errors import (
    ArtifactError,
    DatabaseError,
    EngineError,
    StaleStateError,
    ThriftyError,
)
from thrifty.fleet.base import Fleet, ObservedReplica, ReplicaSet, SetKey
from thrifty.fleet.memory import ModelSize
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

POLL_S = 0.2
"""How often the loop asks whether the desired state has changed."""
FIGURES_S = 2.0
"""Figures of replicas (memory, load) are written this often; changes of state at once."""
RETRY_S = 0.5
NOTICE_S = 1.0
"""Gateways look every 0.2 s; after this long they know what was written."""
ARTIFACT_FACTOR = 1.25
"""What a copy takes of memory beside its weights, at least."""
HISTORY = 50
NOT_HELD = (
    ReplicaState.BACKOFF, ReplicaState.FAILED, ReplicaState.CRASH_LOOP, ReplicaState.STOPPED,
)  # fmt: skip
"""States without a process, which cost nothing."""
ENDLESS = 1 << 62
"""Memory that others look after."""

OnService = Callable[[DesiredService], None]


@dataclass(frozen=True)
class _Known:
    """A version that runs or should, and how."""

    deployment: DesiredDeployment
    version: DesiredVersion


class ControlLoop:
    """Owns the desired state as last read, the fleets, and what was written last."""

    def __init__(
        self,
        database: Callable[[], Database],
        fleets: Mapping[bool, Fleet],
        machine: Machine,
        store: Store,
        on_service: OnService,
        keep_database: Callable[[], bool],
        on_published: Callable[[], None],
    ) -> None:
        """`fleets` are that of servers that others run (True), and that of ours (False).
        `on_service` is told of each new state of the service; `keep_database` repairs a database
        whose file has gone, and says whether it did; `on_published` is called when gateways have
        something new to read.
        """
        self.desired = Desired(None, {}, 0)
        self.step = Step((), {}, {})
        self.changed = asyncio.Event()
        self.work: Mapping[str, float] = {}
        """What is left to say at each replica, by its id, as gateways reported it last."""
        self._database = database
        self._fleets = fleets
        self._machine = machine
        self._store = store
        self._on_service = on_service
        self._keep_database = keep_database
        self._on_published = on_published
        self._known: dict[tuple[str, str, str], _Known] = {}
        self._rows: Mapping[str, DeploymentRow] = {}
        self._artifact_bytes: dict[str, int] = {}
        self._kv_bytes: dict[tuple[str, bytes], int] = {}
        """By artifact and options."""
        self._written: FleetReport | None = None
        self._written_s = 0.0
        self._turn = 0
        """Counts what was decided; `_published` is the turn that was written last."""
        self._published = 0
        self._new_publication = asyncio.Condition()
        self._away = False
        self._spans = SpanRecorder()
        self._began_s = time.time()

    async def start(self, state: FleetState) -> None:
        """Take over what `state` says was there, and do the first step. Raises `DatabaseError`."""
        await self._read_desired()
        self._rows = {row.name: row for row in state.deployments}
        await self._adopt(state.replicas)
        await self._do_step()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.changed.wait()
            changed = self.changed.is_set()
            self.changed.clear()
            if self.standing_by:
                # Whoever acts meanwhile writes its own.
                self._written = None
                continue
            try:
                await self._turn_once(changed)
                self._note_away(None)
            except StaleStateError:
                self.changed.set()
            except (DatabaseError, sqlite3.Error, OSError) as error:
                self._note_away(error)
                self.changed.set()
                await asyncio.sleep(RETRY_S)
            except Exception:
                # A fault of ours in one turn must not end all later ones.
                log.exception("a turn of the control loop failed")
                await asyncio.sleep(RETRY_S)

    async def _turn_once(self, changed: bool) -> None:
        try:
            if await asyncio.to_thread(self._keep_database):
                self._written = None
            changed |= await self._look() or self._written is None
        except (DatabaseError, sqlite3.Error, OSError):
            # What fleets report is carried out all the same.
            await self._do_step()
            raise
        if changed or time.monotonic() - self._written_s > FIGURES_S:
            await self._do_step()
            await self._publish()

    def observe(self) -> list[ObservedReplica]:
        """Every replica, of all fleets."""
        found = [one for fleet in self._fleets.values() for one in fleet.observe()]
        return sorted(found, key=lambda one: one.row.id)

    def is_settled(self) -> bool:
        """Whether all is as desired, but for what is on its way out, and gateways can read so."""
        wanted = {name: one.row for name, one in self.desired.deployments.items()}
        written = self._written
        if written is None or dict(written.deployments) != wanted or dict(self._rows) != wanted:
            return False
        staying = [one for one in self.observe() if not one.leaving]
        states = {row.id: row.state for row in written.replicas.values()}
        if any(states.get(one.row.id) != one.row.state for one in staying):
            return False
        found = Counter((one.key, one.row.state) for one in staying)
        expected: Counter[tuple[SetKey, str]] = Counter()
        for target in self.step.sets:
            expected[target.key, ReplicaState.READY] = self._count(target)
            expected[target.key, ReplicaState.PARKED] = target.parked
        return +expected == found

    async def announce(self) -> None:
        """Returns once gateways know the states that replicas have now."""
        turn = self._turn + 1
        self.changed.set()
        async with self._new_publication:
            await self._new_publication.wait_for(lambda: self._published >= turn)
        await asyncio.sleep(NOTICE_S)

    # what is wanted

    async def _look(self) -> bool:
        """Read the desired state, if it has changed, and say whether it has."""
        newest = await asyncio.to_thread(read_desired_change, self._database())
        if newest == self.desired.change_id:
            return False
        await self._read_desired()
        # Whoever changed it may have written weights, too.
        self._written = None
        return True

    async def _read_desired(self) -> None:
        self.desired = await asyncio.to_thread(read_desired, self._database())
        for deployment in self.desired.deployments.values():
            for version in deployment.versions:
                place = (deployment.name, version.label, version.revision)
                self._known[place] = _Known(deployment, version)
                await self._measure_artifact(version.artifact)
                await asyncio.to_thread(self.find_size, make_served(deployment, version))
        if self.desired.service is not None:
            self._on_service(self.desired.service)

    async def _measure_artifact(self, artifact: str | None) -> None:
        if artifact is None or artifact in self._artifact_bytes:
            return
        try:
            size = (await asyncio.to_thread(self._store.load, artifact)).size_bytes
        except ArtifactError as error:
            # The replica that is started says so, too.
            log.error("the model %s cannot be read: %s", artifact, error)
            return
        self._artifact_bytes[artifact] = round(size * ARTIFACT_FACTOR)

    @property
    def cores(self) -> int | None:
        """How many cores our copies share; None where they run elsewhere."""
        return None if self._fleets[False].elsewhere else len(self._machine.cores)

    @property
    def standing_by(self) -> bool:
        """Whether another controller acts, so that nothing is to be written."""
        return any(fleet.standing_by for fleet in self._fleets.values())

    def estimate_memory(self, artifact: str | None) -> int:
        """What a copy takes of memory at least, as far as known before one runs; else 0."""
        return self._artifact_bytes.get(artifact or "", 0)

    def find_size(self, served: Served) -> ModelSize:
        """What a copy takes of memory, as far as known before one runs. Blocks once for each model and
        its options.
        """
        artifact, weights = served.artifact, self.estimate_memory(served.artifact)
        if artifact is None or not weights:
            return ModelSize()
        key = artifact, msgspec.json.encode(served.options)
        if key not in self._kv_bytes:
            self._kv_bytes[key] = self._count_kv_bytes(artifact, served)
        return ModelSize(weights, self._kv_bytes[key])

    def _count_kv_bytes(self, artifact: str, served: Served) -> int:
        try:
            engine, model = find_engine(served.engine), self._store.load(artifact)
            return count_kv_bytes(engine, served.options, model, self._store)
        except (ThriftyError, OSError) as error:
            log.error("the KV cache of %s cannot be reckoned: %s", artifact, error)
            return DEFAULT_KV_BYTES

    # what is there

    async def _adopt(self, rows: Sequence[ReplicaRow]) -> None:
        """Have the fleets take over what an earlier controller left."""
        known: dict[bool, list[tuple[ReplicaRow, ReplicaSet]]] = {True: [], False: []}
        for row in rows:
            found = await asyncio.to_thread(self._find_version, row)
            if found is None:
                continue
            self._known[row.deployment, row.version, row.revision] = found
            # Elsewhere each copy has the cores that it asks for; here, its process says.
            cpus = (found.version.replicas.cpus or 1) if self.cores is None else 0
            size = SetKey(row.deployment, row.version, row.revision, cpus)
            replica_set = self._make_set(SetTarget(size, 1), 1.0)
            if replica_set is not None:
                external = bool(found.version.urls)
                known[external].append((row, replica_set))
        for external, fleet in self._fleets.items():
            await fleet.adopt(known[external])

    def _find_version(self, row: ReplicaRow) -> _Known | None:
        """What a replica serves: a version that is wanted, or once was."""
        found = self._known.get((row.deployment, row.version, row.revision))
        if found is not None:
            return found
        for past in read_history(self._database(), row.deployment, HISTORY):
            if isinstance(past.state, DesiredDeployment):
                version = past.state.find_version(row.version)
                if version is not None and version.revision == row.revision:
                    return _Known(past.state, version)
        return None

    # the next step

    async def _do_step(self) -> None:
        free = ENDLESS
        if self.cores is not None:
            free = await asyncio.to_thread(available_memory_bytes)
        for deployment in self.desired.deployments.values():
            for replica_id, asked_s in deployment.drains:
                self._fleets[False].drain(replica_id, asked_s)
        room = Room(self.cores, free, self._artifact_bytes)
        step = reconcile(self.desired.deployments, self._rows, self.observe(), room)
        for place, reason in step.waiting.items():
            if place not in self.step.waiting:
                log.warning("%s %s waits: %s", *place, reason)
        share = 1.0
        if self.cores is not None:
            share = 1 / max(1, count_local_copies(self.desired.deployments))
        sets: dict[bool, list[ReplicaSet]] = {True: [], False: []}
        for target in step.sets:
            replica_set = self._make_set(target, share)
            if replica_set is not None:
                sets[bool(replica_set.served.upstream.urls)].append(replica_set)
        for external, fleet in self._fleets.items():
            await fleet.apply(sets[external])
        self.step, self._rows = step, step.rows
        self._turn += 1
        self._forget()

    def _forget(self) -> None:
        """Keep of the versions that were known those that are wanted, or run."""
        used = {
            (one.key.deployment, one.key.version, one.key.revision) for one in self.observe()
        } | {
            (deployment.name, version.label, version.revision)
            for deployment in self.desired.deployments.values()
            for version in deployment.versions
        }
        self._known = {place: found for place, found in self._known.items() if place in used}

    def _count(self, target: SetTarget) -> int:
        key = target.key
        version = self._known[key.deployment, key.version, key.revision].version
        return len(version.urls) or target.count

    def _make_set(self, target: SetTarget, memory_share: float) -> ReplicaSet | None:
        key = target.key
        known = self._known[key.deployment, key.version, key.revision]
        try:
            engine = find_engine(known.version.engine)
        except EngineError as error:
            log.error("%s %s: %s", key.deployment, key.version, error)
            return None
        replicas = known.version.replicas
        return ReplicaSet(
            make_served(known.deployment, known.version), engine, target.count,
            cpus=key.cpus, even_copies=target.even_copies, memory_share=memory_share,
            memory_limit_bytes=replicas.memory_limit_bytes,
            start_timeout_s=replicas.start_timeout_s, parked=target.parked, work=self.work,
            gpus=replicas.gpus, image=known.version.image,
        )  # fmt: skip

    # what gateways read

    async def _publish(self) -> None:
        """Write what has changed, and figures now and then. Raises `DatabaseError`."""
        turn = self._turn
        rows = {one.row.id: one.row for one in self.observe()}
        report = FleetReport(self.step.rows, {**self._find_faults(), **self.step.waiting}, rows)
        due = time.monotonic() - self._written_s > FIGURES_S
        new = self._written is None or _without_figures(report) != _without_figures(self._written)
        if new or due:
            await asyncio.to_thread(
                publish_fleet, self._database(), report, self._written,
                change_id=self.desired.change_id,
            )  # fmt: skip
            held = self._list_holdings()
            await asyncio.to_thread(self._spans.record, self._database(), held)
            self._written, self._written_s = report, time.monotonic()
        if new:
            self._on_published()
        async with self._new_publication:
            self._published = turn
            self._new_publication.notify_all()

    def _list_holdings(self) -> list[Holding]:
        """Who holds the machine now, and the machine itself."""
        service = self.desired.service
        price = DesiredCapacity() if service is None else service.capacity
        cost = (price.stated_per_hour, price.basis)
        cores = max(1, len(self._machine.cores))
        return [Holding(MACHINE, MACHINE, "", self._began_s, 1.0, *cost)] + [
            Holding(
                one.row.id, one.row.deployment, one.row.version, one.row.process_created_s or 0.0,
                _find_share(one, cores), *cost,
            )
            for one in self.observe()
            if one.state not in NOT_HELD
        ]  # fmt: skip

    async def end_spans(self) -> None:
        """Record that no replica is held any more. Raises `DatabaseError`."""
        await asyncio.to_thread(self._spans.end_all, self._database())

    def _find_faults(self) -> dict[tuple[str, str], str]:
        """What fleets say of versions as a whole."""
        return {
            place: text for fleet in self._fleets.values() for place, text in fleet.faults.items()
        }

    def _note_away(self, error: Exception | None) -> None:
        if error is not None and not self._away:
            log.warning(
                "the database cannot be used (%s); going on with what was wanted last", error
            )
        elif error is None and self._away:
            log.info("the database can be used again")
        self._away = error is not None


def _find_share(one: ObservedReplica, cores: int) -> float:
    """The share of the machine that a replica holds: its cores of all; none of it where others run
    it. An adopted one that does not say holds all.
    """
    if one.row.pid is None:
        return 0.0
    return min(1.0, one.key.cpus / cores) if one.key.cpus > 0 else 1.0


def _without_figures(report: FleetReport) -> FleetReport:
    """A report by which two are compared: figures of replicas change all the time."""
    rows = {
        row_id: replace(row, memory_bytes=None, load=None)
        for row_id, row in report.replicas.items()
    }
    return replace(report, replicas=rows)
