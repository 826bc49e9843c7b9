"""The HTTP client against servers that answer byte by byte, and badly.

What matters most to its callers is told by the exception: nothing was sent (`ConnectFailed`), it
was sent (`NoResponse`), the answer had begun (`BrokenResponse`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.raw import Peer, Scripted, scripted, serving, wait_for
from thrifty.http import client as client_module
from thrifty.http.client import (
    Answer,
    BrokenResponse,
    ConnectFailed,
    HttpClient,
    NoResponse,
    TransportError,
)
from thrifty.http.origin import Origin, parse_origin
from thrifty.http.server import Exchange

pytestmark = pytest.mark.usefixtures("either_loop")


@pytest.fixture
def client() -> HttpClient:
    """A client for tests in which no connection comes about."""
    return HttpClient()


@contextlib.asynccontextmanager
async def talking(on_connection: Any) -> AsyncIterator[tuple[Scripted, HttpClient, Origin]]:
    """A scripted server and a client for it."""
    client = HttpClient()
    async with scripted(on_connection) as server:
        try:
            yield server, client, parse_origin(server.url)
        finally:
            client.close()


async def serve_all(server: Scripted, peer: Peer) -> None:
    """Answer every request with its number."""
    while True:
        server.requests.append(await peer.read_request())
        await peer.answer(b"%d" % len(server.requests))


def saying(*pieces: bytes, then: str = "close") -> Any:
    """A server that answers the first request on a connection with `pieces`."""

    async def on_connection(server: Scripted, peer: Peer) -> None:
        server.requests.append(await peer.read_request())
        await peer.send(*pieces)
        if then == "stay":
            await peer.wait_gone()
        elif then == "cut":
            peer.cut()

    return on_connection


async def get(client: HttpClient, origin: Origin, **options: Any) -> bytes:
    answer = await client.open(origin, "GET", "/", **options)
    return await answer.read()


def idle_count(client: HttpClient) -> int:
    return sum(len(pool.idle) for pool in client._pools.values())


# Requests and whole answers


async def test_a_request_goes_out_as_it_should_and_the_answer_comes_back() -> None:
    async with talking(serve_all) as (server, client, origin):
        based = parse_origin(f"{server.url}/base/")
        answer = await client.open(
            based, "POST", "/v1/x?y=z", headers=b"x-a: 1\r\nx-b: 2\r\n", body=b"hello"
        )
        assert (answer.status, answer.headers) == (200, {b"content-length": b"1"})
        assert await answer.read() == b"1"
        assert await answer.read() == b"", "a body is handed over once"
        assert server.requests == [
            b"POST /base/v1/x?y=z HTTP/1.1\r\nhost: %b\r\nx-a: 1\r\nx-b: 2\r\n"
            b"content-length: 5\r\n\r\nhello" % origin.host_header
        ]


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"content-length: 5\r\n\r\nhello", b"hello"),
        (b"content-length: 0\r\n\r\n", b""),
        (
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nx: y\r\n\r\n",
            b"hello!",
        ),
        (b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", b""),
        (b"\r\nhello until the end", b"hello until the end"),
        (b"connection: close\r\n\r\n", b""),
        (b"transfer-encoding: gzip\r\n\r\nzzz", b"zzz"),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_bodies_end_by_length_by_chunk_or_with_the_connection(
    answer: bytes, body: bytes, version: bytes
) -> None:
    data = b"HTTP/%b 200 OK\r\n%b" % (version, answer)
    async with talking(saying(data)) as (_, client, origin):
        assert await get(client, origin) == body


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx-early: 1\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n",
    ],
)
async def test_interim_answers_are_passed_over(interim: bytes) -> None:
    data = interim + b"HTTP/1.1 201 Created\r\nx-late: 2\r\ncontent-length: 2\r\n\r\nok"
    async with talking(saying(data)) as (_, client, origin):
        answer = await client.open(origin, "GET", "/")
        assert answer.status == 201
        assert answer.headers == {b"x-late": b"2", b"content-length": b"2"}
        assert await answer.read() == b"ok"


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 1000\r\n\r\n"),
    ],
)
async def test_answers_without_a_body_end_with_their_head_and_keep_the_connection(
    method: str, answer: bytes
) -> None:
    async def on_connection(server: Scripted, peer: Peer) -> None:
        while True:
            server.requests.append(await peer.read_request())
            await peer.send(answer)

    async with talking(on_connection) as (server, client, origin):
        for _ in range(2):
            assert await (await client.open(origin, method, "/")).read() == b""
        assert (len(server.requests), len(server.peers)) == (2, 1)


async def test_bytes_that_came_early_are_attached_first_and_in_order() -> None:
    more = asyncio.Event()

    async def on_connection(server: Scripted, peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none", b"two")
        await more.wait()
        await peer.send(b"end")

    async with talking(on_connection) as (_, client, origin):
        answer = await client.open(origin, "GET", "/")
        await wait_for(lambda: answer._held)
        parts: list[bytes] = []
        answer.attach(parts.append)
        more.set()
        await answer.done
        assert b"".join(parts) == b"onetwoend"
        assert await answer.read() == b""


async def test_large_bodies_go_both_ways_over_our_own_server() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.start(200, [])
        for i in range(0, len(exchange.body), 100_000):
            exchange.write(exchange.body[i : i + 100_000])
            await exchange.drain()
        exchange.finish()

    client = HttpClient()
    body = bytes(range(256)) * 20_000
    async with serving(handle) as served:
        url = f"http://127.0.0.1:{served.port}/"
        assert await client.fetch(url, method="POST", body=body) == (200, body)
        client.close()


BODIES = st.binary(max_size=60)


def test_answers_mean_the_same_wherever_they_are_cut() -> None:
    pieces: list[bytes] = []

    async def on_connection(server: Scripted, peer: Peer) -> None:
        await peer.read_request()
        await peer.send(*pieces)

    with asyncio.Runner() as runner:

        async def ask() -> tuple[int, bytes]:
            async with talking(on_connection) as (server, client, _):
                return await client.fetch(server.url)

        @settings(max_examples=60, deadline=None)
        @given(BODIES, st.sampled_from(["length", "chunked", "close"]), st.booleans(), st.data())
        def check(body: bytes, framing: str, interim: bool, data: st.DataObject) -> None:
            answer = b"HTTP/1.1 100 Continue\r\n\r\n" if interim else b""
            answer += b"HTTP/1.1 429 Too Many Requests\r\nx: y\r\n"
            if framing == "length":
                answer += b"content-length: %d\r\n\r\n%b" % (len(body), body)
            elif framing == "chunked":
                answer += b"transfer-encoding: chunked\r\n\r\n"
                answer += b"".join(b"1\r\n%b\r\n" % body[i : i + 1] for i in range(len(body)))
                answer += b"0\r\n\r\n"
            else:
                answer += b"\r\n" + body
            cuts = sorted(data.draw(st.sets(st.integers(1, len(answer) - 1), max_size=10)))
            pieces[:] = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
            assert runner.run(ask()) == (429, body)

        check()


# Connections are kept, and bounded


async def test_one_connection_serves_one_request_after_another() -> None:
    async with talking(serve_all) as (server, client, origin):
        assert [await get(client, origin) for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]
        assert len(server.peers) == 1
        assert idle_count(client) == 1


async def test_requests_at_the_same_time_have_connections_of_their_own_and_few_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "MAX_IDLE_PER_ORIGIN", 2)
    all_here = asyncio.Event()

    async def on_connection(server: Scripted, peer: Peer) -> None:
        while True:
            server.requests.append(await peer.read_request())
            if len(server.requests) == 5:
                all_here.set()
            await all_here.wait()
            await peer.answer()

    async with talking(on_connection) as (server, client, origin):
        assert await asyncio.gather(*[get(client, origin) for _ in range(5)]) == [b"ok"] * 5
        assert len(server.peers) == 5
        assert idle_count(client) == 2
        await asyncio.gather(*[get(client, origin) for _ in range(2)])
        assert len(server.peers) == 5


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"]
)
async def test_a_connection_that_the_server_will_close_is_not_kept(head: bytes) -> None:
    data = head + b"content-length: 2\r\n\r\nok"
    async with talking(saying(data, then="stay")) as (server, client, origin):
        for number in (1, 2):
            assert await get(client, origin) == b"ok"
            assert len(server.peers) == number
            assert idle_count(client) == 0
        for peer in server.peers:
            await peer.gone.wait()  # we close, and do not wait for the server to


async def test_a_connection_that_was_idle_for_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "MAX_IDLE_S", 0.0)
    async with talking(serve_all) as (server, client, origin):
        assert await get(client, origin) == b"1"
        assert await get(client, origin) == b"2"
        assert len(server.peers) == 2
        await server.peers[0].gone.wait()


async def test_a_connection_that_the_server_closed_while_idle_is_forgotten() -> None:
    async with talking(serve_all) as (server, client, origin):
        assert await get(client, origin) == b"1"
        server.peers[0].close()
        await wait_for(lambda: idle_count(client) == 0)
        assert await get(client, origin) == b"2"


@pytest.mark.parametrize(
    "extra",
    [b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", b"HTTP/1.1 408 Request T"],
)
@pytest.mark.parametrize("when", ["with the answer", "later"])
async def test_bytes_that_nobody_asked_for_end_the_connection(extra: bytes, when: str) -> None:
    async def on_connection(server: Scripted, peer: Peer) -> None:
        while True:
            server.requests.append(await peer.read_request())
            good = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
            if when == "later":
                await peer.send(good)
                await wait_for(lambda: idle_count(client) == 1)
                await peer.send(extra)
            else:
                await peer.send(good + extra)

    async with talking(on_connection) as (server, client, origin):
        for number in (1, 2):
            assert await get(client, origin) == b"good"
            await wait_for(lambda: idle_count(client) == 0)
            assert len(server.peers) == number


async def test_close_ends_what_is_idle_now_and_what_runs_when_it_is_done() -> None:
    go_on = asyncio.Event()

    async def on_connection(server: Scripted, peer: Peer) -> None:
        while True:
            server.requests.append(await peer.read_request())
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
            if len(server.requests) == 2:
                await go_on.wait()
            await peer.send(b"good")

    async with talking(on_connection) as (server, client, origin):
        assert await get(client, origin) == b"good"
        running = await client.open(origin, "GET", "/")
        client.close()
        go_on.set()
        assert await running.read() == b"good"
        await server.peers[0].gone.wait()
        # And it can be used again.
        assert await get(client, origin) == b"good"
        assert len(server.peers) == 2


async def test_servers_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each restart of a replica leaves an address behind."""
    monkeypatch.setattr(client_module, "SWEEP_S", 0.01)
    client = HttpClient()
    for _ in range(3):
        async with talking(serve_all) as (_, _, origin):
            assert await get(client, origin)
        await wait_for(lambda: not client._pools)
    with pytest.raises(ConnectFailed):
        await client.open(origin, "GET", "/")
    await wait_for(lambda: not client._pools)
    await wait_for(lambda: client._sweep_timer is None)
    client.close()


