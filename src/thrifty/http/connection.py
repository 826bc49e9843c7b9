"""One connection of the HTTP server: httptools parses, an `Exchange` answers.

It owns what a public server must get right: limits on headers and bodies (checked before the body
is read where `Content-Length` declares its size), deadlines for sending a request and for reading
the answer, keep-alive, ordered pipelining, and backpressure in both directions.

A request that is refused here ends its connection. The refusal is sent after the answers to earlier
requests; then incoming bytes are dropped until the client hangs up or its deadline passes. Closing
at once would reset the connection, and the client would never see the refusal.

`Upgrade` is ignored, as RFC 9110 (7.8) allows: clients that offer h2c by default get HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, cast

import httptools

from thrifty.http.content_coding import decode_content, read_codings
from thrifty.http.cors import Cors
from thrifty.http.exchange import Exchange, Handler
from thrifty.http.request_head import check_head, malformed, read_target
from thrifty.http.types import JSON_TYPE, ServerLimits
from thrifty.http.upload import OpenSpool, Upload, begin_upload
from thrifty.openai.errors import WireError, internal_error, unavailable

if sys.platform != "win32":
    import fcntl
    import termios

log = logging.getLogger(__name__)

MAX_PIPELINED = 16
MAX_PIPELINED_BODY_BYTES = 65_536
"""Reading stops when this many requests wait, or one whose body is larger than this."""
DROP_LIMIT_BYTES = 256_000_000
"""How much a refused client may still send before it is cut off."""
_UPGRADE_HEADERS = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Server(Protocol):
    """What a connection needs of the server that accepted it."""

    handler: Handler
    spools: Mapping[str, OpenSpool]
    limits: ServerLimits
    refused: Callable[[WireError], None]
    connections: set[HttpProtocol]
    draining: bool
    date_line: bytes
    cors: Cors | None
    loop: asyncio.AbstractEventLoop


class HttpProtocol(asyncio.Protocol):
    """One client connection. httptools calls the `on_*` methods while it parses."""

    __slots__ = (
        "_advancing",
        "_body",
        "_building",
        "_codings",
        "_continue_due",
        "_current",
        "_dropped_bytes",
        "_flushed_bytes",
        "_header_bytes",
        "_loop",
        "_parser",
        "_queue",
        "_read_paused",
        "_refusal",
        "_refused_origin",
        "_sent_bytes",
        "_silent_bytes",
        "_stuck_since_s",
        "_transport",
        "_upload",
        "_url",
        "_writable",
        "closed",
        "deadline_s",
        "idle_since_s",
        "server",
        "write_paused",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self._loop = server.loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._building: Exchange | None = None
        """The request that is arriving."""
        self._current: Exchange | None = None
        """The request that is being answered."""
        self._queue: deque[Exchange] = deque()
        """Complete requests that wait for their turn."""
        self._refusal: WireError | None = None
        """What ends this connection, after the answers to what is running and queued."""
        self._refused_origin: bytes | None = None
        """The `Origin` header of the request that was refused."""
        self._url = b""
        self._body: bytes | bytearray = b""
        self._codings: list[bytes] = []
        """The content codings of the arriving body."""
        self._header_bytes = 0
        self._silent_bytes = 0
        """Bytes that the parser has taken since it last called back."""
        self._dropped_bytes = 0
        self._continue_due = False
        self._advancing = False
        self._read_paused = False
        self._upload: Upload | None = None
        """Writes the body of the arriving request to disk, where it goes there."""
        self._writable: asyncio.Future[None] | None = None
        self._sent_bytes = 0
        self._flushed_bytes = 0
        self._stuck_since_s = 0.0
        self.closed = False
        """Whether no answer can be sent any more; the transport may still be flushing."""
        self.write_paused = False
        self.deadline_s: float | None = None
        """When the client must have sent its request (or, once refused, hung up); None while it is
        waiting for us."""
        self.idle_since_s = 0.0
        """When the last exchange ended."""

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self.server
        if len(server.connections) >= server.limits.max_connections:
            self._write_refusal(
                unavailable("too many connections are open", "too_many_connections")
            )
            self.closed = True
            self._transport.close()
            return
        server.connections.add(self)
        self.deadline_s = time.monotonic() + server.limits.read_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._leave()

    def eof_received(self) -> bool:
        # A client that is gone and one that has only finished sending look the same. Clients do not
        # half-close and then wait for a generation, and a generation for nobody is expensive.
        self._note_stuck()
        self._leave()
        return False

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.closed:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > DROP_LIMIT_BYTES:
                self.abort()
            return
        self._silent_bytes += len(data)
        try:
            rest = self._feed(data)
            if rest is not None:
                self._ignore_upgrades(rest)
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, WireError) else malformed(str(error)))
            return
        if self._silent_bytes > self.server.limits.max_header_bytes and self._building is not None:
            # One header (or trailer, or chunk extension) that does not end: the parser reports it
            # only when it does.
            self._refuse(self._headers_too_large())

    def pause_writing(self) -> None:
        self.write_paused = True
        self._note_stuck()
        if self._current is not None and self._current.on_pause is not None:
            self._current.on_pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        if self._current is not None:
            if self._current.on_resume is not None:
                self._current.on_resume()
        elif self._queue:
            self._advance()

    # httptools' side

    def on_message_begin(self) -> None:
        self._building = Exchange(self)
        self._url = b""
        self._body = b""
        self._codings = []
        self._header_bytes = 0
        self._continue_due = False
        if self._current is None:
            self.deadline_s = time.monotonic() + self.server.limits.read_timeout_s

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._silent_bytes = 0
        self._header_bytes += len(url)
        if self._header_bytes > self.server.limits.max_header_bytes:
            raise self._headers_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._building
        assert exchange is not None
        self._silent_bytes = 0
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self.server.limits.max_header_bytes:
            raise self._headers_too_large()
        if exchange.method:
            return  # a trailer: it comes too late to change how the request is handled
        headers = exchange.headers
        name = name.lower()
        value = value.rstrip(b" \t")
        if name in headers:
            if name == b"host":
                raise malformed("it has more than one Host header")
            value = b"%b, %b" % (headers[name], value)
        headers[name] = value

    def on_headers_complete(self) -> None:
        exchange, parser = self._building, self._parser
        assert exchange is not None
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                raise WireError(405, "CONNECT is not possible here", code="method_not_allowed")
            return
        exchange.method = method.decode("ascii")
        exchange.version = parser.get_http_version()
        exchange.keep_alive = parser.should_keep_alive()
        read_target(exchange, self._url)
        check_head(exchange)
        headers = exchange.headers
        length = int(headers.get(b"content-length", b"0"))
        if exchange.path in self.server.spools:
            self._upload = begin_upload(self, self.server.spools, exchange, length)
        if exchange.spool is None and length > self.server.limits.max_body_bytes:
            raise self._body_too_large(f"{length} bytes")
        if b"content-encoding" in headers:
            self._codings = read_codings(exchange, length)
        if (
            b"expect" in headers
            and headers[b"expect"].lower() == b"100-continue"
            and exchange.version == "1.1"
        ):
            if self._current is None and not self._queue:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self._continue_due = True

    def on_chunk_header(self) -> None:
        self._silent_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        if self._upload is not None:
            self._upload.take(body)
            return
        if not self._body:
            self._body = body
        else:
            # Many small pieces must not become many objects.
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        limit = self.server.limits.max_body_bytes
        if len(self._body) > limit:
            raise self._body_too_large(f"more than {limit} bytes")

    def on_message_complete(self) -> None:
        self._silent_bytes = 0
        exchange = self._building
        if exchange is None or not exchange.method:
            return  # the first pass over a request with `Upgrade`
        if self._codings:
            limit = self.server.limits.max_body_bytes
            self._body = decode_content(exchange, bytes(self._body), self._codings, limit)
        self._building = None
        self._upload = None
        if self.closed:
            return
        self.deadline_s = None
        exchange.body = bytes(self._body)
        self._body = b""
        if self._current is None and not self.write_paused:
            self._dispatch(exchange)
            return
        self._queue.append(exchange)
        if (
            len(self._queue) >= MAX_PIPELINED or len(exchange.body) > MAX_PIPELINED_BODY_BYTES
        ) and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()

    # the exchange's side

    def send(self, data: bytes) -> None:
        """Write to the socket; the transport buffers what does not go out at once."""
        if not self.closed and self._transport is not None:
            self._sent_bytes += len(data)
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
        if exchange.spool is not None:
            exchange.spool.close()
        if self.closed:
            return
        if not exchange.keep_alive:
            self._close()
        elif self._queue or self._building is not None or self._refusal is not None:
            self._advance()
        else:
            self.idle_since_s = time.monotonic()
            self.deadline_s = self.idle_since_s + self.server.limits.keep_alive_s

    def abort(self) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def get_extra_info(self, name: str) -> Any:
        """What the transport knows by this name, such as `peername`."""
        return None if self._transport is None else self._transport.get_extra_info(name)

    def close_if_idle(self) -> None:
        """Close a connection between requests; a running exchange closes it when it ends."""
        if self._current is None and self._building is None and not self._queue and not self.closed:
            self._close()

    @property
    def busy(self) -> bool:
        """Whether a request arrives, waits or is answered, or an answer is still going out."""
        if self.closed:
            return self._transport is not None and self._transport.get_write_buffer_size() > 0
        return self._current is not None or self._building is not None or bool(self._queue)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that answers the current request."""
        return self._current.task if self._current is not None else None

    def sweep(self, now_s: float) -> None:
        """Enforce the deadlines. Called about once a second."""
        limits = self.server.limits
        if self.write_paused or self.closed:
            flushed_bytes = self._count_flushed()
            if flushed_bytes > self._flushed_bytes:
                self._flushed_bytes = flushed_bytes
                self._stuck_since_s = now_s
            elif now_s - self._stuck_since_s > limits.write_timeout_s:
                log.info("a client read nothing for %.0f s; cut off", now_s - self._stuck_since_s)
                self.abort()
                return
        if self.deadline_s is None or now_s <= self.deadline_s:
            return
        if self.closed:
            self.abort()
        elif self._building is None:
            self._close()
        else:
            self._refuse(
                WireError(
                    408,
                    f"the request did not arrive within {limits.read_timeout_s:g} s; "
                    "send it faster",
                    code="request_timeout",
                )
            )

    # the upload's side

    def hold_reading(self) -> None:
        """Stop reading for now, because the disk is behind."""
        if self._transport is not None:
            self._transport.pause_reading()

    def go_on_reading(self) -> None:
        """Read again, unless too many requests wait for their turn."""
        transport = self._transport
        if transport is not None and not transport.is_closing() and not self._read_paused:
            transport.resume_reading()

    def extend_deadline(self) -> None:
        """Give the client the read timeout again for what it is still sending."""
        if self.deadline_s is not None and not self.closed:
            self.deadline_s = time.monotonic() + self.server.limits.read_timeout_s

    # private

    def _headers_too_large(self) -> WireError:
        limit = self.server.limits.max_header_bytes
        return WireError(
            431, f"the request's headers exceed {limit} bytes", code="headers_too_large"
        )

    def _body_too_large(self, seen: str) -> WireError:
        limit = self.server.limits.max_body_bytes
        return WireError(
            413,
            f"the request's body has {seen}; the limit is {limit} bytes "
            "(limits.max_body in the spec)",
            code="body_too_large",
        )

    def _feed(self, data: bytes | memoryview) -> memoryview | None:
        """Parse; returns what follows a head that offers another protocol, if there is one."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return memoryview(data)[upgrade.args[0] :]
        return None

    def _ignore_upgrades(self, rest: memoryview) -> None:
        """Parse a request that offers another protocol again, without the offer.

        The parser treats everything after such a head as the other protocol, including the
        request's body.
        """
        while True:
            exchange = self._building
            assert exchange is not None
            headers = exchange.headers
            method, version = self._parser.get_method(), self._parser.get_http_version()
            lines = [b"%b %b HTTP/%b\r\n" % (method, self._url, version.encode("ascii"))]
            lines += [b"%b: %b\r\n" % h for h in headers.items() if h[0] not in _UPGRADE_HEADERS]
            if b"close" in headers.get(b"connection", b"").lower():
                lines.append(b"connection: close\r\n")
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(b"".join(lines) + b"\r\n")
            left = self._feed(rest)
            if left is None:
                return
            rest = left

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

    def _advance(self) -> None:
        """Dispatch queued requests, then handle what comes after them."""
        if self._advancing:
            return  # an answer came at once; the loop below continues
        self._advancing = True
        while self._queue and self._current is None and not self.write_paused and not self.closed:
            self._dispatch(self._queue.popleft())
        self._advancing = False
        if self.closed or self._queue or self._transport is None:
            return
        if self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()
        if self._current is not None:
            return
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._building is not None:
            self.deadline_s = time.monotonic() + self.server.limits.read_timeout_s
            if self._continue_due:
                self._continue_due = False
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            self.deadline_s = time.monotonic() + self.server.limits.keep_alive_s

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

    def _leave(self) -> None:
        """The client is gone: tell whoever works for it."""
        self.closed = True
        self.deadline_s = None
        for waiting in (*self._queue, self._building):
            if waiting is not None and waiting.spool is not None:
                waiting.spool.close()
        self._queue.clear()
        self._building = None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        exchange, self._current = self._current, None
        if exchange is not None:
            # A task that was created in this turn takes its first step before that. Cancelled
            # earlier, it would never run, nor undo what its handler has done already.
            self._loop.call_soon(_abandon, exchange)

    def _close(self) -> None:
        """Close when what was written is sent; the client has the write timeout to read it."""
        assert self._transport is not None
        if not self.write_paused:
            self._note_stuck()
        self.closed = True
        self.deadline_s = None
        self._transport.close()

    def _refuse(self, error: WireError) -> None:
        """Take nothing more from this client, and tell it why when it is its turn."""
        if self.closed:
            return
        self._refusal = error
        if self._building is not None:
            self._refused_origin = self._building.headers.get(b"origin")
            if self._building.spool is not None:
                self._building.spool.close()
        self._building = None
        self._body = b""
        self.deadline_s = None
        if self._current is None and not self._queue:
            self._send_refusal(error)

    def _send_refusal(self, error: WireError) -> None:
        assert self._transport is not None
        self._write_refusal(error)
        self._note_stuck()
        self.closed = True
        self.deadline_s = time.monotonic() + self.server.limits.read_timeout_s
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _write_refusal(self, error: WireError) -> None:
        exchange = Exchange(self)
        exchange.keep_alive = False
        if self._refused_origin is not None:
            exchange.headers[b"origin"] = self._refused_origin
        body = error.encode()
        head = exchange.encode_head(
            error.status, [JSON_TYPE, *error.headers], b"content-length: %d\r\n" % len(body)
        )
        self.send(head + body)
        self.server.refused(error)

    def _note_stuck(self) -> None:
        """Start the clock: from now on, the client must read."""
        self._flushed_bytes = self._count_flushed()
        self._stuck_since_s = time.monotonic()

    def _count_flushed(self) -> int:
        """Bytes that the client has received, as far as can be known."""
        assert self._transport is not None
        waiting = self._transport.get_write_buffer_size() + _count_in_kernel(self._transport)
        return self._sent_bytes - waiting


def _abandon(exchange: Exchange) -> None:
    """Tell whoever answers `exchange` that its client is gone."""
    if not exchange.finished:
        if exchange.on_disconnect is not None:
            exchange.on_disconnect()
        elif exchange.task is not None:
            exchange.task.cancel()
    if exchange.spool is not None:
        exchange.spool.close()


def _count_in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that the kernel holds because the client has not acknowledged them (megabytes, if it is
    slow).
    """
    if sys.platform == "win32":
        return 0
    try:
        count = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError, AttributeError):  # closed meanwhile
        return 0
    return int.from_bytes(count, sys.byteorder)
