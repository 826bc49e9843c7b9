"""Two controllers of one fleet, a version at zero, and what is asked of the API server at rest."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.cluster.control_plane import ControlPlane, until
from tests.cluster.running import Service, make_spec, running_service, running_world, version
from tests.parts import ask
from thrifty.db import open_database
from thrifty.home import Home, make_private_folder
from thrifty.http.client import HttpClient

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


async def test_of_two_controllers_one_acts(plane: ControlPlane, home: Home, tmp_path: Path) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, versions=[version("a", "a1")])
        other = Home(tmp_path / "other")
        make_private_folder(other.root)
        open_database(other.database_url, migrate=True).close()
        async with running_service(world, home, spec) as first:
            second = Service(other, world)
            # It would run three, and waits.
            starting = asyncio.ensure_future(second.start({**spec, "replicas": 3}))
            lease = world.path("leases", "thrifty", "coordination.k8s.io/v1")
            holder = (await world.client.request("GET", lease))["spec"]["holderIdentity"]
            assert holder == first.fleet.lease.holder
            seen = (await world.client.request("GET", lease))["spec"]["renewTime"]

            async def renewed() -> bool:
                now = (await world.client.request("GET", lease))["spec"]
                assert now["holderIdentity"] == holder
                return bool(now["renewTime"] != seen)

            await until(renewed, "the first one renews its lease")
            assert not starting.done()
            (one,) = await world.deployments()
            assert one["spec"]["replicas"] == 1
        # The first one hands over, and the second need not wait until the lease ends.
        began_s = time.monotonic()
        await starting
        assert second.fleet.lease.held
        await second.wait_ready(3)
        assert time.monotonic() - began_s < 120
        await second.stop()


async def test_a_request_wakes_a_version_at_zero(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        replicas = {"min": 0, "max": 2, "idle_after": "3s"}
        spec = make_spec(world, config, versions=[version("a", "a1")], replicas=replicas)
        spec["limits"] = {"wake_timeout": "120s"}
        async with running_service(world, home, spec) as service:
            assert not service.controller.observe()
            client = HttpClient()
            body = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
            reply = await ask(client, service.url, body, "/v1/chat/completions")
            client.close()
            assert reply.status == 200, reply.body
            await until(lambda: not service.controller.observe(), "nobody asks, and it goes again")


async def test_at_rest_hardly_anything_is_asked(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, versions=[version("a", "a1")])
        async with running_service(world, home, spec) as service:
            await asyncio.sleep(2.0)  # watches run by then
            before, began_s = service.fleet.client.calls, time.monotonic()
            await asyncio.sleep(11.0)
            calls = service.fleet.client.calls - before
            minutes = (time.monotonic() - began_s) / 60
            assert calls / minutes < 30, "the lease alone is renewed"
