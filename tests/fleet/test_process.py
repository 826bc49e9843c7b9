"""Processes: started with marks and cores, found again, stopped gently and then not."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.parts import wait_until
from thrifty.errors import FleetError
from thrifty.fleet.process import (
    MAX_LOG_BYTES,
    ProcessId,
    adopt_process,
    find_ours,
    start_process,
)

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]  # fmt: skip
FAMILY = [
    sys.executable, "-c",
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "print('up', flush=True); time.sleep(60)",
]  # fmt: skip


def start(tmp_path: Path, command: list[str], **options):  # type: ignore[no-untyped-def]
    process = start_process(
        command,
        role="replica",
        process_id="r-0",
        home=tmp_path,
        log_path=tmp_path / "r.log",
        **options,
    )
    wait_until(lambda: "up" in (tmp_path / "r.log").read_text(), what="the process")
    return process


async def test_a_process_is_stopped_gently(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEP)
    assert process.alive
    assert process.memory_bytes() > 1_000_000
    assert await process.stop(5) is True
    assert not process.alive
    assert process.exit_status == -signal.SIGTERM


async def test_a_stubborn_process_is_killed_with_all_it_started(tmp_path: Path) -> None:
    process = start(tmp_path, STUBBORN)
    assert await process.stop(0.3) is False
    assert not process.alive


async def test_children_end_with_their_parent(tmp_path: Path) -> None:
    process = start(tmp_path, FAMILY)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    await process.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_the_end_is_noticed_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEP)
    waiting = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.wait_for(waiting, 30)
    assert process.exit_status == -signal.SIGKILL


async def test_an_adopted_process_is_watched_and_stopped_like_our_own(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEP)
    adopted = adopt_process(process.ident, tmp_path / "r.log")
    assert adopted is not None
    assert adopted.alive
    stopping = asyncio.ensure_future(adopted.stop(5))
    await process.wait()
    assert await stopping is True
    assert adopt_process(process.ident, tmp_path / "r.log") is None


def test_a_pid_that_was_given_out_again_is_not_mistaken(tmp_path: Path) -> None:
    process = start(tmp_path, SLEEP)
    stranger = ProcessId(process.pid, process.ident.created_s - 100)
    assert stranger.find() is None
    process.kill()
    wait_until(lambda: not process.alive)


def test_ours_are_found_by_their_marks_and_only_in_their_home(tmp_path: Path) -> None:
    process = start(tmp_path, FAMILY)
    assert [(i.pid, role, name) for i, role, name in find_ours(tmp_path)] == [
        (process.pid, "replica", "r-0")
    ]
    assert find_ours(tmp_path / "elsewhere") == []
    process.kill()
    wait_until(lambda: not process.alive)
    assert find_ours(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no core affinity here")
def test_it_runs_on_its_cores_from_the_start_and_we_stay_on_ours(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    process = start(tmp_path, SLEEP, cores=[core])
    assert os.sched_getaffinity(process.pid) == {core}
    assert os.sched_getaffinity(0) == before
    process.kill()
    wait_until(lambda: not process.alive)


def test_why_it_ended_is_read_from_its_log(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "print('up'); print('Error: no such model'); raise SystemExit(3)",
    ]
    process = start(tmp_path, command)
    wait_until(lambda: not process.alive)
    assert process.read_log_end() == "no such model"
    assert process.exit_status == 3


def test_a_command_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="/no/such/engine cannot be started: No such file"):
        start(tmp_path, ["/no/such/engine"])


@pytest.mark.parametrize("fault", ["folder", "rotation", "log"])
def test_a_log_that_cannot_be_written_is_said(tmp_path: Path, fault: str) -> None:
    log = tmp_path / "logs" / "r.log"
    match fault:
        case "folder":
            log.parent.touch()
        case "rotation":
            log.with_suffix(".log.1").mkdir(parents=True)
            log.touch()
            os.truncate(log, MAX_LOG_BYTES + 1)
        case "log":
            log.mkdir(parents=True)
    with pytest.raises(FleetError, match=str(tmp_path / "logs")):
        start_process(SLEEP, role="replica", process_id="r-0", home=tmp_path, log_path=log)