async def test_idle_connections_are_closed_without_another_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "SWEEP_S", 0.01)
    monkeypatch.setattr(client_module, "MAX_IDLE_S", 0.05)
    async with talking(serve_all) as (server, client, origin):
        assert await get(client, origin)
        await server.peers[0].gone.wait()
        await wait_for(lambda: not client._pools)
        assert await get(client, origin)
        assert len(server.peers) == 2


async def test_servers_with_a_request_under_way_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SWEEP_S", 0.005)
    monkeypatch.setattr(client_module, "MAX_IDLE_S", 0.005)
    go_on = asyncio.Event()
    sweeps = 0

    async def on_connection(server: Scripted, peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
        await go_on.wait()
        await peer.send(b"good")

    async with talking(on_connection) as (_, client, origin):
        sweep = client._sweep

        def count_sweeps() -> None:
            nonlocal sweeps
            sweeps += 1
            sweep()

        monkeypatch.setattr(client, "_sweep", count_sweeps)
        answer = await client.open(origin, "GET", "/")
        await wait_for(lambda: sweeps >= 3)
        assert list(client._pools) == [origin]
        go_on.set()
        assert await answer.read() == b"good"
        await wait_for(lambda: not client._pools)


# Nothing was sent


async def test_a_closed_port_is_a_failed_connection(client: HttpClient) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(
        ConnectFailed, match=rf"^http://127\.0\.0\.1:{port} cannot be reached: Connection refused$"
    ):
        await client.open(Origin("127.0.0.1", port), "GET", "/")


async def test_a_name_that_does_not_exist_is_a_failed_connection(client: HttpClient) -> None:
    with pytest.raises(ConnectFailed, match=r"http://nowhere\.invalid cannot be reached: "):
        await client.open(Origin("nowhere.invalid", 80), "GET", "/", connect_timeout_s=20)


async def test_a_name_that_cannot_exist_is_a_failed_connection(client: HttpClient) -> None:
    with pytest.raises(ConnectFailed, match="cannot be reached"):
        await client.open(Origin("a..b", 80), "GET", "/")


async def test_a_server_that_does_not_accept_is_a_failed_connection(client: HttpClient) -> None:
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(3):  # until its queue is full, the kernel accepts in its place
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        await asyncio.sleep(0.05)
        origin = Origin(*sock.getsockname())
        with pytest.raises(ConnectFailed, match=r"did not accept a connection within 0\.2 s$"):
            await client.open(origin, "GET", "/", connect_timeout_s=0.2)


async def test_tls_to_a_server_without_it_is_a_failed_connection() -> None:
    async def on_connection(server: Scripted, peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with talking(on_connection) as (_, client, origin):
        with pytest.raises(ConnectFailed, match="cannot be reached: "):
            await client.open(Origin("127.0.0.1", origin.port, tls=True), "GET", "/")


# It was sent


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((), "closed the connection without an answer"),
        ((b"HTTP/1.1 20",), "closed the connection without an answer"),
        ((b"HTTP/1.1 200 OK\r\ncontent-le",), "closed the connection without an answer"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n",), "closed the connection without an answer"),
        ((b"SSH-2.0-OpenSSH_9.6\r\n",), "sent something that is not HTTP"),
        ((b"HTTP/1.1 twohundred\r\n\r\n",), "sent something that is not HTTP"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",), "sent something that is not HTTP"),
        ((b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",),
         "switched protocols"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("then", ["close", "cut"])
async def test_no_answer_at_all_is_no_response(
    pieces: tuple[bytes, ...], message: str, then: str
) -> None:
    async with talking(saying(*pieces, then=then)) as (server, client, origin):
        with pytest.raises(NoResponse, match=message) as caught:
            await client.open(origin, "GET", "/")
        assert server.url in str(caught.value)
        assert len(server.requests) == 1, "a fresh connection's request is not repeated"
        assert idle_count(client) == 0


async def test_silence_is_no_response_and_ends_the_connection() -> None:
    async with talking(saying(then="stay")) as (server, client, origin):
        with pytest.raises(NoResponse, match=r"sent nothing for 0\.1 s$"):
            await client.open(origin, "GET", "/", head_timeout_s=0.1)
        await server.peers[0].gone.wait()


# A kept connection that was closed as the request went out


async def test_a_request_on_a_connection_that_was_just_closed_goes_out_again() -> None:
    async def on_connection(server: Scripted, peer: Peer) -> None:
        server.requests.append(await peer.read_request())
        await peer.answer(b"%d" % len(server.requests))
        await peer.wait_gone()

    async with talking(on_connection) as (server, client, origin):
        for number in range(1, 6):
            # No turn of the loop between the close and the next request: it is on its way when
            # the news arrives.
            assert await get(client, origin) == b"%d" % number
            server.peers[-1].close()
        assert len(server.requests) == 5, "each was handled exactly once"
        assert len(server.peers) == 5


@pytest.mark.parametrize("way", ["close", "cut"])
async def test_a_server_that_drops_the_second_request_gets_it_on_a_fresh_connection(
    way: str,
) -> None:
    async def on_connection(server: Scripted, peer: Peer) -> None:
        server.requests.append(await peer.read_request())
        await peer.answer(b"%d" % len(server.requests))
        await peer.reader.read(1)  # and never looked at
        peer.close() if way == "close" else peer.cut()

    async with talking(on_connection) as (server, client, origin):
        sent: list[Answer] = []
        assert await get(client, origin) == b"1"
        assert await get(client, origin, on_sent=sent.append) == b"2"
        assert (len(server.requests), len(server.peers), len(sent)) == (2, 2, 2)


async def test_a_request_that_a_server_died_of_counts_as_sent() -> None:
    # The kept connection ends as an idle one would, but the server is gone too.
    async def on_connection(server: Scripted, peer: Peer) -> None:
        while True:
            server.requests.append(await peer.read_request())
            if len(server.requests) == 2:
                assert server.listener is not None
                server.listener.close()
                return
            await peer.answer()

    async with talking(on_connection) as (server, client, origin):
        assert await get(client, origin) == b"ok"
        with pytest.raises(NoResponse, match=r"closed without an answer; .* cannot be reached"):
            await get(client, origin)
        assert len(server.requests) == 2


async def test_a_kept_connection_that_ends_late_took_the_request_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "STALE_WINDOW_S", 0.05)

    async def on_connection(server: Scripted, peer: Peer) -> None:
        while True:
            server.requests.append(await peer.read_request())
            if len(server.requests) == 2:
                await asyncio.sleep(0.1)
                return
            await peer.answer()

    async with talking(on_connection) as (server, client, origin):
        assert await get(client, origin) == b"ok"
        with pytest.raises(NoResponse, match="closed the connection without an answer"):
            await get(client, origin)
        assert len(server.requests) == 2


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_kept_connection_that_had_begun_to_answer_is_not_asked_again(begun: bytes) -> None:
    async def on_connection(server: Scripted, peer: Peer) -> None:
        while True:
            server.requests.append(await peer.read_request())
            if len(server.requests) == 2:
                await peer.send(begun)
                return
            await peer.answer()

    async with talking(on_connection) as (server, client, origin):
        assert await get(client, origin) == b"ok"
        with pytest.raises(NoResponse, match="closed the connection without an answer"):
            await get(client, origin)
        assert len(server.requests) == 2


# The answer had begun


@pytest.mark.parametrize(
    "half",
    [
        b"content-length: 10\r\n\r\nhello",
        b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"transfer-encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
@pytest.mark.parametrize("then", ["close", "cut"])
@pytest.mark.parametrize("reader", ["read", "attach"])
async def test_an_answer_that_breaks_off_is_broken(half: bytes, then: str, reader: str) -> None:
    data = b"HTTP/1.1 200 OK\r\n" + half
    async with talking(saying(data, then=then)) as (server, client, origin):
        try:
            answer = await client.open(origin, "GET", "/")
        except NoResponse:
            # A reset may overtake what was sent before it.
            assert then == "cut"
            return
        if reader == "attach":
            answer.attach(lambda data: None)
        ending = answer.done if reader == "attach" else answer.read()
        with pytest.raises(BrokenResponse, match=f"{server.url} closed the connection mid-answer"):
            await ending
        assert len(server.requests) == 1


async def test_a_reset_is_not_the_proper_end_of_a_body_without_length() -> None:
    proceed = asyncio.Event()

    async def on_connection(server: Scripted, peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await proceed.wait()
        peer.cut()

    async with talking(on_connection) as (_, client, origin):
        answer = await client.open(origin, "GET", "/")
        await wait_for(lambda: answer._held)
        proceed.set()
        if (await asyncio.wait([answer.done]))[0] and answer.done.exception() is None:
            # Without unread data, the kernel ends an aborted connection like a closed one.
            return
        with pytest.raises(BrokenResponse):
            await answer.read()


async def test_garbage_in_the_middle_of_an_answer_is_broken() -> None:
    data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nNOT A SIZE\r\n"
    async with talking(saying(data, then="stay")) as (server, client, origin):
        answer = await client.open(origin, "GET", "/")
        with pytest.raises(BrokenResponse, match="sent something that is not HTTP: "):
            await answer.read()
        await server.peers[0].gone.wait()


async def test_a_reader_that_fails_breaks_the_answer_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(data: bytes) -> None:
        raise ValueError("cannot take this")

    go_on = asyncio.Event()

    async def on_connection(server: Scripted, peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
        await go_on.wait()
        await peer.send(b"hello")
        await peer.wait_gone()

    async with talking(on_connection) as (_, client, origin):
        answer = await client.open(origin, "GET", "/")
        answer.attach(refuse)
        go_on.set()
        with pytest.raises(BrokenResponse, match="could not be read: cannot take this"):
            await answer.done
    assert "cannot take this" in caplog.text


# Giving up


async def test_giving_up_while_waiting_for_the_head_wakes_the_caller() -> None:
    async with talking(saying(then="stay")) as (server, client, origin):
        sent: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        asking = asyncio.ensure_future(client.open(origin, "GET", "/", on_sent=sent.set_result))
        answer = await sent
        await wait_for(lambda: server.requests)
        answer.abort()
        with pytest.raises(NoResponse, match=r"^the request was given up$"):
            await asking
        answer.abort()
        await server.peers[0].gone.wait()


async def test_giving_up_in_the_middle_of_the_body_wakes_the_caller() -> None:
    data = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"
    async with talking(saying(data, then="stay")) as (server, client, origin):
        answer = await client.open(origin, "GET", "/")
        reading = asyncio.ensure_future(answer.read())
        await asyncio.sleep(0)
        answer.abort()
        with pytest.raises(BrokenResponse, match=r"^the request was given up$"):
            await reading
        answer.abort()
        await server.peers[0].gone.wait()
        assert idle_count(client) == 0


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_giving_up_as_the_request_would_go_out_again_keeps_it_from_going(turns: int) -> None:
    async def on_connection(server: Scripted, peer: Peer) -> None:
        server.requests.append(await peer.read_request())
        await peer.answer(b"first")
        await peer.reader.read(1)

    async with talking(on_connection) as (server, client, origin):
        assert await get(client, origin) == b"first"
        sent: list[Answer] = []

        def watch(answer: Answer) -> None:
            sent.append(answer)
            answer.head.add_done_callback(lambda _: give_up_in(turns))

        def give_up_in(turns: int) -> None:
            if turns:  # it is connecting by then
                asyncio.get_running_loop().call_soon(give_up_in, turns - 1)
            else:
                sent[0].abort()

        with pytest.raises(NoResponse, match=r"^the request was given up$"):
            await client.open(origin, "GET", "/", on_sent=watch)
        assert (len(server.requests), len(sent)) == (1, 1)


async def test_giving_up_what_is_over_touches_nobody_else() -> None:
    go_on = asyncio.Event()

    async def on_connection(server: Scripted, peer: Peer) -> None:
        while True:
            server.requests.append(await peer.read_request())
            if len(server.requests) == 2:
                await go_on.wait()
            await peer.answer(b"%d" % len(server.requests))

    async with talking(on_connection) as (server, client, origin):
        old = await client.open(origin, "GET", "/")
        assert await old.read() == b"1"
        asking = asyncio.ensure_future(get(client, origin))
        await wait_for(lambda: len(server.requests) == 2)
        # The connection is another's by now.
        old.pause()
        old.abort()
        go_on.set()
        assert await asking == b"2"
        assert len(server.peers) == 1


async def test_cancelling_the_caller_cuts_the_connection() -> None:
    data = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"
    for pieces in ((), (data,)):
        async with talking(saying(*pieces, then="stay")) as (server, client, origin):
            asking = asyncio.ensure_future(get(client, origin))
            await wait_for(lambda s=server: s.requests)
            await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await server.peers[0].gone.wait()


async def test_cancelling_the_caller_while_it_connects_leaves_nothing() -> None:
    async with talking(serve_all) as (_, client, origin):
        asking = asyncio.ensure_future(get(client, origin))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await get(client, origin) == b"1"


# Slow readers


async def test_a_paused_answer_holds_the_server_up_and_goes_on() -> None:
    size = 30_000_000
    written = 0

    async def on_connection(server: Scripted, peer: Peer) -> None:
        nonlocal written
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while written < size:
            await peer.send(b"x" * 100_000)
            written += 100_000
        await peer.wait_gone()

    async with talking(on_connection) as (_, client, origin):
        got = 0

        def take(data: bytes) -> None:
            nonlocal got
            got += len(data)

        answer = await client.open(origin, "GET", "/")
        answer.attach(take)
        answer.pause()
        before = -1
        while before != written:  # until the kernel's buffers are full
            before = written
            await asyncio.sleep(0.05)
        assert written < size
        had = got
        await asyncio.sleep(0.02)
        assert got == had
        answer.resume()
        await answer.done
        assert got == size


async def test_an_answer_that_ends_paused_leaves_its_connection_fit_for_the_next() -> None:
    async with talking(serve_all) as (server, client, origin):

        async def ask() -> bytes:
            parts: list[bytes] = []

            def attach(answer: Answer) -> None:
                def take(data: bytes) -> None:
                    parts.append(data)
                    answer.pause()  # our own reader is slow, just as the last byte comes

                answer.attach(take)

            answer = await client.open(origin, "GET", "/", on_sent=attach)
            await answer.done
            return b"".join(parts)

        assert [await ask() for _ in range(3)] == [b"1", b"2", b"3"]
        assert len(server.peers) == 1


async def test_giving_up_a_paused_answer_ends_it() -> None:
    data = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"
    async with talking(saying(data, then="stay")) as (server, client, origin):
        answer = await client.open(origin, "GET", "/")
        answer.pause()
        answer.abort()
        answer.resume()
        with pytest.raises(BrokenResponse, match="given up"):
            await answer.read()
        await server.peers[0].gone.wait()


# Fetching


async def test_fetch_gives_status_and_body() -> None:
    async with talking(serve_all) as (server, client, _):
        assert await client.fetch(server.url) == (200, b"1")
        url = f"{server.url}/ä b?c=d&e=ü"
        assert await client.fetch(url, method="POST", headers=b"x: y\r\n", body=b"z") == (200, b"2")
        first, second = server.requests
        assert first.startswith(b"GET / HTTP/1.1\r\n")
        assert second.startswith(b"POST /%C3%A4%20b?c=d&e=%C3%BC HTTP/1.1\r\n")
        assert b"\r\nx: y\r\n" in second
        assert len(server.peers) == 1


@pytest.mark.parametrize(
    ("pieces", "error", "message"),
    [
        ((), NoResponse, "did not answer within 0.1 s"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",), BrokenResponse,
         "did not finish its answer within 0.1 s"),
    ],
)  # fmt: skip
async def test_fetch_has_one_deadline_for_everything(
    pieces: tuple[bytes, ...], error: type[TransportError], message: str
) -> None:
    async with talking(saying(*pieces, then="stay")) as (server, client, _):
        with pytest.raises(error) as caught:
            await client.fetch(f"{server.url}/x", timeout_s=0.1)
        assert str(caught.value) == f"{server.url}/x {message}"
        await server.peers[0].gone.wait()


async def test_fetch_refuses_what_is_no_url(client: HttpClient) -> None:
    with pytest.raises(ValueError, match="not an http:// or https:// URL"):
        await client.fetch("ftp://example.com/x")


# The first byte of a body


async def test_a_reader_may_wait_for_the_first_byte_before_it_takes_the_body() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
    begin = asyncio.Event()

    async def on_connection(server: Scripted, peer: Peer) -> None:
        await peer.read_request()
        await peer.send(head)
        await begin.wait()
        await peer.send(b"ab", b"cd")
        await peer.wait_gone()

    async with talking(on_connection) as (_, client, origin):
        answer = await client.open(origin, "GET", "/")
        waiting = asyncio.ensure_future(answer.wait_body())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        begin.set()
        await waiting
        taken: list[bytes] = []
        answer.attach(taken.append)
        await answer.done
        assert b"".join(taken) == b"abcd"
        await answer.wait_body()


async def test_a_body_that_breaks_off_or_is_empty_keeps_nobody_waiting() -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
    async with talking(saying(cut, then="cut")) as (_, client, origin):
        answer = await client.open(origin, "GET", "/")
        with pytest.raises(BrokenResponse):
            await answer.wait_body()
    empty = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    async with talking(saying(empty, then="stay")) as (_, client, origin):
        answer = await client.open(origin, "GET", "/")
        await answer.wait_body()
        assert await answer.read() == b""


async def test_a_reader_that_is_cancelled_before_the_first_byte_gives_the_answer_up() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
    async with talking(saying(head, then="stay")) as (_, client, origin):
        answer = await client.open(origin, "GET", "/")
        waiting = asyncio.ensure_future(answer.wait_body())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert answer.given_up
