"""What every fleet does alike, on a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane, close_client
from tests.cluster.kubelet import Kubelets, Pod
from tests.cluster.running import IMAGE, World, make_account
from tests.fleet import test_contract as contract
from tests.fleet.test_contract import Base
from thrifty.artifacts import Store
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.machine import detect_machine
from thrifty.fleet.base import ObservedReplica, ReplicaNames, ReplicaSet
from thrifty.fleet.kubernetes import KubernetesFleet, KubernetesSettings
from thrifty.home import Home
from thrifty.kubernetes.client import ApiClient, ApiRefused
from thrifty.kubernetes.config import find_cluster
from thrifty.spec import load_spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

test_ready = contract.test_what_is_desired_gets_ready_under_the_smallest_numbers
test_dies = contract.test_a_replica_that_dies_gets_no_traffic_and_comes_back
test_hangs = contract.test_a_replica_that_hangs_gets_no_traffic_until_it_answers
test_never_ready = contract.test_a_replica_that_never_gets_ready_is_never_said_to_be
test_vanishes = contract.test_a_replica_that_vanishes_is_made_up_for
test_goes = contract.test_what_goes_is_drained_and_stays_until_gateways_know
test_adopts = contract.test_the_next_controller_adopts_what_runs
test_goes_on = contract.test_the_next_controller_goes_on_with_a_drain
test_stops = contract.test_a_stop_leaves_nothing


class ClusterWorld(Base):
    """Pods in a namespace of their own, with nodes of their own."""

    def __init__(self, root: Path, plane: ControlPlane) -> None:
        super().__init__()
        self.home = Home(root)
        self.namespace = f"c-{uuid.uuid4().hex[:8]}"
        self._config = str(plane.kubeconfig)
        client = ApiClient(find_cluster(self._config))
        (root / "nodes").mkdir(parents=True)
        self.kubelets = Kubelets(client, root / "nodes", [f"{self.namespace}-0"])
        self._world = World(plane, client, self.namespace, self.kubelets, root)
        self._starting = asyncio.ensure_future(self._start())
        self.fleet: KubernetesFleet = self._make()

    async def _start(self) -> None:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        await self._world.client.request("POST", "/api/v1/namespaces", body)
        await make_account(self._world)
        await self.kubelets.start()

    def _make(self) -> KubernetesFleet:
        settings = KubernetesSettings(
            namespace=self.namespace, image=IMAGE, kubeconfig=self._config,
            memory_bytes=256_000_000,
        )  # fmt: skip
        return KubernetesFleet(settings, self.names, self.note, self.announce)

    def make_set(self, count: int, revision: str = "r1", *, broken: bool = False) -> ReplicaSet:
        spec = load_spec(flags={"engine.kind": "echo", "engine.load": "600s" if broken else "0s"})
        served = EchoEngine().prepare(
            spec.spec, None, Store(Path("/none")), detect_machine(), lambda p: None
        )
        served = replace(served, name="m", version="a", revision=revision)
        return ReplicaSet(served, EchoEngine(), count, cpus=1, start_timeout_s=300.0)

    def kill(self, replica: ObservedReplica) -> None:
        self._find(replica).kill()

    def hang(self, replica: ObservedReplica) -> None:
        process = self._find(replica).process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)

    def heal(self, replica: ObservedReplica) -> None:
        process = self._find(replica).process
        if process is not None and process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)

    def _find(self, replica: ObservedReplica) -> Pod:
        return self.kubelets.find(replica.row.url)

    def succeed(self) -> None:
        self.fleet.leave()
        self.names = ReplicaNames()
        self.fleet = self._make()

    async def close(self) -> None:
        """Take everything away."""
        await self._starting
        await self.kubelets.stop()
        for path in (f"nodes/{self.namespace}-0", f"namespaces/{self.namespace}"):
            with contextlib.suppress(ApiRefused):
                await self._world.client.request("DELETE", f"/api/v1/{path}")
        await close_client(self._world.client)

    def leave(self) -> None:
        """`running` ends all: see `close`."""


@pytest.fixture
def make_world(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], ClusterWorld]]:
    made: list[ClusterWorld] = []
    monkeypatch.setattr(contract, "TIMEOUT_S", 120.0)

    def make() -> ClusterWorld:
        made.append(ClusterWorld(tmp_path, plane))
        return made[-1]

    @contextlib.asynccontextmanager
    async def running(make_world: Any) -> Any:
        world = make_world()
        try:
            yield world
        finally:
            await world.fleet.stop(60.0)
            await world.close()

    monkeypatch.setattr(contract, "running", running)
    yield make
    for world in made:
        assert not world.kubelets.pods() or all(
            pod.process is None or pod.process.poll() is not None for pod in world.kubelets.pods()
        )
