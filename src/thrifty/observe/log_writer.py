"""The one writer of the request log: a thread that drains a bounded queue in batches.

The request path appends a tuple and goes on. When the database is away the queue fills, and then
rows are dropped and counted; requests never are. What is in the queue is written once the database
is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from thrifty.db import Database
from thrifty.db.request_log import RequestLog
from thrifty.errors import DatabaseError
from thrifty.observe.texts import Texts

log = logging.getLogger(__name__)

QUEUE_ROWS = 4096
BATCH_ROWS = 512
INTERVAL_S = 0.25
RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)
PRUNE_INTERVAL_S = 600.0

OnCount = Callable[[int], None]
MakeTexts = Callable[[], Texts | None]


class LogWriter:
    """Start it, `put` rows from any thread, `stop` it to have the rest written."""

    def __init__(
        self,
        database: Database,
        *,
        keep_s: float,
        max_rows: int,
        on_written: OnCount,
        on_dropped: OnCount,
        on_state: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._database = database
        self._keep_s = keep_s
        self._max_rows = max_rows
        self._on_written = on_written
        self._on_dropped = on_dropped
        self._on_state = on_state
        self._rows: deque[tuple[Any, ...]] = deque()
        self._texts: deque[dict[str, Any]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._up = True
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, row: tuple[Any, ...], make_text: MakeTexts | None = None) -> None:
        """Queue one row; never waits. A full queue drops it. `make_text` makes the texts of the
        response, on the writer's thread.
        """
        if len(self._rows) >= QUEUE_ROWS:
            self._on_dropped(1)
            return
        self._rows.append(row)
        if make_text is not None and (texts := make_text()) is not None:
            self._texts.append({"id": row[0], "at_s": row[1], **texts._asdict()})
        if len(self._rows) == BATCH_ROWS:
            self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is left, for at most `timeout_s`."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._rows:
            self._on_dropped(len(self._rows))

    def describe(self) -> dict[str, Any] | None:
        """What is wrong with the log; None where nothing is."""
        return None if self._up else {"state": "stopped"}

    def _run(self) -> None:
        log_table = RequestLog(self._database)
        failures = 0
        next_prune_s = time.monotonic() + 30.0
        while not (self._stopping and not self._rows):
            self._wake.wait(INTERVAL_S)
            self._wake.clear()
            try:
                self._write_batches(log_table)
                if time.monotonic() > next_prune_s:
                    next_prune_s = time.monotonic() + PRUNE_INTERVAL_S
                    log_table.prune(self._keep_s, self._max_rows)
                failures = 0
            except DatabaseError as error:
                self._note_state(False, error)
                if self._stopping:
                    return
                self._database.recover()
                time.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1

    def _write_batches(self, log_table: RequestLog) -> None:
        while self._rows:
            count = min(BATCH_ROWS, len(self._rows))
            batch = [self._rows[index] for index in range(count)]
            texts = list(self._texts)
            log_table.write(batch, texts)
            # Only now are they gone from the queue: a batch that failed is tried again.
            for _ in range(count):
                self._rows.popleft()
            for _ in range(len(texts)):
                self._texts.popleft()
            self._on_written(count)
            self._note_state(True, None)

    def _note_state(self, up: bool, error: DatabaseError | None) -> None:
        if up != self._up:
            self._up = up
            if up:
                log.info("the request log is written again")
            else:
                log.warning("the request log cannot be written: %s; rows wait in memory", error)
            self._on_state(up)
