"""One request and its answer, as a handler of the HTTP server sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Protocol, cast

from thrifty.http.spool import Spool
from thrifty.http.types import JSON_TYPE, Headers, encode_lines
from thrifty.openai.errors import WireError

__all__ = [
    "Connection",
    "Exchange",
    "Handler",
    "Headers",
    "InnerExchange",
    "ServerState",
    "encode_lines",
]

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


class ServerState(Protocol):
    """What an answer needs to know of the server."""

    draining: bool
    """Whether each answer is the last one on its connection."""
    date_line: bytes
    """The current `date` header line."""


class Connection(Protocol):
    """What an exchange needs of the connection that it is answered on."""

    closed: bool
    write_paused: bool

    @property
    def server(self) -> ServerState:
        """The server that the connection belongs to."""

    def send(self, data: bytes) -> None:
        """Write `data`; what does not go out at once is buffered."""

    async def wait_writable(self) -> None:
        """Return once the send buffer has room, or the client is gone."""

    def exchange_ended(self, exchange: Exchange) -> None:
        """Take the next request, or close."""

    def abort(self) -> None:
        """Cut the connection now."""


class Exchange:
    """One request and its answer.

    The handler calls `respond` once, or `start`, any number of `write`, and `finish`. When the
    client goes away, `on_disconnect` is called; without one, the handler's task is cancelled.
    """

    __slots__ = (
        "_head_only",
        "_protocol",
        "_started",
        "body",
        "finished",
        "headers",
        "keep_alive",
        "method",
        "on_disconnect",
        "on_pause",
        "on_resume",
        "path",
        "query",
        "received_s",
        "spool",
        "status",
        "task",
        "version",
    )

    def __init__(self, protocol: Connection) -> None:
        self._protocol = protocol
        self._started = False
        self._head_only = False
        self.method = ""
        self.path = ""
        self.query = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.spool: Spool | None = None
        """The body, where it went to disk; `body` is empty then."""
        self.version = "1.1"
        self.keep_alive = True
        self.status = 0
        self.finished = False
        self.received_s = 0.0
        self.task: asyncio.Task[None] | None = None
        self.on_disconnect: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    @property
    def started(self) -> bool:
        """Whether the status line is out; from then on only the stream can tell of errors."""
        return self._started

    @property
    def disconnected(self) -> bool:
        """Whether the client is gone."""
        return self._protocol.closed

    @property
    def writable(self) -> bool:
        """Whether the client keeps up with what is written."""
        return not self._protocol.write_paused

    def respond(self, status: int, body: bytes, headers: Headers = (JSON_TYPE,)) -> None:
        """Send the whole answer."""
        if self._protocol.closed or self._started:
            return
        head = self.encode_head(status, headers, [b"content-length: %d\r\n" % len(body)])
        self._protocol.send(head if self._head_only else head + body)
        self._end()

    def respond_ready(self, lines: bytes, body: bytes, *, stream: bool = False) -> None:
        """Send a whole 200 to a POST, its header lines bytes already, in one write. `stream` sends
        it as a stream is sent, without its length.
        """
        protocol = self._protocol
        if protocol.closed or self._started:
            return
        self._started = True
        self.status = 200
        if protocol.server.draining:
            self.keep_alive = False
        if self.version == "1.0" or not self.keep_alive:
            if stream and self.version == "1.0":
                self.keep_alive = False
            lines += b"connection: keep-alive\r\n" if self.keep_alive else b"connection: close\r\n"
        date_line = protocol.server.date_line
        if not stream:
            form = b"HTTP/1.1 200 OK\r\n%b%bcontent-length: %d\r\n\r\n%b"
            data = form % (date_line, lines, len(body), body)
        elif self.version == "1.0":
            data = b"HTTP/1.1 200 OK\r\n%b%b\r\n%b" % (date_line, lines, body)
        else:
            form = b"HTTP/1.1 200 OK\r\n%b%btransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
            data = form % (date_line, lines, len(body), body)
        protocol.send(data)
        self._end()

    def respond_error(self, error: WireError, headers: Headers = ()) -> None:
        """Send `error` as the whole answer."""
        self.respond(error.status, error.encode(), [JSON_TYPE, *error.headers, *headers])

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer whose length is not known yet."""
        if self._protocol.closed or self._started:
            return
        if self.version == "1.0":
            self.keep_alive = False
            framing: list[bytes] = []
        else:
            framing = [b"transfer-encoding: chunked\r\n"]
        self._protocol.send(self.encode_head(status, headers, framing))

    def write(self, data: bytes) -> None:
        """Send a part of the answer. Never waits: see `writable`, `on_pause` and `drain`."""
        if not data or self._protocol.closed or self.finished or self._head_only:
            return
        assert self._started, "write() before start()"
        if self.version == "1.0":
            self._protocol.send(data)
        else:
            self._protocol.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def drain(self) -> None:
        """Wait until the client has read enough for more to be written."""
        await self._protocol.wait_writable()

    def finish(self) -> None:
        """End an answer that was begun with `start`."""
        if self._protocol.closed or self.finished:
            return
        assert self._started, "finish() before start()"
        if self.version != "1.0" and not self._head_only:
            self._protocol.send(b"0\r\n\r\n")
        self._end()

    def abort(self) -> None:
        """Cut the connection, so that the client cannot take a half answer for a whole one."""
        self.finished = True
        self._protocol.abort()

    def encode_head(self, status: int, headers: Headers, framing: list[bytes]) -> bytes:
        """The head of the answer; from now on it counts as begun."""
        # Servers upstream use numbers beyond the registered ones (529, say).
        status_line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
        self._started = True
        self.status = status
        self._head_only = self.method == "HEAD"
        if self._protocol.server.draining:
            self.keep_alive = False
        lines = [status_line, self._protocol.server.date_line]
        lines += [b"%b: %b\r\n" % header for header in headers]
        lines += framing
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _end(self) -> None:
        self.finished = True
        self._protocol.exchange_ended(self)


