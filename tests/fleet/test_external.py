"""Servers that others run: watched, by their own word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.parts import running_server
from thrifty.engines.base import Served, Upstream
from thrifty.engines.remote import RemoteEngine, RemoteOptions
from thrifty.fleet import external
from thrifty.fleet.base import ReplicaNames, ReplicaSet
from thrifty.fleet.external import ExternalFleet, ExternalReplica
from thrifty.http.server import Exchange
from thrifty.openai.base_urls import complete_url
from thrifty.types import ReplicaState


async def until(replica: ExternalReplica, state: ReplicaState, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while replica.state is not state:
            await asyncio.sleep(0.02)


async def test_an_external_replica_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "WATCH_INTERVAL_S", 0.05)
    status = 200

    async def upstream(exchange: Exchange) -> None:
        exchange.respond(status, b"{}")

    served = Served("m", "remote", "v", "r", "decoder", options={})
    async with running_server(upstream) as (url, _):
        one = ExternalReplica("m-0", url, served, RemoteEngine(), lambda: None)
        one.start()
        await until(one, ReplicaState.READY)
        status = 503
        await until(one, ReplicaState.UNHEALTHY)
        assert "answers 503" in (one.message or "")
        status = 200
        await until(one, ReplicaState.READY)
    await until(one, ReplicaState.UNHEALTHY)
    await one.stop()


@pytest.mark.parametrize(
    ("given", "kept", "asked"),
    [
        ("http://h", "http://h", "http://h/v1"),
        ("http://h/", "http://h", "http://h/v1"),
        ("http://h/v1", "http://h", "http://h/v1"),
        ("http://h:9/v1//", "http://h:9", "http://h:9/v1"),
        ("https://h/v3", "https://h/v3", "https://h/v3"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai", "https://h/v1beta/openai"),
        ("https://h/api/paas/v4", "https://h/api/paas/v4", "https://h/api/paas/v4"),
        ("https://h/proxy/v1", "https://h/proxy/v1", "https://h/proxy/v1"),
    ],
)
def test_a_base_url_has_one_form(given: str, kept: str, asked: str) -> None:
    assert RemoteOptions(urls=(given,)).urls == (kept,)
    assert complete_url(kept) == asked


@pytest.mark.parametrize("path", ["", "/v1", "/v3", "/api/paas/v4"])
@pytest.mark.parametrize(
    ("status", "fault", "remark"),
    [
        (200, None, None),
        (404, None, "answers 404, no list of models"),
        (307, None, "answers 307, no list of models"),
        (401, "refuses the key", None),
        (500, "answers 500", None),
    ],
)
async def test_a_server_without_a_list_of_models_is_ready_with_a_remark(
    monkeypatch: pytest.MonkeyPatch, path: str, status: int, fault: str | None, remark: str | None
) -> None:
    monkeypatch.setattr(external, "WATCH_INTERVAL_S", 0.05)
    asked: list[str] = []

    async def upstream(exchange: Exchange) -> None:
        asked.append(exchange.path)
        exchange.respond(status, b"{}")

    served = Served("m", "remote", "v", "r", "decoder", options={})
    async with running_server(upstream) as (url, _):
        one = ExternalReplica("m-0", url + path, served, RemoteEngine(), lambda: None)
        one.start()
        await until(one, ReplicaState.UNHEALTHY if fault else ReplicaState.READY)
        message = one.row().message
        assert (fault or remark or "") in (message or "")
        assert (message is None) is (fault is None and remark is None)
        await one.stop()
    assert set(asked) == {f"{path or '/v1'}/models"}


async def test_other_settings_of_the_same_server_take_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OLD_KEY", "old")
    monkeypatch.setenv("NEW_KEY", "new")
    asked: list[bytes | None] = []

    async def upstream(exchange: Exchange) -> None:
        asked.append(exchange.headers.get(b"authorization"))
        exchange.respond(200, b"{}")

    async def ask_as(variable: str, urls: tuple[str, ...]) -> None:
        served = Served("m", "remote", "v", "r", "decoder", upstream=Upstream(urls, "up", variable))
        await fleet.apply([ReplicaSet(served, RemoteEngine(), 1)])

    async def find(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.02)

    fleet = ExternalFleet(ReplicaNames(), lambda: None)
    async with running_server(upstream) as (url, _):
        await ask_as("OLD_KEY", (url,))
        await find(lambda: asked[-1:] == [b"Bearer old"])
        await find(lambda: fleet.observe()[0].row.state == "ready")
        (before,) = fleet.observe()
        await ask_as("NEW_KEY", (url,))
        await find(lambda: asked[-1] == b"Bearer new")
        (after,) = fleet.observe()
        assert (after.row.id, after.row.state) == (before.row.id, "ready")
        await ask_as("NO_SUCH_KEY", (url,))
        await find(lambda: fleet.observe()[0].row.state == "unhealthy")
        assert "NO_SUCH_KEY is not set where the service runs" in (
            fleet.observe()[0].row.message or ""
        )
        await fleet.stop(0)
