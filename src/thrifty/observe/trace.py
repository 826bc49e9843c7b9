"""The trace of one request: W3C's context in and out, the steps that took time, and which traces
are kept.

The request path only notes clock readings, and nothing at all where traces are off. Spans are made
of them after the answer, in the recorder's process (`observe/otlp`).

A share of the traces is kept by chance, decided when a request comes, so that replicas that trace
keep the same ones. What a client's `traceparent` says of it is followed. Of the others, those are
kept that failed, missed their version's objectives or took longer than the spec allows.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
MAX_STATE_BYTES = 512
"""What W3C has every participant pass on at least; a longer `tracestate` is left out."""
_ZERO_TRACE, _ZERO_SPAN = "0" * 32, "0" * 16
_RANDOM_BITS = 56
_RANDOM_MASK = 2**_RANDOM_BITS - 1
"""The last bits of a trace id are random, by W3C's second level; they decide what is kept."""
MAX_STEPS = 64
"""Bound on what one request adds to its trace, however often it is retried."""
KEPT_PER_S = 100.0
"""Traces that are kept for their outcome each second. In an outage all would be."""


class Wait(NamedTuple):
    """Time that a request spent waiting. Times are `time.perf_counter` readings."""

    name: str
    """`queue`: for a slot or a replica; `cache`: for the shared cache or a shared generation."""
    began_s: float
    ended_s: float


class Attempt(msgspec.Struct, array_like=True, gc=False):
    """One request to a replica."""

    span_id: str
    replica: str
    version: str
    sent_s: float
    ended_s: float = 0.0
    """0 while it has not failed."""
    error: str | None = None


class Trace(msgspec.Struct, array_like=True, gc=False):
    """What one request notes on its way."""

    trace_id: str
    parent_id: str | None
    state: bytes
    sampled: bool
    admitted_s: float = 0.0
    """When the request had been found valid, and the cache was asked."""
    waits: list[Wait] = []
    attempts: list[Attempt] = []

    def note_wait(self, name: str, began_s: float) -> None:
        """Note a wait that ends now."""
        if len(self.waits) < MAX_STEPS:
            self.waits.append(Wait(name, began_s, time.perf_counter()))

    def begin_attempt(self, replica: str, version: str) -> bytes:
        """Note that a request goes to a replica now; returns the header lines that it carries."""
        span_id = make_span_id()
        if len(self.attempts) < MAX_STEPS:
            self.attempts.append(Attempt(span_id, replica, version, time.perf_counter()))
        line = f"traceparent: 00-{self.trace_id}-{span_id}-{self.sampled:02x}\r\n".encode()
        return line + b"tracestate: %b\r\n" % self.state if self.state else line

    def fail_attempt(self, replica: str, error: str) -> None:
        """Note that the last request to a replica failed now."""
        for attempt in reversed(self.attempts):
            if attempt.replica == replica and not attempt.ended_s:
                attempt.ended_s, attempt.error = time.perf_counter(), error
                return


class Ended(NamedTuple):
    """A request that has ended, for its spans. Clock readings as in the call; 0 if not set."""

    trace: Trace
    row: tuple[Any, ...]
    """Its row of the request log (`request_log.COLUMNS`)."""
    response_id: str
    received_s: float
    sent_s: float
    first_byte_s: float
    last_byte_s: float
    ended_s: float
    tier: str
    """On a cache hit, where the answer came from."""
    notable: bool
    """Whether it failed, missed its objectives or was slow."""


class Tracer:
    """Begins traces, and says which are kept. Used on the event loop."""

    def __init__(
        self,
        sample: float,
        slow_s: float,
        put: Callable[[Ended], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sample` is the share of requests that are kept whatever becomes of them. A request that
        begins to be answered after `slow_s` or later is kept, too. `put` takes those that are.
        """
        self._bound = round(sample * 2**_RANDOM_BITS)
        self.slow_s = slow_s
        self.put = put
        self._clock = clock
        self._budget = KEPT_PER_S
        self._budget_s = clock()

    def begin(self, headers: Mapping[bytes, bytes]) -> Trace:
        """The trace of a request that comes with these headers."""
        given = headers.get(TRACEPARENT)
        parent = _read_parent(given) if given is not None else None
        if parent is None:
            number = random.getrandbits(128) or 1
            return Trace(f"{number:032x}", None, b"", number & _RANDOM_MASK < self._bound)
        trace_id, parent_id, flagged = parent
        sampled = flagged or int(trace_id[18:], 16) < self._bound
        return Trace(trace_id, parent_id, read_state(headers), sampled)

    def keeps(self, trace: Trace, *, notable: bool) -> bool:
        """Whether the trace of a request that has ended is kept. `notable` are those that failed,
        missed their objectives or were slow.
        """
        return trace.sampled or (notable and self._take())

    def _take(self) -> bool:
        now_s = self._clock()
        self._budget = min(KEPT_PER_S, self._budget + (now_s - self._budget_s) * KEPT_PER_S)
        self._budget_s = now_s
        if self._budget < 1.0:
            return False
        self._budget -= 1.0
        return True


def pass_on(headers: Mapping[bytes, bytes]) -> bytes:
    """The header lines with which a gateway that does not trace passes on a client's context."""
    given = headers.get(TRACEPARENT)
    if given is None or _read_parent(given) is None:
        return b""
    state = read_state(headers)
    return b"traceparent: %b\r\n%b" % (given, b"tracestate: %b\r\n" % state if state else b"")


def read_state(headers: Mapping[bytes, bytes]) -> bytes:
    """The vendors' part of a client's context; empty if there is none that can be passed on."""
    state = headers.get(TRACESTATE, b"")
    return state if len(state) <= MAX_STATE_BYTES and state.isascii() else b""


def _read_parent(given: bytes) -> tuple[str, str, bool] | None:
    """Trace id, span id and whether the caller keeps its spans; None where it is not W3C's form."""
    match = _PARENT.fullmatch(given)
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
        return None
    trace_id, span_id = match[2].decode(), match[3].decode()
    if trace_id == _ZERO_TRACE or span_id == _ZERO_SPAN:
        return None
    return trace_id, span_id, bool(int(match[4], 16) & 1)


def make_span_id() -> str:
    """The id of a span, in hex."""
    return f"{random.getrandbits(64) or 1:016x}"
