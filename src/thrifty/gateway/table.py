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
from thrifty.db.fleet import DeploymentRow, DeploymentSettings, FleetState, GatewayRow, ReplicaRow
from thrifty.db.keys import Key
from thrifty.gateway.admission.concurrency import ConcurrencyLimiter
from thrifty.gateway.admission.estimate import Estimator
from thrifty.gateway.admission.health import Health
from thrifty.gateway.routing import Router, hash_affinity, hash_conversation
from thrifty.http.client import Origin, parse_origin
from thrifty.openai.fields import GATEWAY_FIELDS
from thrifty.types import ReplicaState


@dataclass
class Replica:
    """One copy of a model, as this gateway sees it."""

    id: str
    deployment: str
    version: str
    revision: str
    origin: Origin
    state: str
    restarts: int = 0
    in_flight: int = 0
    waiting: int = 0
    """Those of them whose answer has not begun."""
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    slot: int = -1
    """Its number in its deployment's prefix index."""
    memory_bytes: int = 0
    load: Mapping[str, Any] = field(default_factory=dict)

    load_path: str | None = None
    """Where it reports its load."""
    rates_key: str = ""
    """What it shares its speed with: replicas of one revision that we run have the same model,
    engine and kind of device; servers of others each have their own."""

    @property
    def ready(self) -> bool:
        """Whether it gets traffic."""
        return self.state == ReplicaState.READY


