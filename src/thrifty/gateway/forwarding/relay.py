"""Relays a stream from a replica to a client.

Token bytes pass through: a chunk that ends with an event is written as it is. Only chunks that may
hold token counts are parsed. Clients that did not request counts get neither the chunk that has
nothing else nor the null that stands for them in all others.
"""

from __future__ import annotations

import time

from thrifty.gateway.cache.single_flight import SingleFlight
from thrifty.gateway.state.call import Call
from thrifty.http.client import Answer
from thrifty.http.server import EVENT_STREAM_HEADERS
from thrifty.openai.errors import SERVER, WireError
from thrifty.openai.events import (
    DONE,
    NO_USAGE,
    encode_error_event,
    may_hold_usage,
    parse_usage,
    read_data,
    split_events,
)
from thrifty.openai.id_rewrite import IdRewriter


class Relay:
    """Writes one replica's stream to one client, and to the followers of its flight."""

    __slots__ = (
        "_answer",
        "_call",
        "_captured",
        "_flight",
        "_rest",
        "_rewriter",
        "_tail",
        "_wants_usage",
        "paused",
    )

    def __init__(
        self, call: Call, answer: Answer, flight: SingleFlight | None, *, capture: bool
    ) -> None:
        self._call = call
        self._answer = answer
        self._flight = flight
        self._captured: list[bytes] | None = [] if capture else None
        self._rest = b""
        self._tail = b""
        self._wants_usage = call.admitted.stream_options.usage
        takes_id = call.placed.version.settings.accepts_response_id
        self._rewriter = None if takes_id else IdRewriter(call.body_id)
        self.paused = False
        exchange = call.exchange
        if flight is None:
            # With followers, a slow reader must not hold up the others; its bytes are buffered.
            exchange.on_pause = self._pause
            exchange.on_resume = self._resume

    @property
    def begun(self) -> bool:
        """Whether anything has been sent."""
        return self._call.delivery.first_byte_s > 0

    @property
    def complete(self) -> bool:
        """Whether the stream ended properly."""
        return self._tail.endswith(DONE)

    @property
    def captured(self) -> bytes:
        """Everything received, if capturing was requested."""
        return b"".join(self._captured or ())

    def take(self, data: bytes) -> None:
        """Handle bytes from the replica."""
        call, delivery = self._call, self._call.delivery
        delivery.last_byte_s = time.perf_counter()
        if not delivery.first_byte_s:
            delivery.first_byte_s = delivery.last_byte_s
            delivery.end_idle()
            if delivery.load is not None:
                delivery.load.first_token(delivery.first_byte_s)
            call.exchange.start(200, [*EVENT_STREAM_HEADERS, *call.headers()])
        if self._rewriter is not None:
            data = self._rewriter.feed(data)
            if not data:
                return
        if self._rest or not data.endswith(b"\n\n") or may_hold_usage(data):
            self._take_events(data)
        else:
            self._emit(data)

    def finish(self) -> None:
        """Handle the end of the replica's stream."""
        if self._rewriter is not None and (left := self._rewriter.finish()):
            self._emit(left)
        if self._rest:
            rest, self._rest = self._rest, b""
            self._emit(rest)
        self._call.exchange.finish()

    def fail(self, message: str, code: str) -> None:
        """Report an interrupted stream to the client with an error event."""
        error = WireError(502, message, type=SERVER, code=code)
        event = encode_error_event(error)
        if self._flight is not None:
            self._flight.publish(event)
        self._call.exchange.write(event)
        self._call.exchange.finish()

    def _take_events(self, data: bytes) -> None:
        events, self._rest = split_events(self._rest + data)
        kept = []
        for event in events:
            if may_hold_usage(event):
                usage, alone = parse_usage(read_data(event))
                if usage is not None:
                    self._call.outcome.usage = usage
                if alone:
                    self._emit_usage(event)
                    continue
            kept.append(event)
        if kept:
            self._emit(b"".join(kept))

    def _emit(self, data: bytes) -> None:
        self._tail = data
        self._call.exchange.write(data if self._wants_usage else data.replace(NO_USAGE, b""))
        if self._captured is not None:
            self._captured.append(data)
        if self._flight is not None:
            self._flight.publish(data)

    def _emit_usage(self, event: bytes) -> None:
        if self._wants_usage:
            self._call.exchange.write(event)
        if self._captured is not None:
            self._captured.append(event)
        if self._flight is not None:
            self._flight.publish_usage(event)

    def _pause(self) -> None:
        self.paused = True
        self._answer.pause()

    def _resume(self) -> None:
        self.paused = False
        self._call.delivery.last_byte_s = time.perf_counter()
        self._answer.resume()
