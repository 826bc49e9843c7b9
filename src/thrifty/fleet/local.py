"""The fleet on this machine: replicas as supervised processes, each on cores of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from thrifty.artifacts import Store
from thrifty.db.fleet import ReplicaRow
from thrifty.engines.machine import GPUS_VARIABLE, Machine
from thrifty.fleet.base import (
    WORTH,
    Announce,
    FleetHere,
    ObservedReplica,
    OnChange,
    ReplicaNames,
    ReplicaSet,
    SetKey,
    announce_nothing,
)
from thrifty.fleet.cores import choose_cores, share_evenly
from thrifty.fleet.local_replica import CPUS_VARIABLE, LocalReplica
from thrifty.fleet.process import ProcessId, adopt_process, find_ours, read_cores, read_environment
from thrifty.home import Home
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

ORPHAN_GRACE_S = 35.0
"""For processes that an earlier controller left and nobody can use."""


class LocalFleet(FleetHere):
    """See the module's docstring, and `fleet.base.Fleet`."""

    def __init__(
        self,
        home: Home,
        store: Store,
        machine: Machine,
        names: ReplicaNames,
        on_change: OnChange,
        announce: Announce = announce_nothing,
    ) -> None:
        self._home = home
        self._store = store
        self._machine = machine
        self._names = names
        self._on_change = on_change
        self._announce = announce
        self._members: list[LocalReplica] = []
        self._leaving: dict[LocalReplica, asyncio.Task[None]] = {}
        self._orphans: set[asyncio.Task[bool]] = set()

    async def adopt(self, known: Sequence[tuple[ReplicaRow, ReplicaSet]]) -> None:
        """As `Fleet.adopt` says. Processes that are not known drain and end by themselves."""
        rows = {row.id: (row, replica_set) for row, replica_set in known}
        found = await asyncio.to_thread(find_ours, self._home.root)
        for ident, role, process_id in found:
            if role != "replica":
                continue
            row, replica_set = rows.get(process_id, (None, None))
            known_here = row is not None and ident.is_same(row.pid, row.process_created_s)
            if row is None or replica_set is None or not known_here:
                self._end_orphan(ident, process_id)
                continue
            self._names.claim(row.id)
            cpus = _read_cpus(ident)
            cores = read_cores(ident)
            gpus = self._count_gpus(replica_set) and _read_gpus(ident)
            replica = self._make(
                row.id,
                replica_set,
                cores or list(self._machine.cores),
                cpus,
                gpus or self._choose_gpus(replica_set),
            )
            if row.state in (ReplicaState.DRAINING, ReplicaState.STOPPED):
                replica.take_leaving(row)
                self._retire(replica)
            else:
                replica.start(row)
                self._members.append(replica)

    async def apply(self, desired: Sequence[ReplicaSet]) -> None:
        """As `Fleet.apply` says."""
        wanted = {replica_set.key: replica_set for replica_set in desired}
        members: dict[SetKey, list[LocalReplica]] = {key: [] for key in wanted}
        for replica in self._members:
            members.setdefault(replica.key, []).append(replica)
        # What goes goes first, so that what comes finds its cores free.
        for key, found in members.items():
            kept = wanted[key].count + wanted[key].parked if key in wanted else 0
            work = wanted[key].work if key in wanted else {}
            found.sort(key=lambda replica, work=work: _rank(replica, work))  # type: ignore[misc]
            for surplus in found[kept:]:
                self._members.remove(surplus)
                self._retire(surplus)
        for key, replica_set in wanted.items():
            kept = replica_set.count + replica_set.parked
            for place, replica in enumerate(members[key][:kept]):
                replica.set_bounds(replica_set.memory_limit_bytes, replica_set.start_timeout_s)
                if place < replica_set.count:
                    replica.unpark()
                else:
                    replica.park()
        for key, replica_set in wanted.items():
            for _ in range(replica_set.count + replica_set.parked - len(members[key])):
                self._start(replica_set)

    def drain(self, replica_id: str, asked_s: float) -> None:
        """Take a replica away that was there at `asked_s` (seconds since 1970). It finishes what it
        answers; the next `apply` starts another one. One that came later is left alone.
        """
        for replica in [one for one in self._members if one.id == replica_id]:
            created_s = replica.row().process_created_s
            if created_s is not None and created_s < asked_s:
                self._members.remove(replica)
                self._retire(replica)

    def observe(self) -> Sequence[ObservedReplica]:
        """As `Fleet.observe` says."""
        return [
            ObservedReplica(replica.key, replica.row(), replica.ready_after_s)
            for replica in (*self._members, *self._leaving)
        ]

    async def stop(self, grace_s: float) -> None:
        """As `Fleet.stop` says."""
        for task in self._leaving.values():
            task.cancel()
        replicas = [*self._members, *self._leaving]
        await asyncio.gather(*(replica.stop(grace_s) for replica in replicas), *self._orphans)
        self._members.clear()
        self._leaving.clear()

    def kill(self) -> None:
        """As `Fleet.kill` says."""
        for replica in (*self._members, *self._leaving):
            replica.kill()

    def leave(self) -> None:
        """Stop watching; the processes go on for the next controller."""
        for replica in self._members:
            replica.leave()
        for task in (*self._leaving.values(), *self._orphans):
            task.cancel()

    def _start(self, replica_set: ReplicaSet) -> None:
        use = Counter(core for replica in self._members for core in replica.cores)
        size = replica_set.cpus
        _, more = share_evenly(len(self._machine.cores), replica_set.even_copies)
        if replica_set.even_copies:
            larger = sum(len(replica.cores) > size for replica in self._members)
            size += larger < more
        cores = choose_cores(self._machine.cores, use, size)
        name = self._names.take(replica_set.served.name)
        gpus = self._choose_gpus(replica_set)
        replica = self._make(name, replica_set, cores, replica_set.cpus, gpus)
        self._members.append(replica)
        replica.start()

    def _count_gpus(self, replica_set: ReplicaSet) -> int:
        """How many GPUs a copy gets: those that were asked for, or that its engine spreads it over."""
        count = replica_set.engine.traits.count_gpus
        if count is None or not self._machine.gpus:
            return 0
        return min(len(self._machine.gpus), replica_set.gpus or count(replica_set.served.options))

    def _choose_gpus(self, replica_set: ReplicaSet) -> list[str]:
        """Those that the fewest copies use, as cores are chosen."""
        count, there = self._count_gpus(replica_set), self._machine.gpus
        if not count:
            return []
        use = Counter(there.index(gpu) for one in self._members for gpu in one.gpus if gpu in there)
        return [there[place] for place in choose_cores(range(len(there)), use, count)]

    def _share_memory(self, replica_set: ReplicaSet) -> float:
        """The share of the free memory, or of its GPUs' memory, that a copy may plan with."""
        count = self._count_gpus(replica_set)
        if not count:
            return replica_set.memory_share
        copies = round(1 / replica_set.memory_share)
        return 1 / -(-copies * count // len(self._machine.gpus))

    def _make(
        self,
        name: str,
        replica_set: ReplicaSet,
        cores: Sequence[int],
        set_cpus: int,
        gpus: Sequence[str],
    ) -> LocalReplica:
        return LocalReplica(
            name,
            replica_set.served,
            replica_set.engine,
            home=self._home,
            store=self._store,
            cores=cores,
            gpus=gpus,
            memory_share=self._share_memory(replica_set),
            memory_limit=replica_set.memory_limit_bytes,
            start_timeout_s=replica_set.start_timeout_s,
            on_change=self._on_change,
            announce=self._announce,
            set_cpus=set_cpus,
        )

    def _retire(self, replica: LocalReplica) -> None:
        log.info("%s: is not wanted any more", replica.id)
        replica.begin_retiring()
        self._leaving[replica] = asyncio.ensure_future(self._see_off(replica))

    async def _see_off(self, replica: LocalReplica) -> None:
        try:
            await replica.retire()
        except OSError as error:
            log.error("%s cannot be ended properly: %s", replica.id, error)
            replica.kill()
        self._leaving.pop(replica, None)
        self._names.release(replica.id)
        self._on_change()

    def _end_orphan(self, ident: ProcessId, name: str) -> None:
        log.info("ending pid %d (%s), left over from an earlier run", ident.pid, name)
        orphan = adopt_process(ident, self._home.log_of(name))
        if orphan is not None:
            task = asyncio.ensure_future(orphan.stop(ORPHAN_GRACE_S))
            self._orphans.add(task)
            task.add_done_callback(self._orphans.discard)


def _rank(replica: LocalReplica, work: Mapping[str, float]) -> tuple[int, float, int]:
    """The smaller, the rather it is kept: those that answer, and among them those with most to say."""
    left = work.get(replica.id, 0.0) or replica.count_requests()
    return WORTH.get(replica.state, 9), -left, _number(replica.id)


def _number(replica_id: str) -> int:
    return int(replica_id.rpartition("-")[2])


def _read_cpus(ident: ProcessId) -> int:
    """What the set of an adopted replica gives each copy; -1 where it does not say."""
    with contextlib.suppress(ValueError):
        return int(read_environment(ident).get(CPUS_VARIABLE, "-1"))
    return -1


def _read_gpus(ident: ProcessId) -> list[str]:
    """The GPUs that an adopted replica was given."""
    return [name for name in read_environment(ident).get(GPUS_VARIABLE, "").split(",") if name]
