"""A replica's life: ready when it generates, restarted when it dies, judged when it keeps dying."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.parts import ask
from thrifty.artifacts import Store
from thrifty.engines.base import EngineLoad, Launch, Served
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.machine import detect_machine
from thrifty.fleet import local_replica as local
from thrifty.fleet.local_replica import LocalReplica
from thrifty.home import Home
from thrifty.http.client import HttpClient, TransportError
from thrifty.spec import load_spec
from thrifty.types import ReplicaState


def echo_served(**options: Any) -> Served:
    spec = load_spec(flags={"engine.kind": "echo"}).spec
    served = EchoEngine().prepare(
        spec, None, Store(Path("/none")), detect_machine(), lambda p: None
    )
    return Served(**{**vars(served), "options": {**served.options, **options}})


class Broken(EchoEngine):
    """An echo engine whose command ends at once."""

    def launch(
        self, served: Served, store: Store, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        code = "print('Error: the weights are gone'); raise SystemExit(4)"
        return Launch([sys.executable, "-c", code])


class Raising(EchoEngine):
    """An echo engine that fails in a way that no fleet expects."""

    def launch(
        self, served: Served, store: Store, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        raise ValueError("context must be at least 64")


class Deaf(EchoEngine):
    """An echo engine that is never ready."""

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        return "not today"


class Speechless(EchoEngine):
    """An echo engine whose server is up and generates nothing."""

    speechless = True

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        fault = await super().probe(url, served, deep=deep)
        if deep and fault is None and self.speechless:
            self.asked_s.append(time.monotonic())
            return "out of words"
        return fault


class Silent(EchoEngine):
    """An echo engine that stops telling its load."""

    silent = False

    async def read_load(self, url: str) -> EngineLoad:
        if self.silent:
            raise OSError("no answer")
        return await super().read_load(url)


def replica(
    home: Home, engine: EchoEngine, served: Served | None = None, **options: Any
) -> LocalReplica:
    values = {
        "home": home, "store": Store(home.models), "cores": [0], "memory_share": 1.0,
        "memory_limit": None, "start_timeout_s": 30.0, "on_change": lambda: None, **options,
    }  # fmt: skip
    return LocalReplica("echo-0", served or echo_served(), engine, **values)


async def until(replica: LocalReplica, state: ReplicaState, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while replica.state is not state:
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_ready_means_that_a_token_was_generated(home: Home) -> None:
    states: list[str] = []
    one = replica(home, EchoEngine(), echo_served(load=0.5))
    one._on_change = lambda: states.append(one.state.value)
    one.start()
    await one.ready_once.wait()
    row = one.row()
    assert row.state == "ready"
    assert row.pid is not None
    assert row.url.startswith("http://127.0.0.1:")
    assert one.ready_after_s > 0.5
    assert states.index("starting") < states.index("ready")
    await one.stop()
    assert one.state is ReplicaState.STOPPED


@pytest.mark.slow
async def test_a_killed_replica_comes_back_and_is_counted(home: Home) -> None:
    one = replica(home, EchoEngine())
    one.start()
    await one.ready_once.wait()
    first = one.row()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await until(one, ReplicaState.BACKOFF)
    assert "killed by signal 9" in (one.message or "")
    await until(one, ReplicaState.READY)
    second = one.row()
    assert second.restarts == 1
    assert second.pid != first.pid
    await one.stop()


async def test_a_start_that_is_killed_has_not_failed_by_itself(home: Home) -> None:
    """Requests that wait for it go on waiting: the next start may well succeed."""
    states: list[str] = []
    one = replica(home, EchoEngine(), echo_served(load=30))
    one._on_change = lambda: states.append(one.state.value)
    one.start()
    async with asyncio.timeout(20):
        while (pid := one.row().pid) is None:
            await asyncio.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    await until(one, ReplicaState.BACKOFF)
    assert "failed" not in states
    await one.stop(0.1)


async def test_ends_in_a_row_become_a_crash_loop_with_its_reason(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BACKOFF_S", (0.01,))
    one = replica(home, Broken())
    one.start()
    await one.ready_once.wait()
    assert one.state is ReplicaState.CRASH_LOOP
    assert one.restarts == local.CRASH_LOOP_AFTER
    assert one.message == "the process ended with status 4: the weights are gone"
    await one.stop()


async def test_whatever_an_engine_raises_is_told_and_tried_again(home: Home) -> None:
    one = replica(home, Raising())
    one.start()
    await until(one, ReplicaState.FAILED)
    assert one.message == "ValueError: context must be at least 64"
    await one.stop()


async def test_a_replica_that_is_never_ready_is_given_up_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BACKOFF_S", (600.0,))
    one = replica(home, Deaf(), start_timeout_s=0.3)
    one.start()
    await until(one, ReplicaState.FAILED)
    assert one.message == "not ready within 0.3 s: not today"
    await one.stop()


async def test_a_start_says_why_nothing_is_generated(home: Home) -> None:
    """And its server is not asked again at once, or its log would fill."""
    engine = Speechless()
    one = replica(home, engine)
    one.start()
    async with asyncio.timeout(20):
        while len(engine.asked_s) < 2:
            await asyncio.sleep(0.02)
        assert (one.state, one.message) == (ReplicaState.STARTING, "out of words")
        assert engine.asked_s[1] - engine.asked_s[0] >= local.WATCH_INTERVAL_S
        engine.speechless = False
        await one.ready_once.wait()
    assert one.message is None
    await one.stop()


@pytest.mark.slow
async def test_a_silent_replica_gets_no_traffic_and_is_killed_in_the_end(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "WATCH_INTERVAL_S", 0.05)
    monkeypatch.setattr(local, "KILL_UNHEALTHY_S", 0.3)
    engine = Silent()
    one = replica(home, engine)
    one.start()
    await one.ready_once.wait()
    engine.silent = True
    await until(one, ReplicaState.UNHEALTHY)
    engine.silent = False
    await until(one, ReplicaState.READY)
    engine.silent = True
    await until(one, ReplicaState.BACKOFF)
    engine.silent = False
    await until(one, ReplicaState.READY)
    assert one.restarts == 1
    await one.stop()


async def test_a_replica_that_dies_comes_back_where_it_was(home: Home) -> None:
    """Gateways that cannot read the database meanwhile find it again."""
    one = replica(home, EchoEngine())
    one.start()
    await one.ready_once.wait()
    row = one.row()
    one.leave()
    two = replica(home, EchoEngine())
    two.start(row)
    await two.ready_once.wait()
    for number in (1, 2):
        pid = two.row().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while two.restarts < number or two.state is not ReplicaState.READY:
                await asyncio.sleep(0.02)
        assert (two.restarts, two.row().url) == (number, row.url)
    await two.stop()
    await one.stop()


@pytest.mark.slow
async def test_a_replica_past_its_memory_limit_is_drained_and_started_anew(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "WATCH_INTERVAL_S", 0.1)
    one = replica(home, EchoEngine(), memory_limit=1_000_000)
    one.start()
    await one.ready_once.wait()
    await until(one, ReplicaState.DRAINING)
    assert "more than its limit of 1000000" in (one.message or "")
    await until(one, ReplicaState.READY)
    assert one.restarts == 1
    await one.stop()


@pytest.mark.parametrize("free_bytes", [10**9, 10**5])
async def test_a_replica_past_its_memory_limit_ends_what_it_works_on(
    home: Home, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    """Unless the machine's memory is nearly used up."""
    monkeypatch.setattr(local, "WATCH_INTERVAL_S", 0.05)
    monkeypatch.setattr(local, "available_memory_bytes", lambda: free_bytes)
    monkeypatch.setattr(local, "STOP_GRACE_S", 0.1)
    one = replica(home, EchoEngine(), echo_served(tpot=0.02))
    one.start()
    await one.ready_once.wait()
    client = HttpClient()
    body = b'{"model": "echo", "prompt": "a", "max_tokens": 80, "ignore_eos": true}'
    asking = asyncio.ensure_future(ask(client, one.row().url, body, "/v1/completions"))
    while (await EchoEngine().read_load(one.row().url)).running == 0:
        await asyncio.sleep(0.01)
    one.set_bounds(2_000_000, 30.0)
    await until(one, ReplicaState.DRAINING)
    if free_bytes == 10**9:
        assert (await asking).json()["usage"]["completion_tokens"] == 80
    else:
        with pytest.raises(TransportError):
            await asking
    await one.stop()
    client.close()


