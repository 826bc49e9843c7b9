"""An HTTP/1.1 client for the request path: pooled connections, streamed answers.

A request can fail in three ways. The caller must tell them apart, because only the caller knows
what may be repeated:

    ConnectFailed     nothing was sent
    NoResponse        it was sent, and the connection ended before the first byte of an answer
    BrokenResponse    the answer had started

One case is handled here: a kept-alive connection that the server closed just as the request was
sent. No server has acted on such a request, so it is sent once more on a new connection. A server
that crashed on the request looks the same for a moment: if the new connection fails, or the old one
ended late, the request counts as sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools

from thrifty.errors import ThriftyError
from thrifty.http.certificates import REPLICA, load_gateway_side, name_part
from thrifty.http.origin import Origin, parse_origin, quote_part

log = logging.getLogger(__name__)

OnData = Callable[[bytes], None]

CONNECT_TIMEOUT_S = 5.0
MAX_IDLE_PER_ORIGIN = 256
MAX_IDLE_S = 55.0
"""Shorter than the keep-alive of common servers (60 s and more), so that we usually close an idle
connection first."""
SWEEP_S = 15.0
"""How often idle connections are checked, and servers forgotten that no connection is open to: a
replica that restarts has another port, and its old one is never used again."""
MAX_OVERHEAD_BYTES = 262_144
"""Of a head, of trailers, or between two pieces of a body."""
MAX_ANSWER_BYTES = 268_435_456
"""Of a body that is held until it is whole. One that is passed on as it comes has no bound."""
STALE_WINDOW_S = 1.0
"""A connection that was closed for idleness ends within a round trip of the request. One that ends
later may have received the request."""


class TransportError(ThriftyError):
    """A request got no complete answer."""


class ConnectFailed(TransportError):
    """No connection could be made; nothing was sent."""


class NoResponse(TransportError):
    """The connection ended, or time ran out, before the first byte of an answer."""


class BrokenResponse(TransportError):
    """The connection ended, or time ran out, in the middle of the answer."""


class _StaleConnection(Exception):
    """A reused connection was closed before a byte of the answer came."""


class Answer:
    """An answer whose head is here and whose body is arriving.

    Body bytes go to the function given to `attach`; bytes that came earlier are passed on at once.
    `done` completes when the body is complete, or raises `BrokenResponse`. From then on the
    connection serves others, and `pause`, `resume` and `abort` do nothing.
    """

    __slots__ = (
        "_begun", "_connection", "_held", "_sink", "done", "given_up", "head", "headers",
        "held_bytes", "received_s", "status",
    )  # fmt: skip

    def __init__(self, connection: _Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection: _Connection | None = connection
        self._held: list[bytes] = []
        self._sink: OnData | None = None
        self._begun: asyncio.Event | None = None
        self.head: asyncio.Future[None] = loop.create_future()
        """Completes when status and headers are here, or raises why they will not come."""
        self.done: asyncio.Future[None] = loop.create_future()
        self.given_up = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.held_bytes = 0
        """Of the body, as long as nothing is attached."""
        self.received_s = 0.0
        """When the last byte that is held came, or the head (`time.perf_counter`)."""

    def attach(self, sink: OnData) -> None:
        """Pass body bytes to `sink`, beginning with those that are here already."""
        self._sink = sink
        held, self._held = self._held, []
        for data in held:
            sink(data)

    async def wait_body(self) -> None:
        """Wait for the first byte of the body, or its end. Not after `attach`. Raises
        `BrokenResponse`. Cancelling it aborts the answer.
        """
        if not self._held and not self.done.done():
            begun = self._begun = asyncio.Event()
            self.done.add_done_callback(lambda _: begun.set())
            try:
                await begun.wait()
            except asyncio.CancelledError:
                self.abort()
                raise
        if not self._held and self.done.done():
            self.done.result()

    async def read(self) -> bytes:
        """The complete body. Cancelling it aborts the answer."""
        try:
            await self.done
            return b"".join(self._held)
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._held = []  # an error that is kept must not keep a large body

    def pause(self) -> None:
        """Stop reading from the server, because whoever reads the answer is slow."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read again."""
        if self._connection is not None:
            self._connection.resume()

    def abort(self) -> None:
        """Abandon the answer: cut the connection, which tells the server to stop working."""
        self.given_up = True
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        error = BrokenResponse if self.head.done() else NoResponse
        self.fail(error("the request was given up"))

    def release(self) -> None:
        """Forget the connection, which serves others from now on or is gone."""
        self._connection = None

    def feed(self, data: bytes) -> None:
        """Take body bytes from the connection."""
        if self._sink is not None:
            self._sink(data)
        else:
            self._held.append(data)
            self.held_bytes += len(data)
            self.received_s = time.perf_counter()
            if self._begun is not None:
                self._begun.set()

    def fail(self, error: BaseException) -> None:
        """Take the error that the connection ended with."""
        if not self.head.done():
            self.head.set_exception(error)
        elif not self.done.done():
            self.done.set_exception(error)
            # Retrieved here, so that asyncio does not warn when nobody awaits the answer any more.
            self.done.exception()


