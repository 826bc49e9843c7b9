"""How long one client may take, to send and to read; and what it costs meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.http.raw import Served, serving, wait_for
from thrifty.http.server import Exchange, HttpServer, ServerLimits
from thrifty.openai.errors import WireError

pytestmark = pytest.mark.usefixtures("service_loop")

LONG_S = 30.0
"""A deadline that no test reaches."""


def length(exchange: Exchange) -> None:
    exchange.respond(200, b"%d" % len(exchange.body))


class Gate:
    """A handler whose answers wait until they are let through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.entered = asyncio.Event()
        self.bodies: list[bytes] = []

    async def handle(self, exchange: Exchange) -> None:
        self.bodies.append(exchange.body)
        self.entered.set()
        await self.open.wait()
        exchange.respond(200, b"let through")


# Deadlines


async def timed_out(served: Served, data: bytes, **drip: Any) -> bytes:
    """What comes back for `data` until the server closes."""
    async with served.connect() as client:
        await client.send(data)
        reading = asyncio.ensure_future(client.expect_cut())
        while drip and not reading.done():
            await client.send(drip["piece"], gap_s=drip["gap_s"])
        return await reading


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_a_request_that_stays_half_sent_gets_a_408(data: bytes) -> None:
    handled = []
    async with serving(lambda e: handled.append(e), read_timeout_s=0.1) as served:
        began_s = time.monotonic()
        answer = await timed_out(served, data)
        assert time.monotonic() - began_s >= 0.08
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"the request did not arrive within 0.1 s; send it faster" in answer
        await served.wait_empty()
    assert not handled


@pytest.mark.parametrize(
    ("opening", "piece"),
    [
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n", b"x"),
    ],
    ids=["headers", "body"],
)
async def test_a_slow_drip_does_not_put_the_deadline_off(opening: bytes, piece: bytes) -> None:
    async with serving(length, read_timeout_s=0.1) as served:
        answer = await timed_out(served, opening, piece=piece, gap_s=0.01)
        assert answer.startswith(b"HTTP/1.1 408 ")


