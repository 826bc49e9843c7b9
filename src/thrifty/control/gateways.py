"""Gateway workers: started, kept, replaced one after the other, more of them and fewer.

They share one port by several listening sockets (SO_REUSEPORT), over which the kernel spreads
connections. The sockets are the controller's, and workers inherit them; a worker that ends, or is
replaced, leaves its socket behind with the connections that wait in it. A socket is never closed
while the service runs, because the kernel would reset those: with fewer workers than there once were,
some listen on two. After a controller that was killed, the next one takes over what its workers
listen on (`fleet.handover`). Each worker also listens on a loopback port of its own, where the others read its
metrics. A line of notices (`fleet.notices`) leads to each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from thrifty.control.gateway_settings import WorkerSettings
from thrifty.db.fleet import GatewayRow
from thrifty.errors import FleetError
from thrifty.fleet.handover import take_listeners
from thrifty.fleet.local_replica import BACKOFF_S
from thrifty.fleet.notices import NoticeLine
from thrifty.fleet.ports import bind_listener, open_listeners
from thrifty.fleet.process import GATEWAY_ROLE, ManagedProcess, start_process
from thrifty.home import Home
from thrifty.http.client import HttpClient, TransportError

log = logging.getLogger(__name__)

MODULE = "thrifty.worker"
START_TIMEOUT_S = 30.0
POLL_S = 0.02
STEADY_S = 60.0
SETTLE_TIMEOUT_S = 5.0
"""For the workers to read that the last replica has become ready."""
_EXTRA_GRACE_S = 20.0

OnRow = Callable[[GatewayRow], Awaitable[None]]
OnGone = Callable[[str], Awaitable[None]]


class GatewayWorkers:
    """All workers of one controller."""

    def __init__(
        self,
        home: Home,
        host: str,
        port: int,
        on_row: OnRow,
        on_gone: OnGone,
        on_notice: Callable[[], None],
    ) -> None:
        """`on_row` is told of each worker that listens, `on_gone` of each that is no more.
        `on_notice` is called when requests wait for a deployment at zero.
        """
        self._home = home
        self._host = host
        self._port = port
        self._on_row = on_row
        self._on_gone = on_gone
        self._on_notice = on_notice
        self._lines: list[NoticeLine] = []
        self._settings: WorkerSettings | None = None
        self._sockets: list[socket.socket] = []
        self._processes: dict[int, ManagedProcess] = {}
        self._leaving: set[ManagedProcess] = set()
        """Workers that drain, for others that have taken their places."""
        self._urls: dict[int, str] = {}
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._starting: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changing = asyncio.Lock()
        self._stopping = False

    @property
    def ids(self) -> list[str]:
        """Their names."""
        return [_name(index) for index in sorted(self._processes)]

    def count_alive(self) -> int:
        """How many run now: one that has ended is not there until its next process listens."""
        return sum(process.alive for process in self._processes.values())

    @property
    def settings(self) -> WorkerSettings | None:
        """What the workers run with; None before the start."""
        return self._settings

    def notify(self) -> None:
        """Have all workers read the database now."""
        self._lines = [line for line in self._lines if not line.closed]
        for line in self._lines:
            line.send()

    async def start(self, settings: WorkerSettings, old: Sequence[str] = ()) -> None:
        """Start all, and keep them. Returns once each listens. Raises `FleetError`.

        `old` are the names of workers that an earlier controller left: these take over what those
        listen on.
        """
        async with self._changing:
            self._settings = settings
            self._sockets = await asyncio.to_thread(self._open_sockets, settings.workers, old)
            # The first one alone: what is wrong is wrong for all, and is said once.
            for group in (range(1), range(1, settings.workers)):
                await asyncio.gather(*(self._start(index, settings) for index in group))
            for index in range(settings.workers):
                self._keep(index)

    async def apply(self, settings: WorkerSettings) -> None:
        """Have as many workers as `settings` say, all with these settings. No request is lost.
        Raises `FleetError` where a new one does not start: those before it then stay.
        """
        async with self._changing:
            if settings != self._settings and not self._stopping:
                await self._replace_all(settings)

    async def replace(self) -> None:
        """Replace each worker by a new one, one after the other; no request is lost. Raises
        `FleetError` where a new one does not start: the old one then stays.
        """
        async with self._changing:
            if self._settings is not None and not self._stopping:
                await self._replace_all(self._settings)

    async def wait_settled(self) -> None:
        """Wait until each worker knows of a ready replica of every deployment, or a little while:
        a replica may have gone again.
        """
        client = HttpClient()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_TIMEOUT_S):
                    for index in list(self._processes):
                        while not await self._knows_all(client, index):
                            await asyncio.sleep(POLL_S)
        finally:
            client.close()

    async def stop(self) -> None:
        """Drain all."""
        self._stopping = True
        for keeper in self._keepers.values():
            keeper.cancel()
        if self._keepers:
            # One that was just starting a worker ends it.
            await asyncio.wait(self._keepers.values())
        processes = [*self._processes.values(), *self._leaving]
        await asyncio.gather(*(process.stop(self._grace_s) for process in processes))
        for listening in self._sockets:
            listening.close()
        for line in self._lines:
            line.close()
        for name in [_name(index) for index in range(len(self._sockets))]:
            self._home.listeners_of(name).unlink(missing_ok=True)

    def kill(self) -> None:
        """End all at once."""
        for process in (*self._processes.values(), *self._leaving):
            process.kill()

    @property
    def _grace_s(self) -> float:
        drain_s = self._settings.drain_timeout_s if self._settings is not None else 0.0
        return drain_s + _EXTRA_GRACE_S

    def _open_sockets(self, count: int, old: Sequence[str]) -> list[socket.socket]:
        offers = [self._home.listeners_of(name) for name in old]
        taken = [one for path in offers for one in take_listeners(path)]
        with bind_listener(self._host, self._port) as probe:
            address = probe.getsockname()
        kept = [one for one in taken if one.getsockname() == address]
        if not kept:
            return open_listeners(self._host, self._port, count)
        # Connections go to the workers that listen until a new one does.
        return kept + [bind_listener(*address[:2]) for _ in range(count - len(kept))]

    async def _replace_all(self, settings: WorkerSettings) -> None:
        grace_s = self._grace_s
        before, after = len(self._processes), settings.workers
        while len(self._sockets) < after:
            # Nobody connects to it before its worker listens.
            self._sockets.append(bind_listener(self._host, self._port))
        # Every socket has somebody who accepts, at any time: those that are new come first, those
        # that are too many go last.
        for index in range(before, after):
            await self._start(index, settings)
            self._keep(index)
        for index in range(min(before, after)):
            async with self._starting[index]:
                old = self._processes[index]
                await self._start(index, settings)
            self._settings = settings
            await self._see_off(old, grace_s)
        for index in range(after, before):
            keeper = self._keepers.pop(index)
            keeper.cancel()
            await asyncio.wait({keeper})
            self._urls.pop(index)
            await self._see_off(self._processes.pop(index), grace_s)
            await self._on_gone(_name(index))
        self._settings = settings

    async def _see_off(self, process: ManagedProcess, grace_s: float) -> None:
        """Drain a worker that has no place any more. One whose drain is cut short stays known."""
        self._leaving.add(process)
        await process.stop(grace_s)
        self._leaving.discard(process)

    async def _knows_all(self, client: HttpClient, index: int) -> bool:
        try:
            status, _ = await client.fetch(f"{self._urls[index]}/readyz")
        except (TransportError, KeyError):
            return False  # it ended, and is started anew
        return status == 200

    async def _start(self, index: int, settings: WorkerSettings) -> None:
        """Start a worker, and wait until it listens. Raises `FleetError`."""
        try:
            await self._start_process(index, settings)
        except OSError as error:
            reason = error.strerror or error
            raise FleetError(f"{_name(index)} cannot be started: {reason}") from None

    async def _start_process(self, index: int, settings: WorkerSettings) -> None:
        name = _name(index)
        descriptors = [one.fileno() for one in self._sockets[index :: settings.workers]]
        ours, theirs = socket.socketpair()
        try:
            ready, tell_ready = os.pipe()
        except OSError:
            ours.close()
            theirs.close()
            raise
        told = {
            **settings.settings, "id": name, "ready_fd": tell_ready, "listen_fds": descriptors,
            "notice_fd": theirs.fileno(),
        }  # fmt: skip
        try:
            process = start_process(
                [sys.executable, "-m", MODULE, msgspec.json.encode(told).decode()],
                role=GATEWAY_ROLE,
                process_id=name,
                home=self._home.root,
                log_path=self._home.log_of(name),
                environment=settings.environment,
                inherit=[*descriptors, tell_ready, theirs.fileno()],
            )
        except BaseException:
            os.close(ready)
            ours.close()
            raise
        finally:
            os.close(tell_ready)
            theirs.close()
        line = NoticeLine(ours)
        line.listen(self._on_notice)
        self._lines.append(line)
        try:
            url = await _wait_ready(process, ready)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        self._processes[index], self._urls[index] = process, url
        await self._on_row(GatewayRow(name, url, process.pid, process.ident.created_s, "ready"))

    def _keep(self, index: int) -> None:
        self._keepers[index] = asyncio.ensure_future(self._keep_running(index))

    async def _keep_running(self, index: int) -> None:
        """Start a worker anew whenever it ends by itself."""
        ends = 0
        while True:
            process = self._processes[index]
            started_s = time.monotonic()
            await process.wait()
            if self._stopping:
                return
            if self._processes[index] is not process:
                continue
            ends = 1 if time.monotonic() - started_s > STEADY_S else ends + 1
            log.error("%s ended: %s", _name(index), process.read_log_end())
            await asyncio.sleep(BACKOFF_S[min(ends, len(BACKOFF_S)) - 1])
            async with self._starting[index]:
                if self._processes[index] is not process:
                    continue  # another took its place meanwhile
                assert self._settings is not None
                try:
                    await self._start(index, self._settings)
                except FleetError as error:
                    log.error("%s cannot be started: %s", _name(index), error)
                except Exception:
                    # This task must never end by itself.
                    log.exception("%s cannot be started", _name(index))


def _name(index: int) -> str:
    return f"gateway-{index}"


async def _wait_ready(process: ManagedProcess, ready: int) -> str:
    """The worker's own URL, which it writes to the pipe `ready` once it listens. Raises
    `FleetError`.
    """
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ready, "rb")
    )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            url = (await reader.readline()).decode().strip()
            if not url:
                await process.wait()
    except TimeoutError:
        raise FleetError(f"the gateway did not start within {START_TIMEOUT_S:g} s") from None
    finally:
        transport.close()
    if not url:
        raise FleetError(f"the gateway ended: {process.read_log_end()}")
    return url
