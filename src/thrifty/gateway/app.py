"""The path of a request, whole. Each step is a module of its own; this one puts them in a row."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from thrifty.batches.api import BATCH_PATHS, BatchPages
from thrifty.db.keys import Role
from thrifty.gateway.admission.check import admit
from thrifty.gateway.admission.concurrency import deadline_exceeded
from thrifty.gateway.admission.limits import KeyLimiter
from thrifty.gateway.alarms import raise_alarms
from thrifty.gateway.authenticate import UnknownKey, authenticate, authenticate_late
from thrifty.gateway.cache import Entry, Owner, SingleFlight, SingleFlightGroup, make_key
from thrifty.gateway.cache.answers import AnswerCache
from thrifty.gateway.cache.key import is_deterministic
from thrifty.gateway.cache.replay import assemble_stream
from thrifty.gateway.cache.shared import Claim, Found
from thrifty.gateway.cache.shortcuts import Shortcuts
from thrifty.gateway.cache.single_flight import Result
from thrifty.gateway.cache_pages import CachePages
from thrifty.gateway.call import BYPASS, HIT, IN_FLIGHT, MISS, SHARED, Call
from thrifty.gateway.fallback import forward_or_fall_back
from thrifty.gateway.forward import ClientGone, Forwarder
from thrifty.gateway.pages import Pages
from thrifty.gateway.record import Recorder
from thrifty.gateway.table import RoutingTable
from thrifty.gateway.table_reader import TableReader
from thrifty.http.exchange import encode_lines
from thrifty.http.server import EVENT_STREAM_HEADERS, JSON_TYPE, Exchange
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.errors import SERVER, WireError, internal_error
from thrifty.openai.fields import Endpoint

log = logging.getLogger(__name__)

SWEEP_S = 1.0
SHORTCUTS_BYTES = 16_000_000
CLIENT_CLOSED = 499
"""nginx's status for a client that hung up before its answer."""
_CALLERS = frozenset({Role.USER, Role.ADMIN})
_REJECTIONS = frozenset(
    {
        "queue_full", "queue_timeout", "no_replica_ready", "deadline_unreachable",
        "deadline_exceeded",
    }
)  # fmt: skip
"""Errors that say that a request was not admitted; limits of keys are counted by the limiter."""
_JSON_LINE = encode_lines([JSON_TYPE])
_STREAM_LINES = encode_lines(EVENT_STREAM_HEADERS)
_ENDPOINTS = {endpoint.value: endpoint for endpoint in Endpoint}


