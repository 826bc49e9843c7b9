"""One replica of a model in this worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thrifty.db.fleet import ReplicaRow
from thrifty.http.client import Origin, parse_origin
from thrifty.types import ReplicaState


@dataclass
class Replica:
    """A replica and its outstanding work, as counted by this worker."""

    id: str
    deployment: str
    version: str
    """The label of its version."""
    revision: str
    origin: Origin
    state: str
    restarts: int = 0
    in_flight: int = 0
    waiting: int = 0
    """Requests in flight whose answer has not begun."""
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    slot: int = -1
    """Its number in its version's prefix index."""
    memory_bytes: int = 0
    load: Mapping[str, Any] = field(default_factory=dict)
    load_path: str | None = None
    """The path at which it reports its load."""
    rates_key: str = ""
    """Replicas with the same key share their speeds. Replicas of one revision that Thrifty runs
    have the same model, engine and kind of device; each external server has a key of its own."""

    @property
    def ready(self) -> bool:
        """Whether it receives traffic."""
        return self.state == ReplicaState.READY


def merge_replica(known: Replica | None, row: ReplicaRow) -> Replica:
    """The replica for a row. Its counters are kept unless it was restarted."""
    origin = parse_origin(row.url)
    restarted = known is not None and (
        known.origin != origin or known.revision != row.revision or known.restarts != row.restarts
    )
    if known is None or restarted:
        known = Replica(row.id, row.deployment, row.version, row.revision, origin, row.state)
        known.rates_key = row.revision if row.pid is not None else f"{row.revision}/{row.id}"
    known.restarts = row.restarts
    known.state = row.state
    known.memory_bytes = row.memory_bytes or 0
    known.load = row.load or {}
    return known
