"""One request on its way through the gateway: what each step learned, for the steps after it.

Call      from its bytes: the exchange, the endpoint, who asks, and how it ends
Form      from admission: the body as it was understood
Target    from the choice of a version: the deployment, the version, the conversation
Delivery  from forwarding: the replica, its load, and times
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from thrifty.db.keys import Key
from thrifty.gateway.state.concurrency import ConcurrencyLimiter
from thrifty.gateway.state.deployment import Deployment
from thrifty.gateway.state.fair_queue import BATCH, INTERACTIVE
from thrifty.gateway.state.replica import Replica
from thrifty.gateway.state.routed_request import RoutedRequest
from thrifty.gateway.state.router import UNKNOWN, Outstanding
from thrifty.gateway.state.version import Version
from thrifty.http.exchange import Exchange
from thrifty.openai.events import Usage
from thrifty.openai.fields import Endpoint
from thrifty.openai.response_ids import ResponseId

HIT, MISS, BYPASS = "hit", "miss", "bypass"
MEMORY, SHARED, IN_FLIGHT = "memory", "shared", "in_flight"
"""Where a hit came from: this worker's memory, Redis, or a generation that was under way."""

MAX_REQUEST_ID_BYTES = 64
MAX_SESSION_BYTES = 256
SESSION_HEADER = b"x-session-id"
NO_ID = ResponseId(0, "")
_ID_PREFIXES = {Endpoint.CHAT: b"chatcmpl-", Endpoint.COMPLETIONS: b"cmpl-"}

__all__ = ["BATCH", "BYPASS", "HIT", "INTERACTIVE", "IN_FLIGHT", "MEMORY", "MISS", "SHARED", "Call"]


class Origin(StrEnum):
    """Who asked. Only what clients and batches ask counts in the statistics of users."""

    CLIENT = "client"
    BATCH = "batch"
    MEASUREMENT = "measurement"
    """Thrifty's own questions, such as those of `thrifty up`."""
    SHADOW = "shadow"
    """A copy of a client's request for a version that is tried."""

    @property
    def counts(self) -> bool:
        """Whether it belongs into users' statistics and texts."""
        return self in (Origin.CLIENT, Origin.BATCH)


@dataclass(slots=True)
class Form:
    """The request as it was understood."""

    body: dict[str, Any]
    stream: bool
    include_usage: bool
    deadline_s: float = 0.0
    """When the answer must have begun, as `time.perf_counter`; 0 where there is no deadline."""


@dataclass(slots=True)
class Target:
    """Who is to answer."""

    deployment: Deployment
    chosen: Version
    """The version that the conversation belongs to."""
    version: Version
    """The version that answers: the chosen one, unless that has no ready replica."""
    conversation_id: str
    pinned: bool = False
    """Whether an operator chose the version; no other one may answer then."""
    fell_back: bool = False
    """Whether another deployment answers."""

    @property
    def rerouted(self) -> bool:
        """Whether another version than the chosen one answers."""
        return self.version is not self.chosen


@dataclass(slots=True)
class Delivery:
    """What became of a call at replicas. Times as `time.perf_counter`, 0 where there is none."""

    replica: Replica | None = None
    load: Outstanding | None = None
    routed: RoutedRequest = UNKNOWN
    attempts: int = 0
    may_wait: bool = True
    """Whether it waits for a replica to become ready; not where another deployment is."""
    may_yield: bool = False
    """Whether its tenant holds much while others are about, so that theirs may go first."""
    idle_at: ConcurrencyLimiter | None = None
    """Where its slot is, while it may wait at a replica for the requests of others."""
    queue_s: float = 0.0
    """How long it waited; a duration."""
    sent_s: float = 0.0
    first_byte_s: float = 0.0
    last_byte_s: float = 0.0
    origin_status: int = 0

    def end_idle(self) -> None:
        """It has begun, or it is gone: its slot works, or is given back."""
        if self.idle_at is not None:
            self.idle_at.end_idle()
            self.idle_at = None


@dataclass(slots=True)
class CacheUse:
    """What the exact cache had to do with a call."""

    result: str = BYPASS
    tier: str = MEMORY
    saved_s: float = 0.0
    """Generation time that a hit spared."""
    label: str = ""
    """The version that gave the answer, where it was a hit."""
    replica: str = ""


