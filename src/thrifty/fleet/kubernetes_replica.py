"""One replica in a cluster: what its pod says, and what the fleet wants of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import Served
from thrifty.fleet.base import WORTH, SetKey
from thrifty.fleet.kubernetes_pod import NO_ADDRESS, PodView
from thrifty.types import ReplicaState

_HAVE_TRAFFIC = (ReplicaState.READY, ReplicaState.UNHEALTHY)


@dataclass(eq=False)
class PodReplica:
    """A pod as a replica. Until its pod was seen it is as `row_before` says."""

    id: str
    key: SetKey
    served: Served
    view: PodView | None = None
    row_before: ReplicaRow | None = None
    """How an earlier controller saw it."""
    retiring: bool = False
    """Whether it is to go: gateways send it nothing more."""
    deleted: bool = False
    """Whether its pod was deleted, or is to be the next that goes."""
    seen_off: bool = False
    """Whether its end is under way."""
    served_before: bool = False
    """Whether it was ready once since its container started."""
    had_traffic: bool = False
    """Whether requests may have reached it when it began to go."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its pod is no more."""

    @property
    def state(self) -> ReplicaState:
        """Where it is in its life."""
        if self.view is None:
            row = self.row_before
            return ReplicaState(row.state) if row is not None else ReplicaState.STARTING
        if self.retiring and self.view.state is not ReplicaState.STOPPED:
            return ReplicaState.DRAINING
        return self.view.state

    @property
    def message(self) -> str | None:
        """What its operator should know."""
        if self.view is None:
            return self.row_before.message if self.row_before is not None else None
        return self.view.message

    @property
    def url(self) -> str:
        """Where it listens."""
        if self.view is None:
            return self.row_before.url if self.row_before is not None else NO_ADDRESS
        return self.view.url

    @property
    def counts(self) -> bool:
        """Whether its ReplicaSet counts it among its pods."""
        return self.view is not None and self.view.counts

    @property
    def ready_after_s(self) -> float:
        """How long it took until it was ready the last time."""
        return self.view.ready_after_s if self.view is not None else 0.0

    def see(self, view: PodView) -> None:
        """Take what its pod says now."""
        if self.view is not None and view.restarts != self.view.restarts:
            self.served_before = False
        self.view = view
        self.served_before |= view.state is ReplicaState.READY

    def retire(self) -> None:
        """It is to go."""
        # One that an earlier controller was draining may still work on something.
        self.had_traffic = self.retiring or self.state in _HAVE_TRAFFIC
        self.retiring = True

    def row(self) -> ReplicaRow:
        """How it is now."""
        if self.view is None and self.row_before is not None:
            return self.row_before
        return ReplicaRow(
            id=self.id,
            deployment=self.key.deployment,
            engine=self.served.engine,
            version=self.key.version,
            revision=self.key.revision,
            artifact=self.served.artifact,
            url=self.url,
            state=self.state.value,
            restarts=self.view.restarts if self.view is not None else 0,
            message=self.message,
        )


def rank(replica: PodReplica, work: Mapping[str, float]) -> tuple[int, float, int]:
    """The smaller, the rather it is kept: those that answer, and among them those with most to say."""
    number = int(replica.id.rpartition("-")[2])
    return WORTH.get(replica.state, 9), -work.get(replica.id, 0.0), number
