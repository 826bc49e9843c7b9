"""The socket at which gateway workers reach the recorder, a file in the home, which is private; and
either end of a connection to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from thrifty.errors import FleetError
from thrifty.observe.recorder.messages import Kind, Reader, make_message

log = logging.getLogger(__name__)

_MOST_BYTES = 100
"""What the name of a socket may have on every system."""


def listen_at(path: Path) -> socket.socket:
    """A socket that listens at `path`, in place of one that was left there. Raises `FleetError`."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with _shorten(path) as name:
            listening.bind(name)
        path.chmod(0o600)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise FleetError(
            f"cannot listen at {path}: {error.strerror or error}; set THRIFTY_HOME to a folder with a "
            "shorter path, on a disk of this machine"
        ) from None
    listening.setblocking(False)
    return listening


def connect_to(path: Path) -> socket.socket:
    """A socket that is connected to what listens at `path`. Raises `OSError`."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.setblocking(False)
    try:
        with _shorten(path) as name:
            connected.connect(name)
    except OSError:
        connected.close()
        raise
    return connected


@contextlib.contextmanager
def _shorten(path: Path) -> Iterator[str]:
    """A name for `path` that is short enough for a socket, valid within the block. Linux reaches
    any path through an open folder.
    """
    if len(os.fsencode(path)) <= _MOST_BYTES or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class End(asyncio.Protocol):
    """One end of a connection. Used on one event loop."""

    transport: asyncio.Transport

    def __init__(
        self, on_message: Callable[[int, memoryview], None], on_lost: Callable[[], None]
    ) -> None:
        """`on_message` gets the kind and the body of each message, valid until it returns."""
        self._on_message = on_message
        self._on_lost = on_lost
        self._reader = Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for kind, body in self._reader.feed(data):
                self._on_message(kind, body)
        except ValueError as error:  # msgspec's errors are such, too
            log.error("what arrived on the recorder's socket is no message: %s", error)
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self._on_lost()

    def send(self, kind: Kind, value: Any = None) -> None:
        """Send a message. Raises what `msgspec` does for values that it cannot encode."""
        self.transport.write(make_message(kind, value))
