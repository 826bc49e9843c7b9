"""What every fleet does alike, whatever happens to its replicas."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from tests.parts import ask
from thrifty.artifacts import Store
from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import Examined, Served, Upstream
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.machine import detect_machine
from thrifty.engines.probe import probe_generation
from thrifty.engines.remote import RemoteEngine
from thrifty.fleet import external, local_replica
from thrifty.fleet.base import Fleet, ObservedReplica, ReplicaNames, ReplicaSet
from thrifty.fleet.external import ExternalFleet
from thrifty.fleet.local import LocalFleet
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import find_ours
from thrifty.home import Home
from thrifty.http.client import HttpClient
from thrifty.spec import load_spec

TIMEOUT_S = 60.0


class World(Protocol):
    """One kind of fleet, with ways to harm what it runs."""

    fleet: Fleet
    changes: int
    """How often the fleet said that something has changed."""

    def make_set(self, count: int, revision: str = "r1", *, broken: bool = False) -> ReplicaSet:
        """Copies of one version; `broken` ones never get ready."""
        ...

    def kill(self, replica: ObservedReplica) -> None:
        """Have it die."""
        ...

    def hang(self, replica: ObservedReplica) -> None:
        """Have it answer nothing, and run."""
        ...

    def heal(self, replica: ObservedReplica) -> None:
        """Take that back, and start servers that others run anew."""
        ...

    def succeed(self) -> None:
        """Kill the controller's part, and put a new one in its place."""
        ...

    def leave(self) -> None:
        """End what the world itself has started."""
        ...


class Base:
    """What both worlds count alike."""

    def __init__(self) -> None:
        self.changes = 0
        self.told = asyncio.Event()
        self.told.set()
        self.names = ReplicaNames()

    def note(self) -> None:
        self.changes += 1

    async def announce(self) -> None:
        await self.told.wait()


class LocalWorld(Base):
    """Processes of ours."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.home = Home(root)
        self.past: list[LocalFleet] = []
        self.fleet: LocalFleet = self._make()

    def _make(self) -> LocalFleet:
        store = Store(self.home.models)
        return LocalFleet(self.home, store, detect_machine(), self.names, self.note, self.announce)

    def make_set(self, count: int, revision: str = "r1", *, broken: bool = False) -> ReplicaSet:
        spec = load_spec(flags={"engine.kind": "echo", "engine.load": "600s" if broken else "0s"})
        served = EchoEngine().prepare(
            spec.spec, None, Store(Path("/none")), detect_machine(), lambda p: None
        )
        served = replace(served, name="m", version="a", revision=revision)
        return ReplicaSet(served, EchoEngine(), count, cpus=1, start_timeout_s=TIMEOUT_S)

    def kill(self, replica: ObservedReplica) -> None:
        assert replica.row.pid is not None
        os.killpg(replica.row.pid, signal.SIGKILL)

    def hang(self, replica: ObservedReplica) -> None:
        assert replica.row.pid is not None
        os.kill(replica.row.pid, signal.SIGSTOP)

    def heal(self, replica: ObservedReplica) -> None:
        if replica.row.pid is not None and psutil.pid_exists(replica.row.pid):
            os.kill(replica.row.pid, signal.SIGCONT)

    def succeed(self) -> None:
        self.fleet.leave()
        self.past.append(self.fleet)
        self.names = ReplicaNames()
        self.fleet = self._make()

    def leave(self) -> None:
        for ident, _, _ in find_ours(self.home.root):
            os.killpg(ident.pid, signal.SIGKILL)
        for fleet in self.past:
            for replica in fleet._members:
                if replica._process is not None and replica._process._popen is not None:
                    replica._process._popen.wait()  # our children are not reaped by a successor


class Impatient(RemoteEngine):
    """Does not wait long for an answer."""

    async def examine(self, url: str, served: Served) -> Examined:
        try:
            async with asyncio.timeout(0.5):
                return Examined(fault=await probe_generation(url, served, deep=False))
        except TimeoutError:
            return Examined(fault="no answer")


class ExternalWorld(Base):
    """Servers that somebody else runs: here, the test."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.home = Home(root)
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        self.broken: set[str] = set()
        self.fleet: ExternalFleet = self._make()

    def _make(self) -> ExternalFleet:
        return ExternalFleet(self.names, self.note, self.announce)

    def make_set(self, count: int, revision: str = "r1", *, broken: bool = False) -> ReplicaSet:
        urls = []
        for _ in range(count):
            url = f"http://127.0.0.1:{find_free_port()}"
            urls.append(url)
            if not broken:
                self._serve(url)
        served = Served(
            "m", "remote", "a", revision, "decoder", upstream=Upstream(urls=tuple(urls))
        )
        return ReplicaSet(served, Impatient(), count)

    def _serve(self, url: str) -> None:
        served = Served("m", "echo", "a", "", "decoder", options={})
        launch = EchoEngine().launch(
            served, Store(Path("/none")), int(url.rpartition(":")[2]), [], 1.0
        )
        self.servers[url] = subprocess.Popen(
            list(launch.command), env={**os.environ, **launch.environment},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self, replica: ObservedReplica) -> None:
        server = self.servers[replica.row.url]
        server.kill()
        server.wait()

    def hang(self, replica: ObservedReplica) -> None:
        self.servers[replica.row.url].send_signal(signal.SIGSTOP)

    def heal(self, replica: ObservedReplica) -> None:
        server = self.servers[replica.row.url]
        if server.poll() is None:
            server.send_signal(signal.SIGCONT)
        else:
            self._serve(replica.row.url)

    def succeed(self) -> None:
        self.fleet.leave()
        self.names = ReplicaNames()
        self.fleet = self._make()

    def leave(self) -> None:
        for server in self.servers.values():
            server.kill()
            server.wait()