class _Connection(asyncio.Protocol):
    """One connection to one origin; serves one request at a time."""

    __slots__ = (
        "_answer", "_close_after", "_head_only", "_overhead_bytes", "_parser", "_paused", "_pool",
        "_reused", "_sent_s", "_transport", "_until_close", "closed", "idle_since_s",
    )  # fmt: skip

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reused = False
        self._sent_s = 0.0
        self._head_only = False
        self._overhead_bytes = 0
        self._paused = False
        self._close_after = False
        self._until_close = False
        self.closed = False
        self.idle_since_s = 0.0

    @property
    def usable(self) -> bool:
        """Whether a request can still be sent on it, as far as we know."""
        return not (self.closed or self._transport is None or self._transport.is_closing())

    def send(
        self, data: bytes, loop: asyncio.AbstractEventLoop, *, reused: bool, head_only: bool
    ) -> Answer:
        """Send one request; returns its answer, which has no head yet."""
        assert self._transport is not None
        assert self._answer is None
        answer = Answer(self, loop)
        self._answer = answer
        self._reused = reused
        self._sent_s = time.monotonic()
        if self._head_only:
            # It waits for the body that the last answer's head declared.
            self._parser = httptools.HttpResponseParser(self)
        self._head_only = head_only
        self._overhead_bytes = 0
        self._transport.write(data)
        return answer

    def pause(self) -> None:
        if self._transport is not None and self.usable:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
        if self._transport is not None and self.usable:
            self._transport.resume_reading()

    def abort(self) -> None:
        self._answer = None
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.open_count += 1

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            # Unexpected bytes: the server is confused, or closes with an error page.
            self.abort()
            self._pool.forget(self)
            return
        self._reused = False  # from the first byte on, the server has acted on the request
        self._overhead_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the server switched protocols")
        except httptools.HttpParserCallbackError as error:
            if self._answer is not None:
                log.error("the reader of an answer failed", exc_info=error.__context__)
            self._fail(f"the answer could not be read: {error.__context__}")
        except httptools.HttpParserError as error:
            self._fail(f"the server sent something that is not HTTP: {error}")
        else:
            if self._overhead_bytes > MAX_OVERHEAD_BYTES:
                self._fail("the server sent too much beside the body")
            elif self._answer is not None and self._answer.held_bytes > MAX_ANSWER_BYTES:
                self._fail(f"the answer has more than {MAX_ANSWER_BYTES} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._pool.open_count -= 1
        self._pool.forget(self)
        answer = self._answer
        if answer is None:
            return
        self._answer = None
        answer.release()
        url = self._pool.origin.url
        if self._until_close and exc is None and answer.head.done():
            if not answer.done.done():
                answer.done.set_result(None)
        elif answer.head.done():
            answer.fail(BrokenResponse(f"{url} closed the connection mid-answer"))
        elif self._reused and time.monotonic() - self._sent_s < STALE_WINDOW_S:
            answer.fail(_StaleConnection())
        else:
            answer.fail(NoResponse(f"{url} closed the connection without an answer"))

    # httptools' side

    def on_message_begin(self) -> None:
        if self._answer is None:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._answer is not None
        if not self._answer.status:  # trailers are not taken
            self._answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        answer, parser = self._answer, self._parser
        assert answer is not None
        status = parser.get_status_code()
        if status < 200:
            answer.headers.clear()
            return
        answer.status = status
        answer.received_s = time.perf_counter()
        self._close_after = not parser.should_keep_alive()
        self._until_close = (
            b"content-length" not in answer.headers
            and b"chunked" not in answer.headers.get(b"transfer-encoding", b"").lower()
            and status not in (204, 304)
            and not self._head_only
        )
        if not answer.head.done():
            answer.head.set_result(None)
        if self._head_only:
            # The parser cannot know this, and would wait for the body that the head declares.
            self.on_message_complete()

    def on_body(self, data: bytes) -> None:
        self._overhead_bytes = 0
        if self._answer is not None:
            self._answer.feed(data)

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or answer.status == 0:
            return
        self._answer = None
        answer.release()
        if self._close_after or self._until_close:
            self.closed = True
            if self._transport is not None:
                self._transport.close()
        else:
            if self._paused:
                self.resume()
            self._pool.give_back(self)
        if not answer.done.done():
            answer.done.set_result(None)

    def _fail(self, message: str) -> None:
        answer = self._answer
        self.abort()
        self._pool.forget(self)
        if answer is not None:
            answer.release()
            error = BrokenResponse if answer.head.done() else NoResponse
            answer.fail(error(f"{self._pool.origin.url}: {message}"))


class _Pool:
    """The idle connections to one origin, the most recently used first."""

    def __init__(self, origin: Origin, tls: Callable[[], ssl.SSLContext] | None) -> None:
        self.origin = origin
        self.base_path = origin.base_path.encode("ascii")
        self.host_header = origin.host_header
        self.idle: deque[_Connection] = deque()
        self.open_count = 0
        """Connections that are idle or at work."""
        self._connecting = 0
        self._tls = tls
        self._name = name_part(REPLICA) if origin.fleet else origin.host
        """Whose certificate the server must show."""
        self._closed = False

    def take_idle(self) -> _Connection | None:
        now_s = time.monotonic()
        while self.idle:
            connection = self.idle.pop()
            if connection.usable and now_s - connection.idle_since_s < MAX_IDLE_S:
                return connection
            connection.abort()
        return None

    def give_back(self, connection: _Connection) -> None:
        if self._closed or len(self.idle) >= MAX_IDLE_PER_ORIGIN:
            connection.abort()
            return
        connection.idle_since_s = time.monotonic()
        self.idle.append(connection)

    @property
    def unused(self) -> bool:
        """Whether nothing is open to the server, and nothing is about to be."""
        return self.open_count == 0 and self._connecting == 0

    def drop_expired(self) -> None:
        """Close what has been idle for too long. The longest idle are on the left."""
        now_s = time.monotonic()
        while self.idle and now_s - self.idle[0].idle_since_s >= MAX_IDLE_S:
            self.idle.popleft().abort()

    def close(self) -> None:
        """Close idle connections now, and busy ones when their request ends."""
        self._closed = True
        while self.idle:
            self.idle.pop().abort()

    def forget(self, connection: _Connection) -> None:
        with contextlib.suppress(ValueError):
            self.idle.remove(connection)

    async def connect(self, timeout_s: float) -> _Connection:
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            async with asyncio.timeout(timeout_s):
                if self.origin.socket:
                    _, connection = await loop.create_unix_connection(
                        lambda: _Connection(self), self.origin.socket
                    )
                else:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self),
                        self.origin.host,
                        self.origin.port,
                        ssl=self._tls() if self._tls else None,
                        server_hostname=self._name if self._tls else None,
                    )
        except TimeoutError:
            raise ConnectFailed(
                f"{self.origin.url} did not accept a connection within {timeout_s:g} s"
            ) from None
        except (OSError, UnicodeError, ThriftyError) as error:
            reason = str(error) if isinstance(error, ThriftyError) else _say_why(error)
            raise ConnectFailed(f"{self.origin.url} cannot be reached: {reason}") from None
        finally:
            self._connecting -= 1
        if not connection.usable:
            raise ConnectFailed(f"{self.origin.url} closed the connection at once")
        return connection