class Gateway:
    """Answers every request. `handle` is the HTTP server's handler."""

    def __init__(
        self,
        *,
        table: RoutingTable,
        reader: TableReader,
        forwarder: Forwarder,
        cache: AnswerCache,
        recorder: Recorder,
        metrics: GatewayMetrics,
        limiter: KeyLimiter,
    ) -> None:
        self._limiter = limiter
        self._table = table
        self._reader = reader
        self._forwarder = forwarder
        self._cache = cache
        self._flights = SingleFlightGroup()
        self._shortcuts = Shortcuts(SHORTCUTS_BYTES)
        self._recorder = recorder
        self._metrics = metrics
        self._cache_pages = CachePages(table, reader, cache)
        self._pages = Pages(table, reader, metrics, cache.memory, self._cache_pages)
        self.batches: BatchPages | None = None
        """What answers /v1/files and /v1/batches, where there is a place for files."""

    def handle(self, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        """One request, from its bytes to its record. What needs no waiting is done at once; the
        rest is returned.
        """
        endpoint = _ENDPOINTS.get(exchange.path)
        if endpoint is None or exchange.method != "POST":
            if self.batches is not None and exchange.path.startswith(BATCH_PATHS):
                return self.batches.answer(exchange)
            return self._pages.answer(exchange)
        call = Call(exchange, endpoint)
        try:
            call.key = authenticate(exchange, self._table, _CALLERS)
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

    async def run(self, call: Call) -> None:
        """Take a call that comes from within the same path, from `admit` on. Its exchange has the
        answer, errors too.
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
        """Count a request that the HTTP server refused before it came here."""
        self._metrics.requests.count_error(error.code or error.type)

    def _begin(self, call: Call) -> Coroutine[Any, Any, None] | None:
        """Admit, and answer from the cache; otherwise return what will answer."""
        if not self._shortcuts.take(call, self._table.names):
            admit(call, self._table)
        if call.key is not None and call.key.limited:
            counting = self._limiter.admit(call, call.key)
            if counting is not None:
                return self._begin_counted(call, counting)
        return self._proceed(call)

    async def _begin_counted(self, call: Call, counting: Coroutine[Any, Any, None]) -> None:
        """Begin once the limits of the key have been asked for elsewhere."""
        await counting
        rest = self._proceed(call)
        if rest is not None:
            await rest

    def _proceed(self, call: Call) -> Coroutine[Any, Any, None] | None:
        """Answer from the cache, or return what will answer."""
        key = self._choose_key(call)
        entry = self._cache.memory.get(key) if key is not None else None
        if entry is not None and key is not None:
            self._answer_from(call, entry)
            if call.cache_key is None:
                self._shortcuts.note(call, key)
            return None
        if call.cache_key is not None:
            admit(call, self._table)  # it was known well enough for a hit alone
        if key is None:
            return self._forward(call)
        flight = self._flights.find(key)
        if flight is not None:
            return self._follow(call, flight)
        return self._lead(call, key, self._flights.begin(key, stream=call.stream))

    async def _begin_late(self, call: Call) -> None:
        """Begin with a key that may have been made a moment ago."""
        call.key = await authenticate_late(call.exchange, self._table, self._reader, _CALLERS)
        rest = self._begin(call)
        if rest is not None:
            await rest

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
        """Send the error, if there is one, and record the call."""
        exchange = call.exchange
        if error is None:
            call.status = exchange.status or CLIENT_CLOSED
        elif isinstance(error, WireError):
            call.status, call.error = error.status, error.code or error.type
            if call.error in _REJECTIONS and call.deployment is not None:
                self._metrics.rejections.labels(call.deployment.name, call.error).inc()
            exchange.respond_error(error, call.headers())
        elif isinstance(error, ClientGone):
            call.status = CLIENT_CLOSED
            call.error = "withdrawn" if call.priority else "client_gone"
        else:
            log.exception("%s failed", call.request_id, exc_info=error)
            call.status, call.error = 500, "internal_error"
            exchange.respond_error(internal_error(), call.headers())
        call.ended_s = time.perf_counter()
        self._limiter.settle(call)
        self._recorder.record(call)

    async def sweep(self) -> None:
        """Enforce the deadlines of streams, and watch routing, about once a second, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._forwarder.sweep(time.perf_counter())
            self._limiter.sweep()
            raise_alarms(self._table, self._metrics)

    async def publish(self, worker: str) -> None:
        """Tell other processes this worker's figures, for ever."""
        await self._cache_pages.publish(worker)

    async def _forward(self, call: Call) -> None:
        result = await self._send(call, None)
        self._note_text(call, result)

    async def _send(self, call: Call, flight: SingleFlight | None) -> Result:
        return await forward_or_fall_back(self._forwarder, self._table, self._metrics, call, flight)

    def _choose_key(self, call: Call) -> bytes | None:
        """The cache key; None where the cache has no part in this request."""
        deployment = call.deployment
        assert deployment is not None
        settings = deployment.settings
        control = call.exchange.headers.get(b"cache-control", b"")
        if settings.cache_when == "never" or b"no-store" in control or b"no-cache" in control:
            return None
        if call.cache_key is not None:
            call.cache = MISS
            return call.cache_key
        if call.endpoint is Endpoint.TOKENIZE:
            return None
        if settings.cache_when != "always" and not is_deterministic(
            call.endpoint, call.body, deployment.honours
        ):
            return None
        call.cache = MISS
        served = f"{deployment.name}/{deployment.row.revision}"
        return make_key(call.endpoint, served, call.tenant, call.body)

    @staticmethod
    def _answer_from(call: Call, entry: Entry) -> None:
        call.cache = HIT
        call.version = entry.owner.version
        call.usage = entry.usage
        call.saved_s = entry.took_s
        call.first_byte_s = call.last_byte_s = time.perf_counter()
        lines = b"x-request-id: %b\r\n%b" % (call.request_id.encode(), entry.lines)
        if call.rate_headers is not None:
            lines += encode_lines(call.rate_headers)
        if call.stream:
            stream = entry.as_stream(call.include_usage)
            call.exchange.respond_ready(_STREAM_LINES + lines, stream, stream=True)
        else:
            call.exchange.respond_ready(_JSON_LINE + lines, entry.as_body())

    async def _lead(self, call: Call, key: bytes, flight: SingleFlight) -> None:
        """Get the answer from another worker or from a replica, and keep what comes for others."""
        result = Result(
            error=WireError(
                502, "the shared generation broke off", type=SERVER, code="replica_lost"
            )
        )
        deployment, shared = call.deployment, self._cache.shared
        assert deployment is not None
        owner = Owner(deployment.name, deployment.row.revision, deployment.row.version, call.tenant)
        purge_id = self._cache.purges.newest_id
        claim: Claim | None = None
        kept = False
        try:
            if shared is not None and shared.available:
                found = await self._find_shared(call, key, owner, flight)
                if isinstance(found, Found):
                    result = Result(200, b"", found.entry)
                    ttl_s = min(found.ttl_s, deployment.settings.cache_ttl_s)
                    self._cache.keep(key, found.entry, ttl_s)
                    self._answer_from(call, found.entry)
                    call.tier = SHARED
                    return
                claim = found
                if call.exchange.disconnected and not flight.followers:
                    raise ClientGone
            result = await self._send(call, flight)
            result = _make_entry(call, result, owner, purge_id)
            kept = self._keep(call, key, result.entry, owner)
            self._note_text(call, result)
        except WireError as error:
            result = Result(error=error)
            raise
        finally:
            self._flights.end(key, result)
            if claim is not None and shared is not None:
                entry = result.entry if kept else None
                shared.settle(claim, entry, deployment.settings.cache_ttl_s)

    async def _find_shared(
        self, call: Call, key: bytes, owner: Owner, flight: SingleFlight
    ) -> Found | Claim | None:
        """The answer that another worker has made, or is making."""
        assert self._cache.shared is not None
        exchange = call.exchange
        # Others may wait for this look-up: it goes on without its first client.
        exchange.on_disconnect = lambda: None
        return await self._cache.shared.find(
            key,
            owner,
            stream=call.stream,
            left_s=call.deadline_s - time.perf_counter() if call.deadline_s else None,
            wanted=lambda: flight.followers > 0 or not exchange.disconnected,
        )

    def _keep(self, call: Call, key: bytes, entry: Entry | None, owner: Owner) -> bool:
        """Keep an answer, if it is the one that the key stands for; whether it was kept."""
        if entry is None or call.fell_back or call.replica is None or call.deployment is None:
            return False
        if call.replica.revision != owner.revision:
            return False  # while versions change, a replica of the other one may have answered
        return self._cache.keep(key, entry, call.deployment.settings.cache_ttl_s)

    async def _follow(self, call: Call, flight: SingleFlight) -> None:
        """Take part in an identical request's generation."""
        assert call.deployment is not None
        call.cache, call.tier = HIT, IN_FLIGHT
        self._metrics.shared.labels(call.deployment.name).inc()
        flight.followers += 1
        gone = asyncio.get_running_loop().create_future()

        def hang_up() -> None:
            if not gone.done():
                gone.set_result(None)

        call.exchange.on_disconnect = hang_up
        number = None
        if call.stream and flight.stream:
            number = flight.listen(
                self._make_listener(call, flight), wants_usage=call.include_usage
            )
        try:
            left_s = call.deadline_s - time.perf_counter() if call.deadline_s else None
            await asyncio.wait(
                {flight.result, gone},
                timeout=None if left_s is None else max(0.0, left_s),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not (flight.result.done() or gone.done()):
                if not call.exchange.started:
                    raise deadline_exceeded("before the shared generation began to answer")
                await asyncio.wait({flight.result, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            flight.followers -= 1
            if number is not None:
                flight.leave(number)
        if not flight.result.done():
            raise ClientGone
        self._finish_following(call, flight.result.result())

    @staticmethod
    def _make_listener(call: Call, flight: SingleFlight) -> Callable[[bytes], None]:
        def listen(data: bytes) -> None:
            call.last_byte_s = time.perf_counter()
            if not call.first_byte_s:
                call.first_byte_s = call.last_byte_s
                call.version = flight.version
                headers = [*call.headers(), (b"x-thrifty-replica", flight.replica.encode())]
                call.exchange.start(200, [*EVENT_STREAM_HEADERS, *headers])
            call.exchange.write(data)

        return listen

    def _finish_following(self, call: Call, result: Result) -> None:
        exchange = call.exchange
        if exchange.started:
            if result.entry is not None:
                call.usage, call.saved_s = result.entry.usage, result.entry.took_s
            if result.error is not None:
                call.error = result.error.code
            exchange.finish()
        elif result.error is not None:
            raise result.error
        elif result.entry is not None:
            self._answer_from(call, result.entry)
        elif result.body.startswith(b"data:"):
            raise WireError(
                502, "the shared generation broke off", type=SERVER, code="engine_error"
            )
        else:
            call.cache = BYPASS if result.status != 200 else HIT
            exchange.respond(result.status, result.body, [JSON_TYPE, *call.headers()])

    def _note_text(self, call: Call, result: Result) -> None:
        if self._recorder.wants_text:
            call.answer_text = result.body.decode("utf-8", "replace")


def _make_entry(call: Call, result: Result, owner: Owner, purge_id: int) -> Result:
    """A good answer as it is kept, and given to those who asked the same meanwhile."""
    if result.status != 200 or call.error is not None:
        return result
    body: bytes | None = result.body
    if result.body.startswith(b"data:"):
        body = assemble_stream(result.body)
    if body is None:
        return result
    entry = Entry(
        body,
        replica=call.replica.id if call.replica else "",
        usage=call.usage,
        owner=owner if owner.version == call.version else owner._replace(version=call.version),
        took_s=max(0.0, call.last_byte_s - call.sent_s),
        purge_id=purge_id,
    )
    return Result(200, result.body, entry)
