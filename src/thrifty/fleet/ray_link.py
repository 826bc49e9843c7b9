"""The controller's end of the process that speaks with Ray: it is started, heard, and started anew."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thrifty.fleet.owned_child import make_owned
from thrifty.fleet.ray_settings import RaySettings

RETRY_S = 2.0
CHECK_S = 2.0
END_S = 3.0
MAX_LINE = 1 << 24

Event = Mapping[str, Any]


class RayLink:
    """`run` it as a task. `on_event` gets every event but those of the link itself; `on_change` is
    called when one of its properties has changed.
    """

    def __init__(
        self,
        settings: RaySettings,
        log_path: Path,
        on_event: Callable[[Event], None],
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._log_path = log_path
        self._on_event = on_event
        self._on_change = on_change
        self._holder = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._process: asyncio.subprocess.Process | None = None
        self._checks: dict[str, asyncio.Future[bool | None]] = {}
        self.answered = asyncio.Event()
        """Set once it is known whether this controller may act, or that Ray is away."""
        self.ready = asyncio.Event()
        """Set while commands are carried out: Ray answers, the lease is held, and what there is was
        told.
        """
        self.other: str | None = None
        """Another controller, which acts."""
        self.fault: str | None = None
        self.away_since_s: float | None = None

    async def run(self) -> None:
        """Keep the process running."""
        while True:
            await self._run_once()
            self.ready.clear()
            if self.away_since_s is None:
                self._note_away("the connection ended")
            for waiting in self._checks.values():
                waiting.cancel()
            self._checks.clear()
            await asyncio.sleep(RETRY_S)

    async def _run_once(self) -> None:
        command = make_owned([
            sys.executable, "-m", "thrifty.fleet.ray_bridge", self._settings.address,
            self._settings.namespace, self._holder,
        ])  # fmt: skip
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log_file:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=log_file, limit=MAX_LINE, start_new_session=True,
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            )  # fmt: skip
        self._process = process
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                self._take(json.loads(line))
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "fault":
            self._note_away(event["message"])
        elif kind == "away":
            self._note_away(event.get("message") or "no answer")
        elif kind in ("connected", "back"):
            self.fault = self.away_since_s = None
            self._on_change()
        elif kind == "lease":
            self.other = event["other"]
            self.answered.set()
            self._on_change()
        elif kind == "checked":
            waiting = self._checks.pop(event["name"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(event["alive"])
        else:
            self._on_event(event)
            if kind == "listed":
                self.ready.set()
                self._on_change()

    def _note_away(self, message: str) -> None:
        if self.away_since_s is None:
            self.away_since_s = time.time()
        self.fault = message
        self.answered.set()
        self._on_change()

    def send(self, do: str, **values: Any) -> None:
        """Have a command carried out, if Ray can be reached; else it is lost."""
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")

    async def check(self, name: str) -> bool | None:
        """Whether an actor answers; None where Ray does not say, or knows that it is dead."""
        if not self.ready.is_set() or self.away_since_s is not None:
            return None
        waiting: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._checks[name] = waiting
        self.send("check", name=name)
        await asyncio.wait({waiting}, timeout=CHECK_S)
        self._checks.pop(name, None)
        return waiting.result() if waiting.done() and not waiting.cancelled() else None

    def close(self) -> None:
        """End the process, which gives the lease up."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def wait_closed(self) -> None:
        """Until the process has ended, after `close`."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
