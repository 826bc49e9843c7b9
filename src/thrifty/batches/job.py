"""One batch, from its input file to its end.

Every input line results in exactly one record, in the output file or in the error file. A line is
finished when its record is on disk. Any other line is processed again by the worker that takes over
the batch. No other state of a line is kept.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import logging
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import msgspec

from thrifty.batches.dispatch import Dispatcher, Outcome
from thrifty.batches.lines import (
    InputIndex,
    Line,
    TooManyLines,
    index_input,
    make_answer_record,
    make_error_record,
    read_lines,
)
from thrifty.batches.records import OnThread, Record, RecordWriter, finish
from thrifty.batches.results import ResultFile, Tokens, read_tokens
from thrifty.batches.storage import Storage
from thrifty.db.batches import (
    BatchCounts,
    BatchRow,
    BatchStatus,
    FileRow,
    end_batch,
    move_batch,
)
from thrifty.db.keys import Key
from thrifty.openai.fields import Endpoint

log = logging.getLogger(__name__)

READ_LINES = 64
"""Lines that are read at a time and kept ready."""
MAX_PENDING = 1000
"""With more records waiting for a full disk, no further lines are sent."""
MAX_POSTPONED = 256
"""With more lines waiting for a retry, no new ones are sent."""
MAX_FAILURES = 8
"""Attempts at a line that may fail by the server's fault before its error is recorded."""
BACKOFF_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
RETRY_ALWAYS = frozenset({"no_replica_ready", "queue_full", "starting", "loading", "model_removed"})
"""Errors that are not the line's fault: it is retried without limit."""

Do = Callable[..., Coroutine[Any, Any, Any]]
"""Runs a function on a thread; database functions are retried while the database is away."""


