"""Messages between a gateway worker and the process that finds names: JSON behind its length."""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgspec

MAX_BYTES = 64_000_000
_LENGTH = struct.Struct(">I")


def write_frame(channel: socket.socket, value: Any) -> None:
    """Send one message. Raises `OSError`, as `TimeoutError` where the channel has a timeout."""
    body = msgspec.json.encode(value)
    channel.sendall(_LENGTH.pack(len(body)) + body)


def read_frame(channel: socket.socket) -> Any:
    """Receive one message. Raises `EOFError` where the other side has ended, and `OSError`."""
    (length,) = _LENGTH.unpack(_read(channel, _LENGTH.size))
    if length > MAX_BYTES:
        raise EOFError(f"a message of {length} bytes")
    return msgspec.json.decode(_read(channel, length))


def _read(channel: socket.socket, count: int) -> bytes:
    parts, left = [], count
    while left:
        part = channel.recv(min(left, 1 << 20))
        if not part:
            raise EOFError("the other side has ended")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