@pytest.fixture(params=[LocalWorld, ExternalWorld], ids=["local", "external"])
def make_world(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], World]]:
    monkeypatch.setattr(external, "WATCH_INTERVAL_S", 0.05)
    monkeypatch.setattr(local_replica, "WATCH_INTERVAL_S", 0.05)
    monkeypatch.setattr(local_replica, "BACKOFF_S", (0.05,))
    monkeypatch.setattr(local_replica, "KILL_UNHEALTHY_S", 60.0)
    monkeypatch.setattr("thrifty.engines.probe.HEALTH_TIMEOUT_S", 0.5)
    made: list[World] = []

    def make() -> World:
        made.append(request.param(tmp_path))
        return made[-1]

    yield make
    for world in made:
        world.leave()


@contextlib.asynccontextmanager
async def running(make_world: Callable[[], World]) -> AsyncIterator[World]:
    world = make_world()
    try:
        yield world
    finally:
        await world.fleet.stop(5.0)
        assert [one for one in world.fleet.observe() if one.row.pid is not None] == []


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(TIMEOUT_S):
        while not (value := condition()):
            await asyncio.sleep(0.02)
        return value


def ready(world: World, revision: str | None = None) -> list[ObservedReplica]:
    return [
        one
        for one in world.fleet.observe()
        if one.row.state == "ready" and revision in (None, one.row.revision)
    ]


async def until_ready(world: World, count: int, revision: str | None = None) -> list[Any]:
    await until(lambda: len(ready(world, revision)) == count)
    return ready(world, revision)


def ids(replicas: Sequence[ObservedReplica]) -> list[str]:
    return sorted(one.row.id for one in replicas)


async def test_what_is_desired_gets_ready_under_the_smallest_numbers(make_world: Any) -> None:
    async with running(make_world) as world:
        wanted = world.make_set(2)
        await world.fleet.apply([wanted])
        found = await until_ready(world, 2)
        assert ids(found) == ["m-0", "m-1"]
        assert {one.key for one in found} == {wanted.key}
        for one in found:
            assert (one.row.deployment, one.row.version, one.row.revision) == ("m", "a", "r1")
            client = HttpClient()
            assert (await ask(client, one.row.url, b"", "/health", method="GET")).status == 200
            client.close()
        # Said again, nothing happens.
        before = [(one.row.id, one.row.url, one.row.pid) for one in found]
        await world.fleet.apply([wanted])
        await world.fleet.apply([wanted])
        assert [(o.row.id, o.row.url, o.row.pid) for o in world.fleet.observe()] == before


async def test_a_replica_that_dies_gets_no_traffic_and_comes_back(make_world: Any) -> None:
    async with running(make_world) as world:
        await world.fleet.apply([world.make_set(2)])
        first, second = await until_ready(world, 2)
        world.kill(first)
        await until(lambda: ids(ready(world)) == [second.row.id])
        world.heal(first)
        found = await until_ready(world, 2)
        assert ids(found) == ids([first, second])


@pytest.mark.slow
async def test_a_replica_that_hangs_gets_no_traffic_until_it_answers(make_world: Any) -> None:
    async with running(make_world) as world:
        await world.fleet.apply([world.make_set(2)])
        first, second = await until_ready(world, 2)
        world.hang(first)
        hung = await until(
            lambda: [one for one in world.fleet.observe() if one.row.state == "unhealthy"]
        )
        assert ids(hung) == [first.row.id]
        assert hung[0].row.message
        assert ids(ready(world)) == [second.row.id]
        world.heal(first)
        await until_ready(world, 2)


@pytest.mark.slow
async def test_a_replica_that_never_gets_ready_is_never_said_to_be(make_world: Any) -> None:
    async with running(make_world) as world:
        broken = world.make_set(1, "r2", broken=True)
        good = world.make_set(1)
        await world.fleet.apply([broken, good])
        await until_ready(world, 1)
        (one,) = [one for one in world.fleet.observe() if one.row.revision == "r2"]
        assert one.row.state in ("starting", "unhealthy")
        # It can be given up, and what is ready stays.
        await world.fleet.apply([good])
        await until(lambda: len(world.fleet.observe()) == 1)
        assert len(ready(world, "r1")) == 1


