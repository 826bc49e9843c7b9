"""Limits of keys in a whole gateway: OpenAI's 429s, headers, budgets, with and without Redis."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.parts import (
    GatewayUnderTest,
    Reply,
    add_key,
    echo_deployment,
    know_keys,
    running_echo,
    running_gateway,
    until,
)
from tests.redis_server import RedisServer, running_redis
from thrifty.db.keys import KeyLimits
from thrifty.db.tables import key_spend
from thrifty.gateway.admission.limits import format_reset
from thrifty.gateway.admission.spend import READ_S
from thrifty.http.connection import HttpProtocol

CHAT: dict[str, Any] = {
    "model": "echo", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 11,
}  # fmt: skip
PRICED = {"price_input": 0.0, "price_cached": 0.0, "price_output": 1_000_000.0}
"""One token of an answer costs 1; the answer to CHAT has 11 tokens."""


async def make_key(gateway: GatewayUnderTest, name: str = "ann", **limits: Any) -> dict[str, str]:
    return await add_key(gateway, name, limits=KeyLimits(**limits))


async def ask(gateway: GatewayUnderTest, headers: dict[str, str], **changes: Any) -> Reply:
    return await gateway.ask({**CHAT, **changes}, headers=headers)


async def test_requests_per_minute(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        key = await make_key(gateway, rpm=3)
        replies = [await ask(gateway, key) for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
        assert [r.headers[b"x-ratelimit-remaining-requests"] for r in replies[:3]] == [
            b"2",
            b"1",
            b"0",
        ]
        refused = replies[3]
        assert refused.error["code"] == "rate_limit_exceeded"
        assert refused.error["type"] == "requests"
        assert "Limit 3, Used 3" in refused.error["message"]
        assert 50 <= int(refused.headers[b"retry-after"]) <= 62
        assert refused.headers[b"x-ratelimit-limit-requests"] == b"3"
        assert refused.headers[b"x-ratelimit-reset-requests"].endswith(b"s")
        assert b"x-ratelimit-limit-tokens" not in refused.headers
        metrics = await gateway.ask(
            b"", "/metrics", method="GET", headers=await make_key_for_metrics(gateway)
        )
        assert metrics.metric("thrifty_rejections_total", deployment="echo", reason="requests") == 2


async def known_everywhere(gateway: GatewayUnderTest, spend: float) -> None:
    """Wait until the database knows of this spend, and every worker has read it since."""

    def written() -> bool:
        with gateway.database.begin() as connection:
            return connection.execute(select(func.sum(key_spend.c.spend))).scalar() == spend

    await until(lambda: asyncio.to_thread(written), what="the spend in the database")
    await asyncio.sleep(3 * READ_S)


async def make_key_for_metrics(gateway: GatewayUnderTest) -> dict[str, str]:
    return await add_key(gateway, "watcher", "viewer")


async def test_a_cache_hit_is_a_request_but_takes_no_tokens(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        key = await make_key(gateway, rpm=10, tpm=1000)
        first = await ask(gateway, key, temperature=0)
        again = await ask(gateway, key, temperature=0)
        assert again.headers[b"x-thrifty-cache"] == b"hit"
        fresh = await ask(gateway, key, temperature=1)
        assert first.headers[b"x-ratelimit-remaining-requests"] == b"9"
        assert fresh.headers[b"x-ratelimit-remaining-requests"] == b"7"
        used = first.json()["usage"]["total_tokens"]
        # One answer was generated, and the third request is reserved by estimate.
        left = int(fresh.headers[b"x-ratelimit-remaining-tokens"])
        assert 1000 - 2 * used - 60 <= left <= 1000 - used


async def test_tokens_per_minute_count_actual_usage(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        key = await make_key(gateway, tpm=300)
        used = 0
        for _ in range(100):
            reply = await ask(gateway, key)
            if reply.status == 429:
                break
            used += reply.json()["usage"]["total_tokens"]
        assert reply.error["type"] == "tokens"
        assert reply.error["code"] == "rate_limit_exceeded"
        assert 300 - 80 <= used <= 300
        # A request that runs alone is not refused, even if its max_tokens exceeds the limit.
        other = await make_key(gateway, "bob", tpm=300)
        assert (await ask(gateway, other, max_tokens=100_000)).status == 200
        assert (await ask(gateway, other)).status == 200


async def test_concurrent_requests(tmp_path: Path) -> None:
    async with running_echo(ttft_s=0.2) as url, running_gateway(tmp_path, [url]) as gateway:
        key = await make_key(gateway, concurrency=2)
        for stream in (False, True):
            replies = await asyncio.gather(*(ask(gateway, key, stream=stream) for _ in range(5)))
            assert sorted(reply.status for reply in replies) == [200, 200, 429, 429, 429]
        refused = next(reply for reply in replies if reply.status == 429)
        assert refused.error["type"] == "rate_limit_error"
        assert "2 requests at once" in refused.error["message"]
        # Errors and disconnected clients release their slots too.
        assert (await ask(gateway, key, temperature=99)).status == 400
        assert (await ask(gateway, key)).status == 200


async def test_a_budget_stops_a_key_and_no_other(tmp_path: Path) -> None:
    row = echo_deployment(**PRICED)
    async with running_echo() as url, running_gateway(tmp_path, [url], deployment=row) as gateway:
        key = await make_key(gateway, budget_day=33.0)
        other = await make_key(gateway, "bob", budget_month=1000.0)
        replies = [await ask(gateway, key) for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
        refused = replies[3]
        assert refused.error["code"] == "insufficient_quota"
        assert refused.error["type"] == "insufficient_quota"
        assert "33 of its budget of 33 per day" in refused.error["message"]
        assert 1 <= int(refused.headers[b"retry-after"]) <= 86400
        assert (await ask(gateway, other)).status == 200


async def test_concurrent_requests_do_not_overspend_a_budget(tmp_path: Path) -> None:
    row = echo_deployment(**PRICED)
    async with (
        running_echo(ttft_s=0.1) as url,
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        key = await make_key(gateway, budget_day=55.0)
        replies = await asyncio.gather(*(ask(gateway, key) for _ in range(40)))
        assert sum(reply.status == 200 for reply in replies) == 5
        await asyncio.sleep(0.1)
        assert (await ask(gateway, key)).status == 429


@pytest.mark.slow
async def test_a_budget_survives_a_restart_and_holds_across_workers(tmp_path: Path) -> None:
    """Per-worker budgets would leak; these do not, with or without Redis."""
    row = echo_deployment(**PRICED)
    async with running_echo() as url:
        async with running_gateway(tmp_path, [url], deployment=row) as gateway:
            key = await make_key(gateway, budget_month=44.0)
            assert [(await ask(gateway, key)).status for _ in range(2)] == [200, 200]
        async with (
            running_gateway(tmp_path, [url], deployment=row) as one,
            running_gateway(tmp_path, [url], deployment=row) as two,
        ):
            assert (await ask(one, key)).status == 200
            await known_everywhere(one, 33.0)
            assert (await ask(two, key)).status == 200
            assert (await ask(two, key)).status == 429
            await known_everywhere(two, 44.0)
            assert (await ask(one, key)).status == 429


async def test_a_client_that_disconnects_is_charged(tmp_path: Path) -> None:
    row = echo_deployment(**PRICED)
    async with (
        running_echo(tpot_s=0.05) as url,
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        key = await make_key(gateway, budget_day=100.0, concurrency=1)
        task = asyncio.ensure_future(
            ask(gateway, key, stream=True, max_tokens=1000, ignore_eos=True)
        )
        replicas = gateway.version().replicas.values()
        await until(lambda: sum(replica.in_flight for replica in replicas) == 1)
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gateway.client.close()
        for _ in range(100):
            reply = await ask(gateway, key)
            if reply.error["code"] == "insufficient_quota":
                break
            await asyncio.sleep(0.02)
        assert reply.error["code"] == "insufficient_quota"


class Sink(asyncio.Transport):
    """A connection that takes whatever is written to it."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop `data`."""

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0


