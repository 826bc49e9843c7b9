"""Either end of a connection between a gateway worker and the recorder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from thrifty.observe.recorder.messages import Kind, Reader, make_message

log = logging.getLogger(__name__)


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
