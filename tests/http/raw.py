"""Both ends of HTTP, byte by byte: a client and a server that send exactly what a test says.

They share nothing with `thrifty.http`, so that a mistake there cannot hide here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.parts import running_server
from thrifty.http.server import Handler, HttpServer, ServerLimits


@dataclass
class Answer:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """A connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes, gap_s: float = 0.0) -> None:
        """Send `pieces`, each as its own segment."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(gap_s)

    async def get(self, path: str = "/", headers: str = "", version: str = "1.1") -> Answer:
        """Send a GET, read the answer."""
        await self.send(f"GET {path} HTTP/{version}\r\nhost: x\r\n{headers}\r\n".encode())
        return await self.read_answer()

    async def post(self, body: bytes, path: str = "/", headers: str = "") -> Answer:
        """Send a POST, read the answer."""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n"
        await self.send(head.encode() + body)
        return await self.read_answer()

    async def read_head(self) -> Answer:
        """The head of an answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        protocol, status, _ = line.split(" ", 2)
        assert protocol == "HTTP/1.1"
        headers = {}
        for text in lines:
            name, _, value = text.partition(": ")
            assert name == name.lower()
            assert name not in headers, f"{name} came twice"
            headers[name] = value
        return Answer(int(status), headers, b"")

    async def read_answer(self, *, to_head: bool = False) -> Answer:
        """An answer, whole; `to_head` for one to HEAD."""
        answer = await self.read_head()
        if to_head or answer.status < 200 or answer.status in (204, 304):
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            answer.body = b"".join([chunk async for chunk in self.read_chunks()])
        elif "content-length" in answer.headers:
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
        else:
            answer.body = await self.reader.read()
        return answer

    async def read_chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a body, up to its end mark."""
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size + 2)
            assert data.endswith(b"\r\n")
            if size == 0:
                return
            yield data[:-2]

    async def expect_end(self) -> None:
        """The server closes, properly and without another byte."""
        assert await self.reader.read() == b""

    async def expect_cut(self) -> bytes:
        """The server cuts the connection, in whatever way; returns what came before."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(65536):
                data += piece
        return data

    def cut(self) -> None:
        """Go away at once."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            await self.writer.wait_closed()


@dataclass
class Served:
    """A server under test."""

    server: HttpServer
    port: int

    @contextlib.asynccontextmanager
    async def connect(self, *, receive_buffer: int | None = None) -> AsyncIterator[RawClient]:
        """A connection; `receive_buffer` makes what the kernel takes for the client small."""
        if receive_buffer is None:
            client = RawClient(*await asyncio.open_connection("127.0.0.1", self.port))
        else:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            client = RawClient(*await asyncio.open_connection(sock=sock, limit=receive_buffer))
        try:
            yield client
        finally:
            await client.close()

    async def wait_empty(self) -> None:
        """Wait until the server has forgotten every connection."""
        await wait_for(lambda: not self.server.connections)


@contextlib.asynccontextmanager
async def serving(handler: Handler, **limits: Any) -> AsyncIterator[Served]:
    """`handler` behind a real port."""
    async with running_server(handler, ServerLimits(**limits)) as (url, server):
        yield Served(server, int(url.rpartition(":")[2]))


async def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Wait for something that no event tells of; fail where it does not come true."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true"
        await asyncio.sleep(0.005)


OnConnection = Callable[["Peer"], Awaitable[None]]


class Peer:
    """A client, as a scripted server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.gone = asyncio.Event()
        """The client has hung up, and the server was reading when it did."""

    async def read_request(self) -> bytes:
        """A request, whole; raises `IncompleteReadError` when the client is gone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return head + await self.reader.readexactly(int(length))

    async def answer(self, body: bytes = b"ok") -> None:
        """A plain answer that keeps the connection."""
        await self.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async def send(self, *pieces: bytes) -> None:
        """Send `pieces`, each as its own segment."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    def close(self) -> None:
        """Hang up."""
        self.writer.close()

    def cut(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()

    async def wait_gone(self) -> None:
        """Read until the client has hung up."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.gone.set()


@dataclass
class Scripted:
    """A server that does what a test says."""

    url: str = ""
    peers: list[Peer] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    """Every request that was read whole."""
    faults: list[BaseException] = field(default_factory=list)
    listener: asyncio.Server | None = None
    over: bool = False
    """Whether the test has ended."""


@contextlib.asynccontextmanager
async def scripted(
    on_connection: Callable[[Scripted, Peer], Awaitable[None]],
) -> AsyncIterator[Scripted]:
    """A server that calls `on_connection` for each connection and closes it afterwards."""
    state = Scripted()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(reader, writer)
        state.peers.append(peer)
        try:
            await on_connection(state, peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            peer.gone.set()
        except asyncio.CancelledError as error:
            # Not passed on: in Python 3.11, what asyncio calls when a connection's task is done trips
            # over one that was cancelled. Only the end of the test may cancel.
            if not state.over:
                state.faults.append(error)
        except Exception as error:
            state.faults.append(error)
        finally:
            writer.close()

    state.listener = server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield state
    finally:
        state.over = True
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        assert not state.faults