@pytest.mark.slow
async def test_a_replica_that_is_ready_twice_is_one_replica(make_world: Any) -> None:
    async with running(make_world) as world:
        await world.fleet.apply([world.make_set(1)])
        (first,) = await until_ready(world, 1)
        for _ in range(2):
            world.hang(first)
            await until(lambda: not ready(world))
            world.heal(first)
            await until_ready(world, 1)
        (second,) = world.fleet.observe()
        assert (second.row.id, second.row.url) == (first.row.id, first.row.url)
        changes = world.changes
        await asyncio.sleep(0.3)  # several probes
        assert world.changes == changes, "to be ready as before is no change"


@pytest.mark.slow
async def test_a_replica_that_vanishes_is_made_up_for(make_world: Any) -> None:
    async with running(make_world) as world:
        wanted = world.make_set(1)
        await world.fleet.apply([wanted])
        (first,) = await until_ready(world, 1)
        world.kill(first)
        await until(lambda: not ready(world))
        await world.fleet.apply([wanted])
        world.heal(first)
        await until_ready(world, 1)
        assert len(world.fleet.observe()) == 1


async def test_what_goes_is_drained_and_stays_until_gateways_know(make_world: Any) -> None:
    async with running(make_world) as world:
        old, new = world.make_set(2), world.make_set(1, "r2")
        await world.fleet.apply([old])
        before = await until_ready(world, 2)
        world.told.clear()
        await world.fleet.apply([new])
        leaving = [one for one in world.fleet.observe() if one.leaving]
        assert ids(leaving) == ids(before)
        (fresh,) = await until_ready(world, 1, "r2")
        assert fresh.row.id == "m-2"
        # They still answer: some gateway may not know yet.
        client = HttpClient()
        for one in leaving:
            assert (await ask(client, one.row.url, b"", "/health", method="GET")).status == 200
        client.close()
        world.told.set()
        await until(lambda: ids(world.fleet.observe()) == ["m-2"])
        # Their numbers are free again.
        await world.fleet.apply([replace(new, count=1), world.make_set(1, "r3")])
        await until_ready(world, 1, "r3")
        assert ids(world.fleet.observe()) == ["m-0", "m-2"]


async def test_the_next_controller_adopts_what_runs(make_world: Any) -> None:
    async with running(make_world) as world:
        old, new = world.make_set(1), world.make_set(1, "r2")
        await world.fleet.apply([old, new])
        before = await until_ready(world, 2)
        rows: list[tuple[ReplicaRow, ReplicaSet]] = [
            (one.row, old if one.row.revision == "r1" else new) for one in before
        ]
        world.succeed()
        assert world.fleet.observe() == []
        await world.fleet.adopt(rows)
        # From the first moment it is what it was, so that no gateway leaves it alone.
        assert len(ready(world)) == 2
        await world.fleet.apply([old, new])
        after = await until_ready(world, 2)
        assert [(o.row.id, o.row.url, o.row.pid) for o in after] == [
            (o.row.id, o.row.url, o.row.pid) for o in before
        ]
        assert [one.row.restarts for one in after] == [0, 0]
        # One of a set that is not wanted any more is drained, not killed.
        await world.fleet.apply([new])
        (leaving,) = [one for one in world.fleet.observe() if one.row.revision == "r1"]
        assert leaving.row.state == "draining"
        await until(lambda: len(world.fleet.observe()) == 1)


@pytest.mark.slow
async def test_the_next_controller_goes_on_with_a_drain(make_world: Any) -> None:
    async with running(make_world) as world:
        wanted = world.make_set(2)
        await world.fleet.apply([wanted])
        await until_ready(world, 2)
        rows = [
            (replace(one.row, state="draining") if one.row.id == "m-1" else one.row, wanted)
            for one in world.fleet.observe()
        ]
        world.succeed()
        await world.fleet.adopt(rows)
        await world.fleet.apply([replace(wanted, count=2)])
        # The one that was going goes, and another one takes its place.
        await until(lambda: len(ready(world)) == 2 and len(world.fleet.observe()) == 2)


@pytest.mark.slow
async def test_a_stop_leaves_nothing(make_world: Any) -> None:
    async with running(make_world) as world:
        await world.fleet.apply([world.make_set(2), world.make_set(1, "r2", broken=True)])
        await until_ready(world, 2)
        world.told.clear()
        await world.fleet.apply([world.make_set(1, "r3")])
        await world.fleet.stop(5.0)
        assert world.fleet.observe() == []
        assert [role for _, role, _ in find_ours(world.home.root)] == []


@pytest.mark.slow
async def test_processes_of_an_unknown_past_are_ended(tmp_path: Path) -> None:
    world = LocalWorld(tmp_path)
    await world.fleet.apply([world.make_set(1)])
    await until_ready(world, 1)
    world.succeed()
    await world.fleet.adopt([])
    await until(lambda: find_ours(tmp_path) == [])
    await world.fleet.stop(5.0)
    world.leave()