class HttpClient:
    """Sends requests to any number of origins, over kept-alive connections."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """`tls` is for servers that the system's authorities do not vouch for."""
        self._pools: dict[Origin, _Pool] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._tls = tls

    async def open(
        self,
        origin: Origin,
        method: str,
        path: str,
        *,
        headers: bytes = b"",
        body: bytes = b"",
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        head_timeout_s: float | None = None,
        on_sent: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """Send a request and return when the head of its answer is here.

        `headers` are complete header lines, each ended by CRLF. `on_sent` gets the answer object as
        soon as the request is sent, so that a caller can abort it while waiting. Raises
        `ConnectFailed`, `NoResponse`.
        """
        pool = self._pools.get(origin) or self._add_pool(origin)
        data = b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
            method.encode("ascii"), pool.base_path, path.encode("ascii"), pool.host_header,
            headers, len(body), body,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        stale: Answer | None = None
        while True:
            connection = pool.take_idle() if stale is None else None
            reused = connection is not None
            if connection is None:
                connection = await _connect(pool, connect_timeout_s, stale)
            answer = connection.send(data, loop, reused=reused, head_only=method == "HEAD")
            if on_sent is not None:
                on_sent(answer)
            # A timer costs a third of what `asyncio.timeout` does.
            timer = None
            if head_timeout_s is not None:
                timer = loop.call_later(head_timeout_s, _give_up, answer, head_timeout_s, origin)
            try:
                await answer.head
                return answer
            except _StaleConnection:
                stale = answer
            except BaseException:
                answer.abort()
                raise
            finally:
                if timer is not None:
                    timer.cancel()

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: bytes = b"",
        body: bytes = b"",
        timeout_s: float = 10.0,
    ) -> tuple[int, bytes]:
        """Status and complete body of one request to `url`, within `timeout_s`.

        Raises `TransportError`, and `ValueError` if `url` is not a URL.
        """
        parts = urlsplit(url)
        path = quote_part(parts.path) + (f"?{quote_part(parts.query)}" if parts.query else "")
        origin = parse_origin(f"{parts.scheme}://{parts.netloc}")
        return await self.fetch_from(
            origin, method, path or "/", headers=headers, body=body, timeout_s=timeout_s
        )

    async def fetch_from(
        self,
        origin: Origin,
        method: str,
        path: str,
        *,
        headers: bytes = b"",
        body: bytes = b"",
        timeout_s: float = 10.0,
    ) -> tuple[int, bytes]:
        """As `fetch`, from a server that is known already."""
        url = f"{origin.url}{path}"
        answer: Answer | None = None
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self.open(
                    origin,
                    method,
                    path,
                    headers=headers,
                    body=body,
                    connect_timeout_s=timeout_s,
                )
                return answer.status, await answer.read()
        except TimeoutError:
            if answer is None:
                raise NoResponse(f"{url} did not answer within {timeout_s:g} s") from None
            raise BrokenResponse(
                f"{url} did not finish its answer within {timeout_s:g} s"
            ) from None

    def close(self) -> None:
        """Close every idle connection now, and busy ones when their request ends."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None

    def _add_pool(self, origin: Origin) -> _Pool:
        tls = self._find_fleet_context if origin.fleet else self._find_context
        pool = self._pools[origin] = _Pool(origin, tls if origin.tls else None)
        if self._sweep_timer is None:
            self._plan_sweep()
        return pool

    def _find_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    @staticmethod
    def _find_fleet_context() -> ssl.SSLContext:
        return load_gateway_side().refresh()

    def _plan_sweep(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close what was idle for too long, and forget servers that nothing is open to."""
        self._sweep_timer = None
        for origin, pool in list(self._pools.items()):
            pool.drop_expired()
            if pool.unused:
                # A request may hold it still, to connect once more: its connection is not kept.
                pool.close()
                del self._pools[origin]
        if self._pools:
            self._plan_sweep()


def _say_why(error: OSError | UnicodeError) -> str:
    """The reason alone, without the addresses and wording that event loops add."""
    if isinstance(error, OSError):
        if error.errno and error.errno > 0 and not isinstance(error, ssl.SSLError):
            return os.strerror(error.errno)
        return error.strerror or str(error) or type(error).__name__
    return str(error)


async def _connect(pool: _Pool, timeout_s: float, stale: Answer | None) -> _Connection:
    """A new connection; after a `stale` one, unless the request was given up meanwhile."""
    try:
        if stale is None or not stale.given_up:
            connection = await pool.connect(timeout_s)
            if stale is None or not stale.given_up:
                return connection
            connection.abort()
    except ConnectFailed as error:
        if stale is not None:
            raise NoResponse(f"a kept connection was closed without an answer; {error}") from None
        raise
    raise NoResponse("the request was given up")


def _give_up(answer: Answer, timeout_s: float, origin: Origin) -> None:
    if not answer.head.done():
        answer.head.set_exception(NoResponse(f"{origin.url} sent nothing for {timeout_s:g} s"))
