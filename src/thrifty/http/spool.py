"""A request body that is written to disk because it may be too large for memory.

A thread writes to an unnamed temporary file. The file has no name, so nothing is left of it when
the process is killed. `upload` connects a spool to the connection that its bytes come from.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from thrifty.openai.errors import SERVER, WireError

MAX_PENDING_BYTES = 4_000_000
"""How much may wait in memory for the disk before the connection stops reading."""


class Spool:
    """One body. Used only on the event loop; a thread does the writing itself."""

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
            # Unbuffered: the kernel has what a thread was given once that thread is done.
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            self._failure = error

    @property
    def full(self) -> bool:
        """Whether the disk is behind; `on_room` is called when it has caught up."""
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
        """Take bytes of the body. Raises a 413 beyond the limit."""
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
        """The complete body as a file, which the caller owns and closes. Raises a 500 or 507."""
        await self._idle.wait()
        if self._failure is not None:
            raise no_room(self._failure)
        assert self._file is not None
        file, self._file = self._file, None
        return file

    def close(self) -> None:
        """Discard the body, unless `finish` has handed it over."""
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


def no_room(error: OSError) -> WireError:
    """The error to answer with when something could not be written."""
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