class BatchFault(Exception):
    """An error of the batch as a whole."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True)
class Stop:
    """The reason why a batch ends before all of its lines are done."""

    status: BatchStatus
    code: str
    message: str


CANCELLED = Stop(
    BatchStatus.CANCELLED, "batch_cancelled", "The batch was cancelled before this line was done."
)
EXPIRED = Stop(
    BatchStatus.EXPIRED,
    "batch_expired",
    "The batch's completion window ended before this line was done.",
)
REVOKED = Stop(
    BatchStatus.FAILED,
    "key_revoked",
    "The API key that created this batch was revoked, or expired, before this line was done.",
)


class Job:
    """Runs one batch. Lives on the event loop; threads read and write its files."""

    def __init__(
        self,
        row: BatchRow,
        key: Key | None,
        *,
        owner: str,
        storage: Storage,
        dispatcher: Dispatcher,
        do: Do,
        on_thread: OnThread,
        max_lines: int,
        max_line_bytes: int,
        keep_s: float,
    ) -> None:
        self.row = row
        self.key = key
        self.endpoint = Endpoint(row.endpoint)
        self._owner = owner
        self._storage = storage
        self._dispatcher = dispatcher
        self._do = do
        self._on_thread = on_thread
        self._max_lines = max_lines
        self._max_line_bytes = max_line_bytes
        self._keep_s = keep_s
        self._suffix = row.id.removeprefix("batch_")
        self._prefix = f"batch_req_{self._suffix}_"
        self._index = InputIndex()
        self._recorded = bytearray()
        """For each request of the index: 1 once its record exists."""
        self._positions: array[int] = array("Q")
        """Index positions of the requests without a record, in reading order."""
        self._next = 0
        self._input: IO[bytes] | None = None
        self._ready: deque[Line] = deque()
        self._requeued: deque[Line] = deque()
        self._postponed: list[tuple[float, int, Line]] = []
        self._reading: asyncio.Task[None] | None = None
        self._attempts: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._in_flight = 0
        self._changed = asyncio.Event()
        self._writer = RecordWriter(row.id, on_thread, self._changed.set)
        self._stop: Stop | None = None
        self._fault: BaseException | None = None

    @property
    def counts(self) -> BatchCounts:
        """The progress, by the records on disk."""
        writer = self._writer
        return BatchCounts(
            self._index.total,
            writer.completed,
            writer.written - writer.completed,
            writer.tokens.prompt,
            writer.tokens.completion,
            writer.tokens.cached,
        )

    def stop(self, stop: Stop) -> None:
        """End the batch early; the remaining lines get a record with the reason."""
        if self._stop is None:
            self._stop = stop
            self._changed.set()

    async def run(self) -> None:
        """Run the batch. Raises `LeaseLost` if another process runs it, and `OSError` if its files
        cannot be opened. If cancelled, it leaves the batch to the next worker.
        """
        writing = asyncio.ensure_future(self._writer.run())
        writing.add_done_callback(self._note_fault)
        try:
            try:
                await self._prepare()
            except BatchFault as fault:
                await self._fail(fault)
                return
            self._dispatcher.add(self)
            while self._stop is None and self._writer.written < self._index.total:
                await self._wait_changed()
            stop = self._stop if self._writer.written < self._index.total else None
            if stop is not None:
                await self._record_unfinished(stop)
            await self._end(stop)
        finally:
            self._dispatcher.remove(self)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            if self._reading is not None:
                await asyncio.gather(self._reading, return_exceptions=True)
            self._writer.close()
            if self._input is not None:
                self._input.close()

    # the dispatcher's interface

    def peek(self) -> Line | None:
        """The next line, if one is ready."""
        if self._stop is not None or self._writer.pending >= MAX_PENDING:
            return None
        if self._postponed and self._postponed[0][0] <= time.monotonic():
            self._requeued.append(heapq.heappop(self._postponed)[2])
        if len(self._ready) < READ_LINES // 2:
            self._read_ahead()
        if self._requeued:
            return self._requeued[0]
        # If everything is refused for now, the rest of the file need not be read into memory.
        return self._ready[0] if self._ready and len(self._postponed) < MAX_POSTPONED else None

    def take(self) -> tuple[Line, str]:
        """Remove that line from the queue; returns it with the id for this attempt."""
        line = (self._requeued or self._ready).popleft()
        self._in_flight += 1
        self._attempts[line.number] += 1
        return line, f"{self._prefix}{line.number}-{self._attempts[line.number]}"

    def note(self, line: Line, outcome: Outcome) -> None:
        """Handle the end of an attempt: record the answer, or retry."""
        self._in_flight -= 1
        if outcome.status == 0:
            self._requeued.appendleft(line)
        elif outcome.status == 200:
            self._record_answer(line, outcome)
        elif outcome.status == 429 or outcome.error in RETRY_ALWAYS:
            self._postpone(line, self._attempts[line.number], outcome.retry_after_s)
        elif outcome.status >= 500:
            self._failures[line.number] += 1
            if self._failures[line.number] < MAX_FAILURES:
                self._postpone(line, self._failures[line.number], None)
            else:
                self._record_answer(line, outcome)
        else:
            self._record_answer(line, outcome)
        self._changed.set()

    def _postpone(self, line: Line, attempts: int, wanted_s: float | None) -> None:
        delay_s = BACKOFF_S[min(attempts, len(BACKOFF_S)) - 1]
        if wanted_s is not None:
            delay_s = min(max(delay_s, wanted_s), BACKOFF_S[-1])
        heapq.heappush(self._postponed, (time.monotonic() + delay_s, line.number, line))

    # records

    def _record_answer(self, line: Line, outcome: Outcome) -> None:
        record_id = f"{self._prefix}{line.number}"
        good = outcome.status == 200
        try:
            tokens = read_tokens(outcome.body)
            data = make_answer_record(
                record_id, line.custom_id, outcome.status, outcome.request_id, outcome.body
            )
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            good, tokens = False, Tokens()
            text = outcome.body[:200].decode("utf-8", "replace")
            message = f"The model's server answered {outcome.status} with invalid JSON: {text}"
            data = make_error_record(
                record_id, line.custom_id, "engine_error", message, None, line.number
            )
        self._put(line.number, Record(data, good, tokens if good else Tokens()))

    def _put(self, number: int, record: Record) -> None:
        self._recorded[bisect.bisect_left(self._index.numbers, number)] = 1
        self._attempts.pop(number, None)
        self._failures.pop(number, None)
        self._writer.put(record)

    # start

    async def _prepare(self) -> None:
        """Read the input and the records that already exist. Raises `BatchFault`."""
        records = await finish(self._on_thread(self._open_files))
        if self.row.status is BatchStatus.VALIDATING:
            moved = await self._do(
                move_batch, self._owner, self.row.id, (BatchStatus.VALIDATING,),
                BatchStatus.IN_PROGRESS, time.time(), self.counts,
            )  # fmt: skip
            if not moved:
                self.stop(CANCELLED)
        elif self.row.status is BatchStatus.CANCELLING:
            self.stop(CANCELLED)
        for record in records:
            self._writer.put(record)

    def _open_files(self) -> list[Record]:
        """Open all files; returns the records of invalid lines that have none yet. Runs on a
        thread, before anything else.
        """
        try:
            self._input = self._storage.path(self.row.input_file_id).open("rb")
        except FileNotFoundError:
            raise BatchFault(
                "input_file_missing",
                f"The contents of {self.row.input_file_id} are not in {self._storage.folder}.",
                "input_file_id",
            ) from None
        try:
            self._index = index_input(
                self._input,
                self.row.endpoint,
                max_lines=self._max_lines,
                max_bytes=self._max_line_bytes,
            )
        except TooManyLines:
            raise BatchFault(
                "too_many_lines",
                f"The file has more than {self._max_lines} lines (batches.max_lines in the spec).",
                "input_file_id",
            ) from None
        if not self._index.total:
            raise BatchFault("empty_file", "The file has no lines.", "input_file_id")
        known = self._writer.open(
            self._result_path("output"), self._result_path("errors"), self._prefix
        )
        numbers = self._index.numbers
        self._recorded = bytearray(1 if number in known else 0 for number in numbers)
        self._positions = array("Q", (i for i in range(len(numbers)) if not self._recorded[i]))
        records = []
        for line in self._index.bad:
            if line.number not in known:
                data = make_error_record(
                    f"{self._prefix}{line.number}", line.custom_id, line.code, line.message,
                    line.param, line.number,
                )  # fmt: skip
                records.append(Record(data, False, Tokens()))
        return records

    def _read_ahead(self) -> None:
        if self._next < len(self._positions) and self._reading is None:
            self._reading = asyncio.ensure_future(self._read_more())

    async def _read_more(self) -> None:
        positions = list(self._positions[self._next : self._next + READ_LINES])
        assert self._input is not None
        try:
            lines = await finish(
                self._on_thread(
                    read_lines, self._input.fileno(), self._index, positions, self.row.endpoint
                )
            )
            self._next += len(positions)
            self._ready.extend(lines)
            self._dispatcher.schedule()
        except Exception as error:
            self._fault = error
            self._changed.set()
        finally:
            self._reading = None

    # end

    def _note_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()
            self._changed.set()

    async def _wait_changed(self) -> None:
        await self._changed.wait()
        self._changed.clear()
        if self._fault is not None:
            raise self._fault

    async def _record_unfinished(self, stop: Stop) -> None:
        """Withdraw lines in flight, and record the reason for all unfinished lines."""
        self._dispatcher.remove(self)
        while self._in_flight:
            await self._wait_changed()
        left = [position for position, done in enumerate(self._recorded) if not done]
        assert self._input is not None
        for begin in range(0, len(left), READ_LINES):
            group = left[begin : begin + READ_LINES]
            lines = await finish(
                self._on_thread(
                    read_lines, self._input.fileno(), self._index, group, self.row.endpoint
                )
            )
            for line in lines:
                data = make_error_record(
                    f"{self._prefix}{line.number}", line.custom_id, stop.code, stop.message, None,
                    line.number,
                )  # fmt: skip
                self._put(line.number, Record(data, False, Tokens()))
        while self._writer.written < self._index.total:
            await self._wait_changed()

    async def _end(self, stop: Stop | None) -> None:
        """Mark the batch as ended; every line has its record on disk."""
        status = stop.status if stop is not None else BatchStatus.COMPLETED
        if stop is None and self.row.status is not BatchStatus.FINALIZING:
            moved = await self._do(
                move_batch, self._owner, self.row.id, (BatchStatus.IN_PROGRESS,),
                BatchStatus.FINALIZING, time.time(), self.counts,
            )  # fmt: skip
            if not moved:
                status = BatchStatus.CANCELLED
        output, error_file = self._writer.files
        made = [self._describe(output, "output"), self._describe(error_file, "errors")]
        errors = None
        if stop is not None and status is BatchStatus.FAILED:
            errors = [{"code": stop.code, "message": stop.message, "param": None, "line": None}]
        row = replace(self.row, counts=self.counts, errors=errors)
        await self._do(end_batch, self._owner, row, status, time.time(), *made)
        for file, entry in zip((output, error_file), made, strict=True):
            if entry is None:
                file.path.unlink(missing_ok=True)
        log.info(
            "%s: %s, %d of %d lines", row.id, status, self._writer.completed, self._index.total
        )

    async def _fail(self, fault: BatchFault) -> None:
        error = {"code": fault.code, "message": str(fault), "param": fault.param, "line": None}
        row = replace(self.row, errors=[error])
        status = BatchStatus.FAILED
        if row.status is BatchStatus.CANCELLING:
            status = BatchStatus.CANCELLED
        await self._do(end_batch, self._owner, row, status, time.time(), None, None)
        log.info("%s: failed: %s", row.id, fault)

    def _describe(self, file: ResultFile, kind: str) -> FileRow | None:
        """The row of a result file; None if the file is empty."""
        if not file.size_bytes:
            return None
        now_s = time.time()
        keep_s = self.row.output_keep_s or self._keep_s
        return FileRow(
            id=f"file-{self._suffix}-{kind}",
            tenant=self.row.tenant,
            filename=f"{self.row.id}_{kind}.jsonl",
            purpose="batch_output",
            size_bytes=file.size_bytes,
            created_s=now_s,
            expires_s=now_s + keep_s,
        )

    def _result_path(self, kind: str) -> Path:
        return self._storage.path(f"file-{self._suffix}-{kind}")
