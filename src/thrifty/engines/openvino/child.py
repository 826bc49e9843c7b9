"""A process of a replica, as its server sees it: started, spoken to over a socket, ended."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from typing import cast

import msgspec

from thrifty.engines.openvino.messages import ToScorer, ToWorker, Unpacker, encode
from thrifty.engines.openvino.start_child import StartedChild, start_child
from thrifty.engines.openvino.worker_settings import Settings

STOP_TIMEOUT_S = 5.0


class Child:
    """One process. It ends when the socket to it closes, so that it never outlives its server."""

    def __init__(
        self,
        module: str,
        settings: Settings,
        receive: Callable[[bytes], None],
        lost: Callable[[int], None],
        started: StartedChild | None = None,
    ) -> None:
        """`module` runs with the number of its socket and `settings` as arguments. `receive` gets
        each message, and `lost` is called when the process ends by itself, with its exit status.
        `started` is the process if it runs already.
        """
        self._module = module
        self._settings = settings
        self._receive = receive
        self._lost = lost
        self._started = started
        self._process: subprocess.Popen[bytes] | None = None
        self._link: _Link | None = None
        self._stopping = False
        self._ending: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start it, without waiting until it is ready. Raises `OSError`."""
        started = self._started or start_child(self._module, msgspec.to_builtins(self._settings))
        self._process = started.process
        _, self._link = await asyncio.get_running_loop().create_unix_connection(
            lambda: _Link(self._receive, self._note_end), sock=started.connection
        )

    def send(self, message: ToWorker | ToScorer) -> None:
        """Send one message, if it still runs."""
        if self._link is not None:
            self._link.send(encode(message))

    async def stop(self) -> None:
        """End it: closing the socket tells it."""
        self._stopping = True
        if self._link is not None:
            self._link.close()
        process = self._process
        if process is None or process.poll() is not None:
            return
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    def _note_end(self) -> None:
        if not self._stopping:
            self._ending = asyncio.ensure_future(self._report_end())

    async def _report_end(self) -> None:
        assert self._process is not None
        try:
            status = await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = 0  # it closed its socket and goes on, which `stop` will end
        if not self._stopping:
            self._lost(status)


class _Link(asyncio.Protocol):
    """The socket to the process."""

    def __init__(self, receive: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._unpacker = Unpacker()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._unpacker.feed(data):
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost()

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
