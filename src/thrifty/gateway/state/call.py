"""The state of one request in the gateway. Each step fills in its own part:

Call           on arrival: the exchange, the endpoint, the API key, and finally the outcome
ParsedRequest  at admission: the parsed and validated body
Target         when a version is chosen: the deployment, the version, the conversation
Delivery       while forwarding: the replica, its load, and times
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any

import msgspec

from thrifty.db.keys import Key
from thrifty.gateway.state.concurrency import ConcurrencyLimiter
from thrifty.gateway.state.deployment import Deployment
from thrifty.gateway.state.fair_queue import BATCH, INTERACTIVE
from thrifty.gateway.state.replica import Replica
from thrifty.gateway.state.routed_request import RoutedRequest
from thrifty.gateway.state.router import UNKNOWN, Outstanding
from thrifty.gateway.state.version import Version
from thrifty.http.exchange import Exchange, encode_lines
from thrifty.observe.trace import Trace
from thrifty.openai.events import Usage
from thrifty.openai.fields import Endpoint
from thrifty.openai.response_ids import ResponseId
from thrifty.openai.stream_options import PLAIN, StreamOptions

HIT, MISS, BYPASS = "hit", "miss", "bypass"
MEMORY, SHARED, IN_FLIGHT = "memory", "shared", "in_flight"
"""The source of a cache hit: this worker's memory, Redis, or a generation in progress."""

MAX_REQUEST_ID_BYTES = 64
MAX_SESSION_BYTES = 256
SESSION_HEADER = b"x-session-id"
NO_ID = ResponseId(0, "")
CLIENT_CLOSED = 499
"""nginx's status for a client that closed the connection before its answer."""
_ID_PREFIXES = {Endpoint.CHAT: b"chatcmpl-", Endpoint.COMPLETIONS: b"cmpl-"}

__all__ = ["BATCH", "BYPASS", "HIT", "INTERACTIVE", "IN_FLIGHT", "MEMORY", "MISS", "SHARED", "Call"]


class Origin(StrEnum):
    """Where a request came from. Users' statistics count only clients and batches."""

    CLIENT = "client"
    BATCH = "batch"
    MEASUREMENT = "measurement"
    """Sent by Thrifty itself, for example by the measurements of `thrifty up`."""
    SHADOW = "shadow"
    """A copy of a client's request, sent to a version under test."""

    @property
    def counts(self) -> bool:
        """Whether the request belongs in users' statistics."""
        return self in _COUNTED


_COUNTED = frozenset({Origin.CLIENT, Origin.BATCH})


class ParsedRequest(msgspec.Struct):
    """The parsed and validated request."""

    body: dict[str, Any]
    stream: bool
    stream_options: StreamOptions = PLAIN
    deadline_s: float = 0.0
    """Latest start of the answer, as `time.perf_counter`; 0 means no deadline."""


class Target(msgspec.Struct):
    """The deployment and version that a request goes to."""

    deployment: Deployment
    chosen: Version
    """The version that the conversation is assigned to."""
    version: Version
    """The version that answers: `chosen`, unless it has no ready replica."""
    conversation_id: str
    pinned: bool = False
    """Whether an operator pinned the version; no other version may answer then."""
    fell_back: bool = False
    """Whether a fallback deployment answers."""
    refused: frozenset[str] = frozenset()
    """The labels of versions none of whose replicas accepted a connection for this request."""

    @property
    def rerouted(self) -> bool:
        """Whether a version other than the chosen one answers."""
        return self.version is not self.chosen


class Delivery(msgspec.Struct):
    """Forwarding state of a call. Times are `time.perf_counter` readings; 0 means not set."""

    replica: Replica | None = None
    load: Outstanding | None = None
    routed: RoutedRequest = UNKNOWN
    attempts: int = 0
    may_wait: bool = True
    """Whether to wait for a replica to become ready; false if a fallback deployment exists."""
    may_yield: bool = False
    """Whether its tenant holds its share of slots or more, so that others may go first."""
    idle_at: ConcurrencyLimiter | None = None
    """The limiter that counts its slot as idle while the request waits at its replica."""
    queue_s: float = 0.0
    """Time spent in the queue; a duration."""
    sent_s: float = 0.0
    first_byte_s: float = 0.0
    last_byte_s: float = 0.0

    def end_idle(self) -> None:
        """Stop counting the slot as idle: the request has begun or has ended."""
        if self.idle_at is not None:
            self.idle_at.end_idle()
            self.idle_at = None


class CacheUse(msgspec.Struct, gc=False):
    """The part of the exact cache in a call."""

    result: str = BYPASS
    tier: str = MEMORY
    saved_s: float = 0.0
    """Generation time that a hit saved."""
    label: str = ""
    """On a hit, the label of the version that generated the answer."""
    replica: str = ""