@dataclass(slots=True)
class Outcome:
    """How a call ended."""

    status: int = 0
    error: str | None = None
    usage: Usage | None = None
    answer: bytes = b""
    """The answer as JSON, or its stream, where texts are kept."""
    ended_s: float = 0.0


class Call:
    """A request under way. Steps fill it in; `record` reads it at the end."""

    __slots__ = (
        "avoid",
        "cache",
        "client_request_id",
        "delivery",
        "endpoint",
        "exchange",
        "form",
        "key",
        "origin",
        "outcome",
        "priority",
        "rate_headers",
        "received_s",
        "response_id",
        "shadow_of",
        "started_at_s",
        "target",
    )

    def __init__(
        self, exchange: Exchange, endpoint: Endpoint, origin: Origin = Origin.CLIENT
    ) -> None:
        self.exchange = exchange
        self.endpoint = endpoint
        self.origin = origin
        self.client_request_id = _accept_request_id(exchange.headers.get(b"x-request-id"))
        self.response_id = NO_ID
        """The id of its response; made once it is known who asks."""
        self.received_s = exchange.received_s
        self.started_at_s = time.time()
        self.key: Key | None = None
        self.rate_headers: list[tuple[bytes, bytes]] | None = None
        self.priority = INTERACTIVE
        """`INTERACTIVE`: somebody waits for it; `BATCH`: it takes what is left."""
        self.avoid: frozenset[str] = frozenset()
        """Replicas that have no room for this call, by id."""
        self.shadow_of: int | None = None
        """The number of the response that it copies."""
        self.form: Form | None = None
        self.target: Target | None = None
        self.cache = CacheUse()
        self.delivery = Delivery()
        self.outcome = Outcome()

    @property
    def understood(self) -> Form:
        """The form of a call that was admitted."""
        assert self.form is not None, "the call has not been admitted"
        return self.form

    @property
    def placed(self) -> Target:
        """The target of a call that has one."""
        assert self.target is not None, "no version was chosen for the call"
        return self.target

    @property
    def tenant(self) -> str:
        """Whose request it is; empty where there are no keys."""
        return self.key.tenant if self.key is not None else ""

    @property
    def session(self) -> str:
        """The session that the client says this belongs to, if it does; for routing."""
        given = self.exchange.headers.get(SESSION_HEADER)
        if given is not None:
            return given[:MAX_SESSION_BYTES].decode("latin-1")
        named = self.form.body.get("prompt_cache_key") if self.form is not None else None
        return named[:MAX_SESSION_BYTES] if isinstance(named, str) else ""

    @property
    def body_id(self) -> bytes:
        """The id as bodies of this endpoint hold it."""
        return _ID_PREFIXES.get(self.endpoint, b"") + self.response_id.text.encode()

    @property
    def expired(self) -> bool:
        """Whether its deadline has passed."""
        deadline_s = self.form.deadline_s if self.form is not None else 0.0
        return bool(deadline_s) and time.perf_counter() >= deadline_s

    @property
    def label(self) -> str:
        """The label of the version that answers, or answered; empty where none was chosen."""
        return self.cache.label or (self.target.version.label if self.target is not None else "")

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that go on every answer."""
        response_id = self.response_id.text.encode()
        named = self.client_request_id
        headers = [
            (b"x-request-id", named.encode() if named is not None else response_id),
            (b"x-thrifty-response-id", response_id),
            (b"x-thrifty-cache", self.cache.result.encode()),
        ]
        target = self.target
        if target is not None:
            headers.append((b"x-thrifty-version", self.label.encode()))
            if target.conversation_id:
                headers.append((b"x-thrifty-conversation", target.conversation_id.encode()))
        replica = self.cache.replica or (self.delivery.replica.id if self.delivery.replica else "")
        if replica:
            headers.append((b"x-thrifty-replica", replica.encode()))
        if self.rate_headers is not None:
            headers += self.rate_headers
        return headers


def _accept_request_id(given: bytes | None) -> str | None:
    """The client's own id, where it is short and harmless enough to be sent back and stored."""
    if given is None or not 0 < len(given) <= MAX_REQUEST_ID_BYTES:
        return None
    text = given.decode("latin-1")
    return text if text.isascii() and text.isprintable() and " " not in text else None
