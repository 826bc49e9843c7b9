"""What every fleet does alike, on Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fleet import test_contract as contract
from tests.fleet.test_contract import Base
from tests.ray.cluster import Cluster
from thrifty.artifacts import Store
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.machine import detect_machine
from thrifty.fleet.base import ObservedReplica, ReplicaNames, ReplicaSet
from thrifty.fleet.process import ProcessId
from thrifty.fleet.ray import RayFleet, RaySettings
from thrifty.home import Home
from thrifty.spec import load_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

test_ready = contract.test_what_is_desired_gets_ready_under_the_smallest_numbers
test_dies = contract.test_a_replica_that_dies_gets_no_traffic_and_comes_back
test_hangs = contract.test_a_replica_that_hangs_gets_no_traffic_until_it_answers
test_never_ready = contract.test_a_replica_that_never_gets_ready_is_never_said_to_be
test_twice = contract.test_a_replica_that_is_ready_twice_is_one_replica
test_vanishes = contract.test_a_replica_that_vanishes_is_made_up_for
test_goes = contract.test_what_goes_is_drained_and_stays_until_gateways_know
test_adopts = contract.test_the_next_controller_adopts_what_runs
test_goes_on = contract.test_the_next_controller_goes_on_with_a_drain
test_stops = contract.test_a_stop_leaves_nothing


class RayWorld(Base):
    """Actors of a fleet of their own, on the cluster of all tests."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.home = Home(cluster.home)
        self._name = f"c-{uuid.uuid4().hex[:8]}"
        self.fleet: RayFleet = self._make()

    def _make(self) -> RayFleet:
        settings = RaySettings(address=self.cluster.address, name=self._name)
        store = Store(self.home.models)
        return RayFleet(settings, self.home, store, self.names, self.note, self.announce)

    def make_set(self, count: int, revision: str = "r1", *, broken: bool = False) -> ReplicaSet:
        spec = load_spec(flags={"engine.kind": "echo", "engine.load": "600s" if broken else "0s"})
        served = EchoEngine().prepare(
            spec.spec, None, Store(Path("/none")), detect_machine(), lambda p: None
        )
        served = replace(served, name="m", version="a", revision=revision)
        return ReplicaSet(served, EchoEngine(), count, cpus=1, start_timeout_s=300.0)

    def find(self, replica: ObservedReplica) -> ProcessId:
        """Its engine."""
        (actor,) = [one.actor for one in self.fleet._members if one.id == replica.row.id]
        assert actor is not None
        return self.cluster.engines()[actor]

    def kill(self, replica: ObservedReplica) -> None:
        os.kill(self.find(replica).pid, signal.SIGKILL)

    def hang(self, replica: ObservedReplica) -> None:
        os.kill(self.find(replica).pid, signal.SIGSTOP)

    def heal(self, replica: ObservedReplica) -> None:
        with contextlib.suppress(KeyError, AssertionError):
            os.kill(self.find(replica).pid, signal.SIGCONT)

    def succeed(self) -> None:
        self.fleet.leave()
        self.names = ReplicaNames()
        self.fleet = self._make()

    def leave(self) -> None:
        """`running` ends all: the fleet's stop is what is tested."""


@pytest.fixture
def make_world(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], RayWorld]]:
    monkeypatch.setattr(contract, "TIMEOUT_S", 120.0)
    monkeypatch.setattr("thrifty.engines.probe.HEALTH_TIMEOUT_S", 0.5)
    yield lambda: RayWorld(cluster)
    assert cluster.engines() == {}