Handler = Callable[[Exchange], Coroutine[Any, Any, None] | None]
"""Answers at once and returns None, or returns the coroutine that answers. An answer that needs no
waiting then costs no task."""


class InnerExchange(Exchange):
    """A request that comes from within this process, and its answer: there is no connection.

    `hang_up` is what a client does that goes away.
    """

    __slots__ = ("_gone", "answer", "answer_headers")

    def __init__(self, path: str, body: bytes, headers: dict[bytes, bytes]) -> None:
        # Everything that would reach for the connection is overridden below.
        super().__init__(cast(Connection, None))
        self.method = "POST"
        self.path = path
        self.body = body
        self.headers = headers
        self.received_s = time.perf_counter()
        self.answer = b""
        self.answer_headers: list[tuple[bytes, bytes]] = []
        self._gone = False

    @property
    def disconnected(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._gone

    @property
    def writable(self) -> bool:
        """Always: the answer is kept in memory."""
        return True

    def hang_up(self) -> None:
        """Give the answer up, unless it is there already."""
        if self._gone or self.finished:
            return
        self._gone = True
        if self.on_disconnect is not None:
            self.on_disconnect()
        elif self.task is not None:
            self.task.cancel()

    def respond(self, status: int, body: bytes, headers: Headers = (JSON_TYPE,)) -> None:
        """Keep the whole answer."""
        if not self._started:
            self.start(status, headers)
            self.answer = body
            self.finished = True

    def respond_ready(self, lines: bytes, body: bytes, *, stream: bool = False) -> None:
        """Keep a whole 200. Nobody reads the header lines of one."""
        self.respond(200, body)

    def start(self, status: int, headers: Headers) -> None:
        """Begin the answer."""
        if not self._started:
            self._started = True
            self.status = status
            self.answer_headers = list(headers)

    def write(self, data: bytes) -> None:
        """Keep a part of the answer."""
        self.answer += data

    async def drain(self) -> None:
        """There is nothing to wait for."""

    def finish(self) -> None:
        """End the answer."""
        self.finished = True

    def abort(self) -> None:
        """End the answer where it is."""
        self.finished = True
