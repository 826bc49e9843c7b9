"""Writes the records of one batch to its output and error files, in synced groups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.batches.results import ResultFile, Tokens

log = logging.getLogger(__name__)

FLUSH_S = 0.05
"""Records that arrive within this time are written and synced together."""
RETRY_WRITE_S = 2.0

OnThread = Callable[..., Coroutine[Any, Any, Any]]
"""Runs a function on a thread."""


@dataclass
class Record:
    """A record that waits to be written."""

    data: bytes
    good: bool
    tokens: Tokens


class RecordWriter:
    """The result files of one batch. Lives on the event loop; threads do the writing."""

    def __init__(self, batch_id: str, on_thread: OnThread, on_written: Callable[[], None]) -> None:
        """`on_written` is called after each group."""
        self._batch_id = batch_id
        self._on_thread = on_thread
        self._on_written = on_written
        self._output: ResultFile | None = None
        self._errors: ResultFile | None = None
        self._pending: list[Record] = []
        self._dirty = asyncio.Event()
        self.written = 0
        """Records on disk."""
        self.completed = 0
        """Records in the output file."""
        self.tokens = Tokens()

    @property
    def pending(self) -> int:
        """Records that wait to be written."""
        return len(self._pending)

    @property
    def files(self) -> tuple[ResultFile, ResultFile]:
        """The output file and the error file, once they are open."""
        assert self._output is not None
        assert self._errors is not None
        return self._output, self._errors

    def open(self, output: Path, errors: Path, prefix: str) -> set[int]:
        """Open both files; returns the numbers of the lines that have records, whose ids begin
        with `prefix`. Blocks. Raises `OSError`.
        """
        self._output = ResultFile(output)
        self._errors = ResultFile(errors)
        good, self.tokens = self._output.recover(prefix)
        bad, _ = self._errors.recover(prefix)
        known = {*good, *bad}
        self.completed, self.written = len(good), len(known)
        return known

    def put(self, record: Record) -> None:
        """Queue a record."""
        self._pending.append(record)
        self._dirty.set()

    async def run(self) -> None:
        """Write records in groups. Run it as one task; if cancelled, it ends its group."""
        try:
            while True:
                await self._dirty.wait()
                await asyncio.sleep(FLUSH_S)
                await self._flush()
        except asyncio.CancelledError:
            if self._pending and self._output is not None:
                await self._flush()
            raise

    def close(self) -> None:
        """Close the files."""
        for file in (self._output, self._errors):
            if file is not None:
                file.close()

    async def _flush(self) -> None:
        self._dirty.clear()
        group, self._pending = self._pending, []
        for file, good in zip(self.files, (True, False), strict=True):
            records = [record for record in group if record.good is good]
            while records:
                try:
                    # Work that a thread has begun is awaited, or its file would be closed.
                    await finish(self._on_thread(file.append, [r.data for r in records]))
                except OSError as error:
                    log.error("%s: records cannot be written: %s", self._batch_id, error)
                    if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                        return
                    await asyncio.sleep(RETRY_WRITE_S)
                    continue
                self.written += len(records)
                if good:
                    self.completed += len(records)
                    for record in records:
                        self.tokens.add(record.tokens)
                records = []
        self._on_written()


async def finish(work: Coroutine[Any, Any, Any]) -> Any:
    """Wait until a thread's work has ended, even if cancelled in the meantime."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
