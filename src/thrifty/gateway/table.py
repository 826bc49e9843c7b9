"""What a gateway knows of the fleet: deployments, replicas, keys.

It is read from the database by `table_reader` and stays as it was when the database or the
controller is away. Requests in flight are counted here, from the moment a replica is chosen until
the last byte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thrifty.db.cache import Purge
from thrifty.db.fleet import DeploymentRow, DeploymentSettings, FleetState, ReplicaRow
from thrifty.db.keys import Key
from thrifty.gateway.routing import RoutingPolicy, make_policy
from thrifty.types import ReplicaState
from thrifty.wire.client import Origin, parse_origin

SUSPECT_S = 1.0
"""A replica that just failed a request is avoided this long, if there are others: the controller
needs a moment to see that it is gone."""


@dataclass
class Replica:
    """One copy of a model, as this gateway sees it."""

    id: str
    deployment: str
    version: str
    revision: str
    origin: Origin
    state: str
    in_flight: int = 0
    suspect_until_s: float = 0.0
    memory_bytes: int = 0
    load: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether it gets traffic."""
        return self.state == ReplicaState.READY

    def suspect(self) -> None:
        """Note that it failed a request just now."""
        self.suspect_until_s = time.monotonic() + SUSPECT_S


@dataclass
class Deployment:
    """One model behind one name."""

    row: DeploymentRow
    routing: RoutingPolicy
    honours: frozenset[str] | None
    replicas: dict[str, Replica] = field(default_factory=dict)
    waiting: int = 0
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """What clients write in `model`."""
        return self.row.name

    @property
    def settings(self) -> DeploymentSettings:
        """Its policies and limits."""
        return self.row.settings

    @property
    def version(self) -> str:
        """The version that is wanted."""
        return self.row.version

    def candidates(self, excluded: set[str]) -> list[Replica]:
        """Ready replicas that are not excluded; suspects only where there are no others."""
        ready = [r for r in self.replicas.values() if r.ready and r.id not in excluded]
        if len(ready) < 2:
            return ready
        now_s = time.monotonic()
        trusted = [replica for replica in ready if replica.suspect_until_s <= now_s]
        return trusted or ready

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait until a replica becomes ready, or its state changes otherwise."""
        self._ready.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Let those who wait look again."""
        self._ready.set()


class RoutingTable:
    """Deployments by name, keys by checksum. Changed only on the event loop."""

    def __init__(self) -> None:
        self.deployments: dict[str, Deployment] = {}
        self.keys: dict[str, Key] = {}
        self.keys_exist = False
        """Stays true for good once a key was seen: a lost database must not open the door."""
        self.loaded = False
        self.change = -1
        self.gone: list[Replica] = []
        self.purges: Sequence[Purge] = ()
        self.listeners: list[Callable[[], None]] = []
        """Called each time a new state was taken, changed or not."""

    def apply(self, state: FleetState) -> None:
        """Take a new state; counters of replicas that are still there are kept."""
        self.change = state.change
        self.keys = {key.hash: key for key in state.keys}
        self.keys_exist = self.keys_exist or bool(self.keys)
        before = self.deployments
        self.deployments = {}
        for row in state.deployments:
            self.deployments[row.name] = _merge_deployment(before.get(row.name), row)
        for deployment in self.deployments.values():
            known = before[deployment.name].replicas if deployment.name in before else {}
            rows = [row for row in state.replicas if row.deployment == deployment.name]
            deployment.replicas = {row.id: _merge_replica(known.get(row.id), row) for row in rows}
            self.gone += [known[i] for i in known if i not in deployment.replicas]
            if any(replica.ready for replica in deployment.replicas.values()):
                deployment.wake()
        self.purges = state.purges
        self.loaded = True
        for listener in self.listeners:
            listener()

    def take_gone(self) -> list[Replica]:
        """Replicas that have left since the last call."""
        gone, self.gone = self.gone, []
        return gone


def _merge_deployment(known: Deployment | None, row: DeploymentRow) -> Deployment:
    if known is not None and known.row == row:
        return known
    honours = row.settings.honours
    deployment = Deployment(
        row, make_policy(row.settings.routing), None if honours is None else frozenset(honours)
    )
    if known is not None:
        deployment.waiting = known.waiting
        known.wake()
    return deployment


def _merge_replica(known: Replica | None, row: ReplicaRow) -> Replica:
    origin = parse_origin(row.url)
    if known is None or known.origin != origin or known.revision != row.revision:
        known = Replica(row.id, row.deployment, row.version, row.revision, origin, row.state)
    known.state = row.state
    known.memory_bytes = row.memory_bytes or 0
    known.load = row.load or {}
    return known
