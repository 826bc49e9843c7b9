"""What keeps replicas from running on Ray is told in plain words, with what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.ray.cluster import Cluster
from tests.ray.running import Service, make_spec, running_service
from thrifty.db import open_database
from thrifty.engines.server import KEY_VARIABLE
from thrifty.fleet.ports import find_free_port
from thrifty.home import Home, make_private_folder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


async def test_what_no_node_has_and_what_is_in_use(cluster: Cluster, home: Home) -> None:
    spec = make_spec(cluster, replicas={"count": 1, "cpus": 64})
    async with running_service(home, spec, ready=False) as service:
        text = await service.wait_message("no node of the Ray cluster has 64 CPU")
        assert "its nodes have" in text
        assert "4 CPU" in text
        assert "replicas.cpus" in text
        # Less fits, and what had no place goes.
        await service.apply({**spec, "replicas": {"count": 2, "cpus": 3}})
        await service.wait_ready(2)
        await service.apply({**spec, "replicas": {"count": 3, "cpus": 3}})
        await service.wait_message("waits until a node of the Ray cluster has 3 CPU")
        assert len(service.ready()) == 2


async def test_a_resource_and_an_accelerator_that_nobody_has(cluster: Cluster, home: Home) -> None:
    more = {"resources": {"lathe": 1}, "accelerator_type": "L4"}
    async with running_service(home, make_spec(cluster, fleet=more), ready=False) as service:
        text = await service.wait_message("no node of the Ray cluster has")
        assert "1 lathe" in text
        assert "a L4" in text


async def test_nobody_at_the_address(cluster: Cluster, home: Home) -> None:
    more = {"address": f"127.0.0.1:{find_free_port()}"}
    async with running_service(
        home, make_spec(cluster, fleet=more), ready=False, ending=False
    ) as service:
        text = await service.wait_message("no Ray head answers at 127.0.0.1")
        assert "ray start --head" in text
        assert "fleet.address" in text


async def test_something_else_at_the_address(cluster: Cluster, home: Home) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        more = {"address": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"}
        async with running_service(
            home, make_spec(cluster, fleet=more), ready=False, ending=False
        ) as service:
            await service.wait_message("Ray is away since", "fleet.address")


async def test_the_head_comes_up_later(own_cluster: Cluster, home: Home) -> None:
    async with running_service(home, make_spec(own_cluster), ready=False) as service:
        await service.wait_message("no Ray head answers")
        await asyncio.to_thread(own_cluster.start, 1)
        await service.wait_ready(1)


async def test_another_key_on_a_node(
    cluster: Cluster, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "x" * 40)
    async with running_service(home, make_spec(cluster), ready=False) as service:
        text = await service.wait_message("has another THRIFTY_REPLICA_KEY")
        assert "x" * 40 not in text


async def test_another_version_on_a_node(
    cluster: Cluster, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.fleet.ray_replica.__version__", "99.0")
    async with running_service(home, make_spec(cluster), ready=False) as service:
        await service.wait_message("and the controller 99.0", "install the same")


async def test_of_two_controllers_one_acts(cluster: Cluster, home: Home, tmp_path: Path) -> None:
    spec = make_spec(cluster)
    other = Home(tmp_path / "other")
    make_private_folder(other.root)
    open_database(other.database_url, migrate=True).close()
    second = Service(other)
    waiting: list[str] = []
    async with running_service(home, spec, ending=False) as first:
        starting = asyncio.ensure_future(
            second.start({**spec, "replicas": {"count": 2, "cpus": 1}}, ready=False)
        )
        while not hasattr(second, "controller") or not waiting:
            if hasattr(second, "controller"):
                second.controller.on_wait = waiting.append
            await asyncio.sleep(0.01)
        assert not starting.done()
        assert waiting == [first.ray._link._holder]
        assert len(cluster.engines()) == 1
    # The first one hands over.
    await starting
    await second.wait_ready(2)
    await second.ray.stop(5.0)
    await second.stop()
