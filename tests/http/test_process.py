"""A server process from its start to its end, in a real process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

CODE = """
import asyncio, logging, sys
from thrifty.errors import FleetError
from thrifty.http.process import run_process

async def main(stopping):
    logging.getLogger("mine").info("an info")
    logging.getLogger("mine").debug("a debug")
    print(type(asyncio.get_running_loop()).__module__, flush=True)
    what = sys.argv[1]
    if what == "wait":
        await stopping.wait()
        return 7
    if what == "refuse":
        raise FleetError("no port is free; stop something")
    if what == "crash":
        raise ZeroDivisionError("a bug")
    return 0

sys.exit(run_process(main))
"""


def start(what: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, what],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(what: str, **environment: str) -> tuple[int, str, str]:
    with start(what, **environment) as process:
        output, errors = process.communicate(timeout=30)
    return process.returncode, output, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_end_by_itself(number: signal.Signals) -> None:
    with start("wait") as process:
        assert process.stdout is not None
        loop = process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 7
    assert "Traceback" not in errors
    assert loop.strip() == "uvloop"


def test_what_main_returns_is_the_exit_status() -> None:
    status, _, errors = run("done")
    assert status == 0
    assert "INFO mine: an info" in errors
    assert "a debug" not in errors


def test_an_error_of_ours_is_one_line_for_the_supervisor() -> None:
    status, _, errors = run("refuse", THRIFTY_LOG="error")
    assert (status, errors) == (1, "Error: no port is free; stop something\n")


def test_a_bug_keeps_its_traceback() -> None:
    status, _, errors = run("crash")
    assert status == 1
    assert "ZeroDivisionError: a bug" in errors


@pytest.mark.parametrize("level", ["debug", "DEBUG", "Debug"])
def test_the_log_level_is_taken_in_any_case(level: str) -> None:
    _, _, errors = run("done", THRIFTY_LOG=level)
    assert "DEBUG mine: a debug" in errors


def test_an_unknown_log_level_is_refused_with_the_known_ones() -> None:
    status, output, errors = run("done", THRIFTY_LOG="loud")
    assert (status, output) == (1, "")
    assert errors == "Error: THRIFTY_LOG is 'loud'; set it to debug, info, warning or error\n"
