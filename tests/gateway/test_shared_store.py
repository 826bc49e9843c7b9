"""The shared store on a real Redis: commands, pipelines, scripts, and every kind of outage."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.redis_server import RedisServer, running_redis
from thrifty.errors import ThriftyError
from thrifty.gateway.state.shared_store import Script, SharedStore, mask_url

COUNT = Script("return {redis.call('INCRBY', KEYS[1], ARGV[1]), ARGV[2]}")


@contextlib.asynccontextmanager
async def open_store(server: RedisServer, **options: object) -> AsyncIterator[SharedStore]:
    store = SharedStore(server.url, **options)  # type: ignore[arg-type]
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true"
        await asyncio.sleep(0.02)


async def test_commands_and_scripts_are_answered() -> None:
    with running_redis() as server:
        async with open_store(server) as store:
            assert store.available
            assert await store.run("GET", "nothing") is None
            assert await store.run("SET", b"k", b"\x00\xffvalue", "PX", 60_000)
            assert await store.run("GET", b"k") == b"\x00\xffvalue"
            # The first use sends the script's text, the second one only its hash.
            assert await store.run_script(COUNT, ["n"], [2, "a"]) == [2, b"a"]
            assert await store.run_script(COUNT, ["n"], [3, "b"]) == [5, b"b"]
            await store.run("SCRIPT", "FLUSH")
            assert await store.run_script(COUNT, ["n"], [1, "c"]) == [6, b"c"]


async def test_concurrent_commands_get_their_own_replies() -> None:
    with running_redis() as server:
        async with open_store(server) as store:
            await asyncio.gather(*(store.run("SET", f"k{i}", i) for i in range(1500)))
            found = await asyncio.gather(*(store.run("GET", f"k{i}") for i in range(1500)))
            assert found == [str(i).encode() for i in range(1500)]


async def test_a_refused_command_returns_none_and_affects_no_other() -> None:
    faults: list[str] = []
    with running_redis() as server:
        async with open_store(server, on_error=faults.append) as store:
            await store.run("SET", "text", "x")
            answers = await asyncio.gather(
                store.run("INCR", "text"), store.run("GET", "text"), store.run("NONSENSE")
            )
            assert answers == [None, b"x", None]
            assert store.available
            assert faults == ["reply", "reply"]


async def test_it_starts_without_redis_and_connects_later() -> None:
    server = RedisServer()
    states: list[bool] = []
    async with open_store(server, on_state=states.append) as store:
        assert not store.available
        assert await store.run("GET", "k") is None
        server.start()
        try:
            await eventually(lambda: store.available)
            assert await store.run("SET", "k", 1)
        finally:
            server.kill()
    assert states[0] is False
    assert True in states


@pytest.mark.slow
async def test_a_dead_redis_is_unavailable_at_once_and_reconnected() -> None:
    with running_redis() as server:
        async with open_store(server) as store:
            await store.run("SET", "k", 1)
            server.kill()
            assert await store.run("GET", "k") is None
            assert not store.available
            server.start()
            await eventually(lambda: store.available)
            assert await store.run("GET", "k") is None
            assert await store.run("SET", "k", 2)


async def test_a_hanging_redis_blocks_no_one() -> None:
    faults: list[str] = []
    with running_redis() as server:
        async with open_store(server, on_error=faults.append) as store:
            await store.run("SET", "k", 1)
            server.pause()
            try:
                answers = await asyncio.gather(*(store.run("GET", "k") for _ in range(500)))
                assert answers == [None] * 500
                await store.run("GET", "k")
                assert not store.available
                began_s = time.monotonic()
                for _ in range(1000):
                    assert await store.run("GET", "k") is None
                # Waiting for each would be at least 50 s.
                assert time.monotonic() - began_s < 20
            finally:
                server.resume()
            await eventually(lambda: store.available)
            assert await store.run("GET", "k") == b"1"
            assert "timeout" in faults


async def test_a_late_reply_never_reaches_another_caller() -> None:
    with running_redis() as server:
        async with open_store(server) as store:
            for i in range(20):
                await store.run("SET", f"k{i}", i)
            for i in range(20):
                await store.run("GET", f"k{i}")
                if i % 5 == 0:
                    server.pause()
                    await asyncio.gather(*(store.run("GET", f"k{n}") for n in range(3)))
                    server.resume()
                    await eventually(lambda: store.available)
                found = await store.run("GET", f"k{i}")
                assert found in (None, str(i).encode())


async def test_callers_may_be_cancelled() -> None:
    with running_redis() as server:
        async with open_store(server) as store:
            tasks = [asyncio.ensure_future(store.run("GET", "k")) for _ in range(50)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await store.run("SET", "k", 1)


async def test_a_full_redis_stays_available() -> None:
    with running_redis("--maxmemory", "1mb", "--maxmemory-policy", "noeviction") as server:
        async with open_store(server) as store:
            assert await store.run("SET", "k", b"x" * 3_000_000) is None
            assert store.available
            assert await store.run("PING") is not None


def test_a_wrong_url_is_refused() -> None:
    with pytest.raises(ThriftyError, match="not valid"):
        SharedStore("http://nowhere")


def test_logs_show_no_password() -> None:
    assert mask_url("redis://user:secret@host:6379/2?password=secret") == "redis://host:6379/2"
