"""The fleet on a Ray cluster: an actor for each replica, placed by Ray, that owns an engine process.

Ray chooses nodes by what replicas ask for, and brings nodes where its autoscaler runs. Requests go
from gateways to engines and never through Ray, so that what serves goes on while Ray's head is away.
Ray itself is imported in a process of its own (`ray_bridge`) and on the nodes (`ray_actor`).

A replica that has to go is drained first, as everywhere. Of several controllers one acts: it holds a
lease in the cluster, which ends with its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from thrifty.artifacts import Store
from thrifty.artifacts.remotes import push
from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import Served
from thrifty.errors import ArtifactError, FleetError
from thrifty.fleet.base import (
    WORTH,
    Announce,
    ObservedReplica,
    OnChange,
    ReplicaNames,
    ReplicaSet,
    SetKey,
    announce_nothing,
)
from thrifty.fleet.memory import ModelSize
from thrifty.fleet.ray_link import Event, RayLink
from thrifty.fleet.ray_replica import RayReplica
from thrifty.fleet.ray_settings import Bundle, RaySettings, make_bundle
from thrifty.home import Home
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

FIRST_LIST_S = 20.0
"""How long a start waits until Ray has said what runs."""
LEASE_POLL_S = 0.5
AVOID_S = 60.0
"""How long a node on which a replica was lost is not chosen: Ray may take so long to give it up."""
FORCED_S = 5.0


class RayFleet:
    """See the module's docstring, and `fleet.base.Fleet`."""

    elsewhere = True

    def __init__(
        self,
        settings: RaySettings,
        home: Home,
        store: Store,
        names: ReplicaNames,
        on_change: OnChange,
        announce: Announce = announce_nothing,
        find_size: Callable[[Served], ModelSize] = lambda served: ModelSize(),
    ) -> None:
        """`find_size` says how large what is served is. Raises `FleetError` where Ray is not
        installed.
        """
        if importlib.util.find_spec("ray") is None:
            raise FleetError("fleet.kind ray needs Ray: pip install 'thrifty[ray]'")
        self._settings = settings
        self._store = store
        self._names = names
        self._on_change = on_change
        self._announce = announce
        self._find_size = find_size
        self._members: list[RayReplica] = []
        self._leaving: dict[RayReplica, asyncio.Task[None]] = {}
        self._published: dict[str, asyncio.Task[str]] = {}
        """Where nodes find models, by artifact."""
        self._avoided: dict[str, float] = {}
        """Nodes on which a replica was lost, and until when they are not chosen."""
        self._requested: list[Bundle] | None = None
        self._link = RayLink(settings, home.log_of("ray"), self._take, self._note_link)
        self._running: asyncio.Task[None] | None = None

    # Who acts

    async def connect(self, on_wait: Callable[[str], None] = lambda holder: None) -> None:
        """Wait until this controller may act, or until Ray is found to be away: then what serves
        goes on serving. `on_wait` is told who holds the lease.
        """
        self._open()
        await self._link.answered.wait()
        told = None
        while self._link.other is not None:
            if self._link.other != told:
                told = self._link.other
                log.warning("the controller %s acts; waiting for its lease", told)
                on_wait(told)
            await asyncio.sleep(LEASE_POLL_S)

    def _open(self) -> None:
        if self._running is None:
            self._running = asyncio.ensure_future(self._link.run())

    @property
    def standing_by(self) -> bool:
        """Whether another controller acts, so that this one must not."""
        return self._link.other is not None

    @property
    def faults(self) -> Mapping[tuple[str, str], str]:
        """What keeps sets from being as desired, by deployment and label, in plain words."""
        since_s = self._link.away_since_s
        if since_s is None:
            return {}
        when = time.strftime("%H:%M:%S", time.gmtime(since_s))
        text = (
            f"Ray is away since {when} UTC: {self._link.fault}. What ran then goes on serving for as "
            "long as its nodes do, and nothing is changed"
        )
        return {(one.key.deployment, one.key.version): text for one in self._members}

    # The fleet's interface

    async def adopt(self, known: Sequence[tuple[ReplicaRow, ReplicaSet]]) -> None:
        """As `Fleet.adopt` says. Replicas are as their rows say until Ray has told, which it may have
        done already.
        """
        there = {replica.id: replica for replica in self._members}
        left: list[RayReplica] = []
        going: list[RayReplica] = []
        for row, replica_set in known:
            self._names.claim(row.id)
            replica = there.get(row.id)
            if replica is None:
                replica = self._make(row.id, replica_set)
                replica.take_row(row)
                if self._link.ready.is_set():
                    replica.note_missing()
                left.append(replica)
            replica.restarts = row.restarts
            if row.state in (ReplicaState.DRAINING, ReplicaState.STOPPED):
                going.append(replica)
        self._members += left
        self._open()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LIST_S):
                await self._link.ready.wait()
        for replica in left:
            if replica not in going:
                replica.start()
        for replica in going:
            self._retire(replica)

    async def apply(self, desired: Sequence[ReplicaSet]) -> None:
        """As `Fleet.apply` says."""
        self._open()
        wanted = {replica_set.key: replica_set for replica_set in desired}
        members: dict[SetKey, list[RayReplica]] = {key: [] for key in wanted}
        for replica in self._members:
            members.setdefault(replica.key, []).append(replica)
        for key, found in members.items():
            count = wanted[key].count if key in wanted else 0
            work = wanted[key].work if key in wanted else {}
            found.sort(key=lambda one, work=work: _rank(one, work))  # type: ignore[misc]
            for surplus in found[count:]:
                log.info("%s: is not wanted any more", surplus.id)
                self._retire(surplus)
            for replica in found[:count]:
                replica.start_timeout_s = wanted[key].start_timeout_s
                replica.bundle = self._make_bundle(wanted[key])
        for key, replica_set in wanted.items():
            for _ in range(replica_set.count - len(members[key])):
                replica = self._make(self._names.take(key.deployment), replica_set)
                self._members.append(replica)
                replica.start()
        self._request_nodes()

    def drain(self, replica_id: str, asked_s: float) -> None:
        """Nothing: see `Fleet.drain`."""

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
        for replica in replicas:
            replica.begin_retiring()
        if self._link.ready.is_set():
            self._link.send("request", bundles=[])
            await asyncio.gather(*(replica.end(grace_s) for replica in replicas))
        await self._close()
        self._members.clear()
        self._leaving.clear()

    def kill(self) -> None:
        """Actors stay for the next controller, or until the cluster ends: ending them takes Ray time,
        and there is none.
        """
        self.leave()

    def leave(self) -> None:
        """Stop watching; replicas go on for the next controller."""
        for replica in self._members:
            replica.leave()
        for task in (*self._leaving.values(), *self._published.values()):
            task.cancel()
        if self._running is not None:
            self._running.cancel()
        self._link.close()

    async def hand_over(self) -> None:
        """Stop watching, and let another controller act at once."""
        await self._close()

    async def _close(self) -> None:
        self._link.close()
        await self._link.wait_closed()
        self.leave()
        if self._running is not None:
            await asyncio.wait({self._running})

    # What Ray tells

    def _note_link(self) -> None:
        if not self._link.ready.is_set():
            self._requested = None
        self._request_nodes()
        self._on_change()

    def _take(self, event: Event) -> None:
        kind = event["event"]
        if kind == "listed":
            self._take_list(event["actors"], event["silent"])
            return
        for replica in (*self._members, *self._leaving):
            if replica.actor != event["name"]:
                continue
            if kind == "placed":
                replica.take_actor(event)
            elif kind == "ended":
                replica.take_end(event["message"], failed=event["failed"])
            elif kind == "waiting":
                replica.take_waiting(event["message"])
            return
        if kind == "placed":
            self._take_found(event)

    def _take_list(self, actors: Sequence[Event], silent: Sequence[str]) -> None:
        """Ray says which actors there are: after a start, and whenever it was away. Those that are
        `silent` have not told yet what they serve.
        """
        found = {self._take_found(one) for one in actors}
        for replica in (*self._members, *self._leaving):
            for name in silent:
                if name.rpartition(".")[0] == replica.id and replica.actor in (None, name):
                    replica.actor = name
                    found.add(replica)
            if replica not in found:
                replica.note_missing()

    def _take_found(self, one: Event) -> RayReplica | None:
        """Take over an actor that was found; None where another attempt has taken its place, which it
        must not answer beside.
        """
        served, key = Served.from_json(one["served"]), SetKey(*one["key"])
        known = {replica.id: replica for replica in (*self._members, *self._leaving)}
        replica = known.get(one["replica"])
        if replica is None:
            self._names.claim(one["replica"])
            replica = self._make_from(one["replica"], key, served, {})
            self._members.append(replica)
            replica.take_actor(one)
            replica.start()
        elif replica.actor in (None, one["name"]) and replica.key.revision == key.revision:
            replica.key = key
            replica.take_actor(one)
        else:
            self._link.send("kill", name=one["name"])
            return None
        return replica

    # Replicas

    def _make(self, name: str, replica_set: ReplicaSet) -> RayReplica:
        bundle = self._make_bundle(replica_set)
        replica = self._make_from(name, replica_set.key, replica_set.served, bundle)
        replica.start_timeout_s = replica_set.start_timeout_s
        return replica

    def _make_bundle(self, replica_set: ReplicaSet) -> Bundle:
        return make_bundle(replica_set, self._settings, self._find_size(replica_set.served))

    def _make_from(self, name: str, key: SetKey, served: Served, bundle: Bundle) -> RayReplica:
        return RayReplica(
            name, key, served, bundle, self._link, self._on_change, self._announce,
            self._publish_model, self._list_avoided, self._note_lost, tls=self._settings.tls,
        )  # fmt: skip

    def _retire(self, replica: RayReplica) -> None:
        self._members.remove(replica)
        replica.begin_retiring()
        self._leaving[replica] = asyncio.ensure_future(self._see_off(replica))

    async def _see_off(self, replica: RayReplica) -> None:
        await replica.retire()
        self._leaving.pop(replica, None)
        self._names.release(replica.id)
        self._request_nodes()
        self._on_change()

    def _note_lost(self, node: str) -> None:
        self._avoided[node] = time.monotonic() + AVOID_S

    def _list_avoided(self) -> list[str]:
        now_s = time.monotonic()
        self._avoided = {node: end for node, end in self._avoided.items() if end > now_s}
        return sorted(self._avoided)

    def _request_nodes(self) -> None:
        """Have the autoscaler keep room for what is wanted and what drains, and no more."""
        if not self._link.ready.is_set():
            return
        bundles = [one.bundle for one in (*self._members, *self._leaving) if one.bundle]
        bundles = bundles[: self._settings.max_replicas]
        if bundles != self._requested:
            self._requested = bundles
            self._link.send("request", bundles=[dict(one) for one in bundles])

    async def _publish_model(self, served: Served) -> str | None:
        """Where nodes find a model: it is put there once. Raises `FleetError`."""
        artifact, root = served.artifact, self._settings.models
        if artifact is None or root is None:
            return None
        task = self._published.get(artifact)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.ensure_future(asyncio.to_thread(self._push, artifact, root))
            self._published[artifact] = task
        try:
            return await asyncio.shield(task)
        except ArtifactError as error:
            raise FleetError(f"the model cannot be put where nodes find it: {error}") from None

    def _push(self, artifact: str, root: str) -> str:
        for version in self._store.versions():
            if version.artifact == artifact:
                return push(self._store, version.label, root).reference
        raise ArtifactError(f"the store has no name for {artifact}; apply the spec again")


def _rank(replica: RayReplica, work: Mapping[str, float]) -> tuple[int, float, int]:
    """The smaller, the rather it is kept: those that answer, and among them those with most to say."""
    number = int(replica.id.rpartition("-")[2])
    return WORTH.get(replica.state, 9), -work.get(replica.id, 0.0), number


__all__ = ["RayFleet", "RaySettings"]
