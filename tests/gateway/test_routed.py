"""Routing in a running gateway: load counts, affinity, forgotten replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.parts import (
    GatewayUnderTest,
    echo_deployment,
    replica_row,
    running_echo,
    running_gateway,
)
from thrifty.db.fleet import save_deployment
from thrifty.gateway.app.alarms import raise_alarms
from thrifty.gateway.routing import make_policy
from thrifty.gateway.state.router import Router
from thrifty.gateway.state.table import RoutingTable
from thrifty.observe.metrics import GatewayMetrics

LONG = "All who work here must wash their hands before they return to their work. " * 30


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    roles = ["system", *["user", "assistant"] * len(texts)]
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return {"model": "echo", "messages": messages, "max_tokens": 8, **fields}


def account(gateway: GatewayUnderTest) -> list[tuple[int, float, float]]:
    replicas = gateway.version().replicas.values()
    return [(r.in_flight, r.prefill_tokens, r.decode_tokens) for r in replicas]


@contextlib.asynccontextmanager
async def fleet(folder: Path, count: int, routing: str = "auto", **options: Any) -> Any:
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(running_echo(**options)) for _ in range(count)]
        deployment = echo_deployment(routing=routing, cache_when="never")
        gateway = await stack.enter_async_context(
            running_gateway(folder, urls, deployment=deployment)
        )
        yield gateway, urls


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat("be kind", "one two")),
        ("/v1/chat/completions", chat("be kind", "one two", stream=True)),
        ("/v1/completions", {"model": "echo", "prompt": "one two three", "max_tokens": 4}),
        (
            "/v1/completions",
            {"model": "echo", "prompt": "one two", "max_tokens": 4, "stream": True},
        ),
    ],
)
async def test_load_is_counted_on_every_endpoint_and_released(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    """Counting on some endpoints only would send everything to one replica."""
    async with fleet(tmp_path, 4, ttft_s=1.0) as (gateway, _):
        asking = [asyncio.ensure_future(gateway.ask(body, path)) for _ in range(16)]
        while sum(a[0] for a in account(gateway)) < 16:
            await asyncio.sleep(0.005)
        assert [a[0] for a in account(gateway)] == [4, 4, 4, 4]
        assert all(a[1] > 0 and a[2] > 0 for a in account(gateway))
        assert {reply.status for reply in await asyncio.gather(*asking)} == {200}
        assert account(gateway) == [(0, 0.0, 0.0)] * 4


@pytest.mark.slow
async def test_load_is_released_after_disconnects_and_failures(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3, ttft_s=1.0) as (gateway, urls):
        asking = [asyncio.ensure_future(gateway.ask(chat("a", "b", stream=True))) for _ in range(9)]
        while sum(a[0] for a in account(gateway)) < 9:
            await asyncio.sleep(0.005)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        gateway.client.close()
        for _ in range(200):
            if account(gateway) == [(0, 0.0, 0.0)] * 3:
                break
            await asyncio.sleep(0.01)
        assert account(gateway) == [(0, 0.0, 0.0)] * 3
        await gateway.set_replicas(
            [replica_row(0, "http://127.0.0.1:9"), *(replica_row(i, urls[i]) for i in (1, 2))]
        )
        for number in range(12):
            assert (await gateway.ask(chat("a", str(number)))).status == 200
        assert account(gateway) == [(0, 0.0, 0.0)] * 3


async def test_a_conversation_returns_to_its_replica(tmp_path: Path) -> None:
    async with fleet(tmp_path, 4, cache_tokens=100_000) as (gateway, _):
        homes: dict[int, bytes] = {}
        for turn in range(3):
            for number in range(12):
                texts = [f"{number} {LONG}"]
                for before in range(turn):
                    texts += [f"question {before}", f"answer {before}"]
                reply = await gateway.ask(chat(*texts, f"question {turn}"))
                home = homes.setdefault(number, reply.headers[b"x-thrifty-replica"])
                assert reply.headers[b"x-thrifty-replica"] == home
        counts = Counter(homes.values())
        assert len(counts) >= 3, "misses do not land on one replica"
        assert max(counts.values()) <= 7


async def test_no_affinity_to_replicas_without_a_prefix_cache(tmp_path: Path) -> None:
    """They report that nothing was cached, and the router trusts the report."""
    async with fleet(tmp_path, 2) as (gateway, _):
        for number in range(40):
            await gateway.ask(chat(f"{number % 4} {LONG}", "x"))
        held = gateway.version().router.learned.prefixes._replicas.values()
        assert all(h.capacity <= 20 for h in held)


@pytest.mark.parametrize("how", ["header", "field"])
async def test_bounded_hash_keeps_sessions_at_their_replica(tmp_path: Path, how: str) -> None:
    async with fleet(tmp_path, 4, "bounded_hash") as (gateway, _):
        homes = set()
        for number in range(8):
            headers = {"x-session-id": "ann-1"} if how == "header" else None
            fields = {} if how == "header" else {"prompt_cache_key": "ann-1"}
            reply = await gateway.ask(chat(f"{number}", "x", **fields), headers=headers)
            assert reply.status == 200, reply.body
            homes.add(reply.headers[b"x-thrifty-replica"])
        assert len(homes) == 1


async def test_a_restarted_replica_starts_with_an_empty_cache(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as (gateway, urls):
        await gateway.ask(chat(LONG, "hello"))
        prefixes = gateway.version().router.learned.prefixes
        assert len(prefixes) > 0
        await gateway.set_replicas([replica_row(i, url, restarts=1) for i, url in enumerate(urls)])
        while gateway.version().replicas["echo-0"].restarts != 1:
            await asyncio.sleep(0.01)
        assert len(prefixes) == 0
        assert (await gateway.ask(chat(LONG, "hello"))).status == 200


async def test_the_policy_can_change_while_it_runs(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3) as (gateway, _):
        await gateway.ask(chat(LONG, "hello"))
        row = echo_deployment(routing="round_robin", cache_when="never")
        await asyncio.to_thread(save_deployment, gateway.database, row)
        await gateway.reader.refresh()
        while gateway.version().limits.routing != "round_robin":
            await asyncio.sleep(0.01)
        found = [
            (await gateway.ask(chat(LONG, "hello"))).headers[b"x-thrifty-replica"] for _ in range(6)
        ]
        assert found[:3] == found[3:]
        assert len(set(found)) == 3
        slots = [r.slot for r in gateway.version().replicas.values()]
        assert len(set(slots)) == 3


def test_alarms_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    table, metrics = RoutingTable(make_policy), GatewayMetrics()
    row = echo_deployment()
    from thrifty.db.fleet import FleetState

    rows = [replica_row(i, f"http://127.0.0.1:{9000 + i}") for i in range(4)]
    table.apply(FleetState(1, [row], rows, []))
    deployment = table.deployments["echo"].main
    for replica in deployment.ready:
        replica.in_flight = 5
    router: Router = deployment.router
    for _ in range(4000):
        router.shares.note("echo-2", deployment.ready)
    router.reported, router.silent = 60, 250
    with caplog.at_level(logging.WARNING):
        raise_alarms(table, metrics)
        raise_alarms(table, metrics)
    said = [record.getMessage() for record in caplog.records]
    assert any("echo-2 received 100 %" in text and "fair share is 25 %" in text for text in said)
    assert sum("no longer report" in text for text in said) == 1, "once, not every second"
    assert metrics.signals_lost.labels("echo", "echo@v1")._value.get() == 1
    assert metrics.share_alarms.labels("echo", "echo-2")._value.get() == 1
    router.silent = 0
    raise_alarms(table, metrics)
    assert metrics.signals_lost.labels("echo", "echo@v1")._value.get() == 0
