"""A running service is changed under load, and no request fails, or is answered by another version
than the one that is said to have answered.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from tests.control.running import (
    Clients,
    asking,
    by_id,
    deployment,
    echo,
    prepare,
    running_controller,
    service,
    settled,
    until_state,
    want,
)
from tests.parts import until
from thrifty.artifacts import Store
from thrifty.control.controller import Controller
from thrifty.control.status import VersionState, describe_versions
from thrifty.db import Database, open_database
from thrifty.db.desired import read_desired
from thrifty.db.desired_state import DesiredReplicas
from thrifty.db.fleet import read_fleet, read_gateways
from thrifty.db.replica_spans import MACHINE
from thrifty.db.rollups import DAY_S
from thrifty.db.tables import replica_spans, rollups
from thrifty.engines.machine import detect_machine
from thrifty.errors import FleetError
from thrifty.fleet.process import find_ours
from thrifty.home import Home

pytestmark = pytest.mark.service


def count_rolled(database: Database) -> int:
    """How many requests are in the sums by day."""
    query = select(rollups.c.requests).where(rollups.c.step_s == DAY_S, rollups.c.version == "a")
    with database.begin() as connection:
        return sum(connection.execute(query).scalars())


async def test_a_desired_state_is_served_and_stopped(home: Home) -> None:
    one = deployment(echo("a", count=2))
    database = prepare(home, one)
    async with running_controller(home) as controller:
        state = read_fleet(database)
        assert settled(one)(state)
        assert sorted(by_id(state)) == ["m-0", "m-1"]
        assert controller.count_ready() == (2, 2)
        async with asking(controller.gateway_url) as clients:
            await clients.progress(10)
        assert set(clients.answers) == {"a"}
        await until(lambda: asyncio.to_thread(lambda: count_rolled(database) >= 10))
    after = read_fleet(database)
    assert (after.replicas, after.gateways) == ([], [])
    # Who held the machine, and what was asked, is known when all is over.
    with database.begin() as connection:
        spans = connection.execute(select(replica_spans)).all()
        assert {span.replica for span in spans} == {MACHINE, "m-0", "m-1"}
        assert all(span.ended_s >= span.started_s for span in spans)
        share = 1 / len(detect_machine().cores)
        assert {span.share for span in spans if span.replica} == {share}
    assert find_ours(home.root) == []
    database.close()


async def test_nothing_desired_is_told(home: Home) -> None:
    controller = Controller(home, Store(home.models), detect_machine())
    with pytest.raises(FleetError, match=r"nothing is desired .* thrifty up SPEC"):
        await controller.start()
    await controller.stop()


async def test_changes_under_load_lose_no_request(home: Home) -> None:
    database = prepare(home, deployment(echo("a", "a1")))
    async with running_controller(home) as controller, asking(controller.gateway_url) as clients:
        story = [
            deployment(echo("a", "a1", count=2)),  # more
            deployment(echo("a", "a2", count=2)),  # another revision under the same label
            deployment(echo("a", "a2", count=1)),  # fewer
            deployment(echo("b", "b1")),  # another label in its place
            deployment(echo("b", "b1", weight=50), echo("c", weight=50)),  # one beside it
            deployment(echo("b", "b1", weight=0), echo("c", weight=1)),
            deployment(echo("c", "c2")),  # both at once
        ]
        for wanted in story:
            want(database, wanted)
            await until_state(database, settled(wanted))
            await clients.progress()
        # What is said last is what answers.
        before = clients.answers["c2"]
        await clients.progress()
        assert clients.answers["c2"] > before
        assert set(clients.answers) == {"a1", "a2", "b1", "c", "c2"}
    database.close()


async def test_a_long_answer_ends_on_the_replica_that_goes(home: Home) -> None:
    old = deployment(echo("a", "a1", tpot=0.05))
    database = prepare(home, old)
    async with running_controller(home) as controller:
        fields = {"max_tokens": 100, "ignore_eos": True}
        async with asking(controller.gateway_url, people=1, **fields) as clients:
            await asyncio.sleep(0.3)
            new = deployment(echo("a", "a2"))
            want(database, new)
            await until_state(database, settled(new))
            await clients.progress(3)
        assert any(len(text) == 100 and text.startswith("a1") for text in clients.answers)
    database.close()


async def test_weights_take_effect_within_half_a_second(home: Home) -> None:
    first = deployment(echo("a", weight=1), echo("b", weight=0))
    database = prepare(home, first)
    async with running_controller(home) as controller, asking(controller.gateway_url) as clients:
        await clients.progress()
        assert clients.answers["b"] == 0
        want(database, deployment(echo("a", weight=0), echo("b", weight=1)), kind="traffic")
        await asyncio.sleep(0.5)
        clients.answers.clear()
        await clients.progress()
        assert set(clients.answers) == {"b"}
    database.close()


async def test_deployments_come_and_go(home: Home) -> None:
    one, two = deployment(echo("a")), deployment(echo("a"), name="n")
    database = prepare(home, one)
    async with running_controller(home) as controller, asking(controller.gateway_url) as clients:
        want(database, two)
        await until_state(database, settled(one, two))
        async with asking(controller.gateway_url, ["n"], people=1) as others:
            await others.progress(5)
        want(database, gone=["n"])
        await until_state(database, settled(one))
        await clients.progress()
    assert find_ours(home.root) == []
    database.close()


async def test_bounds_change_without_a_new_process(home: Home) -> None:
    database = prepare(home, deployment(echo("a")))
    async with running_controller(home):
        before = by_id(read_fleet(database))["m-0"].pid
        bounded = replace(
            echo("a"), replicas=DesiredReplicas(1, cpus=1, memory_limit_bytes=8_000_000_000)
        )
        wanted = deployment(bounded)
        want(database, wanted)
        await until_state(database, settled(wanted))
        await asyncio.sleep(0.5)
        assert by_id(read_fleet(database))["m-0"].pid == before
    database.close()


async def test_gateway_workers_are_replaced_and_their_number_changes(home: Home) -> None:
    one = deployment(echo("a", ttft=0.02))
    database = prepare(home, one)

    def workers(count: int, **settings: Any) -> Any:
        before = {row.pid for row in read_gateways(database)}
        want(database, gateway=service(workers=count, **settings))

        def check(state: Any) -> bool:
            pids = {row.pid for row in state.gateways}
            return len(pids) == count and not pids & before

        return check

    async with running_controller(home) as controller:
        async with asking(controller.gateway_url, people=8) as clients:
            for count, settings in (
                (3, {}), (3, {"max_body_bytes": 1_000_000}), (1, {}), (2, {}),
            ):  # fmt: skip
                await until_state(database, workers(count, **settings))
                await clients.progress(100)
            await until_state(
                database, lambda s: [row.id for row in s.gateways] == ["gateway-0", "gateway-1"]
            )
            roles = [role for _, role, _ in find_ours(home.root)]
        assert len(roles) >= 3
        assert clients.count > 400
        # What cannot change is left as it is.
        url = controller.gateway_url
        want(database, gateway=service(workers=2, port=1))
        await until_state(database, lambda state: len(state.gateways) == 2)
        async with asking(url) as clients:
            await clients.progress(10)
    database.close()


async def test_a_version_that_never_gets_ready_is_told_and_the_old_one_stays(home: Home) -> None:
    old = deployment(echo("a", "a1"))
    database = prepare(home, old)
    async with running_controller(home) as controller, asking(controller.gateway_url) as clients:
        # Its replicas end at once: an option that the engine refuses.
        broken = replace(echo("a", "a2"), options={"ttft": "nonsense"})
        want(database, deployment(broken))

        def waits(state: Any) -> bool:
            desired = read_desired(database).deployments["m"]
            (row,) = state.deployments
            (version,) = describe_versions(desired, row, state.replicas, state.messages)
            return version.state is VersionState.WAITING and "ended with status" in str(version)

        state = await until_state(database, waits)
        assert state.deployments[0].versions[0].revision == "a1"
        await clients.progress()
        assert set(clients.answers) == {"a1"}
        # Taken back, all is as it was.
        want(database, old, kind="rollback")
        state = await until_state(database, settled(old))
        (version,) = describe_versions(old, state.deployments[0], state.replicas, {})
        assert str(version) == "ready"
    database.close()


async def test_two_controllers_of_one_home_are_refused(home: Home) -> None:
    database = prepare(home, deployment(echo("a")))
    async with running_controller(home) as controller:
        other = Controller(home, Store(home.models), detect_machine())
        with pytest.raises(FleetError, match=r"runs already in .*http://127.*thrifty down"):
            await other.start()
        await other.stop()
        async with asking(controller.gateway_url) as clients:
            await clients.progress(5)
        assert (home.run / "controller.json").exists(), "the note is the other one's"
    database.close()


async def test_a_replaced_database_file_is_written_anew(home: Home) -> None:
    one = deployment(echo("a"))
    database = prepare(home, one)
    async with running_controller(home) as controller, asking(controller.gateway_url) as clients:
        database.close()
        for name in ("thrifty.db", "thrifty.db-wal", "thrifty.db-shm"):
            (home.root / name).unlink(missing_ok=True)
        began = time.monotonic()
        while not home.database.exists():
            assert time.monotonic() - began < 60
            await asyncio.sleep(0.05)
        database = open_database(home.database_url, migrate=False)
        await until_state(database, settled(one))
        two = deployment(echo("a", "a2"))
        want(database, two)
        await until_state(database, settled(two))
        await clients.progress()
    database.close()


async def test_a_stop_while_workers_are_replaced_leaves_nothing(home: Home) -> None:
    slow = {"max_tokens": 300, "ignore_eos": True}
    database = prepare(home, deployment(echo("a", tpot=0.05)), drain_timeout_s=3.0)
    controller = Controller(home, Store(home.models), detect_machine())
    await controller.start()
    await controller.wait_ready()
    clients = Clients(controller.gateway_url, fields=slow)
    person = asyncio.ensure_future(clients._ask(0))
    before = {row.pid for row in read_gateways(database)}
    await asyncio.sleep(0.5)
    want(database, gateway=service(max_body_bytes=1_000_000, drain_timeout_s=3.0))
    # The new worker is there; the old one still has its request, and drains.
    await until_state(database, lambda state: not {row.pid for row in state.gateways} & before)
    await controller.stop()
    assert find_ours(home.root) == []
    person.cancel()
    await asyncio.wait({person})
    database.close()
