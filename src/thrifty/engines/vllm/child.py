"""vLLM's server as a child process: started behind a guard, its words passed on, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from thrifty.engines.vllm import guard
from thrifty.engines.vllm.command_line import SOCKET
from thrifty.errors import EngineError
from thrifty.http.origin import Origin

STOP_TIMEOUT_S = guard.GRACE_S + 5
KEPT_LINES = 400
MAX_LINE_BYTES = 65_536
_FAULT = re.compile(r"\b((?:[A-Z]\w*)?(?:Error|Exception)|error): (.{3,})")
_FOLLOWS = ("Engine core initialization failed", "WorkerProc initialization failed")
"""What vLLM says of a fault that it told of before."""


class Child:
    """One server of vLLM's, behind a socket that only this user can reach."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._held: int | None = None
        self._ended: asyncio.Future[str]
        self._passing: asyncio.Task[None] | None = None
        self.origin = Origin("localhost", 80)

    async def start(self) -> None:
        """Start it, without waiting until it listens. Raises `EngineError`."""
        self._ended = asyncio.get_running_loop().create_future()
        folder = Path(tempfile.mkdtemp(prefix="thrifty-vllm-"))
        socket = folder / "socket"
        self.origin = Origin("localhost", 80, socket=str(socket))
        theirs, self._held = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", guard.__name__, str(theirs), str(folder),
                *self._command, SOCKET, str(socket),
                pass_fds=[theirs], stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **self._environment}, limit=MAX_LINE_BYTES,
            )  # fmt: skip
        except OSError as error:
            raise EngineError(f"{self._command[0]} cannot be started: {error.strerror}") from None
        finally:
            os.close(theirs)
        self._passing = asyncio.create_task(self._pass_on(self._process))

    async def wait_ended(self) -> str:
        """Return the reason once it has ended."""
        return await asyncio.shield(self._ended)

    def describe_end(self) -> str | None:
        """Why it ended; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def stop(self) -> None:
        """End it and all that it started."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
        if self._process is None or self._passing is None:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.shield(self._passing)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._passing

    async def _pass_on(self, process: asyncio.subprocess.Process) -> None:
        """Write its lines to our own log, and keep the last ones, until it ends."""
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line without an end: what there is of it was dropped
                continue
            if not line:
                break
            text = line.decode("utf-8", "replace").rstrip()
            self._lines.append(text)
            print(text, file=sys.stderr, flush=True)  # noqa: T201
        status = await process.wait()
        if not self._ended.done():
            self._ended.set_result(find_reason(self._lines, status))


def find_reason(lines: Sequence[str], status: int) -> str:
    """Why vLLM ended, by what it wrote: the last fault that names a cause of its own."""
    found = [match for line in lines if (match := _FAULT.search(line))]
    causes = [m for m in found if not m[2].startswith(_FOLLOWS)]
    for match in reversed(causes or found):
        return match[2].strip()[:500]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"vLLM ended with status {status}{f': {last[:300]}' if last else ''}"