async def test_a_running_replica_is_adopted(home: Home) -> None:
    one = replica(home, EchoEngine())
    one.start()
    await one.ready_once.wait()
    row = one.row()
    one.leave()
    two = replica(home, EchoEngine())
    two.start(row)
    await two.ready_once.wait()
    assert two.row().pid == row.pid
    assert two.restarts == 0
    await two.stop()
    await one.stop()


@pytest.mark.slow
async def test_a_replica_of_another_revision_is_not_adopted(home: Home) -> None:
    one = replica(home, EchoEngine())
    one.start()
    await one.ready_once.wait()
    row = one.row()
    one.leave()
    served = Served(**{**vars(echo_served()), "revision": "another"})
    two = replica(home, EchoEngine(), served)
    two.start(row)
    await two.ready_once.wait()
    assert two.row().pid != row.pid
    await two.stop()
    await one.stop()


async def test_a_replica_that_was_starting_is_adopted_and_waited_for(home: Home) -> None:
    one = replica(home, EchoEngine(), echo_served(load=1.5))
    one.start()
    async with asyncio.timeout(20):
        while one.row().pid is None or not one.row().url.startswith("http://127.0.0.1:"):
            await asyncio.sleep(0.02)
    row = one.row()
    assert row.state == "starting"
    one.leave()
    two = replica(home, EchoEngine(), echo_served(load=1.5))
    two.start(row)
    await two.ready_once.wait()
    assert (two.row().pid, two.restarts) == (row.pid, 0)
    await two.stop()
    await one.stop()


