"""Servers that others run: watched, by their own word."""

from __future__ import annotations

import asyncio

import pytest

from tests.parts import running_server
from thrifty.engines.base import Served
from thrifty.engines.remote import RemoteEngine
from thrifty.fleet import external
from thrifty.fleet.external import ExternalReplica
from thrifty.http.server import Exchange
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