class Outcome(msgspec.Struct, gc=False):
    """The result of a call."""

    status: int = 0
    error: str | None = None
    usage: Usage | None = None
    answer: bytes = b""
    """The answer as JSON or as its event stream, if texts are recorded."""
    streamed: bool = False
    """Whether `answer` is an event stream."""
    ended_s: float = 0.0


class Call:
    """A request in progress. Each step fills in its part; `record` reads it at the end."""

    __slots__ = (
        "avoid",
        "cache",
        "client_request_id",
        "delivery",
        "endpoint",
        "exchange",
        "feedback_token",
        "key",
        "origin",
        "outcome",
        "parsed",
        "priority",
        "rate_headers",
        "received_s",
        "response_id",
        "shadow_of",
        "started_at_s",
        "target",
        "trace",
    )

    def __init__(
        self, exchange: Exchange, endpoint: Endpoint, origin: Origin = Origin.CLIENT
    ) -> None:
        self.exchange = exchange
        self.endpoint = endpoint
        self.origin = origin
        given = exchange.headers.get(b"x-request-id")
        self.client_request_id = None if given is None else _accept_request_id(given)
        self.response_id = NO_ID
        """The response id; made once the tenant is known."""
        self.feedback_token: str | None = None
        """Permits feedback on this response; None where the spec asks for no tokens."""
        self.received_s = exchange.received_s
        self.started_at_s = time.time()
        self.key: Key | None = None
        self.rate_headers: list[tuple[bytes, bytes]] | None = None
        self.priority = INTERACTIVE
        """`INTERACTIVE`: a client waits for it; `BATCH`: it uses spare capacity."""
        self.avoid: frozenset[str] = frozenset()
        """Ids of replicas that have no room for this call."""
        self.shadow_of: int | None = None
        """The response number of the request that this one copies."""
        self.trace: Trace | None = None
        """What it notes for its trace; None where traces are off."""
        self.parsed: ParsedRequest | None = None
        self.target: Target | None = None
        self.cache = CacheUse()
        self.delivery = Delivery()
        self.outcome = Outcome()

    @property
    def admitted(self) -> ParsedRequest:
        """The parsed request of an admitted call."""
        assert self.parsed is not None, "the call has not been admitted"
        return self.parsed

    @property
    def placed(self) -> Target:
        """The target of a call that has been assigned one."""
        assert self.target is not None, "no version was chosen for the call"
        return self.target

    @property
    def tenant(self) -> str:
        """The tenant of the request's key; empty if the service has no keys."""
        return self.key.tenant if self.key is not None else ""

    @property
    def session(self) -> str:
        """The session named by the client, or an empty string; used for routing."""
        given = self.exchange.headers.get(SESSION_HEADER)
        if given is not None:
            return given[:MAX_SESSION_BYTES].decode("latin-1")
        named = self.parsed.body.get("prompt_cache_key") if self.parsed is not None else None
        return named[:MAX_SESSION_BYTES] if isinstance(named, str) else ""

    @property
    def body_id(self) -> bytes:
        """The response id with the prefix that bodies of this endpoint use."""
        return _ID_PREFIXES.get(self.endpoint, b"") + self.response_id.text.encode()

    @property
    def log_ids(self) -> dict[str, str]:
        """What a message of the log about this call carries."""
        trace_id = self.trace.trace_id if self.trace is not None else ""
        return {"response_id": self.response_id.text, "trace_id": trace_id}

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        deadline_s = self.parsed.deadline_s if self.parsed is not None else 0.0
        return bool(deadline_s) and time.perf_counter() >= deadline_s

    @property
    def label(self) -> str:
        """The label of the version that answers or answered; empty if none was chosen."""
        return self.cache.label or (self.target.version.label if self.target is not None else "")

    def header_lines(self) -> bytes:
        """The header lines that every response carries."""
        response_id = self.response_id.text.encode()
        named = self.client_request_id
        lines = b"x-request-id: %b\r\nx-thrifty-response-id: %b\r\nx-thrifty-cache: %b\r\n" % (
            named.encode() if named is not None else response_id,
            response_id,
            self.cache.result.encode(),
        )
        target = self.target
        if target is not None:
            lines += b"x-thrifty-version: %b\r\n" % self.label.encode()
            if target.conversation_id:
                lines += b"x-thrifty-conversation: %b\r\n" % target.conversation_id.encode()
        replica = self.cache.replica or (self.delivery.replica.id if self.delivery.replica else "")
        if replica:
            lines += b"x-thrifty-replica: %b\r\n" % replica.encode()
        if self.feedback_token is not None:
            lines += b"x-thrifty-feedback-token: %b\r\n" % self.feedback_token.encode()
        if self.rate_headers is not None:
            lines += encode_lines(self.rate_headers)
        return lines


def _accept_request_id(given: bytes) -> str | None:
    """The client's request id, if it is short, printable ASCII without spaces; else None."""
    if not 0 < len(given) <= MAX_REQUEST_ID_BYTES:
        return None
    text = given.decode("latin-1")
    return text if text.isascii() and text.isprintable() and " " not in text else None