async def test_a_replica_that_serves_is_not_out_of_service_while_it_is_adopted(home: Home) -> None:
    one = replica(home, EchoEngine())
    one.start()
    await one.ready_once.wait()
    one.leave()
    states: list[str] = []
    two = replica(home, EchoEngine())
    two._on_change = lambda: states.append(two.state.value)
    two.start(one.row())
    await two.ready_once.wait()
    assert set(states) == {"ready"}
    await two.stop()
    await one.stop()


async def test_a_replica_retires_once_gateways_know_and_its_requests_have_ended(home: Home) -> None:
    told = asyncio.Event()
    one = replica(home, EchoEngine(), echo_served(tpot=0.02), announce=told.wait)
    one.start()
    await one.ready_once.wait()
    client = HttpClient()
    body = b'{"model": "echo", "prompt": "a", "max_tokens": 80, "ignore_eos": true}'
    asking = asyncio.ensure_future(ask(client, one.row().url, body, "/v1/completions"))
    while (await EchoEngine().read_load(one.row().url)).running == 0:
        await asyncio.sleep(0.01)
    retiring = asyncio.ensure_future(one.retire())
    await until(one, ReplicaState.DRAINING)
    assert one._process is not None
    # Until gateways know, it takes requests as before.
    assert (await ask(client, one.row().url, body, "/v1/completions")).status == 200
    assert one._process.alive
    assert not retiring.done()
    told.set()
    await retiring
    assert (await asking).json()["usage"]["completion_tokens"] == 80
    assert one.state is ReplicaState.STOPPED
    assert not one._process.alive
    client.close()


async def test_a_replica_that_was_never_ready_retires_without_a_word(home: Home) -> None:
    async def announce() -> None:
        raise AssertionError("no gateway ever knew it")

    one = replica(home, EchoEngine(), echo_served(load=60.0), announce=announce)
    one.start()
    async with asyncio.timeout(20):
        while one.row().pid is None:
            await asyncio.sleep(0.02)
    await one.retire()
    assert one.state is ReplicaState.STOPPED
    assert one.row().pid is None
