"""The fleet of servers that others run: watched, never started or stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import cast

from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import ExternalEngine, Served
from thrifty.fleet.base import (
    Announce,
    FleetHere,
    ObservedReplica,
    OnChange,
    ReplicaNames,
    ReplicaSet,
    SetKey,
    announce_nothing,
)
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 2.0
UNHEALTHY_AFTER = 2


class ExternalReplica:
    """Watches one URL."""

    def __init__(
        self,
        replica_id: str,
        url: str,
        served: Served,
        engine: ExternalEngine,
        on_change: OnChange,
    ) -> None:
        self.id = replica_id
        self.served = served
        self.state = ReplicaState.STARTING
        self.message: str | None = None
        self.ready_after_s = 0.0
        self.url = url
        self._engine = engine
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None

    @property
    def key(self) -> SetKey:
        """The set it belongs to."""
        return SetKey(self.served.name, self.served.version, self.served.revision, 0)

    def start(self, adopted: ReplicaRow | None = None) -> None:
        """Begin to watch; `adopted` is how an earlier controller saw it."""
        if adopted is not None and adopted.state == ReplicaState.READY:
            # It may be serving: gateways go on with it while it is asked.
            self.state = ReplicaState.READY
        self._task = asyncio.ensure_future(self._watch())

    def take(self, served: Served) -> None:
        """Serve the same with other settings, such as another key: ask anew at once. Until the server
        has answered, gateways go on with it.
        """
        if served != self.served:
            self.served = served
            self.leave()
            self._task = asyncio.ensure_future(self._watch())

    def leave(self) -> None:
        """Stop watching, without a word."""
        if self._task is not None:
            self._task.cancel()

    def begin_retiring(self) -> None:
        """Stop watching; gateways are to send it nothing more."""
        self.leave()
        self._set(ReplicaState.DRAINING, self.message)

    async def stop(self) -> None:
        """Stop watching, for good."""
        self.begin_retiring()
        if self._task is not None:
            await asyncio.wait({self._task})
        self._set(ReplicaState.STOPPED, None)

    def row(self) -> ReplicaRow:
        """How it is now."""
        return ReplicaRow(
            id=self.id,
            deployment=self.served.name,
            engine=self.served.engine,
            version=self.served.version,
            revision=self.served.revision,
            artifact=None,
            url=self.url,
            state=self.state.value,
            message=self.message,
        )

    async def _watch(self) -> None:
        silent = 0
        while True:
            found = await self._engine.examine(self.url, self.served)
            fault = found.fault
            if fault is None:
                silent = 0
                self._set(ReplicaState.READY, found.remark)
            else:
                silent += 1
                if silent >= UNHEALTHY_AFTER or self.state is ReplicaState.STARTING:
                    self._set(ReplicaState.UNHEALTHY, fault)
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _set(self, state: ReplicaState, message: str | None) -> None:
        if state is self.state and message == self.message:
            return
        log.info("%s: %s %s", self.id, state.value, message or "")
        self.state, self.message = state, message
        self._on_change()


class ExternalFleet(FleetHere):
    """As many replicas as a set has URLs, whatever its count. See `fleet.base.Fleet`."""

    def __init__(
        self, names: ReplicaNames, on_change: OnChange, announce: Announce = announce_nothing
    ) -> None:
        self._names = names
        self._on_change = on_change
        self._announce = announce
        self._members: list[ExternalReplica] = []
        self._leaving: dict[ExternalReplica, asyncio.Task[None]] = {}

    async def adopt(self, known: Sequence[tuple[ReplicaRow, ReplicaSet]]) -> None:
        """As `Fleet.adopt` says: rows without a process keep their ids."""
        for row, replica_set in known:
            if row.url in replica_set.served.upstream.urls:
                self._names.claim(row.id)
                self._start(row.id, row.url, replica_set, row)

    async def apply(self, desired: Sequence[ReplicaSet]) -> None:
        """As `Fleet.apply` says."""
        wanted = {
            (replica_set.key, url): replica_set
            for replica_set in desired
            for url in replica_set.served.upstream.urls
        }
        kept = set()
        for replica in list(self._members):
            place = (replica.key, replica.url)
            if place in wanted and place not in kept:
                kept.add(place)
                replica.take(wanted[place].served)
                continue
            self._members.remove(replica)
            replica.begin_retiring()
            self._leaving[replica] = asyncio.ensure_future(self._see_off(replica))
        for (key, url), replica_set in wanted.items():
            if (key, url) not in kept:
                name = self._names.take(key.deployment)
                self._start(name, url, replica_set, None)

    def drain(self, replica_id: str, asked_s: float) -> None:
        """Nothing: see `Fleet.drain`."""

    def observe(self) -> Sequence[ObservedReplica]:
        """As `Fleet.observe` says."""
        return [
            ObservedReplica(replica.key, replica.row(), replica.ready_after_s)
            for replica in (*self._members, *self._leaving)
        ]

    async def stop(self, grace_s: float) -> None:
        """As `Fleet.stop` says: nothing but the watching ends."""
        for task in self._leaving.values():
            task.cancel()
        await asyncio.gather(*(replica.stop() for replica in (*self._members, *self._leaving)))
        self._members.clear()
        self._leaving.clear()

    def kill(self) -> None:
        """Nothing here is ours to end."""

    def leave(self) -> None:
        """Stop watching, without a word."""
        for replica in self._members:
            replica.leave()
        for task in self._leaving.values():
            task.cancel()

    def _start(self, name: str, url: str, replica_set: ReplicaSet, row: ReplicaRow | None) -> None:
        engine = cast(ExternalEngine, replica_set.engine)
        replica = ExternalReplica(name, url, replica_set.served, engine, self._on_change)
        self._members.append(replica)
        replica.start(row)

    async def _see_off(self, replica: ExternalReplica) -> None:
        await self._announce()
        await replica.stop()
        self._leaving.pop(replica, None)
        self._names.release(replica.id)
        self._on_change()
