"""Real parts, put together for tests: model servers, a gateway with its database, clients."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thrifty.batches.settings import BatchSettings
from thrifty.db import Database, open_database
from thrifty.db.fleet import (
    DeploymentRow,
    DeploymentSettings,
    ReplicaRow,
    VersionRow,
    VersionSettings,
    save_deployment,
    save_replicas,
)
from thrifty.db.keys import NO_LIMITS, KeyLimits, create_key, list_keys
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.echo.backend import EchoBackend, make_tokenizer
from thrifty.engines.server.app import ModelServer
from thrifty.feedback.pages import FeedbackSettings
from thrifty.gateway.cache import ExactCache
from thrifty.gateway.cache.answers import AnswerCache, SharedSettings
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.gateway.state.version import Version
from thrifty.home import HOME_VARIABLE, Home
from thrifty.http.client import HttpClient
from thrifty.http.origin import Origin, parse_origin
from thrifty.http.server import Handler, HttpServer, ServerLimits
from thrifty.http.upload import OpenSpool
from thrifty.observe.recorder.line import RecorderLine
from thrifty.observe.settings import ObserveSettings
from thrifty.worker.assemble import Parts, Secrets, assemble
from thrifty.worker.home_services import make_home_services
from thrifty.worker.settings import GatewaySettings

JSON_HEADER = b"content-type: application/json\r\n"


@contextlib.asynccontextmanager
async def running_server(
    handler: Handler,
    limits: ServerLimits | None = None,
    spools: Mapping[str, OpenSpool] | None = None,
) -> AsyncIterator[tuple[str, HttpServer]]:
    """An HTTP server on a free port; gives its URL and itself."""
    server = HttpServer(handler, limits, spools=spools)
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        await server.drain(0.5)


@contextlib.asynccontextmanager
async def running_echo(name: str = "echo", **options: Any) -> AsyncIterator[str]:
    """An echo model server; gives its URL."""
    backend = EchoBackend(**options)
    model = ModelServer(
        name, backend, make_tokenizer(), engine="echo", honours=EchoEngine.traits.honours or ()
    )
    await model.start()
    async with running_server(model.handle) as (url, _):
        yield url
    await backend.stop()


@dataclass
class GatewayUnderTest:
    """A gateway, and what is behind it."""

    url: str
    database: Database
    parts: Parts
    client: HttpClient

    @property
    def table(self) -> RoutingTable:
        return self.parts.table

    def version(self, deployment: str = "echo", label: str | None = None) -> Version:
        """The version of that label; without one, the version with most weight."""
        found = self.table.deployments[deployment]
        return found.main if label is None else found.versions[label]

    @property
    def reader(self) -> TableReader:
        return self.parts.reader

    @property
    def server(self) -> HttpServer:
        return self.parts.server

    @property
    def answers(self) -> AnswerCache:
        return self.parts.cache

    @property
    def cache(self) -> ExactCache:
        return self.parts.cache.memory

    @property
    def line(self) -> RecorderLine:
        assert self.parts.line is not None
        return self.parts.line

    async def ask(
        self,
        body: dict[str, Any] | bytes,
        path: str = "/v1/chat/completions",
        *,
        headers: dict[str, str] | None = None,
        method: str = "POST",
    ) -> Reply:
        """One request, its whole answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await ask(self.client, self.url, data, path, headers=headers, method=method)

    async def set_replicas(self, rows: Sequence[ReplicaRow]) -> None:
        """Change the fleet as the controller would, and wait until the gateway has seen it."""
        await asyncio.to_thread(save_replicas, self.database, list(rows), routing_changed=True)
        await self.reader.refresh()


