"""The bridge to ASGI: applications of Starlette and bare ones, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.http.raw import Served, serving, wait_for
from thrifty.errors import ThriftyError
from thrifty.http.asgi import AsgiApp, AsgiBridge, Message, Receive, Scope, Send

pytestmark = pytest.mark.usefixtures("either_loop")

START: Message = {"type": "http.response.start", "status": 200, "headers": []}


@contextlib.asynccontextmanager
async def bridged(
    app: AsgiApp, *, max_body_bytes: int = 8_000_000, **options: Any
) -> AsyncIterator[tuple[Served, AsgiBridge]]:
    """`app` behind the bridge and our server."""
    bridge = AsgiBridge(app, **options)
    await bridge.start()
    try:
        async with serving(
            lambda exchange: bridge.answer(exchange, {"caller": "ann"}),
            max_body_bytes=max_body_bytes,
        ) as served:
            yield served, bridge
            bridge.end_streams()
    finally:
        await bridge.stop()


def app_of(*routes: Route, **options: Any) -> Starlette:
    return Starlette(routes=list(routes), **options)


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


# Requests and answers


async def describe(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse(
        {
            "method": request.method,
            "path": request.url.path,
            "query": dict(request.query_params),
            "parameters": request.path_params,
            "agent": request.headers.get("user-agent"),
            "body": body.decode(),
            "scheme": request.url.scheme,
            "client": request.client.host if request.client else None,
            "port": request.scope["server"][1],
            "caller": request.state.caller,
        }
    )


async def test_an_application_sees_the_request() -> None:
    app = app_of(Route("/items/{name}", describe, methods=["GET", "POST"]))
    async with bridged(app) as (served, _), served.connect() as client:
        answer = await client.post(b"hello", "/items/a%20b?x=1&y=%C3%BC", "user-agent: me\r\n")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert "transfer-encoding" not in answer.headers
        assert json.loads(answer.body) == {
            "method": "POST", "path": "/items/a b", "query": {"x": "1", "y": "ü"},
            "parameters": {"name": "a b"}, "agent": "me", "body": "hello", "scheme": "http",
            "client": "127.0.0.1", "port": served.port, "caller": "ann",
        }  # fmt: skip
        assert (await client.get("/nothing")).status == 404
        assert (await client.get("/items/x")).status == 200  # the connection is kept


async def test_head_gets_the_head_of_get() -> None:
    async def endless(request: Request) -> StreamingResponse:
        async def produce() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)

        return StreamingResponse(produce())

    app = app_of(Route("/", describe, methods=["GET"]), Route("/endless", endless))
    async with bridged(app) as (served, bridge), served.connect() as client:
        whole = await client.get("/")
        for path in ("/", "/endless"):
            await client.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            answer = await client.read_answer(to_head=True)
            assert answer.status == 200
            if path == "/":
                assert answer.headers["content-length"] == whole.headers["content-length"]
        assert (await client.get("/")).body == whole.body
        await wait_for(lambda: not bridge._running)


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_have_no_length(status: int) -> None:
    async def empty(request: Request) -> Response:
        return Response(status_code=status, headers={"x-own": "1"})

    async with bridged(app_of(Route("/", empty))) as (served, _), served.connect() as client:
        for _ in range(2):
            answer = await client.get("/")
            assert (answer.status, answer.headers["x-own"]) == (status, "1")
            assert not {"content-length", "transfer-encoding"} & set(answer.headers)


async def test_big_bodies_pass_both_ways() -> None:
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    size = 3_000_001
    body = bytes(range(256)) * (size // 256) + b"end"
    async with bridged(app_of(Route("/", echo, methods=["POST"]))) as (served, _):
        async with served.connect() as client:
            answer = await client.post(body)
            assert answer.body == body
            assert answer.headers["content-length"] == str(len(body))
        async with (
            serving(AsgiBridge(app_of()).answer, max_body_bytes=1000) as small,
            small.connect() as client,
        ):
            assert (await client.post(b"x" * 1001)).status == 413


async def test_slow_readers_hold_the_application_up() -> None:
    sent = 0

    async def produce() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 100_000
            yield b"x" * 100_000

    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(produce())

    async with (
        bridged(app_of(Route("/", stream))) as (served, _),
        served.connect(receive_buffer=8192) as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        connection = next(iter(served.server.connections))
        await wait_for(lambda: connection.write_paused)
        held = sent
        assert held < 20_000_000
        transport = connection._transport
        assert transport is not None
        assert transport.get_write_buffer_size() < 300_000
        answer = await client.read_answer()
        assert len(answer.body) == sent == 40_000_000


async def test_many_requests_run_at_once() -> None:
    arrived, go = 0, asyncio.Event()

    async def wait(request: Request) -> PlainTextResponse:
        nonlocal arrived
        arrived += 1
        await go.wait()
        return PlainTextResponse(request.path_params["n"])

    async def ask(served: Served, number: int) -> bytes:
        async with served.connect() as client:
            return (await client.get(f"/{number}")).body

    async with bridged(app_of(Route("/{n}", wait)), max_running=50) as (served, _):
        asked = [asyncio.create_task(ask(served, number)) for number in range(50)]
        await wait_for(lambda: arrived == 50)
        async with served.connect() as client:
            answer = await client.get("/one-too-many")
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert json.loads(answer.body)["error"]["code"] == "too_many_requests_running"
        go.set()
        assert await asyncio.gather(*asked) == [str(n).encode() for n in range(50)]


async def test_what_runs_after_the_answer_does_not_hold_it_up() -> None:
    go, ran = asyncio.Event(), []

    async def later() -> None:
        await go.wait()
        ran.append(True)

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("now", background=BackgroundTask(later))

    async with bridged(app_of(Route("/", answer))) as (served, _), served.connect() as client:
        assert (await client.get("/")).body == b"now"
        assert (await client.get("/")).body == b"now"
        assert not ran
        go.set()
        await wait_for(lambda: len(ran) == 2)


# Streams


class Events:
    """A stream of events that a test ends, and what became of it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        self.ended: list[str] = []

    async def produce(self) -> AsyncIterator[str]:
        try:
            while (text := await self.queue.get()) != "end":
                yield f"data: {text}\n\n"
            self.ended.append("finished")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise

    async def answer(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self.produce(), media_type="text/event-stream")


