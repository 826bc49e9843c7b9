"""Processes that end with the one that started them, and cores that replicas of a node share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from thrifty.fleet.ray_cores import take_cores

OWNER = """
import subprocess, sys, time
from thrifty.fleet.owned_child import make_owned
sleeper = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"]
child = subprocess.Popen(make_owned(sleeper), start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        child = psutil.Process(int(owner.stdout.readline()))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_a_child_whose_parent_is_gone_does_not_begin() -> None:
    command = [sys.executable, "-m", "thrifty.fleet.owned_child", "1", sys.executable, "-c", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "has ended" in ended.stderr
    assert ended.returncode == 1


def test_cores_are_held_for_as_long_as_the_process_lives(tmp_path: Path) -> None:
    everything = sorted(os.sched_getaffinity(0))
    take = f"from pathlib import Path; from thrifty.fleet.ray_cores import take_cores as t; \
print(t(Path({str(tmp_path)!r}), 1), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", take], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == str(everything[:1])
        assert take_cores(tmp_path, len(everything)) == [], "not enough are free"
        other.communicate("\n")
    assert take_cores(tmp_path, len(everything)) == everything
