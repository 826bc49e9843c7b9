"""Gateway workers: started, kept, replaced one after the other.

They share one port: each place has a listening socket of its own (SO_REUSEPORT), so that the kernel
spreads connections over them. The sockets are the controller's, and workers inherit them; a worker that
ends, or is replaced, leaves its socket behind with the connections that wait in it. Each worker also
listens on a loopback port of its own, where the others read its metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from thrifty.db.fleet import GatewayRow
from thrifty.errors import FleetError
from thrifty.fleet.local import BACKOFF_S
from thrifty.fleet.process import ManagedProcess, start_process
from thrifty.home import Home
from thrifty.http.client import HttpClient, TransportError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
POLL_S = 0.02
STEADY_S = 60.0
SETTLE_TIMEOUT_S = 5.0
"""For the workers to read that the last replica has become ready."""

OnRow = Callable[[GatewayRow], Awaitable[None]]


class GatewayWorkers:
    """All workers of one controller."""

    def __init__(
        self,
        home: Home,
        sockets: Sequence[socket.socket],
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        drain_timeout_s: float,
        on_row: OnRow,
    ) -> None:
        self._home = home
        self._settings = settings
        self._environment = environment
        self._grace_s = drain_timeout_s + 5
        self._on_row = on_row
        self._sockets = sockets
        self._processes: list[ManagedProcess | None] = [None] * len(sockets)
        self._urls: dict[int, str] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._replacing: set[int] = set()
        self._stopping = False

    @property
    def ids(self) -> list[str]:
        """Their names."""
        return [f"gateway-{index}" for index in range(len(self._processes))]

    async def start(self) -> None:
        """Start all, and keep them. Returns once each listens. Raises `FleetError`."""
        # The first one alone: what is wrong is wrong for all, and is said once.
        for group in (range(1), range(1, len(self._processes))):
            await asyncio.gather(*(self._start(index) for index in group))
        self._keepers = [
            asyncio.ensure_future(self._keep(index)) for index in range(len(self._processes))
        ]

    async def wait_settled(self) -> None:
        """Wait until each worker knows of a ready replica of every deployment, or a little while: a replica
        may have gone again.
        """
        client = HttpClient()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_TIMEOUT_S):
                    for index in range(len(self._processes)):
                        while not await self._knows_all(client, index):
                            await asyncio.sleep(POLL_S)
        finally:
            client.close()

    async def _knows_all(self, client: HttpClient, index: int) -> bool:
        try:
            status, _ = await client.fetch(f"{self._urls[index]}/readyz")
        except TransportError:
            return False  # it ended, and is started anew
        return status == 200

    async def replace(self) -> None:
        """Replace each worker by a new one, one after the other; no request is lost. Raises
        `FleetError` where a new one does not start: the old one then stays.
        """
        for index, old in enumerate(list(self._processes)):
            self._replacing.add(index)
            try:
                await self._start(index)
                if old is not None:
                    await old.stop(self._grace_s)
            finally:
                self._replacing.discard(index)

    async def stop(self) -> None:
        """Drain all."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*(p.stop(self._grace_s) for p in self._processes if p is not None))
        for listening in self._sockets:
            listening.close()

    def kill(self) -> None:
        """End all at once."""
        for process in self._processes:
            if process is not None:
                process.kill()

    async def _start(self, index: int) -> None:
        name = self.ids[index]
        ready = self._home.run / f"{name}.ready"
        ready.unlink(missing_ok=True)
        listening = self._sockets[index].fileno()
        settings = {
            **self._settings, "id": name, "ready_file": str(ready), "listen_fd": listening,
        }  # fmt: skip
        process = start_process(
            [sys.executable, "-m", "thrifty.worker", msgspec.json.encode(settings).decode()],
            role="gateway",
            process_id=name,
            home=self._home.root,
            log_path=self._home.logs / f"{name}.log",
            environment=self._environment,
            inherit=[listening],
        )
        try:
            url = await self._wait_ready(process, ready)
        except BaseException:
            process.kill()
            raise
        self._processes[index], self._urls[index] = process, url
        await self._on_row(GatewayRow(name, url, process.pid, process.ident.created_s, "ready"))

    async def _wait_ready(self, process: ManagedProcess, ready: Path) -> str:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while (url := _read_ready(ready, process.pid)) is None:
            if not process.alive:
                raise FleetError(f"the gateway ended: {process.read_log_end()}")
            if time.monotonic() > deadline_s:
                raise FleetError(f"the gateway did not start within {START_TIMEOUT_S:g} s")
            await asyncio.sleep(POLL_S)
        return url

    async def _keep(self, index: int) -> None:
        """Start a worker anew whenever it ends by itself."""
        ends = 0
        while True:
            process = self._processes[index]
            assert process is not None
            started_s = time.monotonic()
            await process.wait()
            while index in self._replacing:
                await asyncio.sleep(POLL_S)
            if self._stopping:
                return
            if self._processes[index] is not process:
                continue
            ends = 1 if time.monotonic() - started_s > STEADY_S else ends + 1
            log.error("%s ended: %s", self.ids[index], process.read_log_end())
            await asyncio.sleep(BACKOFF_S[min(ends, len(BACKOFF_S)) - 1])
            try:
                await self._start(index)
            except FleetError as error:
                log.error("%s cannot be started: %s", self.ids[index], error)


def _read_ready(path: Path, pid: int) -> str | None:
    """The worker's own URL, if it is that process which wrote the file."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return str(said["url"]) if said.get("pid") == pid else None
