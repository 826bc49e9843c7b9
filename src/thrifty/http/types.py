"""The few shapes that every module of this package shares."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

Headers = Iterable[tuple[bytes, bytes]]
"""Header names in lower case, with their values."""

JSON_TYPE = (b"content-type", b"application/json")
EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


@functools.lru_cache(maxsize=256)
def is_event_stream(content_type: bytes) -> bool:
    """Whether a `Content-Type` names an event stream."""
    return content_type.partition(b";")[0].strip().lower() == b"text/event-stream"


def encode_lines(headers: Headers) -> bytes:
    """Header lines as they are sent."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


@dataclass(frozen=True)
class ServerLimits:
    """What one connection may cost the server."""

    max_body_bytes: int = 8_000_000
    max_header_bytes: int = 32_768
    read_timeout_s: float = 20.0
    write_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    max_connections: int = 20_000
