"""An HTTP/1.1 server for the request path: httptools parses, an `Exchange` answers.

It owns what a public server must not get wrong: limits on headers and bodies (told before the
body is read where `Content-Length` gives it away), a deadline for sending a request and one for
reading the answer, keep-alive, pipelining in order, backpressure in both directions, and a drain
that lets running exchanges finish. Routing, authentication and JSON are the handler's.

Deadlines are kept by one sweep a second over the open connections, not by a timer for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

import httptools

from thrifty.wire.errors import WireError, internal_error

log = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]
Handler = Callable[["Exchange"], Coroutine[Any, Any, None] | None]
"""Answers at once and returns None, or returns what is still to be done. An answer that needs no
waiting then costs no task."""

SWEEP_INTERVAL_S = 1.0
MAX_PIPELINED = 16
DISCARD_LIMIT_BYTES = 256_000_000
"""A refused body is read and dropped up to here, so that the client sees the refusal and not a
reset connection."""
DISCARD_TIMEOUT_S = 10.0

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
JSON_TYPE = (b"content-type", b"application/json")
EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


@dataclass(frozen=True)
class ServerLimits:
    """What one connection may cost."""

    max_body_bytes: int = 8_000_000
    max_header_bytes: int = 32_768
    read_timeout_s: float = 20.0
    write_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    max_connections: int = 20_000


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
        "status",
        "task",
        "version",
    )

    def __init__(self, protocol: HttpProtocol) -> None:
        self._protocol = protocol
        self._started = False
        self._head_only = False
        self.method = ""
        self.path = ""
        self.query = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
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
        head = self._encode_head(status, headers, [b"content-length: %d\r\n" % len(body)])
        self._protocol.send(head if self._head_only else head + body)
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
        self._protocol.send(self._encode_head(status, headers, framing))

    def write(self, data: bytes) -> None:
        """Send a part of the answer. Never waits: see `writable`, `on_pause` and `drain`."""
        if not data or self._protocol.closed or self.finished or self._head_only:
            return
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
        if self.version != "1.0" and not self._head_only:
            self._protocol.send(b"0\r\n\r\n")
        self._end()

    def abort(self) -> None:
        """Cut the connection, so that the client cannot take a half answer for a whole one."""
        self.finished = True
        self._protocol.abort()

    def _encode_head(self, status: int, headers: Headers, framing: list[bytes]) -> bytes:
        self._started = True
        self.status = status
        self._head_only = self.method == "HEAD"
        if self._protocol.server.draining:
            self.keep_alive = False
        lines = [_STATUS_LINES[status], self._protocol.server.date_line]
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


class HttpProtocol(asyncio.Protocol):
    """One client connection. httptools calls the `on_*` methods while it parses."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_building",
        "_current",
        "_discarded",
        "_discarding",
        "_header_bytes",
        "_loop",
        "_parser",
        "_queue",
        "_read_paused",
        "_refusal",
        "_transport",
        "_url",
        "_writable",
        "closed",
        "deadline_s",
        "server",
        "write_paused",
        "write_paused_since_s",
    )

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._loop = server.loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._building: Exchange | None = None
        self._current: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._url = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._header_bytes = 0
        self._refusal: WireError | None = None
        self._discarding = False
        self._discarded = 0
        self._read_paused = False
        self._writable: asyncio.Future[None] | None = None
        self.closed = False
        self.write_paused = False
        self.write_paused_since_s = 0.0
        self.deadline_s: float | None = None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self.server
        if len(server.connections) >= server.limits.max_connections:
            self._transport.abort()
            self.closed = True
            return
        server.connections.add(self)
        self.deadline_s = time.monotonic() + server.limits.read_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.server.connections.discard(self)
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._queue.clear()
        exchange = self._current
        self._current = None
        if exchange is not None and not exchange.finished:
            if exchange.on_disconnect is not None:
                exchange.on_disconnect()
            elif exchange.task is not None:
                exchange.task.cancel()

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > DISCARD_LIMIT_BYTES:
                self.abort()
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request itself was parsed; it is answered as plain HTTP/1.1, and the connection
            # ends with it, because what follows may be in the other protocol.
            for exchange in (*self._queue, self._current):
                if exchange is not None:
                    exchange.keep_alive = False
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            if not self.closed:
                refusal = self._refusal or WireError(
                    400, f"this is not a valid HTTP request: {error}", code="malformed_http"
                )
                self._refuse_and_close(refusal)

    def pause_writing(self) -> None:
        self.write_paused = True
        self.write_paused_since_s = time.monotonic()
        if self._current is not None and self._current.on_pause is not None:
            self._current.on_pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        if self._current is not None and self._current.on_resume is not None:
            self._current.on_resume()

    # httptools' side

    def on_message_begin(self) -> None:
        self._building = Exchange(self)
        self._url = b""
        self._body = []
        self._body_bytes = 0
        self._header_bytes = 0
        if self._current is None:
            self.deadline_s = time.monotonic() + self.server.limits.read_timeout_s

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_header_bytes(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._building is not None
        self._count_header_bytes(len(name) + len(value) + 4)
        headers = self._building.headers
        name = name.lower()
        known = headers.get(name)
        headers[name] = value if known is None else b"%b, %b" % (known, value)

    def on_headers_complete(self) -> None:
        exchange = self._building
        if exchange is None or self._discarding:
            return
        exchange.method = self._parser.get_method().decode("ascii")
        exchange.version = self._parser.get_http_version()
        exchange.keep_alive = self._parser.should_keep_alive()
        path, _, exchange.query = self._url.partition(b"?")
        exchange.path = path.decode("latin-1")
        length = exchange.headers.get(b"content-length", b"0")
        limit = self.server.limits.max_body_bytes
        if int(length) > limit:
            self._refuse_body(int(length))
        elif exchange.headers.get(b"expect", b"").lower() == b"100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._discarding:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self.server.limits.max_body_bytes:
            self._body = []
            self._refuse_body(None)
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._discarding:
            self._close_after_discard()
            return
        exchange = self._building
        if exchange is None:
            return
        self._building = None
        self.deadline_s = None
        exchange.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        if self._current is None:
            self._dispatch(exchange)
            return
        self._queue.append(exchange)
        if len(self._queue) >= MAX_PIPELINED and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()

    # the exchange's side

    def send(self, data: bytes) -> None:
        """Write to the socket; the transport buffers what does not go out at once."""
        if not self.closed and self._transport is not None:
            self._transport.write(data)

    async def wait_writable(self) -> None:
        """Return once the send buffer has room, or the client is gone."""
        if not self.write_paused or self.closed:
            return
        if self._writable is None:
            self._writable = self._loop.create_future()
        await asyncio.shield(self._writable)

    def exchange_ended(self, exchange: Exchange) -> None:
        """Take the next request, or close."""
        if exchange is not self._current:
            return
        self._current = None
        if self.closed or self._transport is None:
            return
        if not exchange.keep_alive or self.server.draining:
            self.closed = True
            self.server.connections.discard(self)
            self._transport.close()
            return
        self.deadline_s = time.monotonic() + self.server.limits.keep_alive_s
        if self._queue:
            self._dispatch(self._queue.popleft())
        if self._read_paused and len(self._queue) < MAX_PIPELINED:
            self._read_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close a connection between requests; a running exchange closes it when it ends."""
        if self._current is None and self._transport is not None and not self._discarding:
            self.closed = True
            self.server.connections.discard(self)
            self._transport.close()

    @property
    def idle(self) -> bool:
        """Whether no exchange runs on it."""
        return self._current is None

    def sweep(self, now_s: float) -> None:
        """Enforce the deadlines; called about once a second."""
        if (
            self.write_paused
            and now_s - self.write_paused_since_s > self.server.limits.write_timeout_s
        ):
            log.info("a client read nothing for %.0f s; cut off", now_s - self.write_paused_since_s)
            self.abort()
        elif self.deadline_s is not None and now_s > self.deadline_s:
            if self._building is None or self._discarding:
                self.abort() if self._discarding else self.close_if_idle()
            else:
                self._refuse_and_close(
                    WireError(
                        408,
                        "the request did not arrive within "
                        f"{self.server.limits.read_timeout_s:.0f} s; send it faster",
                        code="request_timeout",
                    )
                )

    # private

    def _count_header_bytes(self, count: int) -> None:
        self._header_bytes += count
        limit = self.server.limits.max_header_bytes
        if self._header_bytes > limit:
            self._refusal = WireError(
                431, f"the request's headers exceed {limit} bytes", code="headers_too_large"
            )
            raise ValueError("headers too large")

    def _dispatch(self, exchange: Exchange) -> None:
        self._current = exchange
        self.deadline_s = None
        exchange.received_s = time.perf_counter()
        try:
            rest = self.server.handler(exchange)
        except WireError as error:
            self._fail(exchange, error)
            return
        except Exception:
            log.exception("%s %s failed", exchange.method, exchange.path)
            self._fail(exchange, internal_error())
            return
        if rest is not None:
            exchange.task = self._loop.create_task(self._run(exchange, rest))
        elif not exchange.finished and not self.closed:
            log.error("%s %s was left unanswered", exchange.method, exchange.path)
            self._fail(exchange, internal_error())

    async def _run(self, exchange: Exchange, rest: Coroutine[Any, Any, None]) -> None:
        try:
            await rest
        except WireError as error:
            self._fail(exchange, error)
        except asyncio.CancelledError:
            if not self.closed:
                exchange.abort()
            raise
        except Exception:
            log.exception("%s %s failed", exchange.method, exchange.path)
            self._fail(exchange, internal_error())
        else:
            if not exchange.finished and not self.closed:
                log.error("%s %s was left unanswered", exchange.method, exchange.path)
                self._fail(exchange, internal_error())
        finally:
            exchange.task = None

    def _fail(self, exchange: Exchange, error: WireError) -> None:
        if not exchange.started:
            exchange.respond_error(error)
        elif not exchange.finished:
            exchange.abort()

    def _refuse_body(self, length: int | None) -> None:
        """Answer 413 now, and go on reading so that the client gets to see it."""
        limit = self.server.limits.max_body_bytes
        seen = f"{length} bytes" if length is not None else f"more than {limit} bytes"
        self._discarding = True
        self._building = None
        self.deadline_s = time.monotonic() + DISCARD_TIMEOUT_S
        if self._current is None:
            self._send_refusal(
                WireError(
                    413,
                    f"the request's body has {seen}; the limit is {limit} bytes "
                    "(limits.max_body in the spec)",
                    code="body_too_large",
                )
            )

    def _close_after_discard(self) -> None:
        if self._current is not None:
            self._current.keep_alive = False
        elif self._transport is not None and not self.closed:
            self.closed = True
            self.server.connections.discard(self)
            self._transport.close()

    def _refuse_and_close(self, error: WireError) -> None:
        if self._current is None:
            self._send_refusal(error)
        self.closed = True
        self.server.connections.discard(self)
        if self._transport is not None:
            self._transport.close()

    def _send_refusal(self, error: WireError) -> None:
        exchange = Exchange(self)
        exchange.keep_alive = False
        body = error.encode()
        head = exchange._encode_head(
            error.status, [JSON_TYPE, *error.headers], [b"content-length: %d\r\n" % len(body)]
        )
        self.send(head + body)
        self.server.refused(error)


class HttpServer:
    """Listens, and hands each request to `handler`."""

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits | None = None,
        on_refused: Callable[[WireError], None] | None = None,
    ) -> None:
        self.handler = handler
        self.limits = limits or ServerLimits()
        self.refused = on_refused or (lambda error: None)
        self.connections: set[HttpProtocol] = set()
        self.draining = False
        self.date_line = b""
        self.loop: asyncio.AbstractEventLoop
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(
        self,
        host: str,
        port: int,
        *,
        reuse_port: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> int:
        """Listen on `host` and `port` (0: a free one); return the port. Raises `OSError`."""
        self.loop = asyncio.get_running_loop()
        self._set_date()
        options: dict[str, Any] = {"reuse_port": True} if reuse_port else {}
        self._listener = await self.loop.create_server(
            lambda: HttpProtocol(self), host, port, backlog=2048, ssl=tls, **options
        )
        self._sweeper = self.loop.create_task(self._sweep())
        sock: socket.socket = self._listener.sockets[0]
        return int(sock.getsockname()[1])

    async def drain(self, timeout_s: float) -> int:
        """Stop listening, let running exchanges finish, cut what is left after `timeout_s`.

        Returns how many exchanges were cut.
        """
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        deadline_s = time.monotonic() + timeout_s
        while any(not c.idle for c in self.connections) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        left = [c for c in self.connections if not c.idle]
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        await asyncio.sleep(0)
        return len(left)

    def _set_date(self) -> None:
        self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self._set_date()
            now_s = time.monotonic()
            for connection in list(self.connections):
                connection.sweep(now_s)
