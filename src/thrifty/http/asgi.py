"""Runs an ASGI 3 application for requests of our HTTP server.

For what is not hot: management, the console. The server has read the request's body by then, within
its limit. Answers respect the client's pace, so that at most one piece is buffered beyond what the
transport holds. The application's exceptions reach the server, which answers 500 before the
response starts and cuts the connection after it.

The protocol: https://asgi.readthedocs.io/en/latest/specs/www.html. WebSockets are not supported.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from thrifty.errors import ThriftyError
from thrifty.http.exchange import NO_BODY, Exchange
from thrifty.http.types import is_event_stream
from thrifty.openai.errors import unavailable

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# With 2.3, frameworks watch for `http.disconnect` while they stream, and so end a stream at once
# whose client is gone. From 2.4 on they notice at their next send, which may never come.
_VERSIONS = {"version": "3.0", "spec_version": "2.3"}
PIECE_BYTES = 65_536
"""Larger parts of an answer are written piece by piece, at the client's pace."""
MAX_RUNNING = 256
"""Requests that the application works on at once; more get a 503."""
DISCONNECT_GRACE_S = 5.0
"""What the application gets to end a request whose client is gone, before it is cancelled."""
STARTUP_TIMEOUT_S = 30.0
SHUTDOWN_TIMEOUT_S = 10.0

_NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_OURS = frozenset({b"connection", b"date", b"keep-alive", b"transfer-encoding", b"upgrade"})
"""Response headers that the server writes itself."""


