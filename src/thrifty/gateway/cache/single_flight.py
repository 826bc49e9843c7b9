"""Single flight: identical concurrent requests share one generation.

The first request is the leader. It goes to a replica, and its answer is also sent to the identical
requests that arrive meanwhile, the followers. If the leader's client disconnects, the generation
continues for the followers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from thrifty.gateway.cache.exact import Entry
from thrifty.openai.errors import WireError
from thrifty.openai.events import NO_USAGE

OnData = Callable[[bytes], None]


class Result(msgspec.Struct, frozen=True):
    """The result of a flight: a cacheable answer, another answer, or an error."""

    status: int = 0
    body: bytes = b""
    streamed: bool = False
    """Whether `body` is an event stream, according to its content type."""
    entry: Entry | None = None
    error: WireError | None = None


class SingleFlight:
    """One generation and its followers."""

    __slots__ = ("_backlog", "_ended", "_listeners", "_numbers", "_result", "_usage", "begun",
                 "followers", "replica", "response_id", "stream", "version")  # fmt: skip

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self.followers = 0
        self.begun = False
        self.replica = ""
        self.version = ""
        """The label of the version that answers."""
        self.response_id = b""
        """The response id in the leader's stream."""
        self._backlog: list[bytes] = []
        self._usage: bytes = b""
        self._listeners: dict[int, tuple[OnData, bool]] = {}
        self._numbers = 0
        self._ended: Result | None = None
        self._result: asyncio.Future[Result] | None = None

    @property
    def result(self) -> asyncio.Future[Result]:
        """The result, once there is one. Made for the first follower: most flights have none."""
        if self._result is None:
            self._result = asyncio.get_running_loop().create_future()
            if self._ended is not None:
                self._result.set_result(self._ended)
        return self._result

    @property
    def data(self) -> bytes:
        """All bytes of the stream so far, including token counts."""
        return b"".join(self._backlog) + self._usage

    def publish(self, data: bytes) -> None:
        """Send bytes of the stream to all listeners."""
        self.begun = True
        self._backlog.append(data)
        for listener, wants_usage in list(self._listeners.values()):
            listener(data if wants_usage else data.replace(NO_USAGE, b""))

    def publish_usage(self, event: bytes) -> None:
        """Send the chunk with token counts to the listeners that want it."""
        self._usage += event
        for listener, wants_usage in list(self._listeners.values()):
            if wants_usage:
                listener(event)

    def listen(self, on_data: OnData, *, wants_usage: bool) -> int:
        """Receive the stream from its beginning; returns a number for `leave`."""
        self._numbers += 1
        self._listeners[self._numbers] = (on_data, wants_usage)
        if self._backlog:
            begun = b"".join(self._backlog)
            on_data(begun if wants_usage else begun.replace(NO_USAGE, b""))
        if self._usage and wants_usage:
            on_data(self._usage)
        return self._numbers

    def leave(self, number: int) -> None:
        """Stop receiving the stream."""
        self._listeners.pop(number, None)

    def finish(self, result: Result) -> None:
        """Set the result for all followers."""
        self._ended = result
        if self._result is not None and not self._result.done():
            self._result.set_result(result)


class SingleFlightGroup:
    """The generations in progress, by cache key."""

    def __init__(self) -> None:
        self._flights: dict[bytes, SingleFlight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: bytes) -> SingleFlight | None:
        """The flight for `key`, if one is in progress."""
        return self._flights.get(key)

    def begin(self, key: bytes, *, stream: bool) -> SingleFlight:
        """Start a flight for `key`, which must not have one."""
        assert key not in self._flights
        flight = self._flights[key] = SingleFlight(stream=stream)
        return flight

    def end(self, key: bytes, result: Result) -> None:
        """End the flight for `key`."""
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.finish(result)
