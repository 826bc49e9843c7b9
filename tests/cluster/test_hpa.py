"""A real HorizontalPodAutoscaler on our metric, over what `thrifty deploy render kubernetes` wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.around import (
    offer_adapter,
    running_adapter,
    running_proxy,
    withdraw_adapter,
)
from tests.cluster.control_plane import ControlPlane, until
from tests.cluster.running import World, running_service, running_world
from tests.control.running import asking
from tests.deploy.specs import pick, read_objects, render
from tests.parts import ask
from thrifty.deploy.cluster import apply_objects
from thrifty.home import Home
from thrifty.http.client import HttpClient

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SPEC: dict[str, Any] = {
    "name": "m",
    "engine": {"kind": "echo", "reply": "echo says so", "slots": 8, "ttft": "1500ms"},
    "cache": False,
}
OPTIONS = {"autoscale": "hpa", "min": "0", "max": "4", "target_in_flight": "1"}
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'


def make_older(autoscaler: dict[str, Any]) -> dict[str, Any]:
    """The autoscaler for this server: an older version of the same shape; it need not wait so long."""
    spec = {**autoscaler["spec"], "behavior": {"scaleDown": {"stabilizationWindowSeconds": 2}}}
    return {**autoscaler, "apiVersion": "autoscaling/v2beta2", "spec": spec}


async def apply_replicas(world: World) -> tuple[str, dict[str, Any]]:
    """Apply what is rendered, without the gateway, which runs here; the name of the version's objects,
    and the gateway's spec.
    """
    objects = read_objects(render("kubernetes", SPEC, namespace=world.namespace, **OPTIONS))
    autoscaler = pick(objects, "HorizontalPodAutoscaler")
    name = autoscaler["metadata"]["name"]
    config = yaml.safe_load(pick(objects, "ConfigMap", "thrifty-gateway")["data"]["thrifty.yaml"])
    mine = [
        one for one in objects
        if one["metadata"]["name"] == name
        and one["kind"] in ("ConfigMap", "Deployment", "Service")
    ]  # fmt: skip
    await apply_objects(world.client, world.namespace, mine, "one")
    path = world.path("horizontalpodautoscalers", group="autoscaling/v2beta2")
    await world.client.request("POST", path, make_older(autoscaler))
    return name, config


async def test_one_four_zero_two_and_requests_at_zero_are_held(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        name, config = await apply_replicas(world)

        async def count() -> int:
            path = world.path("deployments", name, "apps/v1")
            return int((await world.client.request("GET", path))["spec"]["replicas"])

        async def is_count(wanted: int) -> bool:
            return await count() == wanted

        async with running_proxy(world, name) as proxy:
            (deployment,) = config["deployments"]
            (version,) = deployment["versions"]
            assert version["engine"]["urls"] == [f"http://{name}:8000/v1"]
            version["engine"]["urls"] = [f"{proxy.url}/v1"]
            spec = {**config, "gateway": {"port": 0}}
            async with running_service(world, home, spec, ready=False) as service:
                await until(lambda: len(proxy.addresses) == 1, "a Deployment begins with one pod")
                await until(service.ready, "the gateway has seen it")
                with running_adapter(f"{service.url}/metrics") as (port, _):
                    await offer_adapter(world, port)
                    try:
                        await follow(
                            service.url, is_count, lambda: len(proxy.addresses), service.ready
                        )
                    finally:
                        await withdraw_adapter(world)


async def follow(url: str, is_count: Any, count_ready: Any, is_served: Any) -> None:
    """Ask more and less, and see the number of replicas follow."""
    async with asking(url, people=1) as clients:
        await clients.progress(3)
        await until(lambda: is_count(1), "one asks: one replica")
        async with asking(url, people=3) as others:
            await until(lambda: is_count(4), "four ask: four replicas")
            await until(lambda: count_ready() == 4, "all are ready")
            await others.progress(8)
        await clients.progress(2)
    await until(lambda: is_count(0), "nobody asks: none")
    # One that comes while the last pods go is answered by one of them, or waits for the next.
    assert await ask_all(url, 1) == [200]
    await until(lambda: is_count(0), "nobody asks: none")
    await until(lambda: count_ready() == 0 and not is_served(), "the gateway has seen it")
    held = asyncio.ensure_future(ask_all(url, 2))
    await until(lambda: is_count(2), "two wait: two replicas")
    assert not held.done(), "they are held until a replica answers"
    assert await held == [200, 200]


async def ask_all(url: str, count: int) -> list[int]:
    """So many requests at once, each on a connection of its own; how they were answered."""
    clients = [HttpClient() for _ in range(count)]
    try:
        asked = [ask(one, url, BODY, "/v1/chat/completions") for one in clients]
        return [reply.status for reply in await asyncio.gather(*asked)]
    finally:
        for one in clients:
            one.close()
