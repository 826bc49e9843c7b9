"""What happens to pods and nodes while people ask: no request is lost."""

from __future__ import annotations

import asyncio
import base64
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane, until
from tests.cluster.running import (
    Service,
    World,
    make_spec,
    running_service,
    running_world,
    version,
)
from tests.control.running import asking
from thrifty.fleet.certificates import (
    begin_new_authority,
    drop_old_authority,
    make_certificates,
)
from thrifty.home import Home

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


def pods_of(world: World, label: str) -> list[Any]:
    """The pods that serve a version."""
    mark = f'"version":"{label}"'
    return [pod for pod in world.kubelets.pods() if mark in str(pod.container["env"])]


async def test_one_then_four_then_one_and_the_least_busy_goes_first(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, versions=[version("a", "a1")])
        async with running_service(world, home, spec) as service:
            (first,) = service.ready()
            assert first.row.id == "m-0"
            async with asking(service.url) as clients:
                await clients.progress()
                await service.apply({**spec, "replicas": 4})
                await service.wait_ready(4)
                assert sorted(one.row.id for one in service.ready()) == ["m-0", "m-1", "m-2", "m-3"]
                await clients.progress()
                # The first one is kept busy, so that it is not the one to go.
                await service.apply({**spec, "replicas": 1})
                await service.wait_ready(1)
                await clients.progress()
            (deployment,) = await world.deployments()
            assert deployment["spec"]["replicas"] == 1
            owners = [
                entry["manager"]
                for entry in deployment["metadata"]["managedFields"]
                if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
            ]
            assert owners == ["thrifty-fleet"], "one writes the number of replicas"


async def test_a_killed_pod_costs_no_request_and_comes_back(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, replicas=2, versions=[version("a", "a1")])
        async with running_service(world, home, spec) as service, asking(service.url) as clients:
            await clients.progress()
            before = sorted(one.row.id for one in service.ready())
            victim = service.ready()[0].row
            world.kubelets.find(victim.url).kill()
            await until(lambda: len(service.ready()) == 1, "it is not ready any more")
            await service.wait_ready(2)
            await clients.progress()
            assert sorted(one.row.id for one in service.ready()) == before
            (again,) = [one.row for one in service.ready() if one.row.id == victim.id]
            assert again.restarts == 1


async def test_a_rolling_update_and_ninety_to_ten(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(
            world, config, versions=[version("a", "a1", weight=9), version("b", "b1", weight=1)]
        )
        async with running_service(world, home, spec) as service:
            assert len(await world.deployments()) == 2, "one for each version"
            async with asking(service.url, people=6) as clients:
                await clients.progress(600)
                share = clients.answers["b1"] / clients.count
                assert 0.04 < share < 0.2, clients.answers
                # Another revision of one label: it takes over at once, and the other is left alone.
                untouched = {pod.uid for pod in pods_of(world, "b")}
                await service.apply(
                    {**spec, "versions": [version("a", "a2", weight=9), spec["versions"][1]]}
                )
                await service.wait_settled()

                async def old_is_gone() -> bool:
                    return len(await world.deployments()) == 2

                await until(old_is_gone, "the old revision's Deployment is deleted")
                clients.answers.clear()
                await clients.progress(100)
                assert "a1" not in clients.answers
                assert clients.answers["a2"]
                assert untouched == {pod.uid for pod in pods_of(world, "b")}


async def test_a_drained_node_under_a_budget(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path, nodes=2) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, replicas=4, versions=[version("a", "a1")])
        async with running_service(world, home, spec) as service:
            await world.protect()
            node = next(name for name, one in world.kubelets.nodes.items() if one.pods)
            there = len(world.kubelets.nodes[node].pods)
            async with asking(service.url) as clients:
                refused = await world.drain(node)
                await service.wait_ready(4)
                await clients.progress()
            assert not world.kubelets.nodes[node].pods
            assert there < 2 or refused, "the budget let them go one by one"


async def test_a_lost_node(plane: ControlPlane, home: Home, tmp_path: Path) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, replicas=3, versions=[version("a", "a1")])
        async with running_service(world, home, spec) as service, asking(service.url) as clients:
            await clients.progress()
            name = next(n for n, one in world.kubelets.nodes.items() if one.pods)
            lost = {pod.address for pod in world.kubelets.nodes[name].pods.values()}
            world.kubelets.lose(name)
            await clients.progress(50)

            def recovered() -> bool:
                urls = [one.row.url for one in service.ready()]
                return len(urls) == 3 and not any(
                    address in url for url in urls for address in lost
                )

            await until(recovered, f"three elsewhere: {service.describe()}")
            await clients.progress()


async def test_serving_goes_on_without_the_api_server(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, replicas=2, versions=[version("a", "a1")])
        async with running_service(world, home, spec) as service, asking(service.url) as clients:
            await clients.progress()
            plane.kill_server()
            text = await service.wait_message("API server is away")
            assert "goes on" in text
            await clients.progress(50)
            assert len(service.ready()) == 2
            # What is asked for meanwhile is done when it is back.
            await service.apply({**spec, "replicas": 3})
            plane.start_server()
            await plane.wait_ready(world.client)
            await service.wait_ready(3)
            await clients.progress()
        await _adopts_by_rows(world, home, spec)


async def _adopts_by_rows(world: World, home: Home, spec: dict[str, Any]) -> None:
    """The next controller finds the replicas under their names."""
    before = len(world.kubelets.started)
    successor = Service(home, world)
    try:
        await successor.start({**spec, "replicas": 3})
        assert sorted(one.row.id for one in successor.ready()) == ["m-0", "m-1", "m-2"]
        assert len(world.kubelets.started) == before, "nothing was started anew"
    finally:
        await successor.stop()


async def test_certificates_are_asked_for_and_change_without_a_lost_request(
    plane: ControlPlane, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas and gateway show certificates of the fleet; then the authority is replaced."""
    mine, made = tmp_path / "gateway-tls", tmp_path / "made"
    make_certificates(made)
    monkeypatch.setenv("THRIFTY_FLEET_TLS", str(mine))
    async with running_world(plane, tmp_path) as world:

        async def bring() -> None:
            """To the gateway here, and to replicas by their Secret."""
            mine.mkdir(exist_ok=True)
            for name in ("ca.crt", "gateway.crt", "gateway.key"):
                shutil.copy(made / name, mine / f".{name}")
                (mine / f".{name}").replace(mine / name)
            files = {"ca.crt": "ca.crt", "tls.crt": "replica.crt", "tls.key": "replica.key"}
            data = {
                key: base64.b64encode((made / name).read_bytes()).decode()
                for key, name in files.items()
            }
            secret = {
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "thrifty-replica-tls"},
                "data": data,
            }  # fmt: skip
            await world.client.apply(world.path("secrets", "thrifty-replica-tls"), secret, "test")
            await world.kubelets.sync_secrets()
            await asyncio.sleep(2.5)  # each side looks once a second

        await bring()
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, replicas=2, versions=[version("a", "a1")])
        spec["fleet"]["tls"] = True
        async with running_service(world, home, spec) as service, asking(service.url) as clients:
            assert all(one.row.url.startswith("mtls://") for one in service.ready())
            await clients.progress()
            for step in (
                lambda: begin_new_authority(made),
                lambda: make_certificates(made, renew=True),
                lambda: drop_old_authority(made),
            ):
                step()
                await bring()
                await clients.progress()
            await service.apply({**spec, "replicas": 3})
            await service.wait_ready(3)
            await clients.progress()