class _Head(NamedTuple):
    """The start of a response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    length: int | None
    """What the application says that its body has; None where it does not say."""


class ClientDisconnected(OSError):
    """Raised by `send` once the client is gone."""


class AsgiBridge:
    """One application and its lifespan. `answer` is a request's coroutine, for a handler."""

    def __init__(
        self,
        app: AsgiApp,
        *,
        max_running: int = MAX_RUNNING,
        disconnect_grace_s: float = DISCONNECT_GRACE_S,
    ) -> None:
        self._app = app
        self._max_running = max_running
        self._disconnect_grace_s = disconnect_grace_s
        self._running: set[_Request] = set()
        self._state: dict[str, Any] = {}
        self._lifespan: _Lifespan | None = None

    async def start(self, timeout_s: float = STARTUP_TIMEOUT_S) -> None:
        """Start the application up, once. Raises `ThriftyError` where it fails or takes longer."""
        assert self._lifespan is None, "start() twice"
        self._lifespan = _Lifespan(self._app, self._state)
        await self._lifespan.start(timeout_s)

    def end_streams(self) -> None:
        """Tell the running event streams, which have no end of their own, that their clients are
        gone. Call it before the server drains.
        """
        for request in self._running:
            if request.is_event_stream:
                request.tell_gone()

    async def stop(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> None:
        """Cancel what still runs, then shut the application down, within `timeout_s`."""
        tasks = [request.task for request in self._running]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        if self._lifespan is not None:
            await self._lifespan.stop(timeout_s)

    async def answer(self, exchange: Exchange, state: Mapping[str, Any] | None = None) -> None:
        """Have the application answer. `state` is added to the request's `scope["state"]`. Raises
        what the application raises, and a 503 where too many requests run.
        """
        if len(self._running) >= self._max_running:
            raise unavailable(
                f"{self._max_running} requests of this kind are running; try again soon",
                "too_many_requests_running",
            )
        request = _Request(exchange)
        self._running.add(request)
        exchange.on_disconnect = lambda: request.client_gone(self._disconnect_grace_s)
        try:
            scope = make_scope(exchange, {**self._state, **(state or {})})
            await self._app(scope, request.receive, request.send)
        except Exception:
            if not request.told_gone:
                raise
            log.debug(
                "%s %s ended without its client", exchange.method, exchange.path, exc_info=True
            )
        finally:
            request.close()
            self._running.discard(request)
        request.finish()


def make_scope(exchange: Exchange, state: dict[str, Any]) -> Scope:
    """The connection scope of a request."""
    return {
        "type": "http",
        "asgi": _VERSIONS,
        "http_version": exchange.version,
        # The server sends the head alone where HEAD was asked.
        "method": "GET" if exchange.method == "HEAD" else exchange.method,
        "scheme": "https" if exchange.encrypted else "http",
        "path": exchange.path,
        "query_string": exchange.query,
        "root_path": "",
        "headers": list(exchange.headers.items()),
        "client": exchange.peer,
        "server": exchange.local,
        "state": state,
    }


class _Request:
    """One request and the messages between its client and the application."""

    def __init__(self, exchange: Exchange) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[Any] = task
        self.is_event_stream = False
        self.told_gone = False
        """Whether the application was told of a disconnect before its response was complete."""
        self._exchange = exchange
        self._over = asyncio.Event()
        """Set once the client is gone or the response is complete: `receive` then says so."""
        self._body_taken = False
        self._complete = False
        self._head: _Head | None = None
        """The response's start, kept until its first part shows how it is sent."""
        self._left_bytes: int | None = None
        """What is still to come of a response that declared its length."""
        self._cancelling: asyncio.TimerHandle | None = None

    def tell_gone(self) -> None:
        """Tell the application that the client is gone."""
        self.told_gone = not self._complete
        self._over.set()

    def client_gone(self, grace_s: float) -> None:
        """Tell the application; cancel it where it does not end within `grace_s`."""
        self.tell_gone()
        loop = asyncio.get_running_loop()
        self._cancelling = loop.call_later(grace_s, self._cancel, grace_s)

    def close(self) -> None:
        """The application has returned."""
        self._over.set()
        if self._cancelling is not None:
            self._cancelling.cancel()

    def finish(self) -> None:
        """End what the application left. Raises `RuntimeError` where its response is not whole."""
        if self._complete or self._exchange.disconnected:
            return
        if not (self.told_gone and self._exchange.started):
            raise RuntimeError("the ASGI application returned before its response was complete")
        self._exchange.finish()  # a stream that `end_streams` ended

    async def receive(self) -> Message:
        """ASGI's `receive`."""
        if not self._body_taken:
            self._body_taken = True
            return {"type": "http.request", "body": self._exchange.body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI's `send`. Raises `ClientDisconnected`, and `RuntimeError` for what the protocol
        does not allow.
        """
        if self.told_gone:
            raise ClientDisconnected("the client is gone")
        kind = message["type"]
        exchange = self._exchange
        if kind == "http.response.start" and self._head is None and not exchange.started:
            self._head = self._read_head(message)
            if self.is_event_stream:
                self._start(None)  # clients wait for the head, the first event may come late
        elif kind == "http.response.body" and not self._complete:
            body, more = message.get("body", b""), bool(message.get("more_body", False))
            if self._head is not None:
                self._start(None if more else len(body))
            elif not exchange.started:
                raise RuntimeError("http.response.body came before http.response.start")
            await self._send_body(body, more)
        else:
            raise RuntimeError(f"the ASGI application sent {kind} out of turn")

    def _cancel(self, grace_s: float) -> None:
        exchange = self._exchange
        log.info("%s %s: cancelled %g s after its client left",
                 exchange.method, exchange.path, grace_s)  # fmt: skip
        self.task.cancel()

    def _read_head(self, message: Message) -> _Head:
        headers: list[tuple[bytes, bytes]] = []
        length = None
        for raw_name, raw_value in message.get("headers", ()):
            name, value = bytes(raw_name).lower(), bytes(raw_value).strip(b" \t")
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise RuntimeError(f"the ASGI application sent the header {name!r}: {value!r}")
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and value.lower() == b"close":
                self._exchange.keep_alive = False
            elif name not in _OURS:
                headers.append((name, value))
            if name == b"content-type" and is_event_stream(value):
                self.is_event_stream = True
        return _Head(int(message["status"]), headers, length)

    def _start(self, whole_bytes: int | None) -> None:
        """Send the head. `whole_bytes` is the size of the body, where all of it is here."""
        assert self._head is not None
        status, headers, length = self._head
        self._head = None
        if status in NO_BODY:
            length = None
        else:
            self._left_bytes = length = whole_bytes if length is None else length
        self._exchange.start(status, headers, length)

    async def _send_body(self, body: bytes, more: bool) -> None:
        exchange = self._exchange
        if exchange.method == "HEAD":
            if more:
                self.told_gone = True  # nobody wants the rest
        elif self._left_bytes is not None:
            self._left_bytes -= len(body)
            if self._left_bytes < 0 or (not more and self._left_bytes > 0):
                raise RuntimeError("the response does not have the length that it declares")
        if len(body) <= PIECE_BYTES:
            await self._send_piece(bytes(body))
        else:
            view = memoryview(body)
            for position in range(0, len(view), PIECE_BYTES):
                await self._send_piece(bytes(view[position : position + PIECE_BYTES]))
        if not more or exchange.method == "HEAD":
            self._complete = True
            exchange.finish()
            self._over.set()

    async def _send_piece(self, piece: bytes) -> None:
        self._exchange.write(piece)
        await self._exchange.drain()
        if self._exchange.disconnected:
            raise ClientDisconnected("the client is gone")


class _Lifespan:
    """The application's start-up and shutdown, in a task of their own."""

    def __init__(self, app: AsgiApp, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._started: asyncio.Future[None] | None = None
        self._stopped: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._started, self._stopped = loop.create_future(), loop.create_future()
        self._messages.put_nowait({"type": "lifespan.startup"})
        self._task = loop.create_task(self._run())
        try:
            await asyncio.wait_for(asyncio.shield(self._started), timeout_s)
        except TimeoutError:
            await self._cancel()
            raise ThriftyError(
                f"the ASGI application did not start within {timeout_s:g} s"
            ) from None

    async def stop(self, timeout_s: float) -> None:
        if self._task is None or self._stopped is None:
            return
        if not self._task.done():
            self._messages.put_nowait({"type": "lifespan.shutdown"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._stopped), timeout_s)
        await self._cancel()

    async def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        assert self._started is not None
        assert self._stopped is not None
        scope = {"type": "lifespan", "asgi": _VERSIONS, "state": self._state}
        try:
            await self._app(scope, self._messages.get, self._send)
        except Exception as error:
            if not self._started.done():
                # The protocol lets applications refuse `lifespan` this way.
                log.debug("the application has no lifespan: %r", error)
            elif self._started.exception() is None:
                log.exception("the ASGI application's lifespan failed")
        finally:
            for future in (self._started, self._stopped):
                if not future.done():
                    future.set_result(None)

    async def _send(self, message: Message) -> None:
        assert self._started is not None
        assert self._stopped is not None
        kind, why = message["type"], message.get("message", "")
        if kind == "lifespan.startup.complete" and not self._started.done():
            self._started.set_result(None)
        elif kind == "lifespan.startup.failed" and not self._started.done():
            self._started.set_exception(ThriftyError(f"the ASGI application did not start: {why}"))
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            if kind.endswith("failed"):
                log.error("the ASGI application did not shut down properly: %s", why)
            if not self._stopped.done():
                self._stopped.set_result(None)
