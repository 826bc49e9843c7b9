"""The path of a request, whole. Each step is a module of its own; this one puts them in a row."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from thrifty.db.keys import Role
from thrifty.gateway.admit import admit
from thrifty.gateway.authenticate import UnknownKey, authenticate, authenticate_late
from thrifty.gateway.batches.api import BATCH_PATHS, BatchPages
from thrifty.gateway.cache import Entry, ExactCache, Flight, Flights, make_key
from thrifty.gateway.cache.exact import assemble_answer
from thrifty.gateway.cache.flights import Landing
from thrifty.gateway.cache.key import is_deterministic
from thrifty.gateway.call import BYPASS, HIT, MISS, Call
from thrifty.gateway.forward import ClientGone, Forwarder
from thrifty.gateway.pages import Pages
from thrifty.gateway.record import Recorder
from thrifty.gateway.table import RoutingTable
from thrifty.gateway.table_reader import TableReader
from thrifty.observe.metrics import GatewayMetrics
from thrifty.wire.errors import SERVER, WireError, internal_error
from thrifty.wire.fields import Endpoint
from thrifty.wire.server import EVENT_STREAM_HEADERS, JSON_TYPE, Exchange
from thrifty.wire.sse import DONE, read_data, split_events

log = logging.getLogger(__name__)

SWEEP_S = 1.0
CLIENT_CLOSED = 499
"""nginx's status for a client that hung up before its answer."""
_CALLERS = frozenset({Role.USER, Role.ADMIN})
_ENDPOINTS = {endpoint.value: endpoint for endpoint in Endpoint}


