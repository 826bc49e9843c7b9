"""The request path as a whole. Each step is a module of its own; this one calls them in order:

authenticate -> form -> version -> limits -> validity -> cache -> slot -> route -> forward -> record
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from thrifty.db.keys import Key
from thrifty.gateway.admission.authenticate import UnknownKey, authenticate, authenticate_late
from thrifty.gateway.admission.check import (
    check_scope,
    check_version,
    find_target,
    parse_request,
)
from thrifty.gateway.admission.limits import KeyLimiter
from thrifty.gateway.app.alarms import raise_alarms
from thrifty.gateway.app.answer import Answerer
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.app.keep_alive import keep_alive
from thrifty.gateway.app.record import Recorder
from thrifty.gateway.cache.shortcuts import Shortcuts
from thrifty.gateway.forwarding.forward import ClientGone, Forwarder
from thrifty.gateway.state.call import CLIENT_CLOSED, Call, Origin
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.exchange import Exchange
from thrifty.http.same_origin import SameOrigin
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.trace import Tracer
from thrifty.openai.conversations import Conversations
from thrifty.openai.errors import WireError, internal_error
from thrifty.openai.feedback_tokens import FeedbackTokens
from thrifty.openai.fields import STREAMED, Endpoint
from thrifty.openai.response_ids import ResponseIds
from thrifty.types import Role

log = logging.getLogger(__name__)

SWEEP_S = 1.0
MAX_INLINE_BYTES = 131_072
"""Larger bodies are parsed in a thread. Parsing so much takes a millisecond."""
READING_THREADS = 2
ORIGIN_HEADER = b"x-thrifty-origin"
_CALLERS = Role.USER.holders()
_OPERATORS = Role.OPERATOR.holders()
_REJECTIONS = frozenset(
    {
        "queue_full", "queue_timeout", "no_replica_ready", "cannot_start", "deadline_unreachable",
        "deadline_exceeded",
    }
)  # fmt: skip
"""Error codes of requests that were not admitted; the limiter itself counts limits of keys."""
_ENDPOINTS = {endpoint.value: endpoint for endpoint in Endpoint}
_SUMMARIES = {
    Endpoint.CHAT: "answer a conversation",
    Endpoint.COMPLETIONS: "complete a text",
    Endpoint.EMBEDDINGS: "embed texts",
    Endpoint.RERANK: "order documents by their relevance to a query",
    Endpoint.TOKENIZE: "split a text into tokens",
}

OnEnded = Callable[[Call], None]
AnswerOther = Callable[[Exchange], Coroutine[Any, Any, None] | None]


@dataclass(frozen=True)
class Steps:
    """The steps of the request path, and the state that they share."""

    table: RoutingTable
    reader: TableReader
    forwarder: Forwarder
    answerer: Answerer
    shortcuts: Shortcuts
    recorder: Recorder
    metrics: GatewayMetrics
    limiter: KeyLimiter
    ids: ResponseIds
    conversations: Conversations
    same_origin: SameOrigin
    tokens: FeedbackTokens | None = None
    """Makes a token for each answer; None where the spec asks for none."""
    tracer: Tracer | None = None
    """Begins the traces of clients' requests; None where traces are off."""


