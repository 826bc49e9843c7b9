"""What goes wrong while a service changes: controllers, replicas and workers that are killed, and a
database that is away. No request fails, nothing is left over, and nothing runs twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.control.running import (
    ControllerProcess,
    asking,
    by_id,
    deployment,
    echo,
    prepare,
    running_controller,
    service,
    settled,
    until,
    until_state,
    want,
)
from thrifty.db.fleet import FleetState, read_fleet
from thrifty.db.tables import requests
from thrifty.fleet.process import RECORDER_ROLE, find_ours
from thrifty.home import Home

pytestmark = pytest.mark.service


def pids(state: FleetState) -> dict[str, int | None]:
    return {row.id: row.pid for row in state.replicas}


def starting(state: FleetState) -> bool:
    return any(row.state == "starting" and row.pid for row in state.replicas)


def draining(state: FleetState) -> bool:
    return any(row.state == "draining" for row in state.replicas)


def anything(state: FleetState) -> bool:
    return True


@pytest.mark.parametrize("moment", [anything, starting, draining])
async def test_a_controller_killed_in_the_middle_of_a_change(
    home: Home, moment: Callable[[FleetState], bool]
) -> None:
    old, new = deployment(echo("a", "a1", count=2)), deployment(echo("a", "a2", count=2, load=1.5))
    database = prepare(home, old, workers=2)
    first = ControllerProcess(home)
    url = await first.wait_ready()
    # The next controller has to find the port again.
    want(database, gateway=service(workers=2, port=int(url.rpartition(":")[2])))
    second = None
    try:
        async with asking(url) as clients:
            await clients.progress()
            want(database, new)
            state = await until_state(database, moment)
            first.kill()
            before = pids(state)
            await clients.progress()
            second = ControllerProcess(home)
            assert await second.wait_ready() == url
            state = await until_state(database, settled(new))
            await clients.progress()
    finally:
        if second is not None:
            await second.stop()
    if moment is starting:
        # What was being loaded is not loaded again.
        kept = {row_id for row_id, pid in pids(state).items() if before.get(row_id) == pid}
        assert kept
    assert find_ours(home.root) == []
    assert read_fleet(database).replicas == []
    database.close()


async def test_a_change_that_was_made_while_no_controller_ran(home: Home) -> None:
    old, new = deployment(echo("a", "a1")), deployment(echo("a", "a2"), echo("b"))
    database = prepare(home, old)
    first = ControllerProcess(home)
    url = await first.wait_ready()
    async with asking(url) as clients:
        first.kill()
        # Weights take effect all the same; the rest waits for a controller.
        want(database, new, gateway=service(port=int(url.rpartition(":")[2])))
        await asyncio.sleep(0.5)
        await clients.progress()
        assert set(clients.answers) == {"a1"}
        second = ControllerProcess(home)
        await second.wait_ready()
        await until_state(database, settled(new))
        roles = Counter(role for _, role, _ in find_ours(home.root))
        assert roles == {"replica": 2, "gateway": 1, "recorder": 1}
        await clients.progress()
    await second.stop()
    database.close()


async def test_a_database_that_is_away_while_the_desired_state_changes(home: Home) -> None:
    old, new = deployment(echo("a", "a1", count=2)), deployment(echo("a", "a2", count=2))
    database = prepare(home, old)
    async with running_controller(home) as controller, asking(controller.gateway_url) as clients:
        locker = sqlite3.connect(home.database, isolation_level=None, timeout=20)
        want(database, new)
        locker.execute("BEGIN EXCLUSIVE")
        try:
            # A replica dies meanwhile: it comes back without the database.
            victim = controller.observe()[0].row
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            await asyncio.sleep(7)  # longer than anybody waits for a lock
            await clients.progress()
        finally:
            locker.execute("ROLLBACK")
            locker.close()
        await until_state(database, settled(new))
        await clients.progress()
    database.close()


async def test_replicas_and_workers_that_die_while_they_are_replaced(home: Home) -> None:
    database = prepare(home, deployment(echo("a", "a0", count=2)), workers=2)
    async with running_controller(home) as controller:
        for turn in range(1, 4):
            new = deployment(echo("a", f"a{turn}", count=2))
            want(database, new, gateway=service(workers=2, max_body_bytes=1_000_000 + turn))
            await until_state(database, starting)
            for one in controller.observe():
                if one.row.pid is not None and random.random() < 0.5:
                    os.kill(one.row.pid, signal.SIGKILL)
            for ident, role, _ in find_ours(home.root):
                if role == "gateway" and random.random() < 0.5:
                    os.kill(ident.pid, signal.SIGKILL)
            await until_state(database, settled(new))
        async with asking(controller.gateway_url) as clients:
            await clients.progress()
        assert set(clients.answers) == {"a3"}

        def clean() -> bool:
            roles = Counter(role for _, role, _ in find_ours(home.root))
            return roles == {"replica": 2, "gateway": 2, "recorder": 1}

        async with asyncio.timeout(60):
            while not clean():
                await asyncio.sleep(0.1)
    database.close()


async def test_changes_that_overtake_each_other_lose_no_request(home: Home) -> None:
    """Each change comes while the ones before are under way."""
    choose = random.Random(1)
    database = prepare(home, deployment(echo("a", "a0")))

    def anything_at_all(turn: int) -> Any:
        labels = choose.sample(["a", "b", "c"], choose.randint(1, 2))
        versions = [
            echo(label, f"{label}{choose.randint(0, 1)}", choose.randint(1, 2), weight=1 + turn % 3)
            for label in labels
        ]
        return deployment(*versions)

    async with running_controller(home) as controller, asking(controller.gateway_url) as clients:
        last = None
        for turn in range(12):
            last = anything_at_all(turn)
            want(database, last)
            if turn % 4 == 1:
                want(database, gateway=service(workers=choose.randint(1, 2)))
            await clients.progress(choose.randint(1, 60))
        assert last is not None
        await until_state(database, settled(last))
        await clients.progress()
        assert {row.id: row.state for row in by_id(read_fleet(database)).values()}
    database.close()


async def test_a_recorder_that_is_killed_costs_no_request_and_no_row(home: Home) -> None:
    database = prepare(home, deployment(echo("a", count=2)), workers=2)

    def find_recorder() -> list[int]:
        return [ident.pid for ident, role, _ in find_ours(home.root) if role == RECORDER_ROLE]

    async with running_controller(home) as controller:
        async with asking(controller.gateway_url) as clients:
            for turn in range(3):
                await clients.progress(50)
                # One that is replaced by another has ended before that one starts.
                await until(lambda: len(find_recorder()) == 1)
                (pid,) = find_recorder()
                os.kill(pid, signal.SIGKILL)
                await until(lambda pid=pid: find_recorder() not in ([], [pid]))
                if turn == 1:
                    # Other settings are another recorder, and others workers.
                    want(database, gateway=service(workers=2, record_max_rows=1_000_000))
                    await until_state(database, lambda state: len(state.gateways) == 2)
            await clients.progress(50)
        assert not clients.faults
    with database.begin() as connection:
        rows = connection.execute(select(func.count()).select_from(requests)).scalar_one()
    # Those that were under way at the end were cut off, and may have rows, too.
    assert clients.count <= rows <= clients.count + 4
    database.close()


async def test_switching_recording_off_loses_no_row(home: Home) -> None:
    """Old workers hand over the rest to a recorder that ends after them."""
    database = prepare(home, deployment(echo("a")))
    async with running_controller(home) as controller:
        async with asking(controller.gateway_url) as clients:
            await clients.progress(50)
            want(database, gateway=service(record_requests=False))
            await until(lambda: not home.recorder_socket.exists())
            await clients.progress(50)
        assert RECORDER_ROLE not in {role for _, role, _ in find_ours(home.root)}
        logs = "".join(path.read_text() for path in home.logs.glob("gateway-*.log"))
        assert "lost its last" not in logs
    database.close()
