"""Answers admitted calls: from the cache, from a shared generation, or from a replica.

Cache entries belong to the version that generated them, so versions never share answers. Identical
concurrent requests share one generation. Answers that may be cached are cached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from thrifty.gateway.admission.check import check_version
from thrifty.gateway.cache import Entry, Owner, SingleFlight, SingleFlightGroup, make_key
from thrifty.gateway.cache.answers import AnswerCache
from thrifty.gateway.cache.key import is_deterministic
from thrifty.gateway.cache.replay import can_replay, count_answers
from thrifty.gateway.cache.shared import Claim, Found
from thrifty.gateway.cache.shortcuts import Shortcuts
from thrifty.gateway.cache.single_flight import Result
from thrifty.gateway.forwarding.fallback import forward_or_fall_back
from thrifty.gateway.forwarding.forward import ClientGone, Forwarder
from thrifty.gateway.state.call import (
    BYPASS,
    HIT,
    IN_FLIGHT,
    MEMORY,
    MISS,
    SHARED,
    Call,
    Origin,
    ParsedRequest,
    Target,
)
from thrifty.gateway.state.concurrency import deadline_exceeded
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.exchange import encode_lines
from thrifty.http.types import EVENT_STREAM_HEADERS, JSON_TYPE
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.errors import SERVER, WireError
from thrifty.openai.fields import Endpoint
from thrifty.openai.stream_answers import assemble_stream

LARGE_BYTES = 1_000_000
"""Larger answers are made entries of the cache in threads."""
_JSON_LINE = encode_lines([JSON_TYPE])
_STREAM_LINES = encode_lines(EVENT_STREAM_HEADERS)


class Answerer:
    """Answers admitted calls."""

    def __init__(
        self,
        table: RoutingTable,
        forwarder: Forwarder,
        cache: AnswerCache,
        shortcuts: Shortcuts,
        metrics: GatewayMetrics,
        *,
        keep_texts: bool,
    ) -> None:
        self._table = table
        self._forwarder = forwarder
        self._cache = cache
        self._shortcuts = shortcuts
        self._metrics = metrics
        self._keep_texts = keep_texts
        self._flights = SingleFlightGroup()

    def answer(self, call: Call, known_key: bytes | None) -> Coroutine[Any, Any, None] | None:
        """Answer from the cache, or return a coroutine that answers. `known_key` is the cache key
        of a call that was recognized by its bytes and not parsed.
        """
        parsed, target = call.admitted, call.placed
        key = self._choose_key(call, parsed, target, known_key)
        entry = self._cache.memory.get(key) if key is not None else None
        if entry is not None and key is not None:
            self._answer_from(call, entry)
            if known_key is None:
                self._shortcuts.note(call, key)
            return None
        if known_key is not None:
            check_version(call, parsed, target)
        if key is None:
            return self._forward(call)
        if not parsed.stream_options.shareable:
            call.cache.result = BYPASS
            return self._forward(call)
        return self._share(call, key)

    async def _share(self, call: Call, key: bytes) -> None:
        """Join the generation of an identical request, or begin one that others may join."""
        flight = self._flights.find(key)
        if flight is not None:
            await self._follow(call, flight)
        else:
            await self._lead(call, key, self._flights.begin(key, stream=call.admitted.stream))

    async def _forward(self, call: Call) -> None:
        self._note_answer(call, await self._send(call, None))

    def _send(self, call: Call, flight: SingleFlight | None) -> Coroutine[Any, Any, Result]:
        return forward_or_fall_back(self._forwarder, self._table, self._metrics, call, flight)

    def _choose_key(
        self, call: Call, parsed: ParsedRequest, target: Target, known_key: bytes | None
    ) -> bytes | None:
        """The cache key; None if the cache is not used for this request."""
        when = target.deployment.settings.cache_when
        control = call.exchange.headers.get(b"cache-control", b"")
        if when == "never" or b"no-store" in control or b"no-cache" in control:
            return None
        if call.origin is Origin.SHADOW or call.endpoint is Endpoint.TOKENIZE:
            return None
        if known_key is None:
            version, body = target.version, parsed.body
            if when != "always" and not is_deterministic(call.endpoint, body, version.honours):
                return None
            known_key = make_key(call.endpoint, version.identity, call.tenant, body)
        call.cache.result = MISS
        return known_key

    def _answer_from(self, call: Call, entry: Entry) -> None:
        cache, parsed, delivery = call.cache, call.admitted, call.delivery
        cache.result, cache.label, cache.saved_s = HIT, entry.version, entry.took_s
        call.outcome.usage = entry.usage
        delivery.first_byte_s = delivery.last_byte_s = time.perf_counter()
        response_id = call.response_id.text
        named = call.client_request_id or response_id
        lines = (
            b"x-request-id: %b\r\nx-thrifty-response-id: %b\r\nx-thrifty-conversation: %b\r\n%b"
            % (
                named.encode(), response_id.encode(), call.placed.conversation_id.encode(),
                entry.lines,
            )
        )  # fmt: skip
        if call.feedback_token is not None:
            lines += b"x-thrifty-feedback-token: %b\r\n" % call.feedback_token.encode()
        if call.rate_headers is not None:
            lines += encode_lines(call.rate_headers)
        if parsed.stream:
            stream = entry.as_stream(parsed.stream_options, response_id)
            call.exchange.respond_ready(_STREAM_LINES + lines, stream, stream=True)
        else:
            call.exchange.respond_ready(_JSON_LINE + lines, entry.as_body(response_id))
        if self._keep_texts:
            call.outcome.answer = entry.body

    async def _lead(self, call: Call, key: bytes, flight: SingleFlight) -> None:
        """Get the answer from another worker or from a replica, and cache it."""
        result: Result | None = None
        target, shared = call.placed, self._cache.shared
        ttl_s = target.deployment.settings.cache_ttl_s
        version = target.version
        owner = Owner(version.deployment, version.revision, version.label, call.tenant)
        purge_id = self._cache.purges.newest_id
        flight.response_id = call.response_id.text.encode()
        claim: Claim | None = None
        stored = False
        try:
            if shared is not None and shared.available:
                asked_s = time.perf_counter()
                found = await self._find_shared(call, key, owner, flight)
                if call.trace is not None:
                    call.trace.note_wait("cache", asked_s)
                if isinstance(found, Found):
                    result = Result(200, b"", entry=found.entry)
                    self._cache.store(key, found.entry, min(found.ttl_s, ttl_s))
                    self._answer_from(call, found.entry)
                    call.cache.tier = SHARED
                    return
                claim = found
                if call.exchange.disconnected and not flight.followers:
                    raise ClientGone
            result = await self._send(call, flight)
            if len(result.body) < LARGE_BYTES:
                result = _make_entry(call, result, owner, purge_id)
            else:
                result = await asyncio.to_thread(_make_entry, call, result, owner, purge_id)
            stored = self._store(call, key, result.entry, owner, ttl_s)
            self._note_answer(call, result)
        except WireError as error:
            result = Result(error=error)
            raise
        finally:
            if result is None:
                result = Result(
                    error=WireError(
                        502,
                        "the shared generation was interrupted",
                        type=SERVER,
                        code="replica_lost",
                    )
                )
            self._flights.end(key, flight, result)
            if claim is not None and shared is not None:
                shared.settle(claim, result.entry if stored else None, ttl_s)

    async def _find_shared(
        self, call: Call, key: bytes, owner: Owner, flight: SingleFlight
    ) -> Found | Claim | None:
        """The answer that another worker has generated or is generating."""
        assert self._cache.shared is not None
        exchange, parsed = call.exchange, call.admitted
        # Followers may wait for this lookup, so it continues if its first client leaves.
        exchange.on_disconnect = lambda: None
        return await self._cache.shared.find(
            key,
            owner,
            stream=parsed.stream,
            left_s=parsed.deadline_s - time.perf_counter() if parsed.deadline_s else None,
            wanted=lambda: flight.followers > 0 or not exchange.disconnected,
            is_valid=lambda body: _can_replay(call, body),
        )

    def _store(
        self, call: Call, key: bytes, entry: Entry | None, owner: Owner, ttl_s: float
    ) -> bool:
        """Cache an answer if the key stands for the version that made it; returns whether it
        did.
        """
        target, replica = call.placed, call.delivery.replica
        if entry is None or target.fell_back or replica is None:
            return False
        if (replica.version, replica.revision) != (owner.version, owner.revision):
            return False  # another version answered, or this one was updated in the meantime
        return self._cache.store(key, entry, ttl_s)

    async def _follow(self, call: Call, flight: SingleFlight) -> None:
        """Answer from the generation of an identical request. Each of its waits is bounded."""
        parsed = call.admitted
        call.cache.result, call.cache.tier = HIT, IN_FLIGHT
        self._metrics.shared.labels(call.placed.deployment.name).inc()
        flight.followers += 1
        gone = asyncio.get_running_loop().create_future()

        def hang_up() -> None:
            if not gone.done():
                gone.set_result(None)

        call.exchange.on_disconnect = hang_up
        joined_s = time.perf_counter()
        number = None
        if parsed.stream and flight.stream:
            number = flight.listen(
                _make_listener(call, flight), wants_usage=parsed.stream_options.usage
            )
        try:
            left_s = parsed.deadline_s - time.perf_counter() if parsed.deadline_s else None
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
            if call.trace is not None:
                call.trace.note_wait("cache", joined_s)
            if number is not None:
                flight.leave(number)
        if not flight.result.done():
            raise ClientGone
        result = flight.result.result()
        if result.streamed and not (result.entry or result.error or call.exchange.started):
            # The stream cannot be put together for a client that asked for a whole answer.
            call.cache.result, call.cache.tier = MISS, MEMORY
            await self._forward(call)
            return
        self._finish_following(call, flight, result)

    def _finish_following(self, call: Call, flight: SingleFlight, result: Result) -> None:
        exchange = call.exchange
        if exchange.started:
            if result.entry is not None:
                call.outcome.usage, call.cache.saved_s = result.entry.usage, result.entry.took_s
            if result.error is not None:
                call.outcome.error = result.error.code
            exchange.finish()
            self._note_answer(call, result)
        elif result.error is not None:
            raise result.error
        elif result.entry is not None:
            self._answer_from(call, result.entry)
        else:
            call.cache.result = BYPASS if result.status != 200 else HIT
            call.cache.label, call.cache.replica = flight.version, flight.replica
            body = result.body.replace(flight.response_id, call.response_id.text.encode())
            exchange.respond(result.status, body, lines=call.header_lines())
            self._note_answer(call, result)

    def _note_answer(self, call: Call, result: Result) -> None:
        """Keep the answer for the recorded texts."""
        if self._keep_texts:
            entry = result.entry
            call.outcome.answer = result.body if entry is None else entry.body
            call.outcome.streamed = result.streamed and entry is None


def _make_listener(call: Call, flight: SingleFlight) -> Callable[[bytes], None]:
    """Forwards the stream of a shared generation under the call's own response id."""
    delivery, own_id = call.delivery, call.response_id.text.encode()

    def listen(data: bytes) -> None:
        delivery.last_byte_s = time.perf_counter()
        if not delivery.first_byte_s:
            delivery.first_byte_s = delivery.last_byte_s
            call.cache.label, call.cache.replica = flight.version, flight.replica
            call.exchange.start(200, EVENT_STREAM_HEADERS, lines=call.header_lines())
        call.exchange.write(data.replace(flight.response_id, own_id))

    return listen


def _can_replay(call: Call, body: bytes) -> bool:
    return can_replay(body, call.endpoint, count_answers(call.endpoint, call.admitted.body))


def _make_entry(call: Call, result: Result, owner: Owner, purge_id: int) -> Result:
    """A successful answer as a cache entry; other results, and answers that could not be replayed
    whole and as a stream, are returned unchanged.
    """
    if result.status != 200 or call.outcome.error is not None:
        return result
    body: bytes | None = assemble_stream(result.body) if result.streamed else result.body
    if body is None or not _can_replay(call, body):
        return result
    delivery, label = call.delivery, call.placed.version.label
    entry = Entry(
        body,
        replica=delivery.replica.id if delivery.replica else "",
        usage=call.outcome.usage,
        owner=owner if owner.version == label else owner._replace(version=label),
        took_s=max(0.0, delivery.last_byte_s - delivery.sent_s),
        purge_id=purge_id,
    )
    return Result(200, result.body, result.streamed, entry)
