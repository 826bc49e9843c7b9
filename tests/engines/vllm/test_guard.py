"""The guard of vLLM's processes: with it, nothing is left when the server in front is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.parts import wait_until
from thrifty.engines.vllm import guard

TREE = """
import subprocess, sys, time
code = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
time.sleep(600)
"""
"""A server with children in sessions of their own, as vLLM's are."""


def start(folder: Path, code: str) -> tuple[subprocess.Popen[str], int]:
    theirs, held = os.pipe()
    os.set_inheritable(theirs, True)
    process = subprocess.Popen(
        [sys.executable, "-m", guard.__name__, str(theirs), str(folder), sys.executable, "-c", code],
        pass_fds=[theirs], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    return process, held


def read_pids(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    assert process.stdout is not None
    return [psutil.Process(int(process.stdout.readline())) for _ in range(count)]


@pytest.mark.slow
def test_all_processes_end_when_the_other_side_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "socket"
    folder.mkdir()
    process, held = start(folder, TREE)
    with process:
        children = read_pids(process, 2)
        assert all(child.is_running() for child in children)
        os.close(held)  # as when the process that holds it is killed
        assert process.wait(30) == 128 + 15
        wait_until(lambda: not any(c.is_running() for c in children), 10, "the children's end")
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to the guard")
def test_orphans_of_a_server_that_died_are_ended(tmp_path: Path) -> None:
    code = """
import os, subprocess, sys
child = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
print(process.stdout.readline().strip(), flush=True)
os.kill(os.getpid(), 9)
"""
    process, held = start(tmp_path, code)
    with process:
        (orphan,) = read_pids(process, 1)
        assert process.wait(30) == 128 + 9
        wait_until(lambda: not orphan.is_running(), 10, "the orphan's end")
    os.close(held)


@pytest.mark.slow
def test_status_of_the_command_is_passed_on(tmp_path: Path) -> None:
    process, held = start(tmp_path, "raise SystemExit(7)")
    with process:
        assert process.wait(30) == 7
    os.close(held)
