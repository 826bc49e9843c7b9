"""A large request body on its way to the disk.

Bodies are held in memory, within one bound for all; an upload may be larger than that. On paths
that the server is told of, the body goes to an unnamed temporary file instead: a thread writes it,
and the connection stops reading while the disk is behind. The file has no name, so nothing is left
of it when the process is killed.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from thrifty.openai.errors import SERVER, WireError

if TYPE_CHECKING:
    from thrifty.http.connection import HttpProtocol
    from thrifty.http.exchange import Exchange

MAX_PENDING_BYTES = 4_000_000
"""What may wait for the disk in memory before the connection stops reading."""
STEP_BYTES = 1_000_000
"""An upload may take the read timeout for each of this many bytes."""

OpenSpool = Callable[["Exchange"], "Spool | None"]
"""Decides, at the end of a request's head, whether its body is spooled; None: it is not. May raise
a `WireError`, which refuses the request before its body is read."""


class Spool:
    """One body. Used on the event loop alone; only the writing itself is a thread's."""

    def __init__(self, folder: Path, limit_bytes: int, limit_name: str) -> None:
        self.size_bytes = 0
        self.limit_bytes = limit_bytes
        self.on_room: Callable[[], None] = lambda: None
        self._limit_name = limit_name
        self._file: IO[bytes] | None = None
        self._failure: OSError | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._idle = asyncio.Event()
        """Set while no thread writes."""
        self._idle.set()
        self._closed = False
        try:
            # Unbuffered: what a thread was given is with the kernel once the thread is done.
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            self._failure = error

    @property
    def full(self) -> bool:
        """Whether the disk is behind; `on_room` tells when it has caught up."""
        return self._pending_bytes > MAX_PENDING_BYTES

    def too_large(self, seen: str) -> WireError:
        """The refusal of a body beyond the limit."""
        return WireError(
            413,
            f"the request's body has {seen}; the limit is {self.limit_bytes} bytes "
            f"({self._limit_name} in the spec)",
            code="body_too_large",
        )

    def take(self, data: bytes) -> None:
        """Bytes of the body. Raises a 413 beyond the limit."""
        self.size_bytes += len(data)
        if self.size_bytes > self.limit_bytes:
            raise self.too_large(f"more than {self.limit_bytes} bytes")
        if self._failure is not None or self._closed:
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._idle.is_set():
            self._write()

    async def finish(self) -> IO[bytes]:
        """The whole body as a file, which the caller now owns and closes. Raises a 507."""
        await self._idle.wait()
        if self._failure is not None:
            raise no_room(self._failure)
        assert self._file is not None
        file, self._file = self._file, None
        return file

    def close(self) -> None:
        """Give the body up, unless `finish` has handed it over."""
        self._closed = True
        self._pending.clear()
        if self._idle.is_set() and self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        data, self._pending = self._pending, []
        count = self._pending_bytes
        loop = asyncio.get_running_loop()
        file = self._file
        assert file is not None
        self._idle.clear()

        def wrote(done: asyncio.Future[None]) -> None:
            was_full = self.full
            self._pending_bytes -= count
            if not done.cancelled():
                error = done.exception()
                if isinstance(error, OSError):
                    self._failure = error
            if self._failure is not None or self._closed:
                self._pending.clear()
                self._pending_bytes = 0
            if self._pending:
                self._write()
            else:
                self._idle.set()
                if self._closed:
                    self.close()
            if was_full and not self.full:
                self.on_room()

        loop.run_in_executor(None, _write_all, file, data).add_done_callback(wrote)


class Upload:
    """One body on its way from its connection into its spool.

    The connection does not read while the disk is behind. Each further megabyte has the time that a
    whole request has otherwise.
    """

    __slots__ = ("_connection", "_held", "_spool")

    def __init__(self, connection: HttpProtocol, spool: Spool) -> None:
        self._connection = connection
        self._spool = spool
        self._held = False
        spool.on_room = self._go_on

    def take(self, data: bytes) -> None:
        """Bytes of the body. Raises a 413 beyond the limit."""
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


def begin_upload(connection: HttpProtocol, exchange: Exchange, length: int) -> Upload | None:
    """Let the body go to disk, where the path's owner wants that. `length` is what the request's
    head says of it. Raises the `WireError` that refuses it.
    """
    spool = exchange.spool = connection.server.spools[exchange.path](exchange)
    if spool is None:
        return None
    if length > spool.limit_bytes:
        raise spool.too_large(f"{length} bytes")
    return Upload(connection, spool)


def no_room(error: OSError) -> WireError:
    """The answer where something could not be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return WireError(507, f"the server cannot store this: {reason}", type=SERVER,
                         code="disk_full")  # fmt: skip
    return WireError(500, f"the server cannot store this: {reason}", type=SERVER,
                     code="storage_failed")  # fmt: skip


def _write_all(file: IO[bytes], pieces: list[bytes]) -> None:
    view = memoryview(b"".join(pieces))
    while view:
        view = view[file.write(view) :]
