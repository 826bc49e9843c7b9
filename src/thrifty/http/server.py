"""An HTTP/1.1 server for the request path: it listens, enforces deadlines, and drains.

`connection` reads requests and enforces their limits, `exchange` answers them. Routing,
authentication and JSON are up to the handler.

Deadlines are enforced by one sweep a second over the open connections, not by a timer for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any

from thrifty.http.connection import HttpProtocol
from thrifty.http.cors import Cors
from thrifty.http.exchange import Exchange, Handler
from thrifty.http.tls import CHECK_INTERVAL_S, ServerTls
from thrifty.http.types import EVENT_STREAM_HEADERS, JSON_TYPE, Headers, ServerLimits
from thrifty.http.upload import OpenSpool
from thrifty.openai.errors import WireError

__all__ = [
    "EVENT_STREAM_HEADERS",
    "JSON_TYPE",
    "Exchange",
    "Handler",
    "Headers",
    "HttpServer",
    "ServerLimits",
]

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 1.0
"""How often deadlines are checked, unless one of them is too short for that."""
CUT_TIMEOUT_S = 1.0
"""How long handlers may clean up after a drain has cut their connections."""
BACKLOG = 2048
ACCEPT_TURNS = 5
TLS_SHUTDOWN_TIMEOUT_S = 5.0
"""How long a closed connection waits for the client's half of the TLS shutdown."""
IDLE_GRACE_S = 0.2
"""When the server stops, idle connections stay open this long for requests already on their way."""


class HttpServer:
    """Listens, and hands each request to `handler`."""

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits | None = None,
        on_refused: Callable[[WireError], None] | None = None,
        spools: Mapping[str, OpenSpool] | None = None,
        cors: Cors | None = None,
    ) -> None:
        self.handler = handler
        self.spools = spools or {}
        """Paths whose request bodies may be written to disk."""
        self.cors = cors
        """The web pages that may read answers."""
        self.limits = limits or ServerLimits()
        self.refused = on_refused or (lambda error: None)
        self.connections: set[HttpProtocol] = set()
        self.draining = False
        self.date_line = b""
        self.loop: asyncio.AbstractEventLoop
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._watchers: list[asyncio.Task[None]] = []

    async def start(
        self,
        host: str,
        port: int,
        *,
        reuse_port: bool = False,
        tls: ServerTls | None = None,
        sock: socket.socket | None = None,
    ) -> int:
        """Listen on `host` and `port` (0: a free one), or on `sock`, which listens already. May be
        called several times; each call adds a listener. Returns the port. Raises `OSError`.
        """
        self.loop = asyncio.get_running_loop()
        self._set_date()
        options: dict[str, Any] = {"host": host, "port": port}
        if sock is not None:
            options = {"sock": sock}
        elif reuse_port:
            options["reuse_port"] = True
        if tls is not None:
            # Until its handshake is over, a connection is not among those that the sweep sees.
            options |= {
                "ssl": tls.context,
                "ssl_handshake_timeout": self.limits.read_timeout_s,
                "ssl_shutdown_timeout": TLS_SHUTDOWN_TIMEOUT_S,
            }
        listener = await self.loop.create_server(
            lambda: HttpProtocol(self), backlog=BACKLOG, **options
        )
        self._listeners.append(listener)
        if tls is not None:
            self._watchers.append(self.loop.create_task(_watch(tls)))
        if self._sweeper is None:
            self._sweeper = self.loop.create_task(self._sweep())
        return int(listener.sockets[0].getsockname()[1])

    async def drain(self, timeout_s: float, idle_grace_s: float = IDLE_GRACE_S) -> int:
        """Stop listening, let running exchanges finish, and cut the rest after `timeout_s`. Idle
        connections may start one last exchange within `idle_grace_s`.

        Returns how many exchanges were cut.
        """
        self.draining = True
        # Connections that wait to be accepted would be reset when the listener closes.
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        for listener in self._listeners:
            listener.close()
        # A request may be on its way on a connection that looks idle, or on one whose last answer
        # started before the drain and so did not announce the close. Both are still answered.
        began_s = time.monotonic()
        grace_s = min(idle_grace_s, timeout_s)
        while self.connections and time.monotonic() < began_s + timeout_s + grace_s:
            now_s = time.monotonic()
            for connection in list(self.connections):
                if now_s - max(began_s, connection.idle_since_s) >= grace_s:
                    connection.close_if_idle()
            await asyncio.sleep(0.01)
        left = [c for c in self.connections if c.busy]
        tasks = [c.task for c in left if c.task is not None]
        for connection in list(self.connections):
            connection.abort()
        for task in (self._sweeper, *self._watchers):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        deadline_s = time.monotonic() + CUT_TIMEOUT_S
        while self.connections and time.monotonic() < deadline_s:
            await asyncio.sleep(0.001)
        if tasks:
            await asyncio.wait(tasks, timeout=CUT_TIMEOUT_S)
        return len(left)

    def _set_date(self) -> None:
        self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()

    async def _sweep(self) -> None:
        limits = self.limits
        shortest_s = min(limits.read_timeout_s, limits.write_timeout_s, limits.keep_alive_s)
        interval_s = min(SWEEP_INTERVAL_S, shortest_s / 4)
        while True:
            await asyncio.sleep(interval_s)
            self._set_date()
            now_s = time.monotonic()
            for connection in list(self.connections):
                try:
                    connection.sweep(now_s)
                except Exception:
                    # One faulty connection must not stop the sweep for all others.
                    log.exception("a connection's deadlines could not be checked")
                    connection.abort()


async def _watch(tls: ServerTls) -> None:
    """Reload changed certificates until cancelled, in a thread because the disk may be slow."""
    while True:
        await asyncio.sleep(CHECK_INTERVAL_S)
        await asyncio.to_thread(tls.reload_if_changed)
