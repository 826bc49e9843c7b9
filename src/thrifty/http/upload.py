"""How a large request body gets from its connection to the disk.

Request bodies are held in memory, up to one limit for all paths. On the paths in the server's
`spools`, the body goes to a `Spool` instead, and the connection stops reading while the disk is
behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from thrifty.http.exchange import Exchange
from thrifty.http.spool import Spool

STEP_BYTES = 1_000_000
"""An upload may take the read timeout for each of this many bytes."""

OpenSpool = Callable[[Exchange], Spool | None]
"""Called when a request's headers are complete. Returns where its body is written, or None to keep
the body in memory. May raise a `WireError`, which refuses the request before its body is read."""


class Reader(Protocol):
    """The connection that a body is read from."""

    def hold_reading(self) -> None:
        """Read nothing for now."""

    def go_on_reading(self) -> None:
        """Read again."""

    def extend_deadline(self) -> None:
        """Give the client the read timeout again."""


class Upload:
    """One body on its way from its connection into its spool.

    The connection does not read while the disk is behind. The client has the read timeout for each
    further megabyte.
    """

    __slots__ = ("_connection", "_held", "_spool")

    def __init__(self, connection: Reader, spool: Spool) -> None:
        self._connection = connection
        self._spool = spool
        self._held = False
        spool.on_room = self._go_on

    def take(self, data: bytes) -> None:
        """Take bytes of the body. Raises a 413 beyond the limit."""
        spool = self._spool
        before = spool.size_bytes
        spool.take(data)
        if spool.size_bytes // STEP_BYTES > before // STEP_BYTES:
            self._connection.extend_deadline()
        if spool.full:
            self._held = True
            self._connection.hold_reading()

    def _go_on(self) -> None:
        if self._held:
            self._held = False
            self._connection.extend_deadline()
            self._connection.go_on_reading()


def begin_upload(
    connection: Reader, spools: Mapping[str, OpenSpool], exchange: Exchange, length: int
) -> Upload | None:
    """Open the spool for this request's body, where its path has one and wants it. `length` is the
    request's `Content-Length`, 0 where it has none. Raises the `WireError` that refuses it.
    """
    spool = exchange.spool = spools[exchange.path](exchange)
    if spool is None:
        return None
    if length > spool.limit_bytes:
        raise spool.too_large(f"{length} bytes")
    return Upload(connection, spool)
