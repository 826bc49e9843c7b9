"""A controller with real replicas and gateway workers, and somebody who asks all the while."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parts import Reply, ask
from thrifty.artifacts import Store
from thrifty.control.controller import Controller
from thrifty.control.gateway_settings import describe_gateway
from thrifty.db import Database, open_database
from thrifty.db.desired import SERVICE, Desired, DesiredChange, change_desired
from thrifty.db.desired_state import (
    DesiredDeployment,
    DesiredReplicas,
    DesiredService,
    DesiredVersion,
)
from thrifty.db.fleet import DeploymentSettings, FleetState, ReplicaRow, VersionSettings, read_fleet
from thrifty.engines.echo.adapter import EchoEngine, EchoOptions
from thrifty.engines.machine import Machine, detect_machine
from thrifty.fleet.process import find_ours
from thrifty.home import Home, make_private_folder
from thrifty.http.client import HttpClient, TransportError
from thrifty.spec import load_spec

TIMEOUT_S = 90.0
HONOURS = tuple(sorted(EchoEngine.traits.honours or ()))


def echo(
    label: str = "a", revision: str = "", count: int = 1, weight: float = 1.0, **options: Any
) -> DesiredVersion:
    """An echo version that answers with its revision, which is its label where none is given."""
    revision = revision or label
    values = EchoOptions(reply=revision, **options).model_dump()
    return DesiredVersion(
        label, "echo", "echo", revision, None, values, weight=weight,
        settings=VersionSettings(honours=HONOURS),
        replicas=DesiredReplicas(count, cpus=1, start_timeout_s=TIMEOUT_S),
    )  # fmt: skip


def deployment(*versions: DesiredVersion, name: str = "m") -> DesiredDeployment:
    settings = DeploymentSettings(cache_when="never", wait_timeout_s=TIMEOUT_S)
    return DesiredDeployment(name, "decoder", settings, versions)


def service(**gateway: Any) -> DesiredService:
    settings = describe_gateway(load_spec(flags={"gateway.port": 0}).spec)
    return DesiredService({**settings, **gateway})


def want(
    database: Database,
    *deployments: DesiredDeployment,
    gateway: DesiredService | None = None,
    gone: Sequence[str] = (),
    kind: str = "apply",
) -> int:
    """Change the desired state."""

    def decide(_: Desired) -> list[DesiredChange]:
        changes = [DesiredChange(one.name, one) for one in deployments]
        changes += [DesiredChange(name, None) for name in gone]
        return changes + ([DesiredChange(SERVICE, gateway)] if gateway is not None else [])

    return change_desired(database, decide, kind=kind, who="test", why="")


def prepare(home: Home, *deployments: DesiredDeployment, **gateway: Any) -> Database:
    """A home whose database says what should run."""
    make_private_folder(home.root)
    database = open_database(home.database_url, migrate=True)
    want(database, *deployments, gateway=service(**gateway))
    return database


@contextlib.asynccontextmanager
async def running_controller(
    home: Home, machine: Machine | None = None
) -> AsyncIterator[Controller]:
    """The controller of a home that was prepared, ready; nothing is left after it."""
    controller = Controller(home, Store(home.models), machine or detect_machine())
    try:
        await controller.start()
        async with asyncio.timeout(TIMEOUT_S):
            await controller.wait_ready()
        yield controller
    finally:
        await controller.stop()
        assert find_ours(home.root) == []


class ControllerProcess:
    """A controller in a process of its own, which may be killed."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.output = home.root / f"controller-{os.urandom(4).hex()}.out"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.control.running", str(home.root)],
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    async def wait_ready(self) -> str:
        """Wait until all is as desired; the gateway's URL."""

        def find() -> str | None:
            text = self.output.read_text()
            assert self.process.poll() is None, text
            return text.split("ready ")[1].split()[0] if "ready http" in text else None

        found: str = await until(find)
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(self.process.wait, 60) == 0, self.output.read_text()


async def until(condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):
            await asyncio.sleep(0.02)
        return value


async def until_state(
    database: Database, condition: Callable[[FleetState], Any], timeout_s: float = TIMEOUT_S
) -> FleetState:
    """Wait until what gateways read meets a condition."""
    async with asyncio.timeout(timeout_s):
        while not condition(state := await asyncio.to_thread(read_fleet, database)):
            await asyncio.sleep(0.05)
        return state


def settled(*deployments: DesiredDeployment) -> Callable[[FleetState], bool]:
    """The condition that all is as desired, and nothing else is there."""

    def check(state: FleetState) -> bool:
        wanted = {one.name: one.row for one in deployments}
        counts = {
            (one.name, v.label, v.revision): v.replicas.count
            for one in deployments
            for v in one.versions
            if v.replicas.count
        }
        found = Counter((r.deployment, r.version, r.revision) for r in state.replicas)
        return (
            {row.name: row for row in state.deployments} == wanted
            and found == counts
            and all(row.state == "ready" for row in state.replicas)
        )

    return check


def by_id(state: FleetState) -> dict[str, ReplicaRow]:
    return {row.id: row for row in state.replicas}


@dataclass
class Clients:
    """People who ask without a pause, on new and on old connections."""

    url: str
    models: Sequence[str] = ("m",)
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    count: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def _ask(self, number: int) -> None:
        client = HttpClient()
        turn = 0
        while True:
            turn += 1
            if number % 2 and turn % 3 == 0:
                client.close()
                client = HttpClient()
            model = self.models[turn % len(self.models)]
            message = {"role": "user", "content": f"{number} {turn}"}
            body = {"model": model, "messages": [message], **self.fields}
            try:
                reply = await ask(
                    client, self.url, json.dumps(body).encode(), "/v1/chat/completions"
                )
                self._judge(reply)
            except asyncio.CancelledError:
                client.close()
                raise
            except (TransportError, OSError) as error:
                self.faults.append(repr(error))
            await asyncio.sleep(0.005)

    def _judge(self, reply: Reply) -> None:
        self.count += 1
        if reply.status != 200:
            self.faults.append(f"{reply.status} {reply.body[:300]!r}")
            return
        text = reply.json()["choices"][0]["message"]["content"]
        self.answers[text] += 1
        label = reply.headers[b"x-thrifty-version"].decode()
        # The revision begins with the label that made it.
        if not text.startswith(label):
            self.faults.append(f"{label} is said to have answered {text!r}")

    async def progress(self, requests: int = 20) -> None:
        """Wait until so many more were answered."""
        wanted = self.count + requests
        await until(lambda: self.count >= wanted)


@contextlib.asynccontextmanager
async def asking(
    url: str, models: Sequence[str] = ("m",), people: int = 4, **fields: Any
) -> AsyncIterator[Clients]:
    """Clients that ask until the block ends. Whoever gets no good answer is a fault."""
    clients = Clients(url, models, fields=fields)
    tasks = [asyncio.ensure_future(clients._ask(number)) for number in range(people)]
    try:
        yield clients
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not clients.faults, (len(clients.faults), clients.count, clients.faults[:5])


def main() -> None:
    """A controller, until SIGTERM."""

    async def run() -> None:
        home = Home(Path(sys.argv[1]))
        controller = Controller(home, Store(home.models), detect_machine())
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
        try:
            await controller.start()
            await controller.wait_ready()
            print("ready", controller.gateway_url, flush=True)
            await stopping.wait()
        finally:
            await controller.stop()

    asyncio.run(run())


if __name__ == "__main__":
    main()
