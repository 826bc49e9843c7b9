"""The recorder: started before the gateway's workers, kept, replaced when its settings change, and
stopped after them.

The socket at which workers reach it is the controller's, and outlives the process, so that workers
connect while another one starts. What they hand over meanwhile waits with them. A recorder that
cannot be started is tried again until it can.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from thrifty.control.gateway_settings import WorkerSettings
from thrifty.errors import FleetError
from thrifty.fleet.local_replica import BACKOFF_S
from thrifty.fleet.process import RECORDER_ROLE, ManagedProcess, start_process
from thrifty.home import Home
from thrifty.observe.settings import RecorderSettings
from thrifty.unix_sockets import listen_at

log = logging.getLogger(__name__)

MODULE = "thrifty.observe.recorder"
NAME = "recorder"
STEADY_S = 60.0
GRACE_S = 15.0
"""For what is left to be written, and sent to a collector."""


class RecorderProcess:
    """The recorder of one controller."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._listening: socket.socket | None = None
        self._process: ManagedProcess | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._told: tuple[Mapping[str, Any], Mapping[str, str]] | None = None
        """The settings and the environment of the one that runs, or is to run."""
        self._changing = asyncio.Lock()

    def takes_less(self, settings: WorkerSettings) -> bool:
        """Whether a recorder with these settings, or none, would not take all that workers hand over
        now: the workers have to be replaced before it.
        """
        if self._told is None:
            return False
        old = msgspec.convert(self._told[0], RecorderSettings)
        new = msgspec.convert(_choose(settings), RecorderSettings)
        ends_requests = old.record_requests and not new.record_requests
        return ends_requests or (old.observe.otlp is not None and new.observe.otlp is None)

    async def apply(self, settings: WorkerSettings) -> None:
        """Have a recorder run with what concerns it of the workers' settings, or none if there is
        nothing to record. Raises `FleetError` where it cannot be started now: it is tried again.
        """
        async with self._changing:
            chosen = _choose(settings)
            told = chosen, settings.environment
            if self._told == told:
                return
            await self._end()
            self._told = told
            if not msgspec.convert(chosen, RecorderSettings).needs_recorder:
                self._close_socket()
                return
            try:
                self._process = self._start()
            finally:
                self._keeper = asyncio.ensure_future(self._keep_running())

    async def stop(self) -> None:
        """Have the rest written, and end it."""
        async with self._changing:
            await self._end()
            self._close_socket()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()

    async def _end(self) -> None:
        self._told = None
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
            self._keeper = None
        if self._process is not None:
            await self._process.stop(GRACE_S)
            self._process = None

    def _close_socket(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            self._home.recorder_socket.unlink(missing_ok=True)

    def _start(self) -> ManagedProcess:
        assert self._told is not None
        settings, environment = self._told
        if self._listening is None:
            self._listening = listen_at(self._home.recorder_socket)
        descriptor = self._listening.fileno()
        told = msgspec.json.encode(settings).decode()
        return start_process(
            [sys.executable, "-m", MODULE, str(descriptor), told],
            role=RECORDER_ROLE, process_id=NAME, home=self._home.root, log_path=self._home.log_of(NAME),
            environment=environment, inherit=[descriptor],
        )  # fmt: skip

    async def _keep_running(self) -> None:
        """Start it anew whenever it ends by itself, or could not be started."""
        ends = 0
        while True:
            process, started_s = self._process, time.monotonic()
            if process is not None:
                await process.wait()
                log.error(
                    "the recorder ended (status %s): %s",
                    process.exit_status, process.read_log_end(),
                )  # fmt: skip
            ends = 1 if time.monotonic() - started_s > STEADY_S else ends + 1
            await asyncio.sleep(BACKOFF_S[min(ends, len(BACKOFF_S)) - 1])
            self._process = None
            try:
                self._process = self._start()
            except FleetError as error:
                log.error("the recorder cannot be started: %s", error)
            except Exception:
                # This task must never end by itself.
                log.exception("the recorder cannot be started")


def _choose(settings: WorkerSettings) -> dict[str, Any]:
    """What concerns the recorder."""
    names = RecorderSettings.__struct_fields__
    return {name: value for name, value in settings.settings.items() if name in names}
