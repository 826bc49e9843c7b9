"""Ends: clients that go away, answers that are given up, and a server that stops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.http.raw import RawClient, Served, serving, wait_for
from thrifty.http.server import Exchange, HttpServer

pytestmark = pytest.mark.usefixtures("either_loop")

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Slow:
    """A handler that begins its answers when it is told, and notes how it ends."""

    def __init__(self, *, watches: bool = False, streams: bool = False) -> None:
        self.watches, self.streams = watches, streams
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.gone = asyncio.Event()
        self.done = 0

    async def handle(self, exchange: Exchange) -> None:
        if self.watches:
            exchange.on_disconnect = self.gone.set
        if self.streams:
            exchange.start(200, [])
            exchange.write(b"begun ")
        self.entered.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.streams:
            exchange.write(b"done")
            exchange.finish()
        else:
            exchange.respond(200, b"done")
        self.done += 1


def hang_up_by_reset(client: RawClient) -> None:
    client.cut()


def hang_up_by_close(client: RawClient) -> None:
    client.writer.close()


def hang_up_by_half(client: RawClient) -> None:
    client.writer.write_eof()


WAYS = [hang_up_by_reset, hang_up_by_close, hang_up_by_half]


# Clients that go away


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_hangs_up_cancels_its_handler(way: Any, streams: bool) -> None:
    slow = Slow(streams=streams)
    async with serving(slow.handle) as served, served.connect() as client:
        await client.send(GET)
        await slow.entered.wait()
        way(client)
        await slow.cancelled.wait()
        await served.wait_empty()
    assert slow.done == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_handler_that_watches_is_told_and_not_cancelled(way: Any) -> None:
    slow = Slow(watches=True)
    async with serving(slow.handle) as served, served.connect() as client:
        await client.send(GET)
        await slow.entered.wait()
        way(client)
        await slow.gone.wait()
        await served.wait_empty()
        slow.go_on.set()
        await wait_for(lambda: slow.done)  # its answer goes nowhere, without a fault
        assert not slow.cancelled.is_set()


async def test_a_client_that_half_closes_while_its_answer_is_stuck_is_noticed() -> None:
    gone = asyncio.Event()

    async def handle(exchange: Exchange) -> None:
        exchange.on_disconnect = gone.set
        exchange.start(200, [])
        exchange.write(b"x" * 20_000_000)
        await gone.wait()

    async with (
        serving(handle, write_timeout_s=0.2) as served,
        served.connect(receive_buffer=4096) as client,
    ):
        await client.send(GET)
        await client.read_head()
        client.writer.write_eof()
        await gone.wait()
        await served.wait_empty()


async def test_nobody_is_told_of_a_client_that_goes_after_its_answer() -> None:
    slow = Slow(watches=True)
    slow.go_on.set()
    async with serving(slow.handle) as served:
        async with served.connect() as client:
            assert (await client.get()).body == b"done"
        await served.wait_empty()
        assert not slow.gone.is_set()


async def test_half_a_request_is_forgotten_with_its_client() -> None:
    handled = []
    async with serving(lambda e: handled.append(e)) as served:
        async with served.connect() as client:
            await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
            await wait_for(lambda: served.server.connections)
        await served.wait_empty()
    assert not handled


async def test_requests_in_the_queue_go_with_their_client() -> None:
    slow = Slow()
    async with serving(slow.handle) as served, served.connect() as client:
        await client.send(GET * 5)
        await slow.entered.wait()
        client.cut()
        await slow.cancelled.wait()
        await served.wait_empty()
        slow.go_on.set()
        await asyncio.sleep(0.01)
        assert slow.done == 0


async def test_who_waits_to_write_goes_on_when_the_client_is_gone() -> None:
    ended = asyncio.Event()

    async def handle(exchange: Exchange) -> None:
        exchange.on_disconnect = lambda: None
        exchange.start(200, [])
        exchange.write(b"x" * 20_000_000)
        await exchange.drain()
        assert exchange.disconnected
        exchange.write(b"into the void")
        exchange.finish()
        ended.set()

    async with serving(handle) as served, served.connect(receive_buffer=4096) as client:
        await client.send(GET)
        await client.read_head()
        client.cut()
        await ended.wait()
        await served.wait_empty()


async def test_an_abort_reaches_the_client_and_ends_the_exchange() -> None:
    told = []

    async def handle(exchange: Exchange) -> None:
        exchange.on_disconnect = lambda: told.append(exchange)
        exchange.start(200, [])
        exchange.write(b"half")
        await asyncio.sleep(0)
        exchange.abort()
        exchange.write(b"more")
        exchange.finish()

    async with serving(handle) as served, served.connect() as client:
        await client.send(GET)
        assert b"more" not in await client.expect_cut()
        await served.wait_empty()
    assert not told, "who aborts knows"


async def test_a_handler_that_is_cancelled_from_elsewhere_cuts_its_client() -> None:
    tasks = []

    async def handle(exchange: Exchange) -> None:
        tasks.append(exchange.task)
        await asyncio.Event().wait()

    async with serving(handle) as served, served.connect() as client:
        await client.send(GET)
        await wait_for(lambda: tasks)
        tasks[0].cancel()
        assert await client.expect_cut() == b""
        await served.wait_empty()


# A server that stops


async def start(handler: Any) -> Served:
    server = HttpServer(handler)
    return Served(server, await server.start("127.0.0.1", 0))


async def test_a_drain_closes_idle_connections_and_lets_running_ones_finish() -> None:
    slow = Slow()
    served = await start(slow.handle)
    async with served.connect() as idle, served.connect() as busy:
        await busy.send(GET)
        await slow.entered.wait()
        draining = asyncio.ensure_future(served.server.drain(20))
        await idle.expect_end()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", served.port)
        assert not draining.done()
        slow.go_on.set()
        answer = await busy.read_answer()
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        await busy.expect_end()
        assert await draining == 0
    assert not served.server.connections


async def test_a_drain_finishes_streams_whose_head_spoke_of_keeping_the_connection() -> None:
    slow = Slow(streams=True)
    served = await start(slow.handle)
    async with served.connect() as client:
        await client.send(GET)
        await slow.entered.wait()
        draining = asyncio.ensure_future(served.server.drain(20))
        await asyncio.sleep(0)
        slow.go_on.set()
        assert (await client.read_answer()).body == b"begun done"
        await client.expect_end()
        assert await draining == 0


@pytest.mark.parametrize("watches", [False, True])
async def test_a_drain_cuts_what_does_not_finish_in_time_and_counts_it(watches: bool) -> None:
    slow = Slow(watches=watches)
    served = await start(slow.handle)
    async with served.connect() as first, served.connect() as second, served.connect() as idle:
        await first.send(GET)
        await second.send(GET)
        await wait_for(lambda: sum(c.busy for c in served.server.connections) == 2)
        ended = slow.gone if watches else slow.cancelled
        draining = asyncio.ensure_future(served.server.drain(0.3))
        if watches:
            await ended.wait()
            slow.go_on.set()
        assert await draining == 2
        assert ended.is_set(), "handlers have ended before the drain has"
        assert await first.expect_cut() == await second.expect_cut() == b""
        await idle.expect_cut()
    assert not served.server.connections


async def test_a_request_that_is_arriving_when_the_drain_begins_is_answered() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.respond(200, exchange.body)

    served = await start(handle)
    async with served.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhello")
        await wait_for(lambda: any(c.busy for c in served.server.connections))
        draining = asyncio.ensure_future(served.server.drain(20))
        await wait_for(lambda: served.server.draining)
        await asyncio.sleep(0.3)  # longer than idle connections are kept
        await client.send(b"world")
        answer = await client.read_answer()
        assert (answer.body, answer.headers["connection"]) == (b"helloworld", "close")
        assert await draining == 0


async def test_a_drain_waits_until_the_last_answer_has_gone_out() -> None:
    def handle(exchange: Exchange) -> None:
        exchange.respond(200, b"x" * 20_000_000)

    served = await start(handle)
    async with served.connect() as client:
        await client.send(GET)
        head = await client.read_head()
        draining = asyncio.ensure_future(served.server.drain(20))
        await asyncio.sleep(0.3)
        assert not draining.done()
        body = await client.reader.readexactly(int(head.headers["content-length"]))
        assert len(body) == 20_000_000
        await client.expect_end()
        assert await draining == 0


async def test_a_drain_of_an_idle_server_takes_no_time() -> None:
    served = await start(lambda e: e.respond(200, b"{}"))
    async with served.connect() as client:
        assert (await client.get()).status == 200
    await served.wait_empty()
    async with asyncio.timeout(0.15):
        assert await served.server.drain(20) == 0
