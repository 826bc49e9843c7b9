"""How much one client may send: heads, bodies, connections. Everything beyond is refused."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.http.raw import Answer, Served, serving, wait_for
from thrifty.http.server import Exchange, HttpServer, ServerLimits
from thrifty.openai.errors import WireError

pytestmark = pytest.mark.usefixtures("either_loop")

LONG_S = 30.0
"""A deadline that no test reaches."""


def length(exchange: Exchange) -> None:
    exchange.respond(200, b"%d" % len(exchange.body))


def error_of(answer: Answer, status: int, code: str) -> str:
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    error = json.loads(answer.body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    return error["message"]


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


# Bodies


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    async with serving(length, max_body_bytes=100) as served:
        async with served.connect() as client:
            assert (await client.post(b"x" * 100)).body == b"100"
            message = error_of(await client.post(b"x" * 101), 413, "body_too_large")
            assert message == (
                "the request's body has 101 bytes; the limit is 100 bytes "
                "(limits.max_body in the spec)"
            )
            await client.expect_end()
        await served.wait_empty()


async def test_a_refused_client_sees_the_413_while_it_still_sends_50_mb() -> None:
    handled = []
    async with serving(lambda e: handled.append(e), max_body_bytes=1_000_000) as served:
        async with served.connect() as client:
            await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n")
            # Before a single byte of the body is sent.
            message = error_of(await client.read_answer(), 413, "body_too_large")
            assert "has 50000000 bytes; the limit is 1000000 bytes" in message
            await client.send(*[b"x" * 5_000_000] * 10)  # no reset on the way
            await client.expect_end()
        await served.wait_empty()
    assert not handled


async def test_a_chunked_body_is_refused_once_it_is_too_large() -> None:
    async with serving(length, max_body_bytes=100_000) as served:
        async with served.connect() as client:
            await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            chunk = b"c350\r\n" + b"x" * 50_000 + b"\r\n"
            await client.send(chunk, chunk)
            await client.send(chunk)
            message = error_of(await client.read_answer(), 413, "body_too_large")
            assert "has more than 100000 bytes; the limit is 100000 bytes" in message
            await client.send(*[chunk] * 100)
            await client.expect_end()
        await served.wait_empty()


async def test_who_asks_first_is_spared_from_sending_what_would_be_refused() -> None:
    async with serving(length, max_body_bytes=10) as served, served.connect() as client:
        await client.send(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\nexpect: 100-continue\r\n\r\n"
        )
        error_of(await client.read_answer(), 413, "body_too_large")
        await client.expect_end()


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\nhello world", 413),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 2000 + b"\r\n\r\n", 431),
        (b"this is not HTTP\r\n\r\n", 400),
    ],
)
async def test_a_refusal_waits_for_the_answers_before_it(bad: bytes, status: int) -> None:
    gate = Gate()
    async with serving(gate.handle, max_body_bytes=10, max_header_bytes=1000) as served:
        async with served.connect() as client:
            await client.send(
                b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\nGET /2 HTTP/1.1\r\nhost: x\r\n\r\n" + bad
            )
            await gate.entered.wait()
            (connection,) = served.server.connections
            await wait_for(lambda: connection._refusal is not None)
            gate.open.set()
            for _ in range(2):
                answer = await client.read_answer()
                assert (answer.status, answer.body) == (200, b"let through")
            assert (await client.read_answer()).status == status
            await client.expect_end()
        await served.wait_empty()


async def test_a_refused_client_that_never_stops_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from thrifty.http import connection

    monkeypatch.setattr(connection, "DROP_LIMIT_BYTES", 2_000_000)
    async with serving(length, max_body_bytes=10) as served, served.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n")
        error_of(await client.read_answer(), 413, "body_too_large")
        with pytest.raises(ConnectionError):
            await client.send(*[b"x" * 1_000_000] * 100)
        await served.wait_empty()


async def test_a_refused_client_that_does_not_hang_up_is_cut_off() -> None:
    async with (
        serving(length, max_body_bytes=10, read_timeout_s=0.1) as served,
        served.connect() as client,
    ):
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n")
        error_of(await client.read_answer(), 413, "body_too_large")
        await served.wait_empty()


# Heads


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(200)),
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 2000 + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 2000 + b": y\r\n",
        b"GET /" + b"y" * 2000 + b" HTTP/1.1\r\n",
    ],
    ids=["many headers", "a long value", "a long name", "a long target"],
)
@pytest.mark.parametrize("pieces", ["whole", "cut"])
async def test_a_head_that_is_too_large_is_refused(head: bytes, pieces: str) -> None:
    async with serving(length, max_header_bytes=1000) as served, served.connect() as client:
        data = head + b"\r\n"
        cut = 100 if pieces == "cut" else len(data)
        await client.send(*[data[i : i + cut] for i in range(0, len(data), cut)])
        message = error_of(await client.read_answer(), 431, "headers_too_large")
        assert message == "the request's headers exceed 1000 bytes"
        await client.expect_end()


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\nx: ",
        b"GET / HTTP/1.1\r\n",
        b"GET /",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5;",
    ],
    ids=["value", "name", "target", "trailer", "extension"],
)
async def test_what_never_ends_is_refused_before_it_fills_the_memory(opening: bytes) -> None:
    async with (
        serving(length, max_header_bytes=10_000, read_timeout_s=LONG_S) as served,
        served.connect() as client,
    ):
        await client.send(opening)
        answering = asyncio.ensure_future(client.read_answer())
        sent = 0
        while not answering.done():
            await client.send(b"y" * 1000)
            sent += 1000
            assert sent < 1_000_000
        error_of(await answering, 431, "headers_too_large")


async def test_the_limit_on_heads_is_for_each_request_and_not_for_bodies() -> None:
    async with serving(length, max_header_bytes=1000) as served, served.connect() as client:
        for _ in range(5):
            answer = await client.post(b"x" * 5000, headers="x: " + "y" * 700 + "\r\n")
            assert answer.body == b"5000"
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(1000):
            await client.send(b"1\r\n", b"x", b"\r\n")  # more framing than the limit on heads
        await client.send(b"0\r\n\r\n")
        assert (await client.read_answer()).body == b"1000"


# Malformed


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nspace : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: nul\x00\r\n\r\n",
        b"GET / HTTP/1.1\nx: y\n\n",
        b"GET /sp ace HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        # Whoever is in front may read these differently: they could carry a second request.
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused(data: bytes) -> None:
    handled = []
    async with serving(lambda e: handled.append(e)) as served, served.connect() as client:
        await client.send(data)
        message = error_of(await client.read_answer(), 400, "malformed_http")
        assert message.startswith("this is not a valid HTTP request: ")
        assert "callback" not in message
        await client.expect_end()
    assert not handled


# Connections


async def test_too_many_connections_are_told_so_and_room_is_used_again() -> None:
    refused: list[WireError] = []
    server = HttpServer(length, ServerLimits(max_connections=2), on_refused=refused.append)
    served = Served(server, await server.start("127.0.0.1", 0))
    async with served.connect() as first:
        async with served.connect() as second:
            assert (await first.get()).status == (await second.get()).status == 200
            async with served.connect() as third:
                answer = await third.read_answer()
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                error = json.loads(answer.body)["error"]
                assert error["code"] == "too_many_connections"
                assert error["message"] == "too many connections are open"
                await third.expect_end()
            assert len(server.connections) == 2
        await wait_for(lambda: len(server.connections) == 1)
        async with served.connect() as fourth:
            assert (await fourth.get()).status == 200
        assert (await first.get()).status == 200
    await server.drain(0)
    assert [error.code for error in refused] == ["too_many_connections"]


async def test_every_refusal_is_counted_once() -> None:
    refused: list[WireError] = []
    limits = ServerLimits(max_body_bytes=10, max_header_bytes=1000, read_timeout_s=0.1)
    server = HttpServer(length, limits, on_refused=refused.append)
    served = Served(server, await server.start("127.0.0.1", 0))
    for data in (
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\nhello world",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\nx: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 1000 + b"\r\n\r\n",
        b"nonsense",
        b"GET / HT",
    ):
        async with served.connect() as client:
            await client.send(data)
            await client.expect_cut()
    await server.drain(0)
    assert [error.status for error in refused] == [413, 413, 431, 400, 408]
