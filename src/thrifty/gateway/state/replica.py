"""One copy of a model, as this worker sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thrifty.db.fleet import ReplicaRow
from thrifty.http.client import Origin, parse_origin
from thrifty.types import ReplicaState


@dataclass
class Replica:
    """A replica and what is outstanding on it, by this worker's account."""

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
    """Where it reports its load."""
    rates_key: str = ""
    """What it shares its speed with: replicas of one revision that we run have the same model,
    engine and kind of device; servers that others run have a speed each."""

    @property
    def ready(self) -> bool:
        """Whether it gets traffic."""
        return self.state == ReplicaState.READY


def merge_replica(known: Replica | None, row: ReplicaRow) -> Replica:
    """The replica of a row. Its counters are kept unless it has been started again."""
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
