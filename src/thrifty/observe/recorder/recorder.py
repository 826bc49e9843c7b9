"""The recorder's end of the lines to gateway workers: what they hand over is redacted, written into
the database, and sent to a collector.

While the queue of the log's writer is full nothing more is read, so that the rest waits with the
workers, which know what they have to drop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from thrifty.db import open_database
from thrifty.observe.log_state import LogState
from thrifty.observe.log_writer import LogWriter, Tally, redact_client_id
from thrifty.observe.names.finder import NameFinder
from thrifty.observe.recorder.messages import (
    Handed,
    Hello,
    Kind,
    Metrics,
    RawTexts,
    Status,
    make_decoder,
)
from thrifty.observe.recorder.sockets import End
from thrifty.observe.redact import Redactor
from thrifty.observe.settings import RecorderSettings
from thrifty.observe.texts import Texts, make_texts
from thrifty.observe.trace import Ended
from thrifty.openai.bodies import decode_body
from thrifty.openai.fields import Endpoint

if TYPE_CHECKING:
    from thrifty.observe.otlp.exporter import Exporter, Sender

log = logging.getLogger(__name__)

ACCEPT_PAUSE_S = 1.0
BEAT_S = 1.0
"""How often a worker whose rows wait is told so."""

_decode_rows = make_decoder(list[Handed])
_decode_traces = make_decoder(list[Ended])
_decode_metrics = make_decoder(Metrics)
_decode_hello = make_decoder(Hello)


class _Line(End):
    """The line to one worker."""

    def __init__(self, recorder: Recorder, lines: set[_Line]) -> None:
        """It is one of `lines` while it is connected."""
        super().__init__(functools.partial(recorder.receive, self), lambda: lines.discard(self))
        self._lines = lines
        self.tally = Tally()
        self.taken = 0
        self.sender: Sender | None = None
        """None where nothing is sent to a collector, or before the worker has said who it is."""
        self.reported: Status | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        self._lines.add(self)


class Recorder:
    """`start` it on an event loop, and `stop` it there."""

    def __init__(self, settings: RecorderSettings, database_url: str, secret: bytes) -> None:
        """`secret` makes pseudonyms. Raises `DatabaseError`."""
        self._settings = settings
        self._secret = secret
        self._database = open_database(database_url, migrate=False)
        self._finder: NameFinder | None = None
        self._redactor = self._make_redactor()
        self._writer: LogWriter | None = None
        self._exporter: Exporter | None = None
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._is_reporting = self._stopped = False

    async def start(self, listening: socket.socket | None = None) -> None:
        """Start to write, and take lines at a socket that listens."""
        self._loop = asyncio.get_running_loop()
        settings = self._settings
        if settings.record_requests:
            self._writer = LogWriter(
                self._database,
                keep_s=settings.record_keep_s,
                keep_texts_s=settings.record_keep_texts_s,
                keep_feedback_s=settings.record_keep_feedback_s,
                max_rows=settings.record_max_rows,
                redactor=self._redactor,
                on_change=self._note_change,
            )
            self._writer.start()
        if settings.observe.otlp is not None:
            # Imported only here: the messages of OTLP are an extra.
            from thrifty.observe.otlp.exporter import Exporter

            self._exporter = Exporter(settings.observe.otlp, on_change=self._note_change)
            self._exporter.start()
        if listening is not None:
            self._begin(self._accept(listening))
        self._begin(self._beat())

    def connect(self) -> socket.socket:
        """The other end of a new line, for a worker within this process."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._begin(self._open(ours))
        return theirs

    async def stop(self) -> None:
        """Write what was taken, for a few seconds at most. What was not written is not answered
        for, and workers that still run hand it to the next recorder.
        """
        for task in self._tasks:
            task.cancel()
        for line in self._lines:
            line.transport.pause_reading()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.stop)
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.stop)
        self._stopped = True
        self._report()
        for line in self._lines:
            line.transport.close()
        if self._finder is not None:
            self._finder.close()
        self._database.close()

    def receive(self, line: _Line, kind: int, body: memoryview) -> None:
        """Take one message. Raises `ValueError` for one that is none of ours."""
        if kind == Kind.ROWS:
            self._take_rows(line, _decode_rows(body))
        elif kind == Kind.TRACES:
            self._take_traces(line, _decode_traces(body))
        elif kind == Kind.METRICS and self._exporter is not None and line.sender is not None:
            metrics = _decode_metrics(body)
            self._exporter.put_metrics(metrics.families, metrics.at_s, line.sender)
        elif kind == Kind.HELLO:
            hello = _decode_hello(body)
            if self._exporter is not None:
                from thrifty.observe.otlp.exporter import Sender

                line.sender = Sender(hello.instance, hello.began_s)
        elif kind == Kind.FLUSH and self._writer is not None:
            self._writer.flush()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connected, _ = await self._loop.sock_accept(listening)
            except OSError as error:  # such as too many open files
                log.error("a gateway worker cannot be taken: %s", error.strerror or error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            await self._open(connected)

    async def _open(self, connected: socket.socket) -> None:
        try:
            make_line = functools.partial(_Line, self, self._lines)
            await self._loop.create_unix_connection(make_line, sock=connected)
        except OSError:  # it is gone again
            connected.close()

    def _take_rows(self, line: _Line, rows: list[Handed]) -> None:
        line.taken += len(rows)
        if self._writer is None:
            return  # of a worker with newer settings, which hands them to the next recorder
        for row, raw in rows:
            if raw is None:
                self._writer.put(row, tally=line.tally)
            else:
                make = functools.partial(self._make_texts, raw)
                size = len(raw.request) + len(raw.answer)
                self._writer.put(row, make, size, line.tally)
        if self._writer.is_full:
            for one in self._lines:
                one.transport.pause_reading()

    def _take_traces(self, line: _Line, traces: list[Ended]) -> None:
        if self._exporter is None or line.sender is None:
            return
        for ended in traces:
            if self._redactor is not None:
                ended = ended._replace(row=redact_client_id(ended.row, self._redactor))
            self._exporter.put(ended, line.sender)

    def _make_texts(self, raw: RawTexts) -> Texts | None:
        """The texts of one response; on the writer's thread. Raises `RedactionError`."""
        prepare = None
        if self._redactor is not None:
            prepare = functools.partial(self._redactor.prepare, tenant=raw.tenant)
        return make_texts(
            Endpoint(raw.endpoint), decode_body(raw.request), raw.answer or None,
            streamed=raw.streamed, prepare=prepare,
        )  # fmt: skip

    def _make_redactor(self) -> Redactor | None:
        if not self._settings.record_redact:
            return None
        if not self._settings.record_names:
            return Redactor(self._secret)
        self._finder = NameFinder(self._settings.record_names)
        if self._settings.record_prompts:
            self._finder.start()
        return Redactor(self._secret, self._finder.find)

    # what workers are told

    def _note_change(self) -> None:
        """Have workers told soon. Any thread may call this."""
        if not self._is_reporting:
            self._is_reporting = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._report)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for line in self._lines:
                if line.taken > line.tally.handled:
                    line.reported = None
            self._report()

    def _report(self) -> None:
        """Tell each worker what has changed, and read on where there is room."""
        self._is_reporting = False
        writer, state = self._writer, LogState()
        if writer is not None and not self._stopped:
            state = writer.state
        has_room = not self._stopped and (writer is None or not writer.is_full)
        for line in list(self._lines):
            status = self._make_status(line, state)
            # One that does not read is told later: these are totals.
            if status != line.reported and not line.transport.get_write_buffer_size():
                line.reported = status
                line.send(Kind.STATUS, status)
            if has_room and not line.transport.is_reading():
                line.transport.resume_reading()

    def _make_status(self, line: _Line, state: LogState) -> Status:
        tally, sender = line.tally, line.sender
        return Status(
            taken=line.taken,
            written=tally.written,
            rejected=tally.rejected,
            texts_lost=tally.texts_lost,
            traces_sent=sender.sent if sender is not None else 0,
            traces_dropped=dict(sender.dropped) if sender is not None else {},
            collector_up=self._exporter.up if self._exporter is not None else None,
            reason=state.reason,
            since_s=state.since_s,
            database_up=self._writer is None or self._writer.database_up,
        )
