"""One request and its answer, as a handler of the HTTP server sees them."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Protocol, cast

from thrifty.http.cors import Cors
from thrifty.http.spool import Spool
from thrifty.http.types import (
    EVENT_STREAM_HEADERS,
    JSON_TYPE,
    Headers,
    encode_lines,
    is_event_stream,
)
from thrifty.openai.errors import WireError

__all__ = [
    "Connection",
    "Exchange",
    "Handler",
    "Headers",
    "InnerExchange",
    "ServerState",
    "encode_lines",
    "is_loopback",
]

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


_FORWARDING_HEADERS = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
COMMENT = b": waiting\n\n"
"""An event without data, which readers of event streams skip."""
_END_OF_STREAM = b"data: [DONE]\n\n"
NO_BODY = frozenset({204, 304})
"""Statuses whose answers have neither a body nor its length (RFC 9110, 8.6)."""


class ServerState(Protocol):
    """What an answer needs to know of the server."""

    draining: bool
    """Whether each answer is the last one on its connection."""
    date_line: bytes
    """The current `date` header line."""
    cors: Cors | None
    """The web pages that may read answers; None: only those of the same origin."""


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

    def get_extra_info(self, name: str) -> Any:
        """What the transport knows by this name (`peername`, `sockname`, `ssl_object`)."""


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own loopback."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return found.is_loopback or (mapped is not None and mapped.is_loopback)


class Exchange:
    """One request and its answer.

    The handler calls `respond` once, or `start`, any number of `write`, and `finish`. When the
    client disconnects, `on_disconnect` is called, or the handler's task is cancelled where it is
    not set.
    """

    __slots__ = (
        "_chunked",
        "_head_only",
        "_protocol",
        "_started",
        "_waiting",
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
        self._waiting = False
        """Whether comments are all that was sent of a stream."""
        self._head_only = False
        self._chunked = False
        self.method = ""
        self.path = ""
        self.query = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.spool: Spool | None = None
        """The body, where it was written to disk; `body` is empty then."""
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
        """Whether a part of the answer was sent; from then on, only the stream can report errors."""
        return self._started and not self._waiting

    @property
    def disconnected(self) -> bool:
        """Whether the client is gone."""
        return self._protocol.closed

    @property
    def peer(self) -> tuple[str, int] | None:
        """The client's address and port; None where it has none (a Unix socket)."""
        return _read_address(self._get_extra_info("peername"))

    @property
    def local(self) -> tuple[str, int] | None:
        """The address and port that the client connected to."""
        return _read_address(self._get_extra_info("sockname"))

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self._get_extra_info("ssl_object") is not None

    @property
    def peer_names(self) -> frozenset[str]:
        """The DNS names in the client's certificate, which the server's authority has signed."""
        found = self._get_extra_info("peercert") or {}
        names = found.get("subjectAltName", ())
        return frozenset(name for kind, name in names if kind == "DNS")

    @property
    def from_this_machine(self) -> bool:
        """Whether the client connected over loopback and no proxy says that it passes on a
        request of somebody else.
        """
        peer = self.peer
        if peer is None or not is_loopback(peer[0]):
            return False
        return not any(name in self.headers for name in _FORWARDING_HEADERS)

    @property
    def cors(self) -> Cors | None:
        """The web pages that may read answers; None: only those of the same origin."""
        return self._protocol.server.cors

    @property
    def writable(self) -> bool:
        """Whether the client keeps up with what is written."""
        return not self._protocol.write_paused

    def respond(
        self, status: int, body: bytes, headers: Headers = (JSON_TYPE,), lines: bytes = b""
    ) -> None:
        """Send the whole answer. `lines` are further header lines, encoded."""
        if self._waiting:
            self._respond_late(status, body, stream=is_event_stream(_find_type(headers)))
        if self._protocol.closed or self._started:
            return
        if status not in NO_BODY:
            lines = b"%bcontent-length: %d\r\n" % (lines, len(body))
        head = self.encode_head(status, headers, lines)
        self._protocol.send(head if self._head_only else head + body)
        self._end()

    def respond_ready(self, lines: bytes, body: bytes, *, stream: bool = False) -> None:
        """Send a complete 200 to a POST in one write; `lines` are its encoded header lines. With
        `stream`, it is sent as a stream is, without its length.
        """
        protocol = self._protocol
        if self._waiting:
            self._respond_late(200, body, stream=stream)
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
        if protocol.server.cors is not None:
            lines += protocol.server.cors.lines(self.headers.get(b"origin"))
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

    def respond_error(self, error: WireError, lines: bytes = b"") -> None:
        """Send `error` as the complete answer. `lines` are further header lines, encoded."""
        self.respond(error.status, error.encode(), [JSON_TYPE, *error.headers], lines)

    def start(
        self, status: int, headers: Headers, length: int | None = None, lines: bytes = b""
    ) -> None:
        """Begin an answer that is sent in parts. `length` is what all parts together will have;
        None where that is not known yet. `lines` are further header lines, encoded.
        """
        self._waiting = False
        if self._protocol.closed or self._started:
            return
        if length is not None:
            lines += b"content-length: %d\r\n" % length
        elif status in NO_BODY:
            pass
        elif self.version == "1.0":
            self.keep_alive = False
        else:
            self._chunked = True
            lines += b"transfer-encoding: chunked\r\n"
        self._protocol.send(self.encode_head(status, headers, lines))
        if status in NO_BODY:
            self._head_only = True

    def keep_waiting(self, lines: bytes = b"") -> None:
        """Send a comment to a client that waits for an event stream. The first one sends the head
        of the answer, with the further header lines `lines`. Whatever answers later becomes events
        of the stream, an error, too.
        """
        if self._protocol.closed or self.started:
            return
        if not self._waiting:
            self.start(200, EVENT_STREAM_HEADERS, lines=lines)
            self._waiting = True
        self.write(COMMENT)

    def _respond_late(self, status: int, body: bytes, *, stream: bool) -> None:
        """Send an answer as the events of a stream that has sent comments so far."""
        self._waiting = False
        self.status = status
        if not stream:
            body = b"".join(b"data: %b\n" % line for line in body.splitlines()) + b"\n"
            if status == 200:
                body += _END_OF_STREAM
        self.write(body)
        self.finish()

    def write(self, data: bytes) -> None:
        """Send a part of the answer. Never waits: see `writable`, `on_pause` and `drain`."""
        if not data or self._protocol.closed or self.finished or self._head_only:
            return
        assert self._started, "write() before start()"
        if self._chunked:
            self._protocol.send(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._protocol.send(data)

    async def drain(self) -> None:
        """Wait until the client has read enough for more to be written."""
        await self._protocol.wait_writable()

    def finish(self) -> None:
        """End an answer that was begun with `start`."""
        if self._protocol.closed or self.finished:
            return
        assert self._started, "finish() before start()"
        if self._chunked and not self._head_only:
            self._protocol.send(b"0\r\n\r\n")
        self._end()

    def abort(self) -> None:
        """Cut the connection, so that no client mistakes a partial answer for a complete one."""
        self.finished = True
        self._protocol.abort()

    def encode_head(self, status: int, headers: Headers, lines: bytes) -> bytes:
        """The head of the answer, which counts as started from now on. `lines` are those header
        lines that are encoded already.
        """
        # Upstream servers also use unregistered status codes, such as 529.
        status_line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
        self._started = True
        self.status = status
        self._head_only = self.method == "HEAD"
        server = self._protocol.server
        if server.draining:
            self.keep_alive = False
        if server.cors is not None:
            lines += server.cors.lines(self.headers.get(b"origin"))
        if not self.keep_alive:
            lines += b"connection: close\r\n"
        elif self.version == "1.0":
            lines += b"connection: keep-alive\r\n"
        return b"%b%b%b%b\r\n" % (status_line, server.date_line, encode_lines(headers), lines)

    def _get_extra_info(self, name: str) -> Any:
        return self._protocol.get_extra_info(name)

    def _end(self) -> None:
        self.finished = True
        self._protocol.exchange_ended(self)


Handler = Callable[[Exchange], Coroutine[Any, Any, None] | None]
"""Answers at once and returns None, or returns the coroutine that answers. An answer that needs no
waiting then costs no task."""


def _find_type(headers: Headers) -> bytes:
    return next((value for name, value in headers if name == b"content-type"), b"")


def _read_address(value: Any) -> tuple[str, int] | None:
    return (str(value[0]), int(value[1])) if isinstance(value, tuple) else None


class InnerExchange(Exchange):
    """A request made within this process, and its answer: there is no connection.

    `hang_up` does what a disconnecting client does.
    """

    __slots__ = ("_gone", "answer", "answer_headers")

    def __init__(self, path: str, body: bytes, headers: dict[bytes, bytes]) -> None:
        # Everything that would use the connection is overridden below.
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
    def cors(self) -> None:
        """None, since no web page reads the answer."""

    @property
    def disconnected(self) -> bool:
        """Whether nobody waits for the answer."""
        return self._gone

    @property
    def writable(self) -> bool:
        """Always True: the answer is kept in memory."""
        return True

    def keep_waiting(self, lines: bytes = b"") -> None:
        """Nothing: there is no connection to keep alive."""

    def hang_up(self) -> None:
        """Abandon the request, unless it is answered already."""
        if self._gone or self.finished:
            return
        self._gone = True
        if self.on_disconnect is not None:
            self.on_disconnect()
        elif self.task is not None:
            self.task.cancel()

    def respond(
        self, status: int, body: bytes, headers: Headers = (JSON_TYPE,), lines: bytes = b""
    ) -> None:
        """Store the complete answer. Encoded `lines` are dropped: nobody reads them."""
        if not self._started:
            self.start(status, headers)
            self.answer = body
            self.finished = True

    def respond_ready(self, lines: bytes, body: bytes, *, stream: bool = False) -> None:
        """Store a complete 200."""
        self.respond(200, body)

    def start(
        self, status: int, headers: Headers, length: int | None = None, lines: bytes = b""
    ) -> None:
        """Begin the answer."""
        if not self._started:
            self._started = True
            self.status = status
            self.answer_headers = list(headers)

    def write(self, data: bytes) -> None:
        """Store a part of the answer."""
        self.answer += data

    async def drain(self) -> None:
        """Return at once: there is nothing to wait for."""

    def finish(self) -> None:
        """End the answer."""
        self.finished = True

    def abort(self) -> None:
        """End the answer where it is."""
        self.finished = True

    def _get_extra_info(self, name: str) -> None:
        """Nothing: there is no transport."""
