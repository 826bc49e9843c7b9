"""Relays a stream from a replica to a client.

Token bytes pass through: a chunk that begins and ends with an event is written unchanged, except
that line ends become LF. Only events that may hold token counts are parsed. Clients that did not
request counts get neither the event that has nothing else nor the null that stands for them in all
others. Comments and other fields are passed on.

A stream is complete if it ends with `[DONE]`, or if its last chunk ends a choice. What such a
stream lacks, the blank line of its last event or the `[DONE]`, is added. One that ends within an
answer or an event gets an error event, because clients would take it for a whole answer.
"""

from __future__ import annotations

import time

import msgspec

from thrifty.gateway.cache.single_flight import SingleFlight
from thrifty.gateway.forwarding.unreported_usage import estimate_usage
from thrifty.gateway.state.call import Call
from thrifty.http.client import Answer, BrokenResponse
from thrifty.http.server import EVENT_STREAM_HEADERS
from thrifty.observe.request_metrics import Histogram
from thrifty.openai.errors import SERVER, WireError
from thrifty.openai.events import (
    DONE,
    NO_USAGE,
    LineEnds,
    encode_error_event,
    holds_text,
    may_hold_usage,
    parse_usage,
    read_data,
    read_stream,
    split_events,
)
from thrifty.openai.id_rewrite import IdRewriter

MAX_EVENT_BYTES = 33_554_432
"""A stream with a larger event is broken off."""
MAX_CAPTURED_BYTES = 33_554_432
"""A longer stream is passed on, and is neither cached nor recorded nor joined by others."""
_BARE_EVENTS = 3
"""A stream has about so many events without text: its first, its last, and `[DONE]`."""
_END = b"[DONE]"


