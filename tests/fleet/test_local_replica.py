"""A replica's life: ready when it generates, restarted when it dies, judged when it keeps dying."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.parts import running_server
from thrifty.artifacts import Store
from thrifty.engines.base import EngineLoad, Launch, Served
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.machine import detect_machine
from thrifty.fleet import local_replica as local
from thrifty.fleet.external import ExternalReplica
from thrifty.fleet.local_replica import LocalReplica
from thrifty.home import Home
from thrifty.http.server import Exchange
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


class Deaf(EchoEngine):
    """An echo engine that is never ready."""

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        return "not today"


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


async def until(
    replica: LocalReplica | ExternalReplica, state: ReplicaState, timeout_s: float = 20
) -> None:
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


async def test_a_replica_that_is_never_ready_is_given_up_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BACKOFF_S", (0.01,))
    one = replica(home, Deaf(), start_timeout_s=0.3)
    one.start()
    await until(one, ReplicaState.BACKOFF)
    assert one.message == "not ready within 0.3 s: not today"
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


async def test_an_external_replica_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.engines.remote import RemoteEngine
    from thrifty.fleet import external

    monkeypatch.setattr(external, "WATCH_INTERVAL_S", 0.05)
    status = 200

    async def upstream(exchange: Exchange) -> None:
        exchange.respond(status, b"{}")

    served = Served("m", "remote", "v", "r", "decoder", options={})
    async with running_server(upstream) as (url, _):
        one = ExternalReplica("m-0", url, served, RemoteEngine(), lambda: None)
        one.start()
        await until(one, ReplicaState.READY)
        status = 503
        await until(one, ReplicaState.UNHEALTHY)
        assert "answers 503" in (one.message or "")
        status = 200
        await until(one, ReplicaState.READY)
    await until(one, ReplicaState.UNHEALTHY)
    await one.stop()
