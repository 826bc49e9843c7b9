"""What keeps pods from running is told in plain words, with what to do where that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.control_plane import ControlPlane, until
from tests.cluster.kubelet import STRATEGIC, now
from tests.cluster.running import make_spec, running_service, running_world, version
from thrifty.home import Home
from thrifty.kubernetes.client import ApiRefused

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


async def test_an_image_that_is_not_there(plane: ControlPlane, home: Home, tmp_path: Path) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, versions=[version("a", "a1")])
        spec["fleet"]["image"] = "registry.example.com/thrifty:absent"
        async with running_service(world, home, spec, ready=False) as service:
            text = await service.wait_message("cannot be pulled")
            assert "registry.example.com/thrifty:absent" in text


async def test_no_room_a_quota_and_a_missing_secret(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path, nodes=1, cpu=4) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, versions=[version("a", "a1")])
        tight = {**spec, "replicas": {"count": 3, "cpus": 2}}
        async with running_service(world, home, tight, ready=False) as service:
            await service.wait_message("no node can take it", "Insufficient cpu")
            assert len(service.ready()) <= 2
            # A smaller number fits, and the pod that waited goes first.
            await service.apply({**spec, "replicas": {"count": 2, "cpus": 2}})
            await service.wait_ready(2)
            await world.client.request(
                "POST", world.path("resourcequotas"),
                {
                    "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
                    "spec": {"hard": {"pods": "2"}},
                },
            )  # fmt: skip

            async def counted() -> bool:
                (quota,) = await world.list_all("resourcequotas")
                return bool((quota.get("status") or {}).get("used", {}).get("pods") == "2")

            await until(counted, "the quota is counted")
            await service.apply({**spec, "replicas": {"count": 3, "cpus": 1}})
            await service.wait_message("quota of the namespace", "is used up")
            assert len(service.ready()) == 2, "what serves is not given up for what cannot come"


async def test_a_container_that_cannot_be_made_and_one_that_ends(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, versions=[version("a", "a1")])
        spec["fleet"]["secret"] = "elsewhere"
        async with running_service(world, home, spec, ready=False) as service:
            await service.wait_message("container cannot be made", 'secrets "elsewhere" not found')
            # With a key that is too short, replicas refuse to start and say why.
            await world.client.request(
                "POST", world.path("secrets"),
                {
                    "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "elsewhere"},
                    "data": {"replica-key": "c2hvcnQ="},
                },
            )  # fmt: skip
            text = await service.wait_message("ended with status", "at least 32")
            assert "THRIFTY_REPLICA_KEY" in text


async def test_an_evicted_pod_is_replaced_and_told(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, replicas=2, versions=[version("a", "a1")])
        async with running_service(world, home, spec) as service:
            victim = service.ready()[0].row
            pod = world.kubelets.find(victim.url)
            if pod.task is not None:
                pod.task.cancel()
            pod.kill()
            text = "The node was low on resource: memory."
            await world.client.request(
                "PATCH", f"{world.path('pods', pod.name)}/status",
                {"status": {"phase": "Failed", "reason": "Evicted", "message": text,
                            "conditions": [{"type": "Ready", "status": "False",
                                            "lastTransitionTime": now()}]}},
                kind=STRATEGIC,
            )  # fmt: skip

            def told() -> bool:
                return any(
                    one.row.state == "stopped"
                    and "evicted it: The node was low" in str(one.row.message)
                    for one in service.controller.observe()
                )

            await until(told, "the eviction is told")
            # Once the set is whole, what is left of the pod is removed.
            await service.wait_ready(2)
            assert pod.name not in [one["metadata"]["name"] for one in await world.list_all("pods")]


async def test_somebody_else_who_writes_the_number_is_told_and_set_back(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, versions=[version("a", "a1")])
        async with running_service(world, home, spec) as service:
            (one,) = await world.deployments()
            path = world.path("deployments", one["metadata"]["name"], "apps/v1")
            await world.client.request(
                "PATCH", path, {"spec": {"replicas": 3}},
                kind="application/merge-patch+json", query={"fieldManager": "an-autoscaler"},
            )  # fmt: skip
            text = await service.wait_message("an-autoscaler", "set back to 1")
            assert "Remove the autoscaler" in text
            await service.wait_ready(1)


async def test_a_missing_right_and_a_missing_namespace(
    plane: ControlPlane, home: Home, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path) as world:
        config = await world.make_account_kubeconfig()
        role = world.path("roles", "thrifty-controller", "rbac.authorization.k8s.io/v1")
        rules = (await world.client.request("GET", role))["rules"]
        for rule in rules:
            if rule["resources"] == ["deployments"]:
                rule["verbs"].remove("create")
        await world.client.request(
            "PATCH", role, {"rules": rules}, kind="application/merge-patch+json"
        )
        spec = make_spec(world, config, versions=[version("a", "a1")])
        async with running_service(world, home, spec, ready=False) as service:
            text = await service.wait_message("may not do this", "kubernetes.md")
            assert "is forbidden" in text, text
        with pytest.raises(ApiRefused):
            await world.client.request("GET", "/api/v1/namespaces/nowhere")
