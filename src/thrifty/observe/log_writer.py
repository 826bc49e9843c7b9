"""The writer of the request log: a thread of the recorder that drains a queue in batches.

While the database is unavailable rows wait, and are written once it is back. A row that cannot be
written at all is set aside: it is counted, and logged once per kind of error. `state` tells whether
the log keeps up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from thrifty.db import Database
from thrifty.db.feedback import prune_feedback
from thrifty.db.request_log import COLUMNS, BadRow, Entry, RequestLog
from thrifty.errors import DatabaseError, RedactionError
from thrifty.observe.clock_watch import ClockWatch
from thrifty.observe.log_state import LogHealth, LogState, judge_fault
from thrifty.observe.redact import Redactor, redact_together
from thrifty.observe.texts import redact_json

log = logging.getLogger(__name__)

QUEUE_ROWS = 4096
QUEUE_TEXT_BYTES = 64_000_000
BATCH_ROWS = 512
BATCH_TEXT_CHARS = 8_000_000
BATCH_S = 1.0
"""A batch is written after this long, however few rows it has: finding names takes milliseconds a
text."""
INTERVAL_S = 0.25
RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)
STOP_TRIES = 3
"""Attempts to write the remaining rows at the end, while the database is unavailable."""
PRUNE_DELAY_S, PRUNE_INTERVAL_S = 30.0, 600.0
_TAGS, _TENANT = COLUMNS.index("tags"), COLUMNS.index("tenant")
_CLIENT_ID = COLUMNS.index("client_request_id")
_CLIENT_ID_CHARS = 64
MAX_KINDS = 100
"""Bound on the kinds of errors that are remembered as logged."""

MakeTexts = Callable[[], tuple[str, str, str | None] | None]
"""Makes a response's prompt, answer and facts; None if they are not recorded."""


@dataclass(eq=False)
class Tally:
    """What became of the rows of one source, in totals."""

    written: int = 0
    rejected: int = 0
    """Rows that cannot be written."""
    texts_lost: int = 0
    """Texts that were left out of rows."""

    @property
    def handled(self) -> int:
        """Rows that do not wait any more."""
        return self.written + self.rejected


class _Waiting(NamedTuple):
    row: tuple[Any, ...]
    make_text: MakeTexts | None
    text_bytes: int
    tally: Tally