async def test_events_arrive_one_by_one() -> None:
    events = Events()
    async with (
        bridged(app_of(Route("/", events.answer))) as (served, _),
        served.connect() as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await client.read_head()  # before any event
        assert head.headers["content-type"].startswith("text/event-stream")
        chunks = client.read_chunks()
        for text in ("a", "b"):
            events.queue.put_nowait(text)
            assert await anext(chunks) == f"data: {text}\n\n".encode()
        events.queue.put_nowait("end")
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
        assert events.ended == ["finished"]


async def test_a_stream_ends_at_once_when_its_client_leaves() -> None:
    events = Events()
    async with (
        bridged(app_of(Route("/", events.answer)), disconnect_grace_s=1000) as (served, b),
        served.connect() as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.read_head()
        client.cut()
        await wait_for(lambda: events.ended == ["cancelled"])
        await wait_for(lambda: not b._running)


async def test_streams_are_ended_properly_before_a_drain() -> None:
    events = Events()
    async with (
        bridged(app_of(Route("/", events.answer))) as (served, bridge),
        served.connect() as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.read_head()
        bridge.end_streams()
        assert [chunk async for chunk in client.read_chunks()] == []
        assert await served.server.drain(20.0, 0.0) == 0


# Clients that leave


async def test_an_application_that_waits_is_told() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        while (message := await receive())["type"] != "http.disconnect":
            seen.append(message["type"])
        seen.append("gone")
        try:
            await send(START)
        except OSError:
            seen.append("refused")

    async with bridged(app) as (served, bridge), served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await wait_for(lambda: seen == ["http.request"])
        client.cut()
        await wait_for(lambda: seen == ["http.request", "gone", "refused"])
        await wait_for(lambda: not bridge._running)


async def test_an_application_that_does_not_listen_is_cancelled() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        seen.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    async with (
        bridged(app, disconnect_grace_s=0.05) as (served, bridge),
        served.connect() as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await wait_for(lambda: seen == ["begun"])
        client.cut()
        await wait_for(lambda: seen == ["begun", "cancelled"])
        await wait_for(lambda: not bridge._running)


async def test_an_application_cannot_write_for_ever_to_nobody() -> None:
    failed: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await send(START)
        try:
            while True:
                await send(part(b"x" * 10_000))
        except OSError as error:
            failed.append(error)
            raise

    async with bridged(app) as (served, bridge), served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.read_head()
        client.cut()
        await wait_for(lambda: failed and not bridge._running)


# Applications with mistakes


def failing(body: Callable[[Send], Awaitable[None]]) -> AsgiApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await body(send)

    return app


async def raise_early(send: Send) -> None:
    raise ValueError("a bug")


async def raise_after_start(send: Send) -> None:
    await send(START)
    raise ValueError("a bug")


async def return_early(send: Send) -> None:
    await send(START)


async def send_body_first(send: Send) -> None:
    await send(part(b"x"))


async def split_the_response(send: Send) -> None:
    await send({**START, "headers": [(b"x-name", b"a\r\nset-cookie: b")]})


async def send_a_bad_name(send: Send) -> None:
    await send({**START, "headers": [(b"x name", b"a")]})


@pytest.mark.parametrize(
    "body",
    [raise_early, raise_after_start, return_early, send_body_first, split_the_response, send_a_bad_name],
)  # fmt: skip
async def test_what_fails_before_the_response_is_a_500(
    body: Callable[[Send], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async with bridged(failing(body)) as (served, _), served.connect() as client:
        for _ in range(2):
            answer = await client.get("/")
            assert answer.status == 500
            error = json.loads(answer.body)["error"]
            assert (error["type"], error["code"]) == ("server_error", "internal_error")
            assert "bug" not in error["message"]
    assert "GET / failed" in caplog.text


async def raise_late(send: Send) -> None:
    await send(START)
    await send(part(b"half"))
    raise ValueError("a bug")


async def return_late(send: Send) -> None:
    await send(START)
    await send(part(b"half"))


async def send_too_much(send: Send) -> None:
    await send({**START, "headers": [(b"content-length", b"6")]})
    await send(part(b"half"))
    await send(part(b"other half", more=False))


async def send_too_little(send: Send) -> None:
    await send({**START, "headers": [(b"content-length", b"6")]})
    await send(part(b"half"))
    await send(part(b"", more=False))


@pytest.mark.parametrize("body", [raise_late, return_late, send_too_much, send_too_little])
async def test_what_fails_within_the_response_cuts_it(
    body: Callable[[Send], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async with bridged(failing(body)) as (served, _), served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        rest = await client.expect_cut()
        assert b"half" in rest
        assert b"0\r\n\r\n" not in rest
    assert "GET / failed" in caplog.text


async def test_a_declared_length_is_kept() -> None:
    async def two_parts(send: Send) -> None:
        await send({**START, "headers": [(b"Content-Length", b"4"), (b"Date", b"now")]})
        await send(part(b"ab"))
        await send(part(b"cd", more=False))

    async with bridged(failing(two_parts)) as (served, _), served.connect() as client:
        for _ in range(2):
            answer = await client.get("/")
            assert answer.body == b"abcd"
            assert answer.headers["content-length"] == "4"
            assert answer.headers["date"].endswith(" GMT")


async def test_nothing_can_be_sent_after_the_response() -> None:
    raised: list[Exception] = []

    async def again(send: Send) -> None:
        await send(START)
        await send(part(b"done", more=False))
        try:
            await send(part(b"again", more=False))
        except RuntimeError as error:
            raised.append(error)

    async with bridged(failing(again)) as (served, _), served.connect() as client:
        assert (await client.get("/")).body == b"done"
        await wait_for(lambda: raised)
        assert "out of turn" in str(raised[0])


async def test_http_1_0_and_close_are_respected() -> None:
    async def parts(send: Send) -> None:
        await send({**START, "headers": [(b"connection", b"close")]})
        await send(part(b"ab"))
        await send(part(b"cd", more=False))

    async with bridged(failing(parts)) as (served, _):
        for version in ("1.0", "1.1"):
            async with served.connect() as client:
                answer = await client.get("/", version=version)
                assert (answer.body, answer.headers["connection"]) == (b"abcd", "close")
                await client.expect_end()


# The lifespan


async def test_the_lifespan_runs_once_and_its_state_reaches_requests() -> None:
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        seen.append("up")
        yield {"store": "open"}
        seen.append("down")

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.store + request.state.caller)

    app = app_of(Route("/", answer), lifespan=lifespan)
    async with bridged(app) as (served, bridge), served.connect() as client:
        for _ in range(2):
            assert (await client.get("/")).body == b"openann"
        assert seen == ["up"]
    await bridge.stop()
    assert seen == ["up", "down"]


async def test_an_application_that_cannot_start_is_an_error() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise ValueError("no database")
        yield

    bridge = AsgiBridge(app_of(lifespan=lifespan))
    with pytest.raises(ThriftyError, match="no database"):
        await bridge.start()
    await bridge.stop()


async def test_a_start_that_hangs_is_an_error() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    bridge = AsgiBridge(app)
    with pytest.raises(ThriftyError, match=r"within 0\.01 s"):
        await bridge.start(0.01)


async def test_stop_cancels_what_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen: list[str] = []

    async def stuck(send: Send) -> None:
        seen.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    async with bridged(failing(stuck)) as (served, bridge), served.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await wait_for(lambda: seen == ["begun"])
        await bridge.stop()
        assert seen == ["begun", "cancelled"]
        await client.expect_cut()
