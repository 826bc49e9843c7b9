"""What goes over the socket between a gateway worker and the recorder: MessagePack behind a head of
five bytes, the kind and the length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

HEAD = struct.Struct(">BI")
MAX_BYTES = 1 << 30
"""A longer message is none of ours."""


class Kind(IntEnum):
    """The kinds of messages."""

    HELLO = 1
    ROWS = 2
    TRACES = 3
    METRICS = 4
    FLUSH = 5
    """The worker ends: what it handed over is wanted soon."""
    STATUS = 6
    """The only one from the recorder to the worker."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The first message of a worker."""

    instance: str
    began_s: float
    """When its counts began, in seconds since 1970."""


class RawTexts(NamedTuple):
    """What the texts of one response are made of."""

    endpoint: str
    request: bytes
    """The request's JSON."""
    answer: bytes
    """What the client was sent; empty if there was no answer."""
    streamed: bool
    tenant: str
    """Whose pseudonyms stand in them."""


Handed = tuple[tuple[Any, ...], RawTexts | None]
"""A row of the request log (`request_log.COLUMNS`), and what its texts are made of, if they are
recorded."""


class Sample(NamedTuple):
    """One value of a family of metrics, as prometheus_client has it."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A family of metrics."""

    name: str
    documentation: str
    type: str
    samples: list[Sample]


class Metrics(msgspec.Struct, frozen=True, array_like=True):
    """A worker's metrics at one time, in seconds since 1970."""

    at_s: float
    families: list[Family]


class Status(msgspec.Struct, frozen=True, array_like=True):
    """What became of what one worker handed over, in totals since it connected, and how the
    recorder fares.
    """

    taken: int = 0
    """Rows that were received."""
    written: int = 0
    rejected: int = 0
    texts_lost: int = 0
    traces_sent: int = 0
    traces_dropped: dict[str, int] = {}
    collector_up: bool | None = None
    reason: str = ""
    since_s: float | None = None
    database_up: bool = True

    @property
    def handled(self) -> int:
        """Rows that do not wait any more."""
        return self.written + self.rejected


_encode = msgspec.msgpack.Encoder().encode


def make_message(kind: Kind, value: Any = None) -> bytes:
    """One message. Raises what `msgspec` does for values that it cannot encode."""
    body = _encode(value)
    return HEAD.pack(kind, len(body)) + body


class Reader:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """The whole messages there are with `data`: kind and body, which is valid until the next
        one. Raises `ValueError` for what is no message.
        """
        held = self._data
        held += data
        start = 0
        with memoryview(held) as view:
            while len(held) - start >= HEAD.size:
                kind, length = HEAD.unpack_from(held, start)
                if length > MAX_BYTES:
                    raise ValueError(f"a message of {length} bytes")
                end = start + HEAD.size + length
                if len(held) < end:
                    break
                with view[start + HEAD.size : end] as body:
                    yield kind, body
                start = end
        del held[:start]


def make_decoder(kind: Any) -> Callable[[bytes | memoryview], Any]:
    """What decodes the body of a message as `kind`."""
    return msgspec.msgpack.Decoder(kind).decode
