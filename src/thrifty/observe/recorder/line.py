"""A gateway worker's end of its line to the recorder.

Rows wait here for a moment, go over many at a time, and are kept until the recorder says that they
are written. Where it is away they wait up to a bound, are dropped and counted beyond it, and are
handed over again once it is back. Traces are handed over once; those that a recorder had when it
ended are counted as lost. All of it runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric

from thrifty.observe.log_state import LogHealth, LogState, judge_fault
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.recorder.messages import (
    HEAD,
    Family,
    Handed,
    Hello,
    Kind,
    Metrics,
    RawTexts,
    Sample,
    Status,
    make_decoder,
    make_message,
)
from thrifty.observe.recorder.sockets import End
from thrifty.observe.trace import Ended

log = logging.getLogger(__name__)

QUEUE_ROWS = 16_384
"""Rows that may wait, with those handed over and not yet written; about 400 bytes each."""
QUEUE_TEXT_BYTES = 64_000_000
"""Bound on the memory held for texts to come; beyond it, rows are recorded without texts."""
QUEUE_TRACES = 2048
FLUSH_S = 0.05
"""Rows wait so long for others."""
FLUSH_ROWS, FLUSH_BYTES = 128, 262_144
"""So many, or so large, are handed over at once: a tenth of a millisecond of work."""
RECONNECT_S = 0.1
AWAY_S = 1.0
"""A recorder that has been away for this long is reported though no row waits."""
SILENT_S = 3.0
"""A recorder that does not answer for this long is reported. It does so every second."""

STOP_S = 15.0
"""For a recorder that is just being started to take the rest."""

Connect = Callable[[], socket.socket]
"""Makes a socket that is connected to the recorder. Raises `OSError`."""

_decode_status = make_decoder(Status)
_decode_rows = make_decoder(list[Handed])


class _Batch(NamedTuple):
    """Rows that were handed over, and are not known to be written."""

    message: bytes
    rows: int
    text_bytes: int
    made_s: float


class RecorderLine:
    """`start` it on the event loop, `put` there, and `stop` it to hand over the rest."""

    def __init__(self, connect: Connect, instance: str, metrics: GatewayMetrics) -> None:
        """`instance` names this process. `metrics` count what becomes of rows and traces."""
        self._connect = connect
        self._hello = Hello(instance, time.time())
        self._metrics = metrics
        self._rows: list[Handed] = []
        self._rows_text_bytes = 0
        self._batches: deque[_Batch] = deque()
        self._waiting_rows = self._text_bytes = 0
        """Of `_rows` and `_batches` together."""
        self._traces: list[Ended] = []
        self._traces_out = 0
        """Handed over, and not known to be sent or dropped."""
        self._timer: asyncio.TimerHandle | None = None
        self._end: End | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self._away_since_s: float | None = time.time()
        self._heard_s = 0.0
        self._status = Status()
        """The last one on this connection; so the rows that were sent, and those of them that were
        taken from `_batches`."""
        self._sent_rows = self._done_rows = 0
        self._stopped = False

    @property
    def state(self) -> LogState:
        """The state of the request log, as far as this worker can tell. Cheap."""
        waiting, status, now_s = self._waiting_rows, self._status, time.time()
        if self._stopped:
            return LogState(LogHealth.STOPPED, "it was stopped", None, waiting)
        away_since_s = self._away_since_s
        if away_since_s is not None and (waiting or now_s - away_since_s > AWAY_S):
            return judge_fault("the recorder is away", away_since_s, waiting)
        if not status.database_up:
            return judge_fault(status.reason, status.since_s or now_s, waiting)
        if self._batches:
            silent_s = time.monotonic() - max(self._heard_s, self._batches[0].made_s)
            if silent_s > SILENT_S:
                return judge_fault("the recorder does not answer", now_s - silent_s, waiting)
        if status.reason:
            return LogState(LogHealth.BEHIND, status.reason, status.since_s, waiting)
        if waiting >= QUEUE_ROWS // 2:
            reason = "rows arrive faster than they are written"
            return LogState(LogHealth.BEHIND, reason, None, waiting)
        return LogState(waiting_rows=waiting)

    def start(self) -> None:
        """Connect, and stay connected."""
        self._keeper = asyncio.ensure_future(self._keep_connected())

    def put(self, row: tuple[Any, ...], texts: RawTexts | None = None) -> None:
        """Hand over a row of the request log (values in the order of `request_log.COLUMNS`); never
        waits. Where too many wait, it is dropped.
        """
        if self._waiting_rows >= QUEUE_ROWS:
            self._metrics.dropped_rows.labels("queue_full").inc()
            return
        if texts is not None:
            size = len(texts.request) + len(texts.answer)
            if self._text_bytes + size > QUEUE_TEXT_BYTES or self._waiting_rows > QUEUE_ROWS // 2:
                # Rather rows without texts than no rows.
                texts = None
                self._metrics.lost_texts.inc()
            else:
                self._rows_text_bytes += size
                self._text_bytes += size
        self._waiting_rows += 1
        self._rows.append((row, texts))
        if len(self._rows) >= FLUSH_ROWS or self._rows_text_bytes >= FLUSH_BYTES:
            self._hand_over_rows()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def put_trace(self, ended: Ended) -> None:
        """Hand over the trace of a request; never waits. Where too many wait, it is dropped; from
        half of that on, unless its request failed or was slow.
        """
        waiting = len(self._traces) + self._traces_out
        if waiting >= QUEUE_TRACES or (waiting >= QUEUE_TRACES // 2 and not ended.notable):
            self._metrics.traces_dropped.labels("queue_full").inc()
            return
        self._traces.append(ended)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def put_metrics(self, families: Iterable[Metric]) -> None:
        """Have the totals of now sent to the collector. Where the recorder is away or far behind,
        they are not: the next ones hold them.
        """
        if self._end is None or self._end.transport.get_write_buffer_size() > FLUSH_BYTES:
            return
        found = [
            Family(
                one.name, one.documentation, one.type,
                [Sample(sample.name, sample.labels, sample.value) for sample in one.samples],
            )
            for one in families
        ]  # fmt: skip
        self._end.send(Kind.METRICS, Metrics(time.time(), found))

    async def stop(self, timeout_s: float = STOP_S) -> None:
        """Hand over the rest, and see it written where that takes no longer than `timeout_s`."""
        self._flush()
        if self._end is not None:
            self._end.send(Kind.FLUSH)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._is_awaited() and not self._is_left_to_recorder():
                    self._answered.clear()
                    await self._answered.wait()
        self._stopped = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._timer is not None:
            self._timer.cancel()
        if self._end is not None:
            self._end.transport.close()
        if self._batches and self._is_left_to_recorder():
            log.warning("the recorder has %d rows still to write", self._waiting_rows)
        elif self._batches:
            log.warning(
                "the request log lost its last %d rows: the recorder did not take them in time",
                self._waiting_rows,
            )
            self._metrics.dropped_rows.labels("queue_full").inc(self._waiting_rows)
        if self._traces:
            log.warning("%d traces are lost: the recorder was away", len(self._traces))
            self._metrics.traces_dropped.labels("recorder_ended").inc(len(self._traces))

    def _is_awaited(self) -> bool:
        """Whether rows wait to be written, or traces to be sent to a collector that takes them."""
        return bool(self._batches) or (
            self._traces_out > 0 and self._status.collector_up is not False
        )

    def _is_left_to_recorder(self) -> bool:
        """Whether the recorder has all rows, and cannot write them now."""
        return self._status.taken >= self._sent_rows > 0 and not self._status.database_up

    # what goes over

    def _flush(self) -> None:
        self._timer = None
        if self._rows:
            self._hand_over_rows()
        if self._traces and self._end is not None:
            self._traces_out += len(self._traces)
            self._end.send(Kind.TRACES, self._traces)
            self._traces = []

    def _hand_over_rows(self) -> None:
        rows, text_bytes = self._rows, self._rows_text_bytes
        self._rows, self._rows_text_bytes = [], 0
        try:
            message = make_message(Kind.ROWS, rows)
        except Exception:
            rows = self._mend(rows)
            message = make_message(Kind.ROWS, rows)
        batch = _Batch(message, len(rows), text_bytes, time.monotonic())
        self._batches.append(batch)
        self._send_batch(batch)

    def _send_batch(self, batch: _Batch) -> None:
        if self._end is not None:
            self._sent_rows += batch.rows
            self._end.transport.write(batch.message)

    def _mend(self, rows: Sequence[Handed]) -> list[Handed]:
        """The rows, with what no message holds replaced where that helps; others are counted."""
        mended: list[Handed] = []
        for row, texts in rows:
            fitting: Handed = (tuple(_mend_value(value) for value in row), texts)
            try:
                make_message(Kind.ROWS, [fitting])
                mended.append(fitting)
            except Exception as error:
                log.warning("a row of the request log cannot be written: %s", error)
                self._metrics.dropped_rows.labels("bad_row").inc()
                self._waiting_rows -= 1
        return mended

    # the connection

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            lost = asyncio.Event()
            make_end = functools.partial(End, self._receive, lost.set)
            try:
                connected = self._connect()
                _, end = await loop.create_unix_connection(make_end, sock=connected)
            except OSError:
                await asyncio.sleep(RECONNECT_S)
                continue
            self._note_connected(end)
            await lost.wait()
            self._note_lost()
            await asyncio.sleep(RECONNECT_S)

    def _note_connected(self, end: End) -> None:
        """Hand over all that waits, for the first time or again."""
        self._end = end
        self._away_since_s = None
        end.send(Kind.HELLO, self._hello)
        for batch in self._batches:
            self._send_batch(batch)
        self._flush()

    def _note_lost(self) -> None:
        self._end = None
        self._away_since_s = time.time()
        if self._traces_out:
            log.warning("%d traces are lost that the recorder had when it ended", self._traces_out)
            self._metrics.traces_dropped.labels("recorder_ended").inc(self._traces_out)
            self._traces_out = 0
        self._trim()
        # Here and not when there is a new connection, on which a status may be the first thing.
        self._status, self._sent_rows, self._done_rows = Status(), 0, 0

    def _trim(self) -> None:
        """Take what was handled out of the first batch, so that it is not counted again."""
        handled = self._status.handled - self._done_rows
        if handled:
            batch = self._batches.popleft()
            message = make_message(Kind.ROWS, _decode_rows(batch.message[HEAD.size :])[handled:])
            self._batches.appendleft(batch._replace(message=message, rows=batch.rows - handled))
            self._waiting_rows -= handled

    def _receive(self, kind: int, body: memoryview) -> None:
        if kind != Kind.STATUS:
            return
        old, status, metrics = self._status, _decode_status(body), self._metrics
        self._status, self._heard_s = status, time.monotonic()
        metrics.written_rows.inc(status.written - old.written)
        metrics.dropped_rows.labels("bad_row").inc(status.rejected - old.rejected)
        metrics.lost_texts.inc(status.texts_lost - old.texts_lost)
        metrics.database_up.set(status.database_up)
        metrics.traces_sent.inc(status.traces_sent - old.traces_sent)
        self._traces_out -= status.traces_sent - old.traces_sent
        for reason, count in status.traces_dropped.items():
            more = count - old.traces_dropped.get(reason, 0)
            metrics.traces_dropped.labels(reason).inc(more)
            self._traces_out -= more
        if status.collector_up is not None:
            metrics.collector_up.labels("otlp").set(status.collector_up)
        while self._batches and self._done_rows + self._batches[0].rows <= status.handled:
            batch = self._batches.popleft()
            self._done_rows += batch.rows
            self._waiting_rows -= batch.rows
            self._text_bytes -= batch.text_bytes
        self._answered.set()


def _mend_value(value: Any) -> Any:
    """A text without halves of surrogate pairs, which are no UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
