"""What a fleet is to the rest of Thrifty: it runs replicas somewhere, and says what it sees.

`apply` tells it which sets of replicas should run, whole, each time; `observe` gives what is there. A
fleet starts what is missing, starts anew what dies, and takes away what is too much without cutting a
request: gateways learn that a replica is going (`announce`), what it works on ends, and then it is
stopped. It decides nothing: which versions run, and in which order an old one makes way for a new
one, is the control plane's (`control.reconcile`).

What an engine serves is named by its artifact, never by a local path: whoever starts a replica finds
the files in the store that it has.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import Engine, Served
from thrifty.engines.server import KEY_VARIABLE
from thrifty.errors import FleetError
from thrifty.types import ReplicaState

OnChange = Callable[[], None]
"""Called, on the event loop, whenever a replica's state or address has changed."""
Announce = Callable[[], Awaitable[None]]
"""Returns once every gateway that can be reached knows the replicas' states as they are now."""


@dataclass(frozen=True, order=True)
class SetKey:
    """Which set a replica belongs to: copies with one key can stand in for each other."""

    deployment: str
    version: str
    """The version's label."""
    revision: str
    cpus: int
    """Cores for each copy; 0 where that is not the fleet's to say."""


@dataclass(frozen=True)
class ReplicaSet:
    """Copies of one version that should run."""

    served: Served
    engine: Engine = field(compare=False, repr=False)
    count: int
    cpus: int = 0
    even_copies: int = 0
    """Over how many copies in all the cores are shared evenly, so that some may have one more; 0
    where `cpus` was asked for."""
    memory_share: float = 1.0
    """The share of the free memory that each copy may plan with."""
    memory_limit_bytes: int | None = None
    start_timeout_s: float = 600.0
    parked: int = 0
    """How many more copies should be there, loaded and idle, to be `count`ed later at once."""
    gpus: int = 0
    """GPUs for each copy."""
    image: str | None = None
    """What each copy runs in, where copies are containers; None: the fleet's own image."""
    work: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    """What is left to say at each replica, by its id, as gateways count it. Where one has to go, it
    is the one with the least; those that are not named have none."""

    @property
    def key(self) -> SetKey:
        """Which set it is."""
        served = self.served
        return SetKey(served.name, served.version, served.revision, self.cpus)


@dataclass(frozen=True)
class ObservedReplica:
    """One replica, as its fleet sees it now."""

    key: SetKey
    row: ReplicaRow
    ready_after_s: float = 0.0
    """How long it took from its start until it was ready, the last time."""

    @property
    def state(self) -> ReplicaState:
        """Where it is in its life."""
        return ReplicaState(self.row.state)

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out, or gone."""
        return self.row.state in (ReplicaState.DRAINING, ReplicaState.STOPPED)


class Fleet(Protocol):
    """See the module's docstring. All of it is used on one event loop."""

    elsewhere: bool
    """Whether replicas run on other machines: they share nothing of this one, each gets the cores
    that it asks for, and they go on when the controller ends."""

    @property
    def faults(self) -> Mapping[tuple[str, str], str]:
        """What keeps versions from being as desired that no replica can tell, by deployment and
        label.
        """
        ...

    @property
    def standing_by(self) -> bool:
        """Whether another controller acts, so that this one must change nothing."""
        ...

    async def connect(self, on_wait: Callable[[str], None]) -> None:
        """Wait until this controller may act; `on_wait` is told who acts meanwhile. Comes first, and
        changes nothing.
        """
        ...

    async def adopt(self, known: Sequence[tuple[ReplicaRow, ReplicaSet]]) -> None:
        """Take over what an earlier controller left running, before the first `apply`. `known` are
        the rows that it wrote, each with the set that it belongs to (whose `count` does not
        matter, nor on this machine its `cpus`). What runs here and is not known is ended.
        """
        ...

    async def apply(self, desired: Sequence[ReplicaSet]) -> None:
        """Begin to make it so. Sets that are not named go. Parked copies are made ready before
        others are started. Does not wait for replicas.
        """
        ...

    def drain(self, replica_id: str, asked_s: float) -> None:
        """Take away a replica of this machine that was there at `asked_s` (seconds since 1970), without
        cutting a request; the next `apply` starts another one. Nothing where it is not there any
        more, or replicas run elsewhere.
        """
        ...

    def observe(self) -> Sequence[ObservedReplica]:
        """What there is, also what is on its way out."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Drain and end every replica; what has not ended after `grace_s` is killed."""
        ...

    def kill(self) -> None:
        """End everything at once."""
        ...

    async def hand_over(self) -> None:
        """Stop watching; what runs goes on for the next controller, which may act at once."""
        ...


class FleetHere:
    """What fleets of this machine have in common: nobody else acts in their place, and whatever is
    wrong shows at a replica.
    """

    elsewhere = False
    standing_by = False
    faults: Mapping[tuple[str, str], str] = MappingProxyType({})

    async def connect(self, on_wait: Callable[[str], None]) -> None:
        """Nobody to wait for: one controller takes a home."""

    def leave(self) -> None:
        """Stop watching, without a word."""
        raise NotImplementedError

    async def hand_over(self) -> None:
        """As `Fleet.hand_over` says."""
        self.leave()


WORTH = {
    ReplicaState.READY: 0,
    ReplicaState.PARKED: 1,
    ReplicaState.UNHEALTHY: 2,
    ReplicaState.STARTING: 3,
    ReplicaState.BACKOFF: 4,
    ReplicaState.FAILED: 5,
    ReplicaState.CRASH_LOOP: 6,
}
"""Which replicas are kept where there are too many, the smallest first."""


MAX_STEM = 58
"""Ids have at most 64 characters in the database."""


class ReplicaNames:
    """Ids of replicas, `{deployment}-{n}`, over all fleets of a service: `n` is the smallest number
    that is not in use. A long name of a deployment is shortened.
    """

    def __init__(self, used: Iterable[str] = ()) -> None:
        self._used = set(used)

    def take(self, deployment: str) -> str:
        """A free id, which is used from now on."""
        if len(deployment) > MAX_STEM:
            checksum = hashlib.blake2b(deployment.encode(), digest_size=4).hexdigest()
            deployment = f"{deployment[: MAX_STEM - 9]}~{checksum}"
        number = 0
        while (name := f"{deployment}-{number}") in self._used:
            number += 1
        self._used.add(name)
        return name

    def claim(self, name: str) -> None:
        """Use an id that a replica has already."""
        self._used.add(name)

    def release(self, name: str) -> None:
        """Its replica is gone."""
        self._used.discard(name)


async def announce_nothing() -> None:
    """For replicas that no gateway knows of."""


def check_key() -> None:
    """Raise `FleetError` where gateways would have no key for replicas on other machines."""
    if not os.environ.get(KEY_VARIABLE):
        raise FleetError(
            f"replicas on other machines answer only who has their key: put it into {KEY_VARIABLE} "
            "before the service starts, here and where replicas run (openssl rand -hex 32)"
        )
