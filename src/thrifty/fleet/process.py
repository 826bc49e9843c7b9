"""One process: started in a session of its own, watched, stopped gently and then not.

A process is known by its pid and the time it was created, so that a pid that was given out again
is never mistaken for ours. It outlives its controller: a new one finds it and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

from thrifty.errors import FleetError, ThriftyError
from thrifty.home import HOME_VARIABLE, make_private_folder

ROLE_VARIABLE = "THRIFTY_ROLE"
ID_VARIABLE = "THRIFTY_ID"
GATEWAY_ROLE, RECORDER_ROLE = "gateway", "recorder"
"""Of gateway workers, and of the process that they hand over to when they end, so that it ends last."""
POLL_S = 0.25
MAX_LOG_BYTES = 16_000_000
_CREATED_TOLERANCE_S = 0.05


@dataclass(frozen=True)
class ProcessId:
    """Which process: a pid, and when it was created."""

    pid: int
    created_s: float

    def is_same(self, pid: int | None, created_s: float | None) -> bool:
        """Whether these name the same process."""
        if pid is None or created_s is None:
            return False
        return pid == self.pid and abs(created_s - self.created_s) < _CREATED_TOLERANCE_S

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = self.is_same(process.pid, process.create_time())
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


class ManagedProcess:
    """A process of ours, started now or adopted."""

    def __init__(
        self, ident: ProcessId, popen: subprocess.Popen[bytes] | None, log_path: Path
    ) -> None:
        self.ident = ident
        self.log_path = log_path
        self._popen = popen

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.ident.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        if self._popen is not None:
            return self._popen.poll() is None
        return self.ident.find() is not None

    @property
    def exit_status(self) -> int | None:
        """Its exit status; None while it runs, or where it was adopted."""
        return self._popen.poll() if self._popen is not None else None

    def memory_bytes(self) -> int:
        """Resident memory of it and its children; what they share counts once where that is
        known.
        """
        process = self.ident.find()
        if process is None:
            return 0
        total = 0
        with contextlib.suppress(psutil.Error):
            for member in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += member.memory_info().rss
        return total

    async def wait(self) -> None:
        """Return once it has ended."""
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                await _wait_pidfd(self.ident.pid)
                # A child is gone for good only when it was reaped.
                if self._popen is not None:
                    self._popen.wait()
                return
        while self.alive:
            await asyncio.sleep(POLL_S)

    async def stop(self, grace_s: float) -> bool:
        """Ask it to end, and kill its whole session after `grace_s`; returns whether it obeyed."""
        if not self.alive:
            return True
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()
            return False
        return True

    def kill(self) -> None:
        """End it and all it started, at once."""
        if not self.alive:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.ident.pid, signal.SIGKILL)

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.ident.pid, number)

    def read_log_end(self, lines: int = 5) -> str:
        """The last lines it wrote, to tell why it died."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - 8192))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        errors = [line for line in text.splitlines() if line.startswith("Error: ")]
        if errors:
            return errors[-1].removeprefix("Error: ")
        return "\n".join(text.strip().splitlines()[-lines:])


def start_process(
    command: Sequence[str],
    *,
    role: str,
    process_id: str,
    home: Path,
    log_path: Path,
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
    inherit: Sequence[int] = (),
) -> ManagedProcess:
    """Start `command` on `cores`, its output in `log_path`. Raises `FleetError`.

    `inherit` are file descriptors that stay open in it.
    """
    full = {
        **os.environ,
        **(environment or {}),
        HOME_VARIABLE: str(home),
        ROLE_VARIABLE: role,
        ID_VARIABLE: process_id,
        "PYTHONUNBUFFERED": "1",
    }
    with _open_log(log_path) as log_file:
        try:
            with _on_cores(cores):
                popen = subprocess.Popen(
                    list(command),
                    env=full,
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=tuple(inherit),
                )
        except OSError as error:
            raise FleetError(f"{command[0]} cannot be started: {error.strerror}") from None
    try:
        created_s = psutil.Process(popen.pid).create_time()
    except (psutil.Error, OSError):
        created_s = time.time()
    return ManagedProcess(ProcessId(popen.pid, created_s), popen, log_path)


def _open_log(path: Path) -> BinaryIO:
    """The log of a process that is started, to add to; a long one is put aside. Raises `FleetError`."""
    try:
        make_private_folder(path.parent)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            os.replace(path, path.with_suffix(".log.1"))
        return path.open("ab")
    except ThriftyError as error:
        raise FleetError(str(error)) from None
    except OSError as error:
        raise FleetError(f"cannot write the log {path}: {error.strerror or error}") from None


def adopt_process(ident: ProcessId, log_path: Path) -> ManagedProcess | None:
    """Take over a process that an earlier controller started, if it still runs."""
    return ManagedProcess(ident, None, log_path) if ident.find() is not None else None


def read_environment(ident: ProcessId) -> dict[str, str]:
    """What a process was started with; empty where it is gone, or not ours to read."""
    process = ident.find()
    if process is None:
        return {}
    with contextlib.suppress(psutil.Error, OSError):
        return dict(process.environ())
    return {}


def read_cores(ident: ProcessId) -> list[int]:
    """The cores that a process may run on; empty where that is not known."""
    process = ident.find()
    if process is None or not hasattr(process, "cpu_affinity"):
        return []
    with contextlib.suppress(psutil.Error, OSError):
        return list(process.cpu_affinity() or [])
    return []


def find_ours(home: Path) -> list[tuple[ProcessId, str, str]]:
    """Every process that serves this home, with its role and id, whoever started it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(HOME_VARIABLE) != str(home) or ROLE_VARIABLE not in environment:
                continue
            # Children inherit the marks; the leader of each session is the one that was started.
            if os.getsid(process.pid) == process.pid:
                ident = ProcessId(process.pid, process.create_time())
                found.append((ident, environment[ROLE_VARIABLE], environment.get(ID_VARIABLE, "")))
    return found


@contextlib.contextmanager
def _on_cores(cores: Sequence[int] | None):  # type: ignore[no-untyped-def]
    """Run the block on `cores`; a process started in it inherits them from its first moment."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def _wait_pidfd(pid: int) -> None:
    """Wait until the process ends, without polling. Raises `OSError` where it is gone already."""
    descriptor = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def note_end() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(descriptor, note_end)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
