"""One request on its way through the gateway: what each step learned, for the steps after it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from thrifty.gateway.routing.router import UNKNOWN, Outstanding
from thrifty.openai.events import Usage
from thrifty.openai.fields import Endpoint
from thrifty.openai.ids import new_id

if TYPE_CHECKING:
    from thrifty.db.keys import Key
    from thrifty.gateway.admission.concurrency import ConcurrencyLimiter
    from thrifty.gateway.admission.limits import Reservation
    from thrifty.gateway.cache.single_flight import SingleFlight
    from thrifty.gateway.table import Deployment, Replica
    from thrifty.http.server import Exchange

HIT, MISS, BYPASS = "hit", "miss", "bypass"
MEMORY, SHARED, IN_FLIGHT = "memory", "shared", "in_flight"
"""Where a hit came from: this worker's memory, Redis, or a generation that was under way."""
INTERACTIVE, BATCH = 0, 1
"""Priorities: lower goes first."""

MAX_REQUEST_ID_BYTES = 64
MAX_SESSION_BYTES = 256
SESSION_HEADER = b"x-session-id"


def _accept_request_id(given: bytes | None) -> str | None:
    """The client's own id, where it is short and harmless enough to be sent back and stored."""
    if given is None or not 0 < len(given) <= MAX_REQUEST_ID_BYTES:
        return None
    text = given.decode("latin-1")
    return text if text.isascii() and text.isprintable() and " " not in text else None


class Call:
    """A request under way. Steps fill it in; `record` reads it at the end."""

    __slots__ = (
        "answer_text",
        "attempts",
        "avoid",
        "body",
        "cache",
        "cache_key",
        "deadline_s",
        "deployment",
        "ended_s",
        "endpoint",
        "error",
        "exchange",
        "fell_back",
        "first_byte_s",
        "idle_at",
        "include_usage",
        "key",
        "last_byte_s",
        "load",
        "may_wait",
        "may_yield",
        "origin_status",
        "priority",
        "queue_s",
        "rate_headers",
        "received_s",
        "replica",
        "request_id",
        "reservation",
        "routed",
        "saved_s",
        "sent_s",
        "started_at_s",
        "status",
        "stream",
        "tier",
        "usage",
        "version",
    )

    def __init__(self, exchange: Exchange, endpoint: Endpoint) -> None:
        self.exchange = exchange
        self.endpoint = endpoint
        self.request_id = (
            _accept_request_id(exchange.headers.get(b"x-request-id")) or f"req-{new_id()}"
        )
        self.received_s = exchange.received_s
        self.started_at_s = time.time()
        self.body: dict[str, Any] = {}
        self.key: Key | None = None
        self.priority = INTERACTIVE
        """`INTERACTIVE`: somebody waits for it; `BATCH`: it takes what is left."""
        self.avoid: frozenset[str] = frozenset()
        """Replicas that have no room for this call, by id."""
        self.deployment: Deployment | None = None
        self.stream = False
        self.include_usage = False
        self.cache = BYPASS
        self.cache_key: bytes | None = None
        """Set where the body was known before it was read."""
        self.tier = MEMORY
        self.saved_s = 0.0
        self.deadline_s = 0.0
        """When the answer must have begun, as `time.perf_counter`; 0 where there is no deadline."""
        self.reservation: Reservation | None = None
        self.rate_headers: list[tuple[bytes, bytes]] | None = None
        self.replica: Replica | None = None
        self.version = ""
        self.routed = UNKNOWN
        self.load: Outstanding | None = None
        self.fell_back = False
        self.may_wait = True
        """Whether it waits for a replica to become ready; not where another deployment is."""
        self.may_yield = False
        """Whether its tenant holds much while others are about, so that theirs may go first."""
        self.idle_at: ConcurrencyLimiter | None = None
        """Where its slot is, while it may wait at a replica for those of others."""
        self.attempts = 0
        self.queue_s = 0.0
        self.sent_s = 0.0
        self.first_byte_s = 0.0
        self.last_byte_s = 0.0
        self.ended_s = 0.0
        self.status = 0
        self.origin_status = 0
        self.error: str | None = None
        self.usage: Usage | None = None
        self.answer_text = ""

    @property
    def session(self) -> str:
        """The session or conversation that the client says this belongs to, if it does."""
        given = self.exchange.headers.get(SESSION_HEADER)
        if given is not None:
            return given[:MAX_SESSION_BYTES].decode("latin-1")
        named = self.body.get("prompt_cache_key")
        return named[:MAX_SESSION_BYTES] if isinstance(named, str) else ""

    @property
    def tenant(self) -> str:
        """Whose request it is; empty where there are no keys."""
        return self.key.tenant if self.key is not None else ""

    @property
    def expired(self) -> bool:
        """Whether its deadline has passed."""
        return bool(self.deadline_s) and time.perf_counter() >= self.deadline_s

    def end_idle(self) -> None:
        """It has begun, or it is gone: its slot works, or is given back."""
        if self.idle_at is not None:
            self.idle_at.end_idle()
            self.idle_at = None

    def assign(self, replica: Replica, flight: SingleFlight | None) -> None:
        """Note who works for it, and for those who share its generation."""
        self.replica, self.version = replica, replica.version
        if flight is not None:
            flight.replica, flight.version = replica.id, replica.version

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that go on every answer."""
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"x-thrifty-cache", self.cache.encode()),
        ]
        if self.replica is not None:
            headers.append((b"x-thrifty-replica", self.replica.id.encode()))
        version = self.version or (self.deployment.version if self.deployment else "")
        if version:
            headers.append((b"x-thrifty-version", version.encode()))
        if self.rate_headers is not None:
            headers += self.rate_headers
        return headers
