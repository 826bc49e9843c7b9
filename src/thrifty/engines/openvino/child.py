"""A process of a replica, as its server sees it: started, spoken to over a socket, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Callable
from typing import cast

import msgspec

from thrifty.engines.openvino.messages import ToScorer, ToWorker, Unpacker, encode
from thrifty.engines.openvino.worker_settings import Settings

STOP_TIMEOUT_S = 5.0


class Child:
    """One process. It ends when the socket to it closes, so that it never outlives its server."""

    def __init__(
        self,
        module: str,
        settings: Settings,
        receive: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        """`module` runs with the number of its socket and `settings` as arguments. `receive` gets
        each message, and `lost` is called when the process ends by itself.
        """
        self._module = module
        self._settings = settings
        self._receive = receive
        self._lost = lost
        self._process: asyncio.subprocess.Process | None = None
        self._link: _Link | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start it, without waiting until it is ready."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        settings = json.dumps(msgspec.to_builtins(self._settings))
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, str(theirs.fileno()), settings,
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        _, self._link = await asyncio.get_running_loop().create_unix_connection(
            lambda: _Link(self._receive, self._note_end), sock=ours
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
        if process is None or process.returncode is not None:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _note_end(self) -> None:
        if not self._stopping:
            self._lost()


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