_BROKEN_OFF = WireError(
    502, "The replica's stream ended before its answer did.", type=SERVER, code="replica_lost"
)


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice]


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Relay:
    """Writes one replica's stream to one client, and to the followers of its flight."""

    __slots__ = (
        "_answer",
        "_call",
        "_captured",
        "_captured_bytes",
        "_flight",
        "_is_behind",
        "_line_ends",
        "_looks",
        "_pace",
        "_pieces",
        "_rest",
        "_rewriter",
        "_tail",
        "_wants_usage",
        "paused",
    )

    def __init__(
        self,
        call: Call,
        answer: Answer,
        flight: SingleFlight | None,
        *,
        capture: bool,
        count: bool = False,
        pace: Histogram | None = None,
    ) -> None:
        """`capture` keeps what is received. `count` looks for text in each event, because nobody
        asked the replica for token counts. `pace` takes the times between pieces.
        """
        self._call = call
        self._answer = answer
        self._flight = flight
        self._captured: list[bytes] | None = [] if capture else None
        self._captured_bytes = 0
        self._is_behind = False
        """Whether the client is slow."""
        self._line_ends = LineEnds()
        self._pace = pace
        self._looks = count
        self._pieces = 0 if count else -_BARE_EVENTS
        """The events with text so far, for an estimate of tokens if no counts come."""
        self._rest = b""
        self._tail = b""
        """The events written last, the last of which holds data."""
        self._wants_usage = call.admitted.stream_options.usage
        takes_id = call.placed.version.settings.accepts_response_id
        self._rewriter = None if takes_id else IdRewriter(call.body_id)
        self.paused = False
        exchange = call.exchange
        exchange.on_pause = self._pause
        exchange.on_resume = self._resume

    @property
    def begun(self) -> bool:
        """Whether anything has been sent."""
        return self._call.delivery.first_byte_s > 0

    @property
    def complete(self) -> bool:
        """Whether the stream ended properly. To be asked after `finish`."""
        return self._read_last() == _END

    @property
    def captured(self) -> bytes:
        """Everything received, if capturing was requested."""
        return b"".join(self._captured or ())

    def take(self, data: bytes) -> None:
        """Handle bytes from the replica."""
        call, delivery = self._call, self._call.delivery
        before_s, delivery.last_byte_s = delivery.last_byte_s, time.perf_counter()
        pace = self._pace
        if not delivery.first_byte_s:
            pace = None  # what passed before the first piece is the time to the first token
            delivery.first_byte_s = delivery.last_byte_s
            delivery.end_idle()
            if delivery.load is not None:
                delivery.load.first_token(delivery.first_byte_s)
            call.exchange.start(200, EVENT_STREAM_HEADERS, lines=call.header_lines())
        data = self._line_ends.feed(data)
        if self._rewriter is not None:
            data = self._rewriter.feed(data)
            if self._rewriter.rest_bytes > MAX_EVENT_BYTES:
                self._answer.fail(BrokenResponse(f"an event has more than {MAX_EVENT_BYTES} bytes"))
                self._answer.abort()
        if not data:
            return
        ends = may_hold_usage(data)
        if pace is not None and not ends and not data.endswith(DONE):
            pace.observe(delivery.last_byte_s - before_s)
        if (
            ends
            or self._rest
            or not data.startswith(b"data:")
            or not data.endswith(b"\n\n")
            or self._looks
        ):
            self._take_events(data)
        else:
            self._tail = data
            self._pieces += data.count(b"\n\n")
            self._emit(data)

    def finish(self) -> None:
        """Handle the end of the replica's stream."""
        if self._rewriter is not None:
            self._rest += self._rewriter.finish()
        rest, self._rest = self._rest, b""
        cut = not _is_whole(rest) and bool(read_data(rest))
        if _is_whole(rest):
            self._take_events(rest.rstrip(b"\n") + b"\n\n")
        elif not cut:
            self._emit(rest)
        last = self._read_last()
        if last != _END and (cut or _ends_choice(last) is False):
            self._emit(encode_error_event(_BROKEN_OFF))
        elif _ends_choice(last):
            self._tail = DONE
            self._emit(DONE)
        if self._call.outcome.usage is None:
            # Servers send about one token in an event.
            self._call.outcome.usage = estimate_usage(self._call, max(0, self._pieces))
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
        kept: list[bytes] = []
        for event in events:
            self._pieces += holds_text(event) if self._looks else 1
            if may_hold_usage(event):
                usage, alone = parse_usage(read_data(event))
                if usage is not None:
                    self._call.outcome.usage = usage
                if alone:
                    self._emit(b"".join(kept))
                    kept = []
                    self._emit_usage(event)
                    continue
            if read_data(event):
                self._tail = event
            kept.append(event)
        self._emit(b"".join(kept))

    def _read_last(self) -> bytes:
        """The data of the last event that has any."""
        return next(reversed(read_stream(self._tail)), b"")

    def _emit(self, data: bytes) -> None:
        if not data:
            return
        self._call.exchange.write(data if self._wants_usage else data.replace(NO_USAGE, b""))
        self._capture(data)
        if self._flight is not None:
            self._flight.publish(data)

    def _emit_usage(self, event: bytes) -> None:
        if self._wants_usage:
            self._call.exchange.write(event)
        self._capture(event)
        if self._flight is not None:
            self._flight.publish_usage(event)

    def _capture(self, data: bytes) -> None:
        self._captured_bytes += len(data)
        if self._captured_bytes <= MAX_CAPTURED_BYTES:
            if self._captured is not None:
                self._captured.append(data)
            return
        self._captured = None
        if self._flight is not None and self._flight.open:
            self._flight.close()
            if self._is_behind:
                self._pause()

    def _pause(self) -> None:
        self._is_behind = True
        flight = self._flight
        if flight is None or not (flight.open or flight.followers):
            # A slow reader must not hold up followers; its bytes are buffered.
            self.paused = True
            self._answer.pause()

    def _resume(self) -> None:
        self._is_behind = False
        if not self.paused:
            return
        self.paused = False
        self._call.delivery.last_byte_s = time.perf_counter()
        self._answer.resume()


def _ends_choice(data: bytes) -> bool | None:
    """Whether a chunk says that its choices have ended; None if it is no chunk of a choice."""
    try:
        choices = _decode_chunk(data).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return all(choice.finish_reason for choice in choices) if choices else None


def _is_whole(rest: bytes) -> bool:
    """Whether an event without its blank line holds whole data."""
    data = read_data(rest)
    if data == _END:
        return True
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