class Gateway:
    """Handles every request. `handle` is the HTTP server's handler."""

    def __init__(self, steps: Steps) -> None:
        self._table = steps.table
        self._reader = steps.reader
        self._forwarder = steps.forwarder
        self._answerer = steps.answerer
        self._shortcuts = steps.shortcuts
        self._recorder = steps.recorder
        self._metrics = steps.metrics
        self._limiter = steps.limiter
        self._ids = steps.ids
        self._conversations = steps.conversations
        self._same_origin = steps.same_origin
        self._tokens = steps.tokens
        self._tracer = steps.tracer
        self._threads = ThreadPoolExecutor(READING_THREADS, "read")
        self.answer_other: AnswerOther
        """Handles every other request; set before the first one."""
        self.on_ended: OnEnded = lambda call: None
        """Called with each ended call, after it was recorded."""

    def handle(self, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        """Process one request, from its bytes to its record. Whatever needs no waiting is done at
        once; the rest is returned as a coroutine.
        """
        endpoint = _ENDPOINTS.get(exchange.path)
        if endpoint is None or exchange.method != "POST":
            return self.answer_other(exchange)
        call = Call(exchange, endpoint)
        if self._tracer is not None:
            call.trace = self._tracer.begin(exchange.headers)
        try:
            call.key = authenticate(exchange, self._table, _CALLERS)
            if call.key is None and b"origin" in exchange.headers:
                # Browsers send `Origin` with every POST.
                self._same_origin.check_page(exchange)
            rest = self._begin(call)
        except UnknownKey:
            rest = self._begin_late(call)
        except Exception as error:
            self._end(call, error)
            return None
        if rest is None:
            self._end(call, None)
            return None
        return self._finish(call, rest)

    def routes(self) -> list[OwnRoute]:
        """The routes of the model endpoints. `handle` serves them without the route table, which
        lists them so that it knows which methods their paths allow.
        """
        return [
            OwnRoute("POST", endpoint.value, Role.USER, self._answer_route, summary)
            for endpoint, summary in _SUMMARIES.items()
        ]

    async def _answer_route(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        call = Call(exchange, _ENDPOINTS[exchange.path])
        call.key = key
        await self.run(call)

    async def run(self, call: Call) -> None:
        """Process an internal call, from parsing on. Its exchange receives the answer, including
        errors.
        """
        try:
            rest = self._begin(call)
        except Exception as error:
            self._end(call, error)
            return
        if rest is None:
            self._end(call, None)
        else:
            await self._finish(call, rest)

    def count_refusal(self, error: WireError) -> None:
        """Count a request that the HTTP server itself refused."""
        self._metrics.requests.count_error(error.code or error.type)

    def _begin(self, call: Call) -> Coroutine[Any, Any, None] | None:
        """Admit the call and answer it from the cache, or return a coroutine that answers."""
        if call.parsed is None and len(call.exchange.body) > MAX_INLINE_BYTES:
            return self._begin_large(call)
        call.response_id = self._ids.new(call.tenant)
        if self._tokens is not None and call.endpoint in STREAMED:
            call.feedback_token = self._tokens.make(call.response_id.number, call.tenant)
        known_key = None
        if call.target is None:
            known_key = self._shortcuts.take(call, self._table.names)
        if call.parsed is None:
            call.parsed = parse_request(call, self._table)
        if call.target is None:
            call.target = find_target(call, call.parsed, self._table, self._conversations)
        if call.key is not None and call.key.deployments is not None:
            check_scope(call.key, call.target.deployment, call.parsed)
        if ORIGIN_HEADER in call.exchange.headers:
            self._read_origin(call)
        if call.key is not None and call.key.limited and call.origin is not Origin.SHADOW:
            counting = self._limiter.admit(call, call.parsed, call.target.version)
            if counting is not None:
                return self._begin_counted(call, counting, known_key)
        return self._proceed(call, known_key)

    async def _begin_large(self, call: Call) -> None:
        """Parse a large body in a thread, while others are answered, and begin."""

        def read() -> None:
            parsed = parse_request(call, self._table)
            if call.target is None:
                call.target = find_target(call, parsed, self._table, self._conversations)
            call.parsed = parsed

        await asyncio.get_running_loop().run_in_executor(self._threads, read)
        rest = self._begin(call)
        if rest is not None:
            await rest

    async def _begin_counted(
        self, call: Call, counting: Coroutine[Any, Any, None], known_key: bytes | None
    ) -> None:
        """Continue once the shared limits of the key have been checked."""
        await counting
        rest = self._proceed(call, known_key)
        if rest is not None:
            await rest

    def _proceed(self, call: Call, known_key: bytes | None) -> Coroutine[Any, Any, None] | None:
        """Check the request against the version that answers, and answer."""
        if known_key is None:
            check_version(call, call.admitted, call.placed)
        if call.trace is not None:
            call.trace.admitted_s = time.perf_counter()
        rest = self._answerer.answer(call, known_key)
        every_s = call.placed.deployment.settings.keep_alive_s
        if rest is not None and every_s is not None and call.admitted.stream:
            return keep_alive(call, rest, every_s)
        return rest

    async def _begin_late(self, call: Call) -> None:
        """Begin with a key that may be new."""
        call.key = await authenticate_late(call.exchange, self._table, self._reader, _CALLERS)
        rest = self._begin(call)
        if rest is not None:
            await rest

    def _read_origin(self, call: Call) -> None:
        """Mark Thrifty's own measurements, which are trusted from operators and this machine."""
        if call.key is None:
            trusted = call.exchange.from_this_machine
        else:
            trusted = call.key.role in _OPERATORS
        if trusted and call.exchange.headers[ORIGIN_HEADER] == Origin.MEASUREMENT.encode():
            call.origin = Origin.MEASUREMENT

    async def _finish(self, call: Call, rest: Coroutine[Any, Any, None]) -> None:
        try:
            await rest
        except asyncio.CancelledError:
            self._end(call, ClientGone())
            raise
        except Exception as error:
            self._end(call, error)
        else:
            self._end(call, None)

    def _end(self, call: Call, error: Exception | None) -> None:
        """Send the error, if any, and record the call."""
        exchange, outcome = call.exchange, call.outcome
        if not call.response_id.number:
            call.response_id = self._ids.new(call.tenant)
        if error is None:
            outcome.status = exchange.status or CLIENT_CLOSED
        elif isinstance(error, WireError):
            outcome.status, outcome.error = error.status, error.code or error.type
            if outcome.error in _REJECTIONS and call.target is not None:
                name = call.target.deployment.name
                self._metrics.rejections.labels(name, outcome.error).inc()
            exchange.respond_error(error, call.header_lines())
        elif isinstance(error, ClientGone):
            outcome.status = CLIENT_CLOSED
            outcome.error = "withdrawn" if call.priority else "client_gone"
        else:
            log.exception("%s failed", call.response_id.text, exc_info=error, extra=call.log_ids)
            outcome.status, outcome.error = 500, "internal_error"
            exchange.respond_error(internal_error(), call.header_lines())
        outcome.ended_s = time.perf_counter()
        self._limiter.settle(call)
        self._recorder.record(call)
        self.on_ended(call)

    async def sweep(self) -> None:
        """Enforce stream deadlines and check routing, about once a second, forever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._forwarder.sweep(time.perf_counter())
            self._limiter.sweep()
            raise_alarms(self._table, self._metrics)
