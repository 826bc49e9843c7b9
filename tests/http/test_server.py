"""Requests in, answers out: what the HTTP server makes of bytes on a real socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.raw import Answer, RawClient, Served, serving, wait_for
from thrifty.http.server import Exchange, HttpServer
from thrifty.openai.errors import WireError, unavailable

pytestmark = pytest.mark.usefixtures("either_loop")

H2C = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAA\r\n"


def reflect(exchange: Exchange) -> None:
    """Answer with what was asked."""
    exchange.respond(200, json.dumps(describe(exchange)).encode())


def describe(exchange: Exchange) -> dict[str, Any]:
    return {
        "method": exchange.method,
        "path": exchange.path,
        "query": exchange.query.decode("latin-1"),
        "version": exchange.version,
        "headers": {k.decode(): v.decode("latin-1") for k, v in exchange.headers.items()},
        "body": exchange.body.decode("latin-1"),
    }


def error_of(answer: Answer) -> dict[str, Any]:
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# Connections that are kept


async def test_one_connection_serves_many_requests() -> None:
    async with serving(reflect) as served, served.connect() as client:
        for number in range(3):
            answer = await client.post(b"x" * number, f"/{number}")
            assert answer.status == 200
            assert "connection" not in answer.headers
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["date"].endswith(" GMT")
            seen = json.loads(answer.body)
            assert (seen["method"], seen["path"], seen["body"]) == (
                "POST",
                f"/{number}",
                "x" * number,
            )
        assert len(served.server.connections) == 1


async def test_connection_close_is_honoured_and_said() -> None:
    async with serving(reflect) as served, served.connect() as client:
        answer = await client.get(headers="Connection: Close\r\n")
        assert answer.headers["connection"] == "close"
        await client.expect_end()


async def test_nothing_behind_a_closing_request_is_handled() -> None:
    paths = []

    async def handle(exchange: Exchange) -> None:
        paths.append(exchange.path)
        await asyncio.sleep(0)
        exchange.respond(200, b"{}")

    async with serving(handle) as served, served.connect() as client:
        await client.send(
            b"GET /1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n\r\nGET /2 HTTP/1.1\r\nhost: x\r\n\r\n"
        )
        assert (await client.read_answer()).status == 200
        await client.expect_end()
    assert paths == ["/1"]


async def test_http_1_0_closes_unless_it_asks_to_keep() -> None:
    async with serving(reflect) as served:
        async with served.connect() as client:
            answer = await client.get(version="1.0")
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert json.loads(answer.body)["version"] == "1.0"
            await client.expect_end()
        async with served.connect() as client:
            for _ in range(2):
                answer = await client.get(version="1.0", headers="connection: keep-alive\r\n")
                assert answer.headers["connection"] == "keep-alive"


async def test_http_1_0_gets_a_stream_without_chunks_and_its_end_is_the_end() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.start(200, [])
        for piece in (b"one ", b"", b"two"):
            exchange.write(piece)
            await asyncio.sleep(0)
        exchange.finish()

    async with serving(handle) as served, served.connect() as client:
        await client.send(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        answer = await client.read_answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.body == b"one two"


async def test_a_stream_keeps_its_chunks_and_the_connection() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.start(200, [(b"content-type", b"text/event-stream")])
        for piece in (b"data: a\n\n", b"", b"data: b\n\n"):
            exchange.write(piece)
            await asyncio.sleep(0)
        exchange.finish()
        exchange.finish()
        exchange.write(b"too late")

    async with serving(handle) as served, served.connect() as client:
        for _ in range(2):
            await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.read_head()).headers["transfer-encoding"] == "chunked"
            assert [chunk async for chunk in client.read_chunks()] == [
                b"data: a\n\n",
                b"data: b\n\n",
            ]


async def test_head_gets_the_head_alone() -> None:
    async def handle(exchange: Exchange) -> None:
        if exchange.path == "/stream":
            exchange.start(200, [])
            exchange.write(b"never seen")
            exchange.finish()
        elif exchange.path == "/error":
            raise WireError(404, "not there")
        else:
            exchange.respond(200, b"12345")

    async with serving(handle) as served, served.connect() as client:
        for path, length in (("/", "5"), ("/stream", None), ("/error", "89")):
            await client.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            answer = await client.read_answer(to_head=True)
            assert answer.headers.get("content-length") == length
        assert (await client.get()).body == b"12345"  # nothing was left over in between


# Pipelining


async def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    running: list[str] = []
    most = 0
    release = asyncio.Event()

    async def handle(exchange: Exchange) -> None:
        nonlocal most
        running.append(exchange.path)
        most = max(most, len(running))
        if exchange.path == "/0":
            await release.wait()
        running.remove(exchange.path)
        exchange.respond(200, exchange.path.encode())

    async with serving(handle) as served, served.connect() as client:
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % n for n in range(5)))
        await wait_for(lambda: running)
        release.set()
        assert [(await client.read_answer()).body for _ in range(5)] == [
            b"/0", b"/1", b"/2", b"/3", b"/4"
        ]  # fmt: skip
    assert most == 1


async def test_thousands_of_pipelined_requests_behind_a_slow_one_are_all_answered() -> None:
    count = 5000
    release = asyncio.Event()

    def handle(exchange: Exchange) -> Any:
        if exchange.path == "/slow":
            return answer_late(exchange)
        exchange.respond(200, exchange.path.encode())
        return None

    async def answer_late(exchange: Exchange) -> None:
        await release.wait()
        exchange.respond(200, b"slow")

    async with serving(handle) as served, served.connect() as client:
        await client.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        sending = asyncio.ensure_future(
            client.send(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % n for n in range(count)))
        )
        await wait_for(lambda: any(c._queue for c in served.server.connections))
        release.set()
        assert (await client.read_answer()).body == b"slow"
        for number in range(count):
            assert (await client.read_answer()).body == b"/%d" % number
        await sending


async def test_a_pipelined_body_waits_while_reading_rests_and_is_whole() -> None:
    release = asyncio.Event()
    bodies = []

    async def handle(exchange: Exchange) -> None:
        bodies.append(exchange.body)
        await release.wait()
        exchange.respond(200, b"%d" % len(exchange.body))

    async with serving(handle) as served, served.connect() as client:
        big = b"b" * 3_000_000
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        sending = asyncio.ensure_future(client.send(*[head % len(big) + big] * 3))
        (connection,) = served.server.connections
        await wait_for(lambda: connection._read_paused)
        assert len(connection._queue) == 1, "a waiting body of this size stops the reading"
        release.set()
        lengths = [(await client.read_answer()).body for _ in range(4)]
        assert lengths == [b"0", b"3000000", b"3000000", b"3000000"]
        await sending
    assert bodies == [b"", big, big, big]


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        b"5;name=value\r\nhello\r\n006\r\n world\r\n0;last\r\n\r\n",
        b"1\r\nh\r\n4\r\nello\r\n6\r\n world\r\n0\r\nx-trailer: 1\r\nauthorization: Bearer x\r\n\r\n",
    ],
)
async def test_chunked_bodies_are_put_together_and_trailers_are_not_believed(body: bytes) -> None:
    async with serving(reflect) as served, served.connect() as client:
        for _ in range(2):
            await client.send(
                b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + body
            )
            seen = json.loads((await client.read_answer()).body)
            assert seen["body"] == "hello world"
            assert seen["headers"] == {"host": "x", "transfer-encoding": "chunked"}


async def test_many_tiny_chunks_make_one_body() -> None:
    async with serving(reflect) as served, served.connect() as client:
        text = b"0123456789" * 3000
        chunks = b"".join(b"2\r\n%b\r\n" % text[i : i + 2] for i in range(0, len(text), 2))
        await client.send(
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            + chunks
            + b"0\r\n\r\n"
        )
        assert json.loads((await client.read_answer()).body)["body"].encode() == text


async def test_who_expects_100_continue_is_told_to_go_on() -> None:
    async with serving(reflect) as served, served.connect() as client:
        await client.send(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nExpect: 100-Continue \r\n\r\n"
        )
        assert (await client.read_answer()).status == 100
        await client.send(b"hello")
        assert json.loads((await client.read_answer()).body)["body"] == "hello"


async def test_http_1_0_is_never_sent_100_continue() -> None:
    async with serving(reflect) as served, served.connect() as client:
        await client.send(b"POST / HTTP/1.0\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\nhi")
        assert (await client.read_answer()).status == 200


async def test_100_continue_waits_for_the_answer_before_it() -> None:
    release = asyncio.Event()

    async def handle(exchange: Exchange) -> None:
        if exchange.method == "GET":
            exchange.start(200, [])
            exchange.write(b"first ")
            await release.wait()
            exchange.write(b"answer")
            exchange.finish()
        else:
            exchange.respond(200, exchange.body)

    async with serving(handle) as served, served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.send(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        )
        (connection,) = served.server.connections
        await wait_for(lambda: connection._building is not None)
        release.set()
        assert (await client.read_answer()).body == b"first answer"
        assert (await client.read_answer()).status == 100
        await client.send(b"hello")
        assert (await client.read_answer()).body == b"hello"


# Offers of other protocols


async def test_an_offer_of_h2c_is_ignored_and_the_connection_is_kept() -> None:
    async with serving(reflect) as served, served.connect() as client:
        for _ in range(2):
            answer = await client.get("/a?b=c", headers=H2C + "x-mine: 1\r\n")
            seen = json.loads(answer.body)
            assert (answer.status, seen["path"], seen["query"]) == (200, "/a", "b=c")
            assert seen["headers"] == {"host": "x", "x-mine": "1"}
        assert (await client.get()).status == 200


async def test_a_body_beside_an_offer_of_h2c_arrives() -> None:
    # Java's HttpClient makes this offer with every first request.
    async with serving(reflect) as served, served.connect() as client:
        assert json.loads((await client.post(b"hello", headers=H2C)).body)["body"] == "hello"
        await client.send(
            f"POST / HTTP/1.1\r\nhost: x\r\n{H2C}transfer-encoding: chunked\r\n\r\n".encode(),
            b"5\r\nhel", b"lo\r\n0\r\n\r\n",
        )  # fmt: skip
        assert json.loads((await client.read_answer()).body)["body"] == "hello"


async def test_requests_piled_up_behind_an_offer_of_h2c_are_answered() -> None:
    async with serving(reflect) as served, served.connect() as client:
        piece = f"POST / HTTP/1.1\r\nhost: x\r\n{H2C}content-length: 3\r\n\r\nabc".encode()
        await client.send(piece * 50 + b"GET /last HTTP/1.1\r\nhost: x\r\n\r\n")
        for _ in range(50):
            assert json.loads((await client.read_answer()).body)["body"] == "abc"
        assert json.loads((await client.read_answer()).body)["path"] == "/last"


async def test_an_offer_of_h2c_does_not_get_around_the_limits() -> None:
    async with serving(reflect, max_body_bytes=10) as served, served.connect() as client:
        assert (await client.post(b"x" * 11, headers=H2C)).status == 413
        await client.expect_end()


async def test_close_beside_an_offer_of_h2c_closes() -> None:
    async with serving(reflect) as served, served.connect() as client:
        answer = await client.get(headers="connection: upgrade, close\r\nupgrade: websocket\r\n")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await client.expect_end()


async def test_connect_is_refused() -> None:
    async with serving(reflect) as served, served.connect() as client:
        await client.send(b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n\x16\x03\x01")
        answer = await client.read_answer()
        assert (answer.status, error_of(answer)["code"]) == (405, "method_not_allowed")
        await client.expect_end()


# Targets and headers


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/v1/models?a=b?c&d=%20", "/v1/models", "a=b?c&d=%20"),
        ("/v1/models/org%2Fname", "/v1/models/org/name", ""),
        ("/caf%C3%A9", "/café", ""),
        ("/%zz%", "/%zz%", ""),
        ("http://example.com/v1/models?x", "/v1/models", "x"),
        ("http://example.com", "/", ""),
        ("*", "*", ""),
    ],
)
async def test_targets_become_path_and_query(target: str, path: str, query: str) -> None:
    async with serving(reflect) as served, served.connect() as client:
        await client.send(f"OPTIONS {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        seen = json.loads((await client.read_answer()).body)
        assert (seen["path"], seen["query"]) == (path, query)


async def test_strange_bytes_in_header_values_arrive_as_they_are() -> None:
    async with serving(reflect) as served, served.connect() as client:
        await client.send(
            b"GET / HTTP/1.1\r\nhost: x\r\nX-Strange: caf\xc3\xa9\xff\x80\tx \t \r\nX-Empty:\r\n"
            b"X-Colon: a: b\r\nx-twice: 1\r\nX-TWICE: 2\r\n\r\n"
        )
        headers = json.loads((await client.read_answer()).body)["headers"]
        assert headers["x-strange"].encode("latin-1") == b"caf\xc3\xa9\xff\x80\tx"
        assert headers["x-empty"] == ""
        assert headers["x-colon"] == "a: b"
        assert headers["x-twice"] == "1, 2"


# Handlers


async def test_a_handler_may_answer_at_once_or_later_on_one_connection() -> None:
    tasks = []

    def handle(exchange: Exchange) -> Any:
        if exchange.path == "/now":
            exchange.respond(200, b"now")
            tasks.append(exchange.task)
            return None
        return answer_late(exchange)

    async def answer_late(exchange: Exchange) -> None:
        tasks.append(exchange.task)
        await asyncio.sleep(0)
        exchange.respond(200, b"later")

    async with serving(handle) as served, served.connect() as client:
        for path in ("/now", "/later", "/now"):
            assert (await client.get(path)).body == path[1:].encode()
    assert tasks[0] is None
    assert tasks[2] is None
    assert isinstance(tasks[1], asyncio.Task)


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_handler_that_fails_gets_the_client_a_500_and_the_log_the_reason(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(exchange: Exchange) -> Any:
        if exchange.path == "/good":
            exchange.respond(200, b"{}")
            return None
        if when == "at once":
            raise RuntimeError("the secret reason")
        return fail_late()

    async def fail_late() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("the secret reason")

    async with serving(handle) as served, served.connect() as client:
        answer = await client.post(b"x", "/bad")
        assert answer.status == 500
        assert error_of(answer) == {
            "message": "the server had an internal error", "type": "server_error",
            "param": None, "code": "internal_error",
        }  # fmt: skip
        assert (await client.get("/good")).status == 200, "the connection goes on"
    assert "POST /bad failed" in caplog.text
    assert "the secret reason" in caplog.text


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_wire_error_becomes_the_answer_that_it_says(when: str) -> None:
    error = unavailable("come back later", "queue_full", retry_after_s=7.4)

    def handle(exchange: Exchange) -> Any:
        if when == "at once":
            raise error
        return fail_late()

    async def fail_late() -> None:
        raise error

    async with serving(handle) as served, served.connect() as client:
        answer = await client.get()
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert error_of(answer)["message"] == "come back later"
        assert error_of(answer)["code"] == "queue_full"


@pytest.mark.parametrize("error", [RuntimeError("broken"), WireError(400, "too late")])
async def test_a_failure_in_the_middle_of_a_stream_cuts_it(error: Exception) -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"half")
        await asyncio.sleep(0)
        raise error

    async with serving(handle) as served, served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        data = await client.expect_cut()
        assert not data.endswith(b"0\r\n\r\n"), "half an answer must not pass for a whole one"
        await served.wait_empty()


@pytest.mark.parametrize("when", ["at once", "later", "half"])
async def test_a_handler_that_forgets_to_answer_is_found_out(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(exchange: Exchange) -> Any:
        return None if when == "at once" else forget(exchange)

    async def forget(exchange: Exchange) -> None:
        if when == "half":
            exchange.start(200, [])

    async with serving(handle) as served, served.connect() as client:
        await client.send(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        if when == "half":
            assert not (await client.expect_cut()).endswith(b"0\r\n\r\n")
        else:
            assert (await client.read_answer()).status == 500
    assert "GET /x was left unanswered" in caplog.text


@pytest.mark.parametrize("call", ["write", "finish"])
async def test_a_stream_that_was_not_begun_cannot_be_written(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(exchange: Exchange) -> None:
        exchange.write(b"x") if call == "write" else exchange.finish()

    async with serving(handle) as served, served.connect() as client:
        assert (await client.get()).status == 500
    assert f"{call}() before start()" in caplog.text


async def test_only_the_first_answer_counts() -> None:
    def handle(exchange: Exchange) -> None:
        exchange.respond(200, b"first")
        exchange.respond(500, b"second")
        exchange.start(200, [])

    async with serving(handle) as served, served.connect() as client:
        assert (await client.get()).body == b"first"
        assert (await client.get()).body == b"first"


async def test_statuses_that_nobody_registered_pass_through() -> None:
    def handle(exchange: Exchange) -> None:
        exchange.respond(int(exchange.path[1:]), b"{}")

    async with serving(handle) as served, served.connect() as client:
        for status in (299, 418, 499, 529, 599):
            assert (await client.get(f"/{status}")).status == status


# Ports


async def test_two_servers_may_share_a_port_and_one_alone_may_not_take_it_twice() -> None:
    first, second, third = HttpServer(reflect), HttpServer(reflect), HttpServer(reflect)
    port = await first.start("127.0.0.1", 0, reuse_port=True)
    assert await second.start("127.0.0.1", port, reuse_port=True) == port
    with pytest.raises(OSError, match="in use"):
        await third.start("127.0.0.1", port)
    await first.drain(0)
    async with Served(second, port).connect() as client:
        assert (await client.get()).status == 200
    await second.drain(0)


# However the bytes arrive


TOKEN = st.text(
    st.sampled_from("abcdefghijklmnopqrstuvwxyzABC-0123456789"), min_size=1, max_size=12
)
VALUE = st.binary(max_size=20).map(
    lambda b: bytes(c for c in b if c in b"\t" or 32 <= c != 127).strip(b" \t")
)
RESERVED = {
    "connection", "content-encoding", "content-length", "expect", "host", "transfer-encoding",
    "upgrade",
}  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """A valid request, and what must be seen of it."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]))
    path = "/" + draw(TOKEN)
    query = draw(TOKEN)
    body = draw(st.binary(max_size=200))
    headers = draw(
        st.dictionaries(TOKEN.filter(lambda n: n.lower() not in RESERVED), VALUE, max_size=6)
    )
    headers = {"host": b"x"} | {name.lower(): value for name, value in headers.items()}
    framing = draw(st.sampled_from(["length", "chunked"]))
    lines = [f"{method} {path}?{query} HTTP/1.1".encode()]
    if framing == "length":
        headers["content-length"] = b"%d" % len(body)
        data = body
    else:
        headers["transfer-encoding"] = b"chunked"
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
        data = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    lines += [name.encode() + b": " + value for name, value in headers.items()]
    return b"\r\n".join(lines) + b"\r\n\r\n" + data, {
        "method": method,
        "path": path,
        "query": query,
        "version": "1.1",
        "headers": {name: value.decode("latin-1") for name, value in headers.items()},
        "body": body.decode("latin-1"),
    }


