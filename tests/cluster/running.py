"""A service whose replicas are pods: the real controller and gateway, on the real control plane."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.control_plane import ControlPlane, close_client, until
from tests.cluster.kubelet import Kubelets
from thrifty.artifacts import Store
from thrifty.control.controller import Controller
from thrifty.control.prepare import prepare
from thrifty.control.service_api import Actor, apply_prepared
from thrifty.control.service_status import read_status
from thrifty.db import open_database
from thrifty.db.desired import read_desired_change
from thrifty.deploy.kubernetes_fleet import CONTROLLER, make_controller_account, make_replica_budget
from thrifty.engines.machine import detect_machine
from thrifty.engines.server import KEY_VARIABLE
from thrifty.fleet.base import ObservedReplica
from thrifty.fleet.kubernetes import KubernetesFleet
from thrifty.home import Home, make_private_folder
from thrifty.kubernetes.client import MERGE, ApiAway, ApiClient, ApiRefused
from thrifty.kubernetes.config import find_cluster
from thrifty.model_maker import Compressor
from thrifty.spec.load import parse_spec

IMAGE = "registry.example.com/thrifty:1"
Object = dict[str, Any]


@dataclass
class World:
    """One namespace of the cluster, with nodes of its own."""

    plane: ControlPlane
    client: ApiClient
    namespace: str
    kubelets: Kubelets
    folder: Path

    def path(self, kind: str, name: str = "", group: str = "") -> str:
        """The path of objects of this namespace."""
        root = f"/apis/{group}" if group else "/api/v1"
        return f"{root}/namespaces/{self.namespace}/{kind}{f'/{name}' if name else ''}"

    async def list_all(self, kind: str, group: str = "") -> list[Object]:
        """All objects of a kind."""
        found = await self.client.request("GET", self.path(kind, group=group))
        return list(found["items"])

    async def deployments(self) -> list[Object]:
        """The fleet's."""
        return await self.list_all("deployments", "apps/v1")

    async def make_account_kubeconfig(self) -> Path:
        """The controller's account with the rights that are rendered, and no others."""

        def metadata(name: str, component: str) -> Object:
            return {"name": name, "namespace": self.namespace}

        folders = {
            "ServiceAccount": ("serviceaccounts", ""),
            "Role": ("roles", "rbac.authorization.k8s.io/v1"),
            "RoleBinding": ("rolebindings", "rbac.authorization.k8s.io/v1"),
        }
        for one in make_controller_account(metadata, self.namespace, "thrifty"):
            kind, group = folders[one["kind"]]
            path = self.path(kind, one["metadata"]["name"], group)
            await self.client.apply(path, one, "test")
        token: str = await until(self._read_token, "the account has a token")
        return self.plane.write_kubeconfig(self.folder / "account-config", token, self.namespace)

    async def _read_token(self) -> str | None:
        """The token that the cluster makes for the controller's account."""
        account = await self.client.request("GET", self.path("serviceaccounts", CONTROLLER))
        for one in account.get("secrets") or ():
            secret = await self.client.request("GET", self.path("secrets", one["name"]))
            if "token" in (secret.get("data") or {}):
                return base64.b64decode(secret["data"]["token"]).decode()
        return None

    async def protect(self) -> None:
        """The PodDisruptionBudget that is rendered; this server has an older version of it."""
        budget = make_replica_budget({"name": "thrifty-replicas"})
        budget["apiVersion"] = "policy/v1beta1"
        path = self.path("poddisruptionbudgets", "thrifty-replicas", "policy/v1beta1")
        await self.client.apply(path, budget, "test")

        async def counted() -> bool:
            found = await self.client.request("GET", path)
            return int((found.get("status") or {}).get("expectedPods") or 0) > 0

        await until(counted, "the budget counts pods")

    async def drain(self, node: str) -> int:
        """As `kubectl drain`: cordon, then evict pod by pod. How often the budget said to wait."""
        await self.client.request(
            "PATCH", f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}}, kind=MERGE
        )
        refused = 0
        for pod in [
            one for one in await self.list_all("pods") if one["spec"].get("nodeName") == node
        ]:
            name = pod["metadata"]["name"]
            eviction = {
                "apiVersion": "policy/v1beta1", "kind": "Eviction",
                "metadata": {"name": name, "namespace": self.namespace},
            }  # fmt: skip

            async def evict(name: str = name, eviction: Object = eviction) -> bool:
                nonlocal refused
                try:
                    await self.client.request(
                        "POST", f"{self.path('pods', name)}/eviction", eviction
                    )
                except ApiAway:
                    refused += 1  # 429: the budget allows none now
                    return False
                except ApiRefused as error:
                    return error.status == 404
                return True

            await until(evict, f"{name} may be evicted")
        return refused