async def test_a_client_that_leaves_at_once_keeps_no_slot_and_no_generation(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        key = await make_key(gateway, concurrency=1)
        body = json.dumps({**CHAT, "temperature": 0}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            f"authorization: {key['authorization']}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection = HttpProtocol(gateway.server)
        connection.connection_made(Sink())
        # Both arrive in one turn of the event loop, as they do in one record of TLS.
        connection.data_received(head.encode() + body)
        connection.eof_received()
        connection.connection_lost(None)
        await until(lambda: connection.task is None)
        async with asyncio.timeout(20):
            while (reply := await ask(gateway, key, temperature=0)).status == 429:
                await asyncio.sleep(0.02)
        assert reply.status == 200


async def test_redis_holds_limits_across_workers(tmp_path: Path) -> None:
    with running_redis() as server:
        async with (
            running_echo(ttft_s=0.05) as url,
            running_gateway(tmp_path, [url], redis_url=server.url, redis_timeout_s=5.0) as one,
            running_gateway(tmp_path, [url], redis_url=server.url, redis_timeout_s=5.0) as two,
        ):
            key = await make_key(one, rpm=8, tpm=100_000)
            await know_keys(two, 1)
            replies = await asyncio.gather(
                *(ask(gateway, key, stream=s) for gateway in (one, two) for s in (True, False) * 4)
            )
            assert sum(reply.status == 200 for reply in replies) == 8
            assert {reply.status for reply in replies} == {200, 429}
            refused = next(reply for reply in replies if reply.status == 429)
            assert refused.error["code"] == "rate_limit_exceeded"
            assert refused.headers[b"x-ratelimit-remaining-requests"] == b"0"
            other = await make_key(one, "bob", concurrency=3)
            await know_keys(two, 1)
            for _ in range(3):
                replies = await asyncio.gather(
                    *(ask(gateway, other) for gateway in (one, two) for _ in range(4))
                )
                assert sum(reply.status == 200 for reply in replies) == 3
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_redis_holds_budgets_across_workers_at_once(tmp_path: Path) -> None:
    row = echo_deployment(**PRICED)
    with running_redis() as server:
        async with (
            running_echo(ttft_s=0.1) as url,
            running_gateway(
                tmp_path, [url], deployment=row, redis_url=server.url, redis_timeout_s=5.0
            ) as one,
            running_gateway(
                tmp_path, [url], deployment=row, redis_url=server.url, redis_timeout_s=5.0
            ) as two,
        ):
            key = await make_key(one, budget_day=66.0)
            await know_keys(two, 1)
            replies = await asyncio.gather(*(ask(g, key) for g in (one, two) for _ in range(20)))
            assert sum(reply.status == 200 for reply in replies) == 6
            await asyncio.sleep(0.1)
            assert (await ask(one, key)).error["code"] == "insufficient_quota"
            # After Redis has lost its data, it learns the sum from the database.
            await asyncio.sleep(1.5)
            server.kill()
            server.start()
            assert (await ask(two, key)).error["code"] == "insufficient_quota"


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_limits_hold_per_worker_without_redis(tmp_path: Path, fault: str) -> None:
    with running_redis() as server:
        async with (
            running_echo() as url,
            running_gateway(tmp_path, [url], redis_url=server.url) as gateway,
        ):
            key = await make_key(gateway, rpm=40)
            statuses = [(await ask(gateway, key)).status for _ in range(20)]
            getattr(server, fault)()
            statuses += [(await ask(gateway, key)).status for _ in range(30)]
            # This worker's requests that Redis had counted still count.
            assert statuses == [200] * 40 + [429] * 10
            watcher = await make_key_for_metrics(gateway)
            metrics = await gateway.ask(b"", "/metrics", method="GET", headers=watcher)
            assert metrics.metric("thrifty_shared_store_up") == 0
            assert metrics.metric("thrifty_limit_fallbacks_total") >= 28
            if fault == "pause":
                server.resume()


async def test_a_missing_redis_stops_no_request(tmp_path: Path) -> None:
    async with (
        running_echo() as url,
        running_gateway(tmp_path, [url], redis_url=RedisServer().url) as gateway,
    ):
        key = await make_key(gateway, rpm=2)
        assert [(await ask(gateway, key)).status for _ in range(3)] == [200, 200, 429]


def test_resets_have_openais_format() -> None:
    assert [format_reset(s) for s in (0, 0.02, 1, 6.54, 60, 372)] == [
        "0ms", "20ms", "1s", "6.5s", "1m0s", "6m12s",
    ]  # fmt: skip
