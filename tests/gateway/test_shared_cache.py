"""The second cache tier on a real Redis: shared, killed, stopped, damaged, purged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from tests.parts import (
    GatewayUnderTest,
    Reply,
    ask,
    echo_deployment,
    replica_row,
    running_echo,
    running_gateway,
    until,
)
from tests.redis_server import RedisServer, running_redis
from thrifty.db.cache import add_purge
from thrifty.db.fleet import save_deployment
from thrifty.db.keys import create_key
from thrifty.fleet.ports import find_free_port
from thrifty.gateway.cache import Entry, Owner
from thrifty.gateway.cache.answers import SharedSettings
from thrifty.gateway.cache.entry_format import decode_entry, encode_entry
from thrifty.gateway.cache.shared import LOCK_S, NO_ANSWER_MS
from thrifty.http.client import HttpClient, TransportError
from thrifty.worker.settings import GatewaySettings

CALM = SharedSettings(timeout_s=5.0, stream_wait_s=30.0)
"""Large enough that on a busy machine only the delays of a test count as late."""


def chat(text: str = "The same question", **fields: Any) -> dict[str, Any]:
    return {
        "model": "echo",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        **fields,
    }


def result(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    return reply.headers[b"x-thrifty-cache"].decode()


def text_of(reply: Reply) -> str:
    if reply.headers[b"content-type"].startswith(b"text/event-stream"):
        assert reply.body.endswith(b"data: [DONE]\n\n")
        return "".join(
            choice["delta"].get("content") or ""
            for event in reply.events
            for choice in event["choices"]
        )
    return reply.json()["choices"][0]["message"]["content"]


async def connected(*gateways: GatewayUnderTest) -> None:
    """Wait until these workers use Redis: on a busy machine the first connection takes a while."""
    tiers = [gateway.answers.shared for gateway in gateways]
    await until(lambda: all(tier is not None and tier.available for tier in tiers))


async def claimed(server: RedisServer) -> None:
    """Wait until a worker has claimed a generation."""
    with Redis.from_url(server.url) as client:
        await until(lambda: client.keys("thrifty:cache:*lock"), what="a claim")


def answers_in(redis: Redis) -> list[bytes]:
    """The keys of the answers in Redis."""
    names = redis.keys("thrifty:cache:*{*}")
    assert isinstance(names, list)
    return names


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        yield client


@contextlib.asynccontextmanager
async def two_workers(
    folder: Path, server: RedisServer, shared: SharedSettings = CALM, **echo: Any
) -> AsyncIterator[tuple[GatewayUnderTest, GatewayUnderTest]]:
    """Two gateway workers with one database, one Redis and one replica."""
    patience_s = 5.0 if shared.timeout_s > 1 else 0.05
    async with (
        running_echo(**echo) as url,
        running_gateway(
            folder, [url], redis_url=server.url, redis_timeout_s=patience_s, cache_shared=shared,
            worker="a",
        ) as one,
        running_gateway(
            folder, [url], redis_url=server.url, redis_timeout_s=patience_s, cache_shared=shared,
            worker="b",
        ) as two,
    ):  # fmt: skip
        await one.reader.refresh()
        await connected(one, two)
        yield one, two


# Sharing


async def test_a_worker_returns_another_workers_answer(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    async with two_workers(tmp_path, server) as (one, two):
        first = await one.ask(chat())
        assert result(first) == "miss"
        await until(lambda: answers_in(redis))
        second = await two.ask(chat())
        assert result(second) == "hit"
        assert second.headers[b"x-thrifty-replica"] == b"echo-0"
        assert second.headers[b"x-thrifty-version"] == b"echo@v1"
        a, b = first.json(), second.json()
        assert a.pop("id") != b.pop("id")
        assert a == b
        third = await two.ask(chat(stream=True, stream_options={"include_usage": True}))
        assert (result(third), text_of(third)) == ("hit", "The same question")
        assert third.events[-1]["usage"] == a["usage"]
        metrics = await two.ask(b"", "/metrics", method="GET")
        for tier in ("shared", "memory"):
            assert metrics.metric("thrifty_cache_hits_total", tier=tier) == 1
        assert metrics.metric("thrifty_cache_shared_total", kind="hits") == 1
        assert metrics.metric("thrifty_cache_saved_completion_tokens_total") == 34
        assert metrics.metric("thrifty_completion_tokens_total") == 0


async def test_entries_expire_and_hide_their_tenants(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    async with two_workers(tmp_path, server) as (one, two):
        _, ann = await asyncio.to_thread(create_key, one.database, "ann", "user", "team-ann")
        _, bob = await asyncio.to_thread(create_key, one.database, "bob", "user", "team-bob")
        await until(lambda: len(one.table.keys) == len(two.table.keys) == 2)
        assert result(await one.ask(chat(), headers={"authorization": f"Bearer {ann}"})) == "miss"
        (name,) = await until(lambda: answers_in(redis))
        life_ms = redis.pttl(name)
        assert isinstance(life_ms, int)
        assert 3_590_000 < life_ms <= 3_600_000
        value = redis.get(name)
        assert isinstance(value, bytes)
        assert b"team" not in name + value
        assert result(await two.ask(chat(), headers={"authorization": f"Bearer {bob}"})) == "miss"
        assert result(await two.ask(chat(), headers={"authorization": f"Bearer {ann}"})) == "hit"
        await until(lambda: not redis.keys("thrifty:cache:*lock"))


@pytest.mark.parametrize("streams", [(False, False), (True, False), (False, True), (True, True)])
async def test_identical_requests_at_two_workers_share_one_generation(
    tmp_path: Path, server: RedisServer, streams: tuple[bool, bool]
) -> None:
    async with two_workers(tmp_path, server, ttft_s=1.0) as (one, two):
        leader = asyncio.ensure_future(one.ask(chat(stream=streams[0])))
        await claimed(server)
        followers = [asyncio.ensure_future(two.ask(chat(stream=streams[1]))) for _ in range(5)]
        replies = await asyncio.gather(leader, *followers)
        assert [result(reply) for reply in replies] == ["miss"] + ["hit"] * 5
        assert {text_of(reply) for reply in replies} == {"The same question"}
        assert two.answers.shared is not None
        assert two.answers.shared.stats.waited == 1
        metrics = await two.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_completion_tokens_total") == 0
        assert metrics.metric("thrifty_cache_hits_total", tier="shared") == 1
        assert metrics.metric("thrifty_cache_hits_total", tier="in_flight") == 4


@pytest.mark.slow
async def test_a_stream_does_not_wait_long_for_another_worker(
    tmp_path: Path, server: RedisServer
) -> None:
    shared = SharedSettings(timeout_s=5.0, stream_wait_s=0.1)
    async with two_workers(tmp_path, server, shared, ttft_s=3.0) as (one, two):
        leader = asyncio.ensure_future(one.ask(chat()))
        await claimed(server)
        reply = await two.ask(chat(stream=True))
        assert (result(reply), text_of(reply)) == ("miss", "The same question")
        assert result(await leader) == "miss"


@pytest.mark.slow
async def test_a_waiting_worker_takes_over_from_a_killed_leader(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    """The leader is a worker process that is killed with SIGKILL while it generates."""
    async with (
        running_echo(ttft_s=1.0) as url,
        running_gateway(
            tmp_path, [url], redis_url=server.url, redis_timeout_s=5.0, cache_shared=CALM
        ) as gateway,
    ):
        settings = GatewaySettings(
            "127.0.0.1", find_free_port(), redis_timeout_s=5.0, cache_shared=CALM
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "thrifty.worker", msgspec.json.encode(settings).decode(),
            env={**os.environ, "THRIFTY_DATABASE_URL": f"sqlite:///{tmp_path}/thrifty.db",
                 "THRIFTY_REDIS_URL": server.url},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        client = HttpClient()
        other = f"http://127.0.0.1:{settings.port}"
        try:

            async def serves() -> bool:
                with contextlib.suppress(TransportError):
                    if (await client.fetch(f"{other}/readyz"))[0] != 200:
                        return False
                    metrics = await ask(client, other, b"", "/metrics", method="GET")
                    return metrics.metric("thrifty_shared_store_up") == 1
                return False

            await until(serves, 90, "the other worker, with Redis")
            await connected(gateway)
            body = json.dumps(chat()).encode()
            doomed = asyncio.ensure_future(ask(client, other, body, "/v1/chat/completions"))
            await until(lambda: redis.keys("thrifty:cache:*lock"))
            follower = asyncio.ensure_future(gateway.ask(chat()))
            await until(lambda: gateway.answers.shared and gateway.answers.shared.stats.waited)
            process.kill()
            # Well before its own wait would have timed out.
            reply = await asyncio.wait_for(follower, CALM.wait_s - 5)
            assert (result(reply), text_of(reply)) == ("miss", "The same question")
            with pytest.raises(TransportError):
                await doomed
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            client.close()
        assert await until(lambda: answers_in(redis))


@pytest.mark.slow
async def test_a_long_generation_keeps_its_claim(tmp_path: Path, server: RedisServer) -> None:
    async with two_workers(tmp_path, server, ttft_s=LOCK_S + 1.5) as (one, two):
        leader = asyncio.ensure_future(one.ask(chat()))
        await claimed(server)
        assert result(await two.ask(chat())) == "hit"
        assert result(await leader) == "miss"


async def test_a_failed_generation_is_not_waited_for(tmp_path: Path, server: RedisServer) -> None:
    async with two_workers(tmp_path, server, context_length=100) as (one, two):
        long = chat("x" * 200)
        asking = asyncio.gather(*(gateway.ask(long) for gateway in (one, two) * 3))
        replies = await asyncio.wait_for(asking, CALM.wait_s - 5)
        assert {reply.status for reply in replies} == {400}
        assert {reply.error["code"] for reply in replies} == {"context_length_exceeded"}


async def test_a_large_answer_is_not_shared_and_no_one_queues_for_it(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    shared = SharedSettings(timeout_s=5.0, max_entry_bytes=1_000)
    async with (
        running_echo(ttft_s=1.0) as url,
        contextlib.AsyncExitStack() as stack,
    ):
        gateways = [
            await stack.enter_async_context(
                running_gateway(
                    tmp_path,
                    [url],
                    redis_url=server.url,
                    redis_timeout_s=5.0,
                    cache_shared=shared,
                    worker=name,
                )
            )
            for name in "abc"
        ]
        await connected(*gateways)
        asking = [asyncio.ensure_future(g.ask(chat("x" * 2000))) for g in gateways]
        at_once = 0
        while not all(task.done() for task in asking):
            at_once = max(
                at_once, json.loads((await gateways[0].client.fetch(f"{url}/load"))[1])["running"]
            )
            await asyncio.sleep(0.01)
        replies = [task.result() for task in asking]
        # One request, then the other two concurrently.
        assert at_once == 2
        assert [result(reply) for reply in replies] == ["miss"] * 3
        assert {redis.get(name) for name in answers_in(redis)} <= {b"-", None}
        assert [result(await gateway.ask(chat("x" * 2000))) for gateway in gateways] == ["hit"] * 3


async def test_a_client_that_disconnects_while_waiting_leaves_nothing(
    tmp_path: Path, server: RedisServer
) -> None:
    async with two_workers(tmp_path, server, ttft_s=3.0) as (one, two):
        leader = asyncio.ensure_future(one.ask(chat()))
        await claimed(server)
        before = len(asyncio.all_tasks())
        client = HttpClient()
        gone = asyncio.ensure_future(
            ask(client, two.url, json.dumps(chat()).encode(), "/v1/chat/completions")
        )
        await until(lambda: two.answers.shared and two.answers.shared.stats.waited)
        assert len(asyncio.all_tasks()) > before
        gone.cancel()
        client.close()
        await until(lambda: len(asyncio.all_tasks()) <= before)
        assert not leader.done(), "the waiting ended with the client, not with the answer"
        assert result(await leader) == "miss"


# Unavailable, slow, damaged


@pytest.mark.slow
async def test_redis_killed_under_load_costs_no_request(
    tmp_path: Path, server: RedisServer
) -> None:
    async with two_workers(tmp_path, server) as (one, two):
        before = len(asyncio.all_tasks())
        ended = False
        counts = {"hit": 0, "miss": 0}

        async def load(gateway: GatewayUnderTest, number: int) -> None:
            index = 0
            while not ended:
                index += 1
                text = f"question {number % 2} {index // 2}"
                reply = await gateway.ask(chat(text))
                assert text_of(reply) == text
                counts[result(reply)] += 1

        tasks = [asyncio.ensure_future(load((one, two)[n % 2], n)) for n in range(8)]
        await until(lambda: sum(counts.values()) > 50)
        server.kill()
        killed_at = sum(counts.values())
        await until(lambda: sum(counts.values()) > killed_at + 50)
        middle = sum(counts.values())
        await asyncio.to_thread(server.start)
        assert one.answers.shared is not None
        assert two.answers.shared is not None
        shared = (one.answers.shared, two.answers.shared)
        await until(lambda: all(tier.available for tier in shared))
        written = shared[0].stats.written
        await until(lambda: shared[0].stats.written > written, what="an answer in the new Redis")
        ended = True
        await asyncio.gather(*tasks)
        assert sum(counts.values()) > middle
        await until(lambda: len(asyncio.all_tasks()) <= before)


@pytest.mark.slow
async def test_a_hanging_redis_costs_milliseconds_and_then_nothing(
    tmp_path: Path, server: RedisServer
) -> None:
    shared = SharedSettings(timeout_s=0.01)
    async with two_workers(tmp_path, server, shared) as (one, _):
        await one.ask(chat("warm"))
        before = len(asyncio.all_tasks())
        server.pause()
        took_s = []
        for index in range(30):
            began_s = time.perf_counter()
            assert result(await one.ask(chat(f"q{index}"))) == "miss"
            took_s.append(time.perf_counter() - began_s)
        assert sorted(took_s)[15] < 1.0, "each waits for two time-outs of 10 ms, not for Redis"
        for _ in range(20):
            assert result(await one.ask(chat("warm"))) == "hit"
        server.resume()
        assert one.answers.shared is not None
        tier = one.answers.shared
        await until(lambda: tier.available)
        await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_a_full_redis_still_returns_answers(tmp_path: Path, server: RedisServer) -> None:
    async with two_workers(tmp_path, server) as (one, two):
        await one.ask(chat())
        with Redis.from_url(server.url) as redis:
            await until(lambda: answers_in(redis))
            redis.config_set("maxmemory-policy", "noeviction")
            redis.config_set("maxmemory", "1")
            assert result(await two.ask(chat())) == "hit"
            assert result(await two.ask(chat("new"))) == "miss"
            assert result(await two.ask(chat("new"))) == "hit"


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "empty", "text", "list", "swapped", "events", "no choices"]
)
async def test_damaged_answers_are_generated_again(
    tmp_path: Path, server: RedisServer, redis: Redis, damage: str
) -> None:
    async with two_workers(tmp_path, server) as (one, two):
        await one.ask(chat("the other one"))
        (other,) = await until(lambda: answers_in(redis))
        await one.ask(chat())
        await until(lambda: len(answers_in(redis)) == 2)
        (name,) = [name for name in answers_in(redis) if name != other]
        value = redis.get(name)
        assert isinstance(value, bytes)
        if damage == "list":
            redis.delete(name)
            redis.rpush(name, b"x")
        else:
            redis.set(
                name,
                {
                    "cut": value[:-20],
                    "flipped": value[:100] + bytes([value[100] ^ 1]) + value[101:],
                    "empty": b"",
                    "text": b"hello",
                    "swapped": redis.get(other),
                    # Whole and under its key, but not an answer that can be given again.
                    "events": _spoil(name, value, b": ping\n\ndata: {}\n\ndata: [DONE]\n\n"),
                    "no choices": _spoil(name, value, b'{"object": "chat.completion"}'),
                }[damage],
            )
        reply = await two.ask(chat())
        assert (result(reply), text_of(reply)) == ("miss", "The same question")
        assert (await two.ask(b"", "/readyz", method="GET")).status == 200
        if damage != "list":
            assert two.answers.shared is not None
            assert two.answers.shared.stats.damaged == 1
            await until(lambda: decode_entry(_key_of(name), "", bytes(redis.get(name) or b"")))  # type: ignore[arg-type]


def _spoil(name: bytes, value: bytes, body: bytes) -> bytes:
    """The same entry with another body."""
    entry = decode_entry(_key_of(name), "", value)
    assert entry is not None
    spoilt = Entry(body, replica=entry.replica, usage=None, owner=entry.owner)
    return encode_entry(_key_of(name), spoilt)


def _key_of(name: bytes) -> bytes:
    return bytes.fromhex(name.partition(b"{")[2].partition(b"}")[0].decode())


def test_entries_survive_encoding() -> None:
    owner = Owner("d", "r", "v", "t")
    entry = Entry(b'{"id":"chatcmpl-7","x":1}', replica="d-0", usage=None, owner=owner, took_s=1.5)
    data = encode_entry(b"k" * 20, entry)
    assert b'"t"' not in data
    back = decode_entry(b"k" * 20, "t", data)
    assert back is not None
    assert (back.owner, back.replica, back.took_s, back.body) == (owner, "d-0", 1.5, entry.body)
    assert entry.as_body("one") == b'{"id":"chatcmpl-one","x":1}'
    assert entry.as_body("two") == b'{"id":"chatcmpl-two","x":1}'
    # An entry can still be stored after it was returned.
    again = decode_entry(b"k" * 20, "t", encode_entry(b"k" * 20, entry))
    assert again is not None
    assert again.body == b'{"id":"chatcmpl-0","x":1}'
    assert decode_entry(b"j" * 20, "t", data) is None


# Purging


async def test_a_purge_reaches_every_worker_and_redis(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    async with two_workers(tmp_path, server) as (one, two):
        keys = {}
        for name, role in (("ann", "user"), ("bob", "user"), ("root", "admin")):
            _, secret = await asyncio.to_thread(create_key, one.database, name, role)
            keys[name] = {"authorization": f"Bearer {secret}"}
        await until(lambda: len(one.table.keys) == len(two.table.keys) == 3)
        for gateway in (one, two):
            for name in ("ann", "bob"):
                await gateway.ask(chat(), headers=keys[name])
        await until(lambda: len(answers_in(redis)) == 2)
        assert len(one.cache) == len(two.cache) == 2

        refused = await one.ask(b"", "/v1/cache", method="DELETE", headers=keys["ann"])
        assert (refused.status, refused.error["code"]) == (403, "role_not_allowed")
        misspelt = await one.ask(
            b"", "/v1/cache?tenants=ann", method="DELETE", headers=keys["root"]
        )
        assert (misspelt.status, misspelt.error["param"]) == (400, "tenants")
        purged = await one.ask(b"", "/v1/cache?tenant=ann", method="DELETE", headers=keys["root"])
        assert purged.status == 200
        assert purged.json()["object"] == "cache.purge"
        assert purged.json()["tenant"] == "ann"
        assert len(one.cache) == 1
        await until(lambda: len(two.cache) == 1, 2.0)
        await until(lambda: len(answers_in(redis)) == 1, 2.0)
        for gateway, expected in ((one, "miss"), (two, "hit")):
            assert result(await gateway.ask(chat(), headers=keys["ann"])) == expected
            await until(lambda: len(answers_in(redis)) == 2)
            assert result(await gateway.ask(chat(), headers=keys["bob"])) == "hit"

        await asyncio.to_thread(add_purge, one.database)
        await until(lambda: len(one.cache) == len(two.cache) == 0, 2.0)
        await until(lambda: not answers_in(redis), 2.0)
        metrics = await one.ask(b"", "/metrics", method="GET", headers=keys["root"])
        assert metrics.metric("thrifty_cache_forgotten_total", reason="purge") == 3


async def test_a_purge_holds_if_redis_was_unavailable(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    """Answers in Redis are not returned, although none of them could be deleted."""
    async with two_workers(tmp_path, server) as (one, two):
        await one.ask(chat())
        (name,) = await until(lambda: answers_in(redis))
        value = redis.get(name)
        await asyncio.to_thread(add_purge, one.database, deployment="echo")
        await until(lambda: not answers_in(redis))
        await until(lambda: two.answers.purges.newest_id)
        redis.set(name, value, px=60_000)  # type: ignore[arg-type]
        assert result(await two.ask(chat())) == "miss"
        await until(lambda: answers_in(redis) and redis.get(name) != value)
        assert result(await one.ask(chat())) == "hit"


@pytest.mark.slow
async def test_an_answer_begun_before_a_purge_is_not_cached(
    tmp_path: Path, server: RedisServer
) -> None:
    async with two_workers(tmp_path, server, ttft_s=2.0) as (one, two):
        begun = asyncio.ensure_future(one.ask(chat()))
        await claimed(server)
        purge = await asyncio.to_thread(add_purge, one.database, version="echo@v1")
        await until(
            lambda: one.answers.purges.newest_id == two.answers.purges.newest_id == purge.id
        )
        assert result(await begun) == "miss"
        assert len(one.cache) == 0
        await asyncio.sleep(NO_ANSWER_MS / 1e3 + 0.1)
        assert result(await two.ask(chat())) == "miss"
        assert result(await one.ask(chat())) == "hit"


async def test_a_promotion_invalidates_old_answers(
    tmp_path: Path,
) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        await gateway.ask(chat())
        assert len(gateway.cache) == 1
        row = echo_deployment()
        (version,) = row.versions
        promoted = replace(row, versions=(replace(version, revision="r2"),))
        await asyncio.to_thread(save_deployment, gateway.database, promoted)
        await gateway.reader.refresh()
        assert len(gateway.cache) == 0
        # The replica still runs r1, and receives nothing any more.
        assert not gateway.version().ready
        await gateway.set_replicas([replica_row(0, url, revision="r2", restarts=1)])
        assert result(await gateway.ask(chat())) == "miss"
        assert result(await gateway.ask(chat())) == "hit"
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_cache_forgotten_total", reason="promotion") == 1


# Statistics


@pytest.mark.slow
async def test_admins_see_the_statistics_of_all_workers(
    tmp_path: Path, server: RedisServer
) -> None:
    async with two_workers(tmp_path, server, ttft_s=0.05) as (one, two):
        await one.ask(chat())
        await one.ask(chat())
        await until(lambda: one.answers.shared and one.answers.shared.stats.written)
        await two.ask(chat())

        async def total() -> dict[str, Any]:
            reply = await two.ask(b"", "/v1/cache", method="GET")
            assert reply.status == 200
            return reply.json()

        async def complete() -> bool:
            return (await total())["total"].get("hit") == 2

        await until(complete, what="the stats of both workers")
        seen = await total()
        assert seen["object"] == "cache.stats"
        assert {worker["worker"].split("/")[1] for worker in seen["workers"]} == {"a", "b"}
        assert seen["total"]["miss"] == 1
        assert seen["total"]["hit_ratio"] == pytest.approx(2 / 3)
        assert seen["total"]["entries"] == 2
        assert seen["total"]["saved_completion_tokens"] == 34
        assert seen["total"]["saved_s"] >= 0.1, "two answers that took 0.05 s and more"
        assert seen["deployments"]["echo"]["hits_shared"] == 1
        assert seen["shared"]["hits"] == 1


async def test_saved_cost_is_counted_by_the_prices(tmp_path: Path) -> None:
    row = echo_deployment(price_input=1e6, price_output=2e6)
    async with running_echo() as url, running_gateway(tmp_path, [url], deployment=row) as gateway:
        for _ in range(3):
            reply = await gateway.ask(chat())
        usage = reply.json()["usage"]
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_cache_saved_cost_total") == 2 * (
            usage["prompt_tokens"] + 2 * usage["completion_tokens"]
        )
        assert metrics.metric("thrifty_cache_hit_ratio") == pytest.approx(2 / 3)
