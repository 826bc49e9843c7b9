"""A real Redis in cluster mode: only a node that holds every key is used; others log an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis import Redis

from tests.gateway.test_shared_cache import CALM, answers_in, chat, result, until
from tests.parts import add_key, know_keys, running_echo, running_gateway
from tests.redis_server import SLOTS, RedisServer, running_cluster
from thrifty.db.cache import add_purge
from thrifty.db.keys import KeyLimits
from thrifty.gateway.state.shared_store import Script, SharedStore

ALL = range(SLOTS)
HALVES = (range(SLOTS // 2), range(SLOTS // 2, SLOTS))
REASON = "the URL must be of a single Redis or Valkey, or of a proxy"
READ = Script("return redis.call('GET', KEYS[1])")


@contextlib.asynccontextmanager
async def open_store(
    node: RedisServer, on_state: Callable[[bool], None]
) -> AsyncIterator[SharedStore]:
    store = SharedStore(node.url, timeout_s=5.0, on_state=on_state)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The errors logged about the shared store."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.ERROR and record.name == "thrifty.gateway.state.shared_store"
    ]


async def test_one_of_several_nodes_is_not_used_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states: list[bool] = []
    with running_cluster(tmp_path, *HALVES) as nodes:
        async with open_store(nodes[0], states.append) as store:
            assert not store.available
            assert await store.run("GET", "k") is None
            await asyncio.sleep(1.0)  # it is probed again, with the same result
            assert states == [False]
            (told,) = errors(caplog)
            assert REASON in told
            assert "MOVED" in told
            assert f"127.0.0.1:{nodes[1].port}" in told


async def test_a_node_without_slots_is_used_once_it_has_them_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states: list[bool] = []
    with running_cluster(tmp_path, range(0)) as (node,):
        async with open_store(node, states.append) as store:
            (told,) = errors(caplog)
            assert REASON in told
            assert "CLUSTERDOWN" in told
            with Redis.from_url(node.url) as redis:
                redis.execute_command("CLUSTER", "ADDSLOTS", *ALL)
            await until(lambda: store.available)
            assert await store.run("SET", "k", 1)
            assert states == [False, True]


async def test_a_node_that_loses_a_slot_is_unavailable_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No probe key lies in that slot: the key that was refused in use is probed from then on."""
    states: list[bool] = []
    with running_cluster(tmp_path, ALL) as (node,), Redis.from_url(node.url) as redis:
        redis.config_set("cluster-require-full-coverage", "no")
        async with open_store(node, states.append) as store:
            assert await store.run("SET", "k", "v")
            assert await store.run_script(READ, ["k"], []) == b"v"
            slot = redis.execute_command("CLUSTER", "KEYSLOT", "k")
            redis.execute_command("CLUSTER", "DELSLOTS", slot)
            assert await store.run_script(READ, ["k"], []) is None
            assert not store.available
            (told,) = errors(caplog)
            assert REASON in told
            await asyncio.sleep(1.0)
            assert states == [True, False]
            redis.execute_command("CLUSTER", "ADDSLOTS", slot)
            await until(lambda: store.available)
            assert await store.run_script(READ, ["k"], []) == b"v"


async def test_requests_continue_without_a_cluster(tmp_path: Path) -> None:
    with running_cluster(tmp_path, *HALVES) as nodes:
        async with (
            running_echo() as url,
            running_gateway(
                tmp_path, [url], redis_url=nodes[0].url, redis_timeout_s=5.0, cache_shared=CALM
            ) as gateway,
        ):
            root = await add_key(gateway, "root", "admin")
            keys = [
                await add_key(gateway, f"k{number}", limits=KeyLimits(rpm=3)) for number in range(8)
            ]
            for key in keys:
                replies = [await gateway.ask(chat(), headers=key) for _ in range(4)]
                assert [reply.status for reply in replies] == [200, 200, 200, 429]
                assert [result(reply) for reply in replies[:3]] == ["miss", "hit", "hit"]
            metrics = await gateway.ask(b"", "/metrics", method="GET", headers=root)
            assert metrics.metric("thrifty_shared_store_up") == 0
            assert metrics.metric("thrifty_limit_fallbacks_total") == 32
            assert (await gateway.ask(b"", "/readyz", method="GET")).status == 200


async def test_a_cluster_of_one_node_shares_limits_answers_and_purges(tmp_path: Path) -> None:
    """The keys of each script lie in one slot, and a purge never names two slots at once."""
    with running_cluster(tmp_path, ALL) as (node,), Redis.from_url(node.url) as redis:
        async with (
            running_echo() as url,
            running_gateway(
                tmp_path, [url], redis_url=node.url, redis_timeout_s=5.0, cache_shared=CALM,
                worker="a",
            ) as one,
            running_gateway(
                tmp_path, [url], redis_url=node.url, redis_timeout_s=5.0, cache_shared=CALM,
                worker="b",
            ) as two,
        ):  # fmt: skip
            key = await add_key(one, "ann", limits=KeyLimits(rpm=9, tpm=100_000))
            await know_keys(two, 1)
            for text in ("a", "b", "c"):
                assert result(await one.ask(chat(text), headers=key)) == "miss"
            await until(lambda: len(answers_in(redis)) == 3)
            for text in ("a", "b", "c"):
                assert result(await two.ask(chat(text), headers=key)) == "hit"
            replies = [await gateway.ask(chat(), headers=key) for gateway in (one, two) * 2]
            assert [reply.status for reply in replies] == [200, 200, 200, 429]
            await asyncio.to_thread(add_purge, one.database)
            await until(lambda: not answers_in(redis), 2.0)