def test_requests_mean_the_same_wherever_they_are_cut() -> None:
    with asyncio.Runner() as runner:
        server = HttpServer(reflect)
        port = runner.run(server.start("127.0.0.1", 0))

        async def exchange(pieces: list[bytes], count: int) -> list[dict[str, Any]]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            client = RawClient(reader, writer)
            await client.send(*pieces)
            answers = [json.loads((await client.read_answer()).body) for _ in range(count)]
            await client.close()
            return answers

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(requests(), min_size=1, max_size=3), st.data())
        def check(asked: list[tuple[bytes, dict[str, Any]]], data: st.DataObject) -> None:
            stream = b"".join(request for request, _ in asked)
            cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))
            pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
            assert runner.run(exchange(pieces, len(asked))) == [seen for _, seen in asked]

        check()

        @settings(max_examples=3, deadline=None)
        @given(requests())
        def check_byte_by_byte(asked: tuple[bytes, dict[str, Any]]) -> None:
            pieces = [asked[0][i : i + 1] for i in range(len(asked[0]))]
            assert runner.run(exchange(pieces, 1)) == [asked[1]]

        check_byte_by_byte()
        runner.run(server.drain(0))


def test_no_bytes_can_break_the_server() -> None:
    with asyncio.Runner() as runner:
        server = HttpServer(reflect)
        port = runner.run(server.start("127.0.0.1", 0))

        async def throw(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            client = RawClient(reader, writer)
            await client.send(data)
            writer.write_eof()
            answer = await client.expect_cut()
            await client.close()
            return answer

        async def ask() -> int:
            async with Served(server, port).connect() as client:
                return (await client.get()).status

        words = st.sampled_from(
            [b"GET ", b"POST ", b"/ ", b"HTTP/1.1", b"HTTP/2.0", b"\r\n", b"\n", b":", b"\r\n\r\n",
             b"content-length: 5", b"transfer-encoding: chunked", b"upgrade: h2c", b"CONNECT ",
             b"connection: upgrade", b"0", b"ffffffffffffffffff", b";", b"\x00", b"\xff", b" "]
        )  # fmt: skip

        @settings(max_examples=100, deadline=None)
        @given(st.lists(words | st.binary(max_size=8), max_size=12).map(b"".join))
        def check(data: bytes) -> None:
            answer = runner.run(throw(data))
            assert answer == b"" or answer.startswith(b"HTTP/1.1 "), "never anything but HTTP"
            assert b" 500 " not in answer.partition(b"\r\n")[0]

        check()
        assert runner.run(ask()) == 200
        runner.run(server.drain(0))
        assert not server.connections
