"""Deployments at zero, with real replicas: they wake, once, for every request, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import Llama
from tests.control.running import (
    ControllerProcess,
    deployment,
    echo,
    prepare,
    running_controller,
    until,
    until_state,
)
from tests.parts import Reply, ask
from tests.test_page_cache import drop
from thrifty.artifacts import Lineage, Store
from thrifty.control.controller import Controller
from thrifty.control.service_status import read_status
from thrifty.control.standby import find_model_files
from thrifty.db import Database
from thrifty.db.desired import read_history
from thrifty.db.desired_state import DesiredVersion
from thrifty.db.fleet import FleetState, ReplicaRow, read_fleet
from thrifty.home import Home
from thrifty.http.client import HttpClient
from thrifty.types import ReplicaState

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
NEVER_S = 3600.0


def asleep(most: int = 1, idle_after_s: float = NEVER_S, **options: Any) -> DesiredVersion:
    """An echo version at zero."""
    standby = options.pop("standby", "stopped")
    version = echo(count=0, **options)
    replicas = replace(
        version.replicas, min_count=0, max_count=most, idle_after_s=idle_after_s, standby=standby
    )
    return replace(
        version, replicas=replicas, settings=replace(version.settings, wakes=True, slots=4)
    )


@contextlib.asynccontextmanager
async def clients(url: str) -> AsyncIterator[Any]:
    """Gives a function that begins to ask, on a connection of its own."""
    made: list[HttpClient] = []

    def begin() -> asyncio.Task[Reply]:
        client = HttpClient()
        made.append(client)
        return asyncio.ensure_future(ask(client, url, BODY, "/v1/chat/completions"))

    try:
        yield begin
    finally:
        for client in made:
            client.close()


def waking(database: Database) -> ReplicaRow | None:
    """A replica whose process has been started and which is not ready."""
    found = read_fleet(database).replicas
    return next((r for r in found if r.pid and r.state == ReplicaState.STARTING), None)


def gone(state: FleetState) -> bool:
    return not state.replicas


async def test_a_burst_wakes_once_and_the_last_copy_goes_when_nobody_asks(home: Home) -> None:
    database = prepare(home, deployment(asleep(2, 1.0, load=0.3)))
    async with running_controller(home) as controller, clients(controller.gateway_url) as begin:
        client = HttpClient()
        ready = await ask(client, controller.gateway_url, b"", "/readyz", method="GET")
        assert (ready.status, controller.observe()) == (200, [])
        # Six requests and four slots a copy: two copies, at once or by the time that they are ready.
        replies = await asyncio.gather(*(begin() for _ in range(6)))
        assert [reply.status for reply in replies] == [200] * 6
        assert {one.row.restarts for one in controller.observe()} == {0}
        await until_state(database, gone)
        counts = [
            change.state.versions[0].replicas.count for change in read_history(database, "m", 20)
        ]
        # The newest first: nothing went up but for the burst.
        assert counts[0] == counts[-1] == 0
        assert [reply.status for reply in await asyncio.gather(begin())] == [200]
        client.close()
    database.close()


async def test_a_waking_replica_that_is_killed_loses_nothing(home: Home) -> None:
    database = prepare(home, deployment(asleep(load=0.5)))
    async with running_controller(home) as controller, clients(controller.gateway_url) as begin:
        asked = [begin() for _ in range(3)]
        row = await until(lambda: waking(database))
        os.kill(row.pid, signal.SIGKILL)
        assert [reply.status for reply in await asyncio.gather(*asked)] == [200] * 3
        assert [one.row.restarts for one in controller.observe()] == [1]
    database.close()


async def test_a_replica_that_cannot_start_is_told_of_at_once(home: Home) -> None:
    broken = replace(asleep(), engine="openvino", artifact="0" * 24)
    database = prepare(home, deployment(broken))
    async with running_controller(home) as controller, clients(controller.gateway_url) as begin:
        reply = await begin()
        assert (reply.status, reply.error["code"]) == (503, "cannot_start")
        assert "000000" in reply.error["message"]
    database.close()


@pytest.mark.slow
async def test_requests_outlive_their_controller(home: Home) -> None:
    """What one controller was told of, the next one reads in the database."""
    database = prepare(home, deployment(asleep(load=0.5)))
    first = ControllerProcess(home)
    url = await first.wait_ready()
    async with clients(url) as begin:
        asked = begin()
        await until(lambda: waking(database))
        first.kill()
        second = ControllerProcess(home)
        try:
            assert (await asked).status == 200
            assert len(read_fleet(database).replicas) == 1
        finally:
            await second.stop()
    database.close()


async def test_a_parked_copy_stays_and_answers_without_a_start(home: Home) -> None:
    database = prepare(home, deployment(asleep(1, 0.5, standby="parked")))
    async with running_controller(home) as controller, clients(controller.gateway_url) as begin:
        (row,) = await until_parked(controller)
        for _ in range(2):
            reply = await begin()
            assert reply.status == 200
            assert [one.row.pid for one in controller.observe()] == [row.pid]
            await until_parked(controller)
        # One that dies is made up for.
        os.kill(row.pid, signal.SIGKILL)
        await until(lambda: controller.observe()[0].row.restarts == 1)
        (new,) = await until_parked(controller)
        assert new.pid != row.pid
    database.close()


async def until_parked(controller: Controller) -> list[ReplicaRow]:
    def find() -> list[ReplicaRow]:
        rows = [one.row for one in controller.observe()]
        return rows if [row.state for row in rows] == [ReplicaState.PARKED] else []

    found: list[ReplicaRow] = await until(find)
    return found


async def test_requests_that_are_held_are_answered_before_the_service_stops(home: Home) -> None:
    database = prepare(home, deployment(asleep(load=0.5)))
    async with running_controller(home) as controller, clients(controller.gateway_url) as begin:
        asked = begin()
        await until(lambda: waking(database))
    assert (await asked).status == 200
    database.close()


async def test_a_cached_model_is_brought_back_while_nobody_asks(home: Home, tmp_path: Path) -> None:
    store = Store(home.models)
    _, artifact = store.add(Llama().write_safetensors(tmp_path / "m"), "tiny", Lineage())
    version = replace(asleep(standby="cached"), artifact=artifact.id)
    files = find_model_files(version, store.folder_of)
    assert files
    database = prepare(home, deployment(version))
    async with running_controller(home):
        # Without a store, nobody knows.
        (shown,) = read_status(database)
        assert shown["versions"][0]["zero"]["rung"] == "stopped"
        for path in files:
            drop(path)

        def find_rung() -> bool:
            (shown,) = read_status(database, store.folder_of)
            zero = shown["versions"][0]["zero"]
            return (zero["rung"], zero["cached_share"]) == ("cached", 1.0)

        await until(find_rung)
    database.close()