class Gateway:
    """Answers every request. `handle` is the HTTP server's handler."""

    def __init__(
        self,
        *,
        table: RoutingTable,
        reader: TableReader,
        forwarder: Forwarder,
        cache: ExactCache,
        recorder: Recorder,
        metrics: GatewayMetrics,
    ) -> None:
        self._table = table
        self._reader = reader
        self._forwarder = forwarder
        self._cache = cache
        self._flights = Flights()
        self._recorder = recorder
        self._metrics = metrics
        self._pages = Pages(table, reader, metrics, cache)
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
        admit(call, self._table)
        key = self._choose_key(call)
        if key is None:
            return self._forward(call)
        entry = self._cache.get(key)
        if entry is not None:
            self._answer_from(call, entry)
            return None
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
            exchange.respond_error(error, call.headers())
        elif isinstance(error, ClientGone):
            call.status = CLIENT_CLOSED
            call.error = "withdrawn" if call.priority else "client_gone"
        else:
            log.exception("%s failed", call.request_id, exc_info=error)
            call.status, call.error = 500, "internal_error"
            exchange.respond_error(internal_error(), call.headers())
        call.ended_s = time.perf_counter()
        self._recorder.record(call)

    async def sweep(self) -> None:
        """Enforce the deadlines of streams, about once a second, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._forwarder.sweep(time.perf_counter())

    async def _forward(self, call: Call) -> None:
        landing = await self._forwarder.forward(call, None)
        self._note_text(call, landing)

    def _choose_key(self, call: Call) -> bytes | None:
        """The cache key; None where the cache has no part in this request."""
        deployment = call.deployment
        assert deployment is not None
        settings = deployment.settings
        control = call.exchange.headers.get(b"cache-control", b"")
        if settings.cache_when == "never" or b"no-store" in control or b"no-cache" in control:
            return None
        if call.endpoint is Endpoint.TOKENIZE:
            return None
        if settings.cache_when != "always" and not is_deterministic(
            call.endpoint, call.body, deployment.honours
        ):
            return None
        call.cache = MISS
        return make_key(call.endpoint, deployment.row.revision, call.tenant, call.body)

    def _answer_from(self, call: Call, entry: Entry) -> None:
        call.cache = HIT
        call.version = entry.version
        call.usage = entry.usage
        call.first_byte_s = call.last_byte_s = time.perf_counter()
        headers = call.headers()
        if entry.replica:
            headers.append((b"x-thrifty-replica", entry.replica.encode()))
        if call.stream:
            call.exchange.start(200, [*EVENT_STREAM_HEADERS, *headers])
            call.exchange.write(entry.as_stream(call.include_usage))
            call.exchange.finish()
        else:
            call.exchange.respond(200, entry.as_body(), [JSON_TYPE, *headers])

    async def _lead(self, call: Call, key: bytes, flight: Flight) -> None:
        """Go to a replica, and keep what comes for others."""
        landing = Landing(
            error=WireError(
                502, "the shared generation broke off", type=SERVER, code="replica_lost"
            )
        )
        try:
            landing = await self._forwarder.forward(call, flight)
            landing = self._store(call, key, landing)
            self._note_text(call, landing)
        except WireError as error:
            landing = Landing(error=error)
            raise
        finally:
            self._flights.end(key, landing)

    def _store(self, call: Call, key: bytes, landing: Landing) -> Landing:
        """Turn a good answer into an entry of the cache."""
        if landing.status != 200 or call.error is not None or call.deployment is None:
            return landing
        body: bytes | None = landing.body
        if landing.body.startswith(b"data:"):
            body = _assemble(landing.body)
        if body is None:
            return landing
        replica = call.replica.id if call.replica else ""
        entry = Entry(body, replica=replica, version=call.version, usage=call.usage)
        self._cache.put(key, entry, call.deployment.settings.cache_ttl_s)
        return Landing(200, landing.body, entry)

    async def _follow(self, call: Call, flight: Flight) -> None:
        """Take part in an identical request's generation."""
        assert call.deployment is not None
        call.cache = HIT
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
            await asyncio.wait({flight.landed, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            flight.followers -= 1
            if number is not None:
                flight.leave(number)
        if not flight.landed.done():
            raise ClientGone
        self._finish_following(call, flight.landed.result())

    @staticmethod
    def _make_listener(call: Call, flight: Flight) -> Callable[[bytes], None]:
        def listen(data: bytes) -> None:
            call.last_byte_s = time.perf_counter()
            if not call.first_byte_s:
                call.first_byte_s = call.last_byte_s
                call.version = flight.version
                headers = [*call.headers(), (b"x-thrifty-replica", flight.replica.encode())]
                call.exchange.start(200, [*EVENT_STREAM_HEADERS, *headers])
            call.exchange.write(data)

        return listen

    def _finish_following(self, call: Call, landing: Landing) -> None:
        exchange = call.exchange
        if exchange.started:
            call.usage = landing.entry.usage if landing.entry else None
            if landing.error is not None:
                call.error = landing.error.code
            exchange.finish()
        elif landing.error is not None:
            raise landing.error
        elif landing.entry is not None:
            self._answer_from(call, landing.entry)
        elif landing.body.startswith(b"data:"):
            raise WireError(
                502, "the shared generation broke off", type=SERVER, code="engine_error"
            )
        else:
            call.cache = BYPASS if landing.status != 200 else HIT
            exchange.respond(landing.status, landing.body, [JSON_TYPE, *call.headers()])

    def _note_text(self, call: Call, landing: Landing) -> None:
        if self._recorder.wants_text:
            call.answer_text = landing.body.decode("utf-8", "replace")


def _assemble(stream: bytes) -> bytes | None:
    """The whole answer in a finished stream."""
    if not stream.rstrip().endswith(DONE.rstrip()) and DONE not in stream:
        return None
    events, _ = split_events(stream)
    chunks = []
    for event in events:
        data = read_data(event)
        if not data or data == b"[DONE]":
            continue
        with contextlib.suppress(msgspec.DecodeError):
            chunk = msgspec.json.decode(data)
            if "error" in chunk:
                return None
            chunks.append(chunk)
    return assemble_answer(chunks)
