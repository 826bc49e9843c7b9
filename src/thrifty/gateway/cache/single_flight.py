"""Identical requests at the same time share one generation.

The first request leads: it goes to a replica, and everything that comes back is also given to
those who asked the same meanwhile. A leader whose client goes away goes on for the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from thrifty.gateway.cache.exact import Entry
from thrifty.openai.errors import WireError

OnData = Callable[[bytes], None]


@dataclass(frozen=True)
class Result:
    """How a flight ended: an answer that may be kept, or another answer, or an error."""

    status: int = 0
    body: bytes = b""
    streamed: bool = False
    """Whether `body` is an event stream, which its content type says."""
    entry: Entry | None = None
    error: WireError | None = None


class SingleFlight:
    """One generation, and who waits for it."""

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self.followers = 0
        self.begun = False
        self.replica = ""
        self.version = ""
        """The label of the version that answers."""
        self.response_id = b""
        """The id under which the leader's client gets the stream."""
        self._backlog: list[bytes] = []
        self._usage: bytes = b""
        self._listeners: dict[int, tuple[OnData, bool]] = {}
        self._numbers = 0
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    @property
    def data(self) -> bytes:
        """All bytes of the stream so far, token counts included."""
        return b"".join(self._backlog) + self._usage

    def publish(self, data: bytes) -> None:
        """Give bytes of the stream to all who listen."""
        self.begun = True
        self._backlog.append(data)
        for listener, _ in list(self._listeners.values()):
            listener(data)

    def publish_usage(self, event: bytes) -> None:
        """Give the chunk with token counts to those who asked for it."""
        self._usage += event
        for listener, wants_usage in list(self._listeners.values()):
            if wants_usage:
                listener(event)

    def listen(self, on_data: OnData, *, wants_usage: bool) -> int:
        """Get the stream from its beginning; returns a number for `leave`."""
        self._numbers += 1
        self._listeners[self._numbers] = (on_data, wants_usage)
        if self._backlog:
            on_data(b"".join(self._backlog))
        if self._usage and wants_usage:
            on_data(self._usage)
        return self._numbers

    def leave(self, number: int) -> None:
        """Get no more."""
        self._listeners.pop(number, None)

    def finish(self, result: Result) -> None:
        """End it, for all."""
        if not self.result.done():
            self.result.set_result(result)


class SingleFlightGroup:
    """The generations under way, by cache key."""

    def __init__(self) -> None:
        self._flights: dict[bytes, SingleFlight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: bytes) -> SingleFlight | None:
        """The flight for `key`, if one is under way."""
        return self._flights.get(key)

    def begin(self, key: bytes, *, stream: bool) -> SingleFlight:
        """A new flight for `key`, which has none."""
        assert key not in self._flights
        flight = self._flights[key] = SingleFlight(stream=stream)
        return flight

    def end(self, key: bytes, result: Result) -> None:
        """The flight for `key` is over."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.finish(result)
