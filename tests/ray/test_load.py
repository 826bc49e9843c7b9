"""Requests while replicas, workers and nodes of a Ray cluster come and go: none is lost."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.cluster.control_plane import until
from tests.control.running import asking
from tests.ray.cluster import Cluster
from tests.ray.running import Service, make_spec, running_service, version
from thrifty.home import Home
from thrifty.http.client import HttpClient, TransportError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


async def is_silent(url: str) -> bool:
    """Whether nothing listens there."""
    client = HttpClient()
    try:
        await client.fetch(f"{url}/health", timeout_s=1.0)
    except TransportError:
        return True
    finally:
        client.close()
    return False


async def test_scaling_and_an_update_lose_no_request(cluster: Cluster, home: Home) -> None:
    spec = make_spec(cluster)
    async with running_service(home, spec) as service, asking(service.url) as clients:
        await service.apply({**spec, "replicas": {"count": 3, "cpus": 1}})
        await service.wait_ready(3)
        nodes = {one.node for one in service.members()}
        assert len(nodes) == 2, "Ray spreads them"
        await clients.progress()
        await service.apply({**spec, "versions": [version("a", "a2")]})
        await service.wait_settled()
        await service.wait_ready(1)
        clients.answers.clear()
        await clients.progress()
        assert "a1" not in clients.answers


async def test_a_killed_worker_takes_its_engine_along_and_costs_no_request(
    cluster: Cluster, home: Home
) -> None:
    spec = make_spec(cluster, replicas={"count": 2, "cpus": 1})
    async with running_service(home, spec) as service, asking(service.url) as clients:
        await clients.progress()
        victim = service.members()[0]
        url, name = victim.url, victim.actor
        engine = cluster.engines()[str(name)].find()
        assert engine is not None
        worker = engine.parent()
        assert worker is not None
        worker.send_signal(signal.SIGKILL)
        await until(lambda: victim.actor not in (None, name), "another actor is asked for")
        await service.wait_ready(2)
        await clients.progress()
        assert await is_silent(url), "no engine outlives its actor"
        assert len(cluster.engines()) == 2


async def test_a_lost_node_costs_no_request_that_had_not_begun(
    own_cluster: Cluster, home: Home
) -> None:
    own_cluster.start(3)
    spec = make_spec(own_cluster, replicas={"count": 3, "cpus": 1})
    async with running_service(home, spec) as service, asking(service.url) as clients:
        await clients.progress()
        first = service.members()[0]
        lost = first.url.split("//")[1].split(":")[0]
        own_cluster.nodes[lost].lose()
        await until(
            lambda: (
                len(service.ready()) == 3
                and not any(lost in one.row.url for one in service.ready())
            ),
            f"three elsewhere: {service.describe()}",
        )
        await clients.progress()
        await _an_old_one_does_not_answer_beside_the_new_one(own_cluster, service)
        await clients.progress()


async def _an_old_one_does_not_answer_beside_the_new_one(
    cluster: Cluster, service: Service
) -> None:
    """A node that Ray gave up, whose engine lives: the actor ends it by itself."""
    one = service.members()[0]
    url, name = one.url, one.actor
    node = cluster.nodes[url.split("//")[1].split(":")[0]]
    node.find("raylet").suspend()
    await until(lambda: one.actor not in (None, name), "another one is asked for")
    await service.wait_ready(3)

    async def silent() -> bool:
        return await is_silent(url)

    await until(silent, "the old one has ended")
    node.find("raylet").resume()


async def test_serving_goes_on_without_the_head(own_cluster: Cluster, home: Home) -> None:
    own_cluster.start(2)
    spec: dict[str, Any] = make_spec(own_cluster, replicas={"count": 2, "cpus": 1})
    async with running_service(home, spec, ending=False) as service, asking(service.url) as clients:
        await clients.progress()
        urls = {one.row.url for one in service.ready()}
        own_cluster.nodes["127.0.0.2"].lose()
        text = await service.wait_message("Ray is away since")
        assert "goes on serving" in text
        await clients.progress(50)
        assert {one.row.url for one in service.ready()} == urls
    # A controller that starts meanwhile goes on with them.
    async with running_service(home, spec, ending=False) as service, asking(service.url) as clients:
        await clients.progress(50)
        assert {one.row.url for one in service.ready()} == urls


async def test_the_next_controller_finds_them(cluster: Cluster, home: Home) -> None:
    spec = make_spec(cluster, replicas={"count": 2, "cpus": 1})
    async with running_service(home, spec, ending=False) as service:
        before = {one.actor: one.url for one in service.members()}
    async with running_service(home, spec) as service:
        await service.wait_ready(2)
        assert {one.actor: one.url for one in service.members()} == before