@dataclass
class Deployment:
    """One model behind one name."""

    row: DeploymentRow
    router: Router
    honours: frozenset[str] | None
    replicas: dict[str, Replica] = field(default_factory=dict)
    ready: list[Replica] = field(default_factory=list)
    """Those that get traffic. A new list whenever they change."""
    waiting: int = 0
    concurrency: ConcurrencyLimiter = field(default_factory=lambda: ConcurrencyLimiter(""))
    """Who may go to a replica, and who waits."""
    health: Health = field(default_factory=Health)
    """Which replicas are left alone."""
    estimator: Estimator = field(default_factory=Estimator)
    """What requests take."""
    full: int = 0
    """How many replicas have no free slot."""
    several_versions: bool = False
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
        """Ready replicas that are not excluded. Those that failed are left alone, and those without
        a free slot, where there are others.
        """
        if not excluded and not self.full and self.health.fine:
            return self.ready
        ready: Sequence[Replica]
        ready = [replica for replica in self.ready if replica.id not in excluded]
        if not self.health.fine:
            ready = self.health.choose_from(ready, time.monotonic())
        slots = self.settings.slots
        if self.full and slots is not None:
            ready = [replica for replica in ready if replica.in_flight < slots] or ready
        return list(ready)

    def note_begun(self, replica: Replica) -> None:
        """A request more was counted against a replica."""
        if replica.in_flight == self.settings.slots:
            self.full += 1

    def note_ended(self, replica: Replica) -> None:
        """A request less is counted against a replica."""
        slots = self.settings.slots
        if slots is not None and replica.in_flight == slots - 1:
            self.full = max(0, self.full - 1)

    def ready_ids(self) -> set[str]:
        """Who is ready."""
        return {replica.id for replica in self.ready}

    def resize(self, workers: int) -> None:
        """Tell the limiter how many slots there are for this worker, which is one of `workers`."""
        slots = self.settings.slots
        if slots is None:
            self.full = 0
            self.concurrency.resize(None)
            return
        self.full = sum(1 for replica in self.ready if replica.in_flight >= slots)
        count = len(self.ready)
        if not self.health.fine:
            count -= self.health.left_alone(self.ready_ids())
        self.concurrency.resize(-(-slots * count // workers))

    def keep_version(
        self, candidates: list[Replica], body: Mapping[str, Any], session: str
    ) -> list[Replica]:
        """Of candidates with several versions, those of the one that this conversation belongs to:
        every gateway comes to the same answer, for as long as that version is there.
        """
        if not self.several_versions:
            return candidates
        place = hash_conversation(body, session)
        revisions = sorted({candidate.revision for candidate in candidates})
        kept = max(
            revisions, key=lambda revision: hash_affinity(b"%d\0%b" % (place, revision.encode()))
        )
        return [candidate for candidate in candidates if candidate.revision == kept]

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
        self.names: dict[str, Deployment] = {}
        """Deployments by all that clients may write in `model`: names and aliases."""
        self.gateways: list[GatewayRow] = []
        self.keys: dict[str, Key] = {}
        self.keys_exist = False
        """Stays true for good once a key was seen: a lost database must not open the door."""
        self.loaded = False
        self.workers = 1
        """How many gateway workers share the replicas' slots."""
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
        self.gateways = state.gateways
        self.names = {
            alias: deployment
            for deployment in self.deployments.values()
            for alias in deployment.settings.aliases
        } | self.deployments
        for deployment in self.deployments.values():
            known = before[deployment.name].replicas if deployment.name in before else {}
            rows = [row for row in state.replicas if row.deployment == deployment.name]
            deployment.replicas = {row.id: _merge_replica(known.get(row.id), row) for row in rows}
            for replica in deployment.replicas.values():
                replica.load_path = deployment.settings.load_path
            self.gone += [known[i] for i in known if i not in deployment.replicas]
            _note_replicas(deployment, list(known.values()))
            for row_id, replica in deployment.replicas.items():
                if known.get(row_id) is not replica:
                    deployment.health.forget(row_id)
            deployment.health.keep_only(deployment.replicas.keys())
            deployment.resize(self.workers)
        for name, gone in before.items():
            if name not in self.deployments:
                # Who waits goes on, and finds that the model is not there any more.
                gone.concurrency.resize(None)
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
    router = known.router if known is not None else Router(row.settings.routing)
    if router.policy != row.settings.routing:
        router = Router(row.settings.routing)
        for replica in known.replicas.values() if known is not None else ():
            replica.slot = -1
    honoured = None if honours is None else frozenset(honours) | GATEWAY_FIELDS
    deployment = Deployment(row, router, honoured)
    deployment.concurrency = ConcurrencyLimiter(row.name)
    if known is not None:
        deployment.concurrency, deployment.health = known.concurrency, known.health
        deployment.estimator = known.estimator
        deployment.waiting = known.waiting
        known.wake()
    return deployment


def _merge_replica(known: Replica | None, row: ReplicaRow) -> Replica:
    origin = parse_origin(row.url)
    begun_anew = known is not None and (
        known.origin != origin or known.revision != row.revision or known.restarts != row.restarts
    )
    if known is None or begun_anew:
        known = Replica(row.id, row.deployment, row.version, row.revision, origin, row.state)
        known.rates_key = row.revision if row.pid is not None else f"{row.revision}/{row.id}"
    known.restarts = row.restarts
    known.state = row.state
    known.memory_bytes = row.memory_bytes or 0
    known.load = row.load or {}
    return known


def _note_replicas(deployment: Deployment, before: list[Replica]) -> None:
    """Have the router know who has come and gone, and those who wait that somebody is ready."""
    prefixes = deployment.router.knowledge.prefixes
    now = list(deployment.replicas.values())
    for replica in before:
        if deployment.replicas.get(replica.id) is not replica:
            prefixes.leave(replica.slot)
    for replica in now:
        if replica.slot not in prefixes:
            replica.slot = prefixes.join()
        cache_tokens = (replica.load.get("facts") or {}).get("kv_cache_tokens")
        if cache_tokens:
            deployment.router.set_capacity(replica, float(cache_tokens))
    ready = [replica for replica in now if replica.state == ReplicaState.READY]
    if ready != deployment.ready:
        deployment.ready = ready
        deployment.several_versions = len({replica.revision for replica in ready}) > 1
    if ready:
        deployment.wake()
