"""The writer of the request log: a thread that drains a bounded queue in batches.

The request path appends a row and does not wait. While the database is unavailable the queue fills;
when it is full, rows are dropped and counted. Requests never fail because of the log. Queued rows
are written once the database is back. A row that cannot be written at all is set aside: it is
counted, and logged once per kind of error. `state` tells whether the log keeps up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from thrifty.db import Database
from thrifty.db.feedback import prune_feedback
from thrifty.db.request_log import COLUMNS, BadRow, Entry, RequestLog
from thrifty.errors import DatabaseError, RedactionError
from thrifty.observe.clock_watch import ClockWatch
from thrifty.observe.redact import Redactor, redact_together
from thrifty.observe.texts import redact_json

log = logging.getLogger(__name__)

QUEUE_ROWS = 4096
QUEUE_TEXT_BYTES = 64_000_000
"""Bound on the memory held for texts to come; beyond it, rows are written without texts."""
BATCH_ROWS = 512
BATCH_TEXT_CHARS = 8_000_000
BATCH_S = 1.0
"""A batch is written after this long, however few rows it has: finding names takes milliseconds a
text."""
INTERVAL_S = 0.25
RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)
STOPPED_S = 10.0
"""A log that could not be written for this long counts as stopped."""
STOP_TRIES = 3
"""Attempts to write the remaining rows at the end, while the database is unavailable."""
PRUNE_DELAY_S, PRUNE_INTERVAL_S = 30.0, 600.0
_TAGS, _TENANT = COLUMNS.index("tags"), COLUMNS.index("tenant")
MAX_KINDS = 100
"""Bound on the kinds of errors that are remembered as logged."""

OnCount = Callable[[int], None]
MakeTexts = Callable[[], tuple[str, str, str | None] | None]
"""Makes a response's prompt, answer and facts; None if they are not recorded."""


class LogHealth(StrEnum):
    """The health of the request log."""

    OK = "ok"
    BEHIND = "behind"
    """Rows wait longer than they should; none is lost unless the queue is full."""
    STOPPED = "stopped"
    """Nothing has been written for `STOPPED_S`, or the writer has ended."""


@dataclass(frozen=True)
class LogState:
    """The log's health, with the reason and the time (seconds since 1970) it began."""

    health: LogHealth = LogHealth.OK
    reason: str = ""
    since_s: float | None = None
    waiting_rows: int = 0


class _Waiting(NamedTuple):
    row: tuple[Any, ...]
    make_text: MakeTexts | None
    text_bytes: int


