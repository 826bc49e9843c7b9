"""One replica of a model in this worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from thrifty.db.fleet import ReplicaRow
from thrifty.http.origin import Origin, parse_origin
from thrifty.openai.base_urls import find_endpoint, find_root
from thrifty.openai.fields import Endpoint
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
    answers: int = 0
    """Answers since it was started, as far as this worker knows."""
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    slot: int = -1
    """Its number in its version's prefix index."""
    memory_bytes: int = 0
    load: Mapping[str, Any] = field(default_factory=dict)
    load_path: str | None = None
    """The path at which it reports its load."""
    takes_stream_options: bool = True
    """Whether it has not refused the token counts that the gateway asks for."""
    rates_key: str = ""
    """Replicas with the same key share their speeds. Replicas of one revision that Thrifty runs
    have the same model, engine and kind of device; each external server has a key of its own."""
    _places: dict[Endpoint, tuple[Origin, str]] = field(default_factory=dict, repr=False)

    @property
    def ready(self) -> bool:
        """Whether it receives traffic."""
        return self.state == ReplicaState.READY

    def locate(self, endpoint: Endpoint) -> tuple[Origin, str]:
        """Where to send requests of an endpoint: the server, and the path below its base path."""
        place = self._places.get(endpoint)
        if place is None:
            origin, path = self.origin, find_endpoint(self.origin.base_path, endpoint)
            place = msgspec.structs.replace(origin, base_path=""), path
            self._places[endpoint] = place
        return place

    @property
    def load_url(self) -> str | None:
        """Where it reports its load."""
        if self.load_path is None:
            return None
        root = msgspec.structs.replace(self.origin, base_path=find_root(self.origin.base_path))
        return f"{root.url}{self.load_path}"


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