@contextlib.asynccontextmanager
async def running_world(
    plane: ControlPlane, folder: Path, nodes: int = 3, cpu: int = 16, *, hollow: bool = False
) -> AsyncIterator[World]:
    """A namespace with the replicas' account and key, and `nodes` nodes; `hollow` ones only say that they
    run pods. Nothing is left after it.
    """
    client = ApiClient(find_cluster(str(plane.kubeconfig)))
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    await client.request(
        "POST", "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
    )  # fmt: skip
    names = [f"{namespace}-{number}" for number in range(nodes)]
    kubelets = Kubelets(client, folder / "nodes", names, cpu, hollow=hollow)
    (folder / "nodes").mkdir(parents=True)
    world = World(plane, client, namespace, kubelets, folder)
    await make_account(world)
    await kubelets.start()
    try:
        yield world
    finally:
        for one in await world.deployments():
            await client.request(
                "DELETE", world.path("deployments", one["metadata"]["name"], "apps/v1")
            )
        await kubelets.stop()
        for name in names:
            await client.request("DELETE", f"/api/v1/nodes/{name}")
        await client.request("DELETE", f"/api/v1/namespaces/{namespace}")
        await close_client(client)


async def make_account(world: World) -> None:
    """The account and the Secret that replicas need."""
    await world.client.request(
        "POST", world.path("serviceaccounts"),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "thrifty"}},
    )  # fmt: skip
    key = base64.b64encode(os.environ[KEY_VARIABLE].encode()).decode()
    await world.client.request(
        "POST", world.path("secrets"),
        {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "thrifty"},
            "data": {"replica-key": key},
        },
    )  # fmt: skip


def make_spec(world: World, kubeconfig: Path, **more: Any) -> dict[str, Any]:
    """A spec on this cluster, with `more` keys; None takes one away."""
    spec = {
        "name": "m",
        "fleet": {
            "kind": "kubernetes", "namespace": world.namespace, "image": IMAGE,
            "kubeconfig": str(kubeconfig), "memory": "256MB",
        },
        "gateway": {"port": 0},
        "cache": False,
        "limits": {"wait_timeout": "120s"},
        **more,
    }  # fmt: skip
    return {key: value for key, value in spec.items() if value is not None}


def version(label: str, reply: str, **more: Any) -> dict[str, Any]:
    """A version that answers `reply`, which must begin with its label."""
    return {"label": label, "engine": {"kind": "echo", "reply": reply}, **more}


class Service:
    """A controller with its gateway. Its replicas are the cluster's."""

    def __init__(self, home: Home, world: World) -> None:
        self.home = home
        self.world = world
        self.controller: Controller

    @property
    def url(self) -> str:
        """Its gateway."""
        return self.controller.gateway_url

    @property
    def fleet(self) -> KubernetesFleet:
        """Its fleet."""
        fleet = self.controller._fleets[False]
        assert isinstance(fleet, KubernetesFleet)
        return fleet

    async def start(
        self, spec: Mapping[str, Any], *, ready: bool = True, settle_s: float = 300.0
    ) -> None:
        """From a spec to a running service."""
        self.controller = Controller(self.home, Store(self.home.models), detect_machine())
        await self.controller.open()
        await self.apply(spec, running=False)
        await self.controller.start()
        if ready:
            await self.wait_settled(settle_s)

    async def apply(self, spec: Mapping[str, Any], *, running: bool = True) -> None:
        """Change what is desired."""

        def change() -> None:
            store, machine = Store(self.home.models), detect_machine()
            maker = Compressor(self.home, store, machine, lambda line: None)
            prepared = prepare(parse_spec(dict(spec)), store, machine, maker=maker)
            apply_prepared(
                self.controller.database, prepared, Actor.from_user("test"), running=running
            )

        await asyncio.to_thread(change)
        if running:
            newest = await asyncio.to_thread(read_desired_change, self.controller.database)
            loop = self.controller._loop
            await until(lambda: loop.desired.change_id >= newest, "the loop has read the change")

    async def wait_settled(self, timeout_s: float = 300.0) -> None:
        """Until all is as desired."""
        await until(self.controller.is_settled, self.describe(), timeout_s)

    def describe(self) -> str:
        """What there is, for messages."""
        rows = [one.row for one in self.controller.observe()]
        return f"settled; there is {[(r.id, r.state, r.message) for r in rows]}"

    def ready(self) -> Sequence[ObservedReplica]:
        """The replicas that answer."""
        return [one for one in self.controller.observe() if one.row.state == "ready"]

    async def wait_ready(self, count: int, timeout_s: float = 120.0) -> None:
        """Until so many answer, and no others are there."""
        await until(
            lambda: len(self.ready()) == count == len(self.controller.observe()),
            f"{count} ready: {self.describe()}", timeout_s,
        )  # fmt: skip

    async def wait_message(self, *words: str, timeout_s: float = 90.0) -> str:
        """Until the status of a version says so; what it says."""

        async def find() -> str | None:
            status = await asyncio.to_thread(read_status, self.controller.database)
            for one in status[0]["versions"]:
                text = str(one["message"] or "")
                if all(word in text for word in words):
                    return text
            return None

        found: str = await until(find, f"{words} in the status", timeout_s)
        return found

    async def stop(self) -> None:
        """End the controller and its gateway; pods stay."""
        await self.controller.stop()


@contextlib.asynccontextmanager
async def running_service(
    world: World,
    home: Home,
    spec: Mapping[str, Any],
    *,
    ready: bool = True,
    settle_s: float = 300.0,
) -> AsyncIterator[Service]:
    """A service, ready. Its Deployments go with the world."""
    make_private_folder(home.root)
    open_database(home.database_url, migrate=True).close()
    service = Service(home, world)
    try:
        await service.start(spec, ready=ready, settle_s=settle_s)
        yield service
    finally:
        await service.stop()