async def test_the_deadline_holds_behind_an_answer_too() -> None:
    gate = Gate()
    async with (
        serving(gate.handle, read_timeout_s=0.1, keep_alive_s=LONG_S) as served,
        served.connect() as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET /second HT")
        await gate.entered.wait()
        gate.open.set()
        assert (await client.read_answer()).status == 200
        assert (await client.read_answer()).status == 408
        await client.expect_end()


async def test_the_time_that_the_handler_takes_is_not_the_clients() -> None:
    gate = Gate()
    async with (
        serving(gate.handle, read_timeout_s=0.1, keep_alive_s=0.1) as served,
        served.connect() as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await gate.entered.wait()
        await asyncio.sleep(0.25)
        gate.open.set()
        assert (await client.read_answer()).body == b"let through"


@pytest.mark.parametrize("drip", [{}, {"piece": b"\r\n", "gap_s": 0.01}])
async def test_a_connection_that_never_asks_is_closed_without_a_word(drip: dict[str, Any]) -> None:
    async with serving(length, read_timeout_s=0.1, keep_alive_s=LONG_S) as served:
        assert await timed_out(served, b"", **drip) == b""
        await served.wait_empty()


async def test_an_idle_connection_is_closed_after_its_time_and_not_before() -> None:
    async with serving(length, keep_alive_s=0.3, read_timeout_s=LONG_S) as served:
        async with served.connect() as client:
            for _ in range(3):
                assert (await client.get()).status == 200
                await asyncio.sleep(0.1)
            began_s = time.monotonic()
            await client.expect_end()
            assert time.monotonic() - began_s >= 0.15
        await served.wait_empty()


async def test_a_fault_with_one_connection_does_not_end_the_deadlines_of_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse_to_count(error: WireError) -> None:
        raise RuntimeError("the counter is broken")

    server = HttpServer(length, ServerLimits(read_timeout_s=0.1), on_refused=refuse_to_count)
    served = Served(server, await server.start("127.0.0.1", 0))
    for _ in range(2):
        await timed_out(served, b"GET / HT")
    await served.wait_empty()
    await server.drain(0)
    assert "the counter is broken" in caplog.text


# Clients that do not read


class Flood:
    """Streams without end, minding what the client can take."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.pauses = 0
        self.resumes = 0
        self.largest = 0

    async def handle(self, exchange: Exchange) -> None:
        def count_pause() -> None:
            self.pauses += 1
            assert not exchange.writable

        def count_resume() -> None:
            self.resumes += 1
            assert exchange.writable

        exchange.on_disconnect = self.gone.set
        exchange.on_pause, exchange.on_resume = count_pause, count_resume
        exchange.start(200, [])
        transport = exchange._protocol._transport
        while not exchange.disconnected:
            exchange.write(b"x" * 10_000)
            self.largest = max(self.largest, transport.get_write_buffer_size())
            if not exchange.writable:
                await exchange.drain()
            else:
                await asyncio.sleep(0)


async def test_a_client_that_stops_reading_is_cut_off_and_its_memory_is_bounded() -> None:
    flood = Flood()
    async with (
        serving(flood.handle, write_timeout_s=0.3) as served,
        served.connect(receive_buffer=4096) as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await flood.gone.wait()
        await served.wait_empty()
    assert flood.pauses >= 1
    assert flood.largest < 200_000, "asyncio's 64 KiB, and the chunk that went over them"


async def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    # More than the kernel takes off our hands, so that the rest stays with us all the while.
    size = 20_000_000

    def handle(exchange: Exchange) -> None:
        exchange.respond(200, b"x" * size)

    async with serving(handle, write_timeout_s=0.3) as served, served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.read_head()
        (connection,) = served.server.connections
        began_s = time.monotonic()
        left = size
        while left:
            piece = await client.reader.read(65_536)
            assert piece, "cut off in spite of reading"
            left -= len(piece)
            if time.monotonic() - began_s < 0.9:
                assert connection.write_paused
                await asyncio.sleep(0.01)


async def test_pause_and_resume_are_told_in_turns() -> None:
    flood = Flood()
    async with serving(flood.handle) as served, served.connect(receive_buffer=4096) as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        for number in range(1, 4):
            await wait_for(lambda n=number: flood.pauses >= n)
            assert flood.pauses - flood.resumes in (0, 1)
            while flood.resumes < number:
                assert await client.reader.read(1_000_000)
        client.cut()
        await flood.gone.wait()


@pytest.mark.parametrize("last", [True, False])
async def test_an_answer_that_nobody_fetches_does_not_stay_for_ever(last: bool) -> None:
    def handle(exchange: Exchange) -> None:
        exchange.respond(200, b"x" * 20_000_000)

    async with (
        serving(handle, write_timeout_s=0.2, keep_alive_s=0.2) as served,
        served.connect(receive_buffer=4096) as client,
    ):
        close = b"connection: close\r\n" if last else b""
        await client.send(b"GET / HTTP/1.1\r\n" + close + b"\r\n")
        await served.wait_empty()


async def test_who_asks_on_and_on_without_reading_is_not_answered_on_and_on() -> None:
    answered = 0

    def handle(exchange: Exchange) -> None:
        nonlocal answered
        answered += 1
        exchange.respond(200, b"x" * 100_000)

    async with serving(handle, write_timeout_s=LONG_S) as served:
        async with served.connect(receive_buffer=4096) as client:
            # The pipeline is longer than what is taken from it, so that the sender blocks.
            sending = asyncio.ensure_future(
                client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 100_000)
            )
            (connection,) = served.server.connections
            await wait_for(lambda: connection._read_paused)
            before = answered
            assert connection._transport.get_write_buffer_size() < 1_000_000
            # One that reads gets on.
            for _ in range(before + 20):
                assert len((await client.read_answer()).body) == 100_000
            assert answered >= before + 20
            sending.cancel()
            client.cut()
        await served.wait_empty()