class LogWriter:
    """Writes rows in the background: `start` it, `put` rows from any thread, and `stop` it to write
    the rest.

    `on_change` is called where a tally or the state may have changed, and `on_state` when the
    database becomes available (True) or unavailable (False); both on the writer's thread.
    """

    def __init__(
        self,
        database: Database,
        *,
        keep_s: float,
        max_rows: int,
        keep_texts_s: float | None = None,
        keep_feedback_s: float | None = None,
        redactor: Redactor | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_state: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._database = database
        self._keep_s = keep_s
        self._keep_texts_s = keep_texts_s
        self._keep_feedback_s = keep_s if keep_feedback_s is None else keep_feedback_s
        self._max_rows = max_rows
        self._redactor = redactor
        self._on_change = on_change
        self._on_state = on_state
        self.tally = Tally()
        """Of rows that come without a tally of their own."""
        self._queue: deque[_Waiting] = deque()
        self._batch: list[Entry] = []
        """Taken from the queue and not written yet."""
        self._text_bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._texts_until_s = float("inf")
        self._fault = ""
        self._fault_since_s: float | None = None
        self._full_since_s: float | None = None
        self._kinds: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    @property
    def state(self) -> LogState:
        """The current state. Cheap; may be read on any thread."""
        waiting, fault, since_s = self._count_waiting(), self._fault, self._fault_since_s
        if not self._thread.is_alive() and (self._stopping or self._thread.ident is not None):
            return LogState(LogHealth.STOPPED, fault or "it was stopped", since_s, waiting)
        if since_s is not None:
            return judge_fault(fault, since_s, waiting)
        full_since_s = self._full_since_s
        if full_since_s is not None:
            reason = "rows arrive faster than they are written"
            return LogState(LogHealth.BEHIND, reason, full_since_s, waiting)
        return LogState(waiting_rows=waiting)

    @property
    def database_up(self) -> bool:
        """Whether the last attempt to write succeeded."""
        return self._fault_since_s is None

    @property
    def is_full(self) -> bool:
        """Whether so many rows, or so large texts, wait that no more should be put."""
        return self._count_waiting() >= QUEUE_ROWS or self._text_bytes >= QUEUE_TEXT_BYTES

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def put(
        self,
        row: tuple[Any, ...],
        make_text: MakeTexts | None = None,
        text_bytes: int = 0,
        tally: Tally | None = None,
    ) -> None:
        """Queue one row (values in the order of `request_log.COLUMNS`); never waits.

        `make_text` runs later on the writer's thread; `text_bytes` is the memory that it holds
        until then. What becomes of the row is counted in `tally`. How many rows wait is up to the
        caller.
        """
        tally = tally or self.tally
        waiting = self._count_waiting()
        if waiting >= QUEUE_ROWS // 2 and self._full_since_s is None:
            self._full_since_s = time.time()
        if text_bytes:
            with self._lock:
                self._text_bytes += text_bytes
        self._queue.append(_Waiting(row, make_text, text_bytes, tally))
        if waiting + 1 == BATCH_ROWS:
            self._wake.set()

    def flush(self) -> None:
        """Write what waits now rather than in a moment."""
        self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> int:
        """Write the remaining rows, for at most `timeout_s`; returns how many were not written."""
        self._texts_until_s = time.monotonic() + timeout_s / 2
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        left = self._count_waiting()
        if left:
            log.warning(
                "%d rows of the request log were not written: %s", left, self._fault or "no time"
            )
        return left

    def _run(self) -> None:
        log_table = RequestLog(self._database)
        failures = 0
        clock, next_prune_s = ClockWatch(), time.monotonic() + PRUNE_DELAY_S
        while self._count_waiting() or not self._stopping:
            self._wake.wait(0.0 if self._stopping else INTERVAL_S)
            self._wake.clear()
            try:
                self._write_batches(log_table)
                if time.monotonic() > next_prune_s and not self._stopping:
                    next_prune_s = time.monotonic() + PRUNE_INTERVAL_S
                    if clock.may_delete():
                        log_table.prune(self._keep_s, self._max_rows, self._keep_texts_s)
                        prune_feedback(self._database, self._keep_feedback_s, self._max_rows)
                self._note_fault(None)
                failures = 0
            except Exception as error:
                # Unexpected errors too: this thread must never end by itself.
                self._note_fault(error)
                if self._stopping and failures >= STOP_TRIES - 1:
                    return
                self._database.recover()
                time.sleep(RETRY_S[0 if self._stopping else min(failures, len(RETRY_S) - 1)])
                failures += 1

    def _write_batches(self, log_table: RequestLog) -> None:
        """Write what waits. What arrives meanwhile waits for the next time, unless it is a whole
        batch: a transaction costs as much as dozens of rows.
        """
        least = 1
        while self._count_waiting() >= least:
            least = 1 if self._stopping else BATCH_ROWS
            if not self._batch:
                self._take_batch()
            bad = log_table.write(self._batch)
            self._note_lost_texts(log_table)
            # The batch is dropped only now: a batch that failed is retried.
            self._count(bad)
            self._batch = []
            if self._count_waiting() < QUEUE_ROWS // 2:
                self._full_since_s = None
            self._note_fault(None)
            self._on_change()

    def _take_batch(self) -> None:
        """Move rows from the queue into the batch, and make their texts."""
        chars, until_s = 0, time.monotonic() + BATCH_S
        while self._queue and len(self._batch) < BATCH_ROWS:
            row, make_text, text_bytes, tally = self._queue.popleft()
            text = None
            if make_text is not None:
                with self._lock:
                    self._text_bytes -= text_bytes
                text = self._make_text(make_text, tally)
                chars += len(text[0]) + len(text[1]) if text is not None else 0
            if self._redactor is not None and row[_TAGS] is not None:
                row = self._redact_tags(row, self._redactor)
            if self._redactor is not None:
                row = redact_client_id(row, self._redactor)
            self._batch.append(Entry(row, text, tally))
            is_slow = make_text is not None or row[_TAGS] is not None
            if is_slow and (chars > BATCH_TEXT_CHARS or time.monotonic() >= until_s):
                return

    def _make_text(self, make_text: MakeTexts, tally: Tally) -> tuple[str, str, str | None] | None:
        # Rather rows without texts than no rows.
        if self._count_waiting() >= QUEUE_ROWS // 2 or time.monotonic() > self._texts_until_s:
            self._note_crowded(tally)
            return None
        try:
            return make_text()
        except RedactionError as error:
            self._count_lost_texts(tally, 1)
            self._log_once("redaction", f"texts of requests are not recorded: {error}")
            return None
        except Exception:
            self._count_lost_texts(tally, 1)
            if self._log_once("text", "the texts of a response cannot be made and are left out"):
                log.exception("the reason is:")
            return None

    def _count_lost_texts(self, tally: Tally, count: int) -> None:
        with self._lock:
            tally.texts_lost += count

    def _note_crowded(self, tally: Tally) -> None:
        self._count_lost_texts(tally, 1)
        self._log_once("texts", "texts arrive faster than they are written; some are lost")

    def _redact_tags(self, row: tuple[Any, ...], redactor: Redactor) -> tuple[Any, ...]:
        try:
            tenant = row[_TENANT] or ""
            tags: str | None = redact_together(
                lambda redact: redact_json(row[_TAGS], redact),
                lambda texts: redactor.prepare(texts, tenant),
            )
        except RedactionError as error:
            self._log_once("tags", f"tags of requests are not recorded: {error}")
            tags = None
        except Exception:
            log.exception("the tags of a request cannot be redacted and are left out")
            tags = None
        return (*row[:_TAGS], tags, *row[_TAGS + 1 :])

    def _count_waiting(self) -> int:
        return len(self._queue) + len(self._batch)

    def _note_lost_texts(self, log_table: RequestLog) -> None:
        lost, log_table.texts_lost = log_table.texts_lost, 0
        if lost:
            self._count_lost_texts(self._batch[0].source, lost)
            self._log_once(
                "text key",
                f"texts of requests are not recorded, because they cannot be encrypted: "
                f"{log_table.text_fault}",
            )

    def _count(self, bad: list[BadRow]) -> None:
        """Count the rows of the batch as written, but for those that cannot be."""
        refused = Counter(row.source for row in bad)
        for tally, count in Counter(entry.source for entry in self._batch).items():
            tally.written += count - refused[tally]
            tally.rejected += refused[tally]
        self._note_bad(bad)

    def _note_bad(self, bad: list[BadRow]) -> None:
        for row in bad:
            self._log_once(
                row.kind,
                f"the request log's row {str(row.row[:1])[:40]} cannot be written "
                f"({row.reason[:300]}); this row and others with this kind of error are left out",
            )

    def _log_once(self, kind: str, message: str) -> bool:
        """Log a message unless its kind was logged before; returns whether it was logged."""
        if kind in self._kinds or len(self._kinds) >= MAX_KINDS:
            return False
        self._kinds.add(kind)
        log.warning("%s", message)
        return True

    def _note_fault(self, error: Exception | None) -> None:
        if error is None:
            if self._fault_since_s is not None:
                self._fault_since_s, self._fault = None, ""
                log.info("the request log is being written again")
                self._on_state(True)
            return
        self._fault = str(error) or type(error).__name__
        if self._fault_since_s is None:
            self._fault_since_s = time.time()
            unforeseen = None if isinstance(error, DatabaseError) else error
            log.warning(
                "the request log cannot be written, rows wait in memory: %s", error,
                exc_info=unforeseen,
            )  # fmt: skip
            self._on_state(False)
            self._on_change()


def redact_client_id(row: tuple[Any, ...], redactor: Redactor) -> tuple[Any, ...]:
    """A row of the request log whose `client_request_id` is redacted: what a client calls its
    request may hold a mail address or a number; names are not looked for in there.
    """
    if row[_CLIENT_ID] is None:
        return row
    redacted = redactor.prepare([], row[_TENANT] or "")(row[_CLIENT_ID])[:_CLIENT_ID_CHARS]
    return (*row[:_CLIENT_ID], redacted, *row[_CLIENT_ID + 1 :])