@dataclass(frozen=True)
class Reply:
    """An answer, whole."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def metric(self, name: str, **labels: str) -> float:
        """The value of the one sample called `name` with these labels; 0 where there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.body.decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0

    @property
    def events(self) -> list[Any]:
        """The payloads of a stream, without the end mark."""
        found = []
        for event in self.body.split(b"\n\n"):
            if event.startswith(b"data: ") and event != b"data: [DONE]":
                found.append(json.loads(event[6:]))
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The error object."""
        return self.json()["error"]


class NamedOrigin(Origin, frozen=True):
    """A server that is asked under another name than its address."""

    name: str = ""

    @property
    def host_header(self) -> bytes:
        return self.name.encode()


async def ask(
    client: HttpClient,
    url: str,
    body: bytes,
    path: str,
    *,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> Reply:
    """One request with `client`."""
    given = dict(headers or {})
    origin = parse_origin(url)
    if "host" in given:
        # The client writes the header by the address that it connects to.
        origin = NamedOrigin(origin.host, origin.port, name=given.pop("host"))
    lines = JSON_HEADER + b"".join(f"{k}: {v}\r\n".encode() for k, v in given.items())
    answer = await client.open(origin, method, path, headers=lines, body=body)
    return Reply(answer.status, answer.headers, await answer.read())


async def find_longest_turn() -> float:
    """The longest time that the event loop was busy with one thing, until cancelled."""
    longest_s, last_s = 0.0, time.perf_counter()
    try:
        while True:
            await asyncio.sleep(0)
            now_s = time.perf_counter()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
    except asyncio.CancelledError:
        return longest_s


async def add_key(
    gateway: GatewayUnderTest, name: str, role: str = "user", limits: KeyLimits = NO_LIMITS
) -> dict[str, str]:
    """Make a key that the gateway knows; gives the header that goes with it."""
    _, secret = await asyncio.to_thread(create_key, gateway.database, name, role, None, limits)
    await know_keys(gateway, len(await asyncio.to_thread(list_keys, gateway.database)))
    return {"authorization": f"Bearer {secret}"}


async def know_keys(gateway: GatewayUnderTest, count: int) -> None:
    """Wait until a gateway knows so many keys."""
    while len(gateway.table.keys) < count:
        await gateway.reader.refresh()
        await asyncio.sleep(0.02)


VERSION_SETTINGS = {field.name for field in dataclasses.fields(VersionSettings)}


def split_settings(settings: Mapping[str, Any]) -> tuple[DeploymentSettings, VersionSettings]:
    """Settings of a deployment and of its versions, told apart by their names."""
    own = {name: value for name, value in settings.items() if name not in VERSION_SETTINGS}
    version = {name: value for name, value in settings.items() if name in VERSION_SETTINGS}
    return DeploymentSettings(**own), VersionSettings(**version)


def make_deployment(
    name: str = "echo",
    engine: str = "echo",
    label: str = "echo@v1",
    revision: str = "r1",
    **settings: Any,
) -> DeploymentRow:
    """The row of a deployment with one version."""
    own, version_settings = split_settings(settings)
    version = VersionRow(label, label, engine, revision, settings=version_settings)
    return DeploymentRow(name, "decoder", own, (version,))


def echo_deployment(name: str = "echo", **settings: Any) -> DeploymentRow:
    """The row of an echo deployment."""
    traits = EchoEngine.traits
    honours = tuple(sorted(traits.honours or ()))
    given = {"honours": honours, "accepts_response_id": traits.accepts_response_id, **settings}
    return make_deployment(name, **given)


def replica_row(index: int, url: str, name: str = "echo", **changes: Any) -> ReplicaRow:
    """The row of a ready replica."""
    values = {
        "id": f"{name}-{index}", "deployment": name, "engine": "echo", "version": "echo@v1",
        "revision": "r1", "artifact": None, "url": url, "state": "ready", **changes,
    }  # fmt: skip
    return ReplicaRow(**values)


@contextlib.asynccontextmanager
async def running_gateway(
    folder: Path,
    urls: Sequence[str],
    *,
    deployment: DeploymentRow | None = None,
    limits: ServerLimits | None = None,
    cache_bytes: int = 10_000_000,
    prompts: bool = False,
    database_url: str | None = None,
    redis_url: str | None = None,
    redis_timeout_s: float = 0.05,
    cache_shared: SharedSettings | None = None,
    worker: str = "worker",
    batches: BatchSettings | None = None,
    managed: bool = False,
    feedback: FeedbackSettings | None = None,
    cors: tuple[str, ...] = (),
    redact: bool = True,
    names: str = "",
    observe: ObserveSettings | None = None,
) -> AsyncIterator[GatewayUnderTest]:
    """A gateway in front of `urls`, with a real database in `folder`. Two of them in one folder
    are two workers. `managed` adds the management API.
    """
    chosen_url = database_url or f"sqlite:///{folder}/thrifty.db"
    database = open_database(chosen_url, migrate=True)
    row = deployment or echo_deployment()
    save_deployment(database, row)
    rows = [
        replica_row(i, url, row.name, version=row.versions[0].label) for i, url in enumerate(urls)
    ]
    save_replicas(database, rows, routing_changed=True)
    limits = limits or ServerLimits()
    settings = GatewaySettings(
        "127.0.0.1", 0, id=worker, redis_timeout_s=redis_timeout_s, cache_bytes=cache_bytes,
        cache_shared=cache_shared, max_body_bytes=limits.max_body_bytes,
        read_timeout_s=limits.read_timeout_s, write_timeout_s=limits.write_timeout_s,
        record_prompts=prompts, feedback=feedback or FeedbackSettings(), cors=cors,
        record_redact=redact, record_names=names, observe=observe or ObserveSettings(),
    )  # fmt: skip
    if batches is not None:
        places = msgspec.structs.replace(batches, folder=str(folder / "files"))
        settings = msgspec.structs.replace(settings, batches=places)
    client = HttpClient()
    try:
        secrets = Secrets(chosen_url, redis_url or "", b"s" * 32)
        make_services = functools.partial(make_home_services, chosen_url, Home(folder))
        async with assemble(settings, secrets, make_services if managed else None) as parts:
            try:
                port = await parts.server.start(settings.host, settings.port)
                while not parts.table.loaded:
                    await asyncio.sleep(0.01)
                if parts.batches is not None:
                    parts.batches.runner.start()
                yield GatewayUnderTest(f"http://127.0.0.1:{port}", database, parts, client)
            finally:
                client.close()
                await parts.drain(0.5, 0.2)
    finally:
        database.close()


@dataclass
class RunningService:
    """`thrifty up` in a process of its own."""

    process: subprocess.Popen[str]
    home: Path
    url: str
    output: Path

    def status(self) -> dict[str, Any]:
        """What `thrifty status --json` says."""
        result = run_thrifty(self.home, "status", "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def replicas(self) -> list[dict[str, Any]]:
        """The replicas of the only deployment."""
        return self.status()["deployments"][0]["replicas"]

    def stop(self, number: int = signal.SIGINT, timeout_s: float = 60) -> int:
        """Stop it, and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