class LogWriter:
    """Writes rows in the background: `start` it, `put` rows from any thread, and `stop` it to write
    the rest.

    The callbacks run on the writer's thread, except that `put` and `stop` call `on_dropped`.
    `on_written` counts written rows, `on_dropped` rows lost to a full queue or at the end, and
    `on_rejected` rows that cannot be written, `on_texts_lost` texts that were left out of rows
    (`put` calls it, too). `on_state` is called when the database becomes available (True) or
    unavailable (False).
    """

    def __init__(
        self,
        database: Database,
        *,
        keep_s: float,
        max_rows: int,
        keep_texts_s: float | None = None,
        keep_feedback_s: float | None = None,
        on_written: OnCount,
        on_dropped: OnCount,
        on_rejected: OnCount = lambda count: None,
        on_texts_lost: OnCount = lambda count: None,
        redactor: Redactor | None = None,
        on_state: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._database = database
        self._keep_s = keep_s
        self._keep_texts_s = keep_texts_s
        self._keep_feedback_s = keep_s if keep_feedback_s is None else keep_feedback_s
        self._max_rows = max_rows
        self._on_written = on_written
        self._on_dropped = on_dropped
        self._on_rejected = on_rejected
        self._on_texts_lost = on_texts_lost
        self._redactor = redactor
        self._on_state = on_state
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
            long_ago = time.time() - since_s >= STOPPED_S
            health = LogHealth.STOPPED if long_ago else LogHealth.BEHIND
            return LogState(health, fault, since_s, waiting)
        full_since_s = self._full_since_s
        if full_since_s is not None:
            reason = "rows arrive faster than they are written"
            return LogState(LogHealth.BEHIND, reason, full_since_s, waiting)
        return LogState(waiting_rows=waiting)

    def describe(self) -> dict[str, Any] | None:
        """What is wrong with the log, for `/readyz` and `thrifty status`; None if nothing is."""
        state = self.state
        if state.health is LogHealth.OK:
            return None
        return {
            "state": state.health.value, "reason": state.reason, "since_s": state.since_s,
            "waiting_rows": state.waiting_rows,
        }  # fmt: skip

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def put(
        self, row: tuple[Any, ...], make_text: MakeTexts | None = None, text_bytes: int = 0
    ) -> None:
        """Queue one row (values in the order of `request_log.COLUMNS`); never waits.

        A full queue drops it. `make_text` runs later on the writer's thread; `text_bytes` is the
        memory that it holds until then.
        """
        waiting = self._count_waiting()
        if waiting >= QUEUE_ROWS // 2 and self._full_since_s is None:
            self._full_since_s = time.time()
        if waiting >= QUEUE_ROWS:
            self._on_dropped(1)
            return
        if make_text is not None and text_bytes:
            with self._lock:
                if self._text_bytes + text_bytes > QUEUE_TEXT_BYTES:
                    make_text, text_bytes = None, 0
                self._text_bytes += text_bytes
            if make_text is None:
                self._note_crowded()
        self._queue.append(_Waiting(row, make_text, text_bytes))
        if waiting + 1 == BATCH_ROWS:
            self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write the remaining rows, for at most `timeout_s`."""
        self._texts_until_s = time.monotonic() + timeout_s / 2
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        left = self._count_waiting()
        if left:
            log.warning("the request log lost its last %d rows: %s", left, self._fault or "no time")
            self._on_dropped(left)

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
            written = len(self._batch) - len(bad)
            self._batch = []
            if self._count_waiting() < QUEUE_ROWS // 2:
                self._full_since_s = None
            if written:
                self._on_written(written)
            self._note_bad(bad)
            self._note_fault(None)

    def _take_batch(self) -> None:
        """Move rows from the queue into the batch, and make their texts."""
        chars, until_s = 0, time.monotonic() + BATCH_S
        while (
            self._queue
            and len(self._batch) < BATCH_ROWS
            and chars <= BATCH_TEXT_CHARS
            and time.monotonic() < until_s
        ):
            # Rather rows without texts than no rows.
            crowded = (
                self._count_waiting() > QUEUE_ROWS // 2 or time.monotonic() > self._texts_until_s
            )
            row, make_text, text_bytes = self._queue.popleft()
            if text_bytes:
                with self._lock:
                    self._text_bytes -= text_bytes
            if make_text is not None and crowded:
                make_text = None
                self._note_crowded()
            text = self._make_text(make_text)
            if self._redactor is not None and row[_TAGS] is not None:
                row = self._redact_tags(row, self._redactor)
            self._batch.append(Entry(row, text))
            chars += len(text[0]) + len(text[1]) if text is not None else 0

    def _make_text(self, make_text: MakeTexts | None) -> tuple[str, str, str | None] | None:
        try:
            return None if make_text is None else make_text()
        except RedactionError as error:
            self._on_texts_lost(1)
            self._log_once("redaction", f"texts of requests are not recorded: {error}")
            return None
        except Exception:
            self._on_texts_lost(1)
            if self._log_once("text", "the texts of a response cannot be made and are left out"):
                log.exception("the reason is:")
            return None

    def _note_crowded(self) -> None:
        self._on_texts_lost(1)
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
            self._on_texts_lost(lost)
            self._log_once(
                "text key",
                f"texts of requests are not recorded, because they cannot be encrypted: "
                f"{log_table.text_fault}",
            )

    def _note_bad(self, bad: list[BadRow]) -> None:
        if not bad:
            return
        self._on_rejected(len(bad))
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
