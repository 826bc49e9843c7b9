"""The recorder's process: it comes back after whatever kept it from starting, and ends when there is
nothing to record."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.control.running import service, until
from thrifty.control.gateway_settings import WorkerSettings, make_worker_settings
from thrifty.control.recorder import RecorderProcess
from thrifty.db import open_database
from thrifty.errors import FleetError
from thrifty.fleet.process import RECORDER_ROLE, find_ours
from thrifty.home import Home, make_private_folder
from thrifty.unix_sockets import connect_to

OTLP = {"otlp": {"endpoint": "http://127.0.0.1:9"}}


@contextlib.contextmanager
def no_descriptors(home: Home) -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def no_log_folder(home: Home) -> Iterator[None]:
    """A file stands in the place of the folder for logs."""
    away = home.root / "logs-away"
    if home.logs.exists():
        home.logs.rename(away)
    home.logs.touch()
    try:
        yield
    finally:
        home.logs.unlink()
        if away.exists():
            away.rename(home.logs)


def settings_of(home: Home, **gateway: object) -> WorkerSettings:
    return make_worker_settings(
        service(**gateway).gateway, home, host="127.0.0.1", port=1, database_url=home.database_url,
        id_secret="ab" * 32,
    )  # fmt: skip


def pids(home: Home) -> list[int]:
    return [ident.pid for ident, role, _ in find_ours(home.root) if role == RECORDER_ROLE]


@contextlib.asynccontextmanager
async def recorder_of(home: Home) -> AsyncIterator[RecorderProcess]:
    make_private_folder(home.root)
    make_private_folder(home.run)
    open_database(home.database_url, migrate=True).close()
    made = RecorderProcess(home)
    try:
        yield made
    finally:
        await made.stop()
    assert pids(home) == []


@pytest.mark.parametrize("fault", [no_descriptors, no_log_folder])
async def test_a_recorder_that_ends_during_a_fault_comes_back_after_it(
    home: Home,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[Home], AbstractContextManager[None]],
) -> None:
    async with recorder_of(home) as recorder:
        await recorder.apply(settings_of(home))
        (pid,) = pids(home)
        with fault(home):
            os.kill(pid, signal.SIGKILL)
            await until(lambda: "the recorder cannot be started" in caplog.text)
        await until(lambda: pids(home))
        assert pids(home) != [pid]


async def test_a_recorder_that_could_not_be_started_is_tried_again(home: Home) -> None:
    async with recorder_of(home) as recorder:
        with no_log_folder(home), pytest.raises(FleetError, match="logs"):
            await recorder.apply(settings_of(home))
        await until(lambda: pids(home))
        (pid,) = pids(home)
        await recorder.apply(settings_of(home))
        assert pids(home) == [pid]


async def test_without_anything_to_record_nobody_listens(home: Home) -> None:
    async with recorder_of(home) as recorder:
        await recorder.apply(settings_of(home))
        connect_to(home.recorder_socket).close()
        await recorder.apply(settings_of(home, record_requests=False))
        assert pids(home) == []
        with pytest.raises(FileNotFoundError):
            connect_to(home.recorder_socket)
        await recorder.apply(settings_of(home, record_keep_s=60.0))
        connect_to(home.recorder_socket).close()


async def test_it_is_known_when_workers_have_to_be_replaced_first(home: Home) -> None:
    async with recorder_of(home) as recorder:
        plain, traced = settings_of(home), settings_of(home, observe=OTLP)
        silent = settings_of(home, record_requests=False)
        assert not recorder.takes_less(silent)
        await recorder.apply(plain)
        assert recorder.takes_less(silent)
        assert not recorder.takes_less(traced)
        await recorder.apply(traced)
        assert recorder.takes_less(plain)
        assert recorder.takes_less(settings_of(home, record_requests=False, observe=OTLP))
        assert not recorder.takes_less(settings_of(home, record_keep_s=60.0, observe=OTLP))