def run_thrifty(
    home: Path, *arguments: str, timeout_s: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "thrifty", *arguments],
        env={**os.environ, HOME_VARIABLE: str(home), **environment},
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


@contextlib.contextmanager
def running_service(
    home: Path, *arguments: str, timeout_s: float = 120, **environment: str
) -> Iterator[RunningService]:
    """`thrifty up ARGUMENTS` on a free port, until the block ends; nothing may be left after it."""
    home.mkdir(parents=True, exist_ok=True)
    output = home / "up.out"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "thrifty", "up", *arguments],
            env={**os.environ, HOME_VARIABLE: str(home), **environment},
            stdout=file, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    try:
        deadline_s = time.monotonic() + timeout_s
        while "is served at" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline_s, output.read_text()
            time.sleep(0.05)
        url = output.read_text().split("is served at ")[1].split("/v1")[0].strip()
        yield RunningService(process, home, url, output)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        run_thrifty(home, "down")


async def until(condition: Any, timeout_s: float = 30.0, what: str = "the condition") -> Any:
    """`wait_until` for coroutines; `condition` may be one itself. Returns what it gave."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what} did not come true within {timeout_s:g} s")


def wait_until(condition: Any, timeout_s: float = 30.0, what: str = "the condition") -> Any:
    """Wait until `condition()` is true; return what it gave."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {timeout_s:g} s")
