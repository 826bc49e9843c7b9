"""Bodies that go to disk: larger than memory's bound, refused early, never left behind."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.http.raw import wait_for
from tests.parts import running_server
from thrifty.http.client import HttpClient, NoResponse, TransportError
from thrifty.http.exchange import Exchange
from thrifty.http.origin import parse_origin
from thrifty.http.server import ServerLimits
from thrifty.http.spool import MAX_PENDING_BYTES, Spool
from thrifty.openai.errors import WireError

LIMITS = ServerLimits(max_body_bytes=1000, read_timeout_s=0.6)


class Uploads:
    """Answers with the size and the last bytes of what was uploaded."""

    def __init__(self, folder: Path, limit_bytes: int = 40_000_000) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.opened: list[Spool] = []

    def open_spool(self, exchange: Exchange) -> Spool | None:
        if exchange.headers.get(b"authorization") == b"nobody":
            raise WireError(401, "who are you?", code="invalid_api_key")
        if exchange.method != "POST":
            return None
        self.opened.append(Spool(self.folder, self.limit_bytes, "batches.max_file"))
        return self.opened[-1]

    async def handle(self, exchange: Exchange) -> None:
        if exchange.spool is None:
            exchange.respond(200, b"plain %d" % len(exchange.body))
            return
        with await exchange.spool.finish() as file:
            size = os.fstat(file.fileno()).st_size
            exchange.respond(200, b"%d %b" % (size, os.pread(file.fileno(), 10, size - 10)))

    def serve(self):  # type: ignore[no-untyped-def]
        return running_server(self.handle, LIMITS, spools={"/up": self.open_spool})


async def send(url: str, body: bytes, path: str = "/up", headers: bytes = b"") -> tuple[int, bytes]:
    client = HttpClient()
    try:
        answer = await client.open(parse_origin(url), "POST", path, headers=headers, body=body)
        return answer.status, await answer.read()
    finally:
        client.close()


async def test_a_body_beyond_memorys_bound_goes_to_disk(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    async with uploads.serve() as (url, _):
        body = os.urandom(20_000_000) + b"0123456789"
        assert await send(url, body) == (200, b"20000010 0123456789")
        assert await send(url, b"tiny bytes") == (200, b"10 tiny bytes")
        assert await send(url, b"x" * 1000, "/else") == (200, b"plain 1000")
        assert (await send(url, b"x" * 1001, "/else"))[0] == 413
        assert list(tmp_path.iterdir()) == []


async def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 5000)
    async with uploads.serve() as (url, _):
        status, body = await send(url, b"x" * 5001)
        assert status == 413
        assert b"batches.max_file" in body
        assert uploads.opened[-1].size_bytes == 0
        # Told in chunks, its size is known only as it comes.
        reader, writer = await asyncio.open_connection("127.0.0.1", parse_origin(url).port)
        writer.write(b"POST /up HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(6):
            writer.write(b"3e8\r\n" + b"y" * 1000 + b"\r\n")
        assert b" 413 " in await reader.readline()
        writer.close()


async def test_a_stranger_is_refused_before_the_body(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    async with uploads.serve() as (url, _):
        status, body = await send(url, b"x" * 100_000, headers=b"authorization: nobody\r\n")
        assert (status, b"who are you?" in body) == (401, True)
        assert uploads.opened == []


@pytest.mark.slow
async def test_a_slow_upload_may_take_its_time_and_a_stuck_one_not(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    async with uploads.serve() as (url, _):
        port = parse_origin(url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /up HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\n")
        for _ in range(5):
            writer.write(b"z" * 1_000_000)
            await asyncio.sleep(0.3)
        assert b" 200 " in await reader.readline()
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /up HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\nzz")
        assert b" 408 " in await reader.readline()
        writer.close()


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    async with uploads.serve() as (url, _):
        _, writer = await asyncio.open_connection("127.0.0.1", parse_origin(url).port)
        writer.write(b"POST /up HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n")
        writer.write(b"z" * 3_000_000)
        await writer.drain()
        await wait_for(lambda: uploads.opened and uploads.opened[-1].size_bytes == 3_000_000)
        writer.transport.abort()
        await wait_for(lambda: uploads.opened[-1]._file is None)
        # The next one on a fresh connection is not disturbed.
        assert (await send(url, b"0123456789"))[0] == 200


async def test_a_folder_that_is_not_there_is_an_error_and_no_hang(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "missing")
    async with uploads.serve() as (url, _):
        status, body = await send(url, b"x" * 5_000_000)
        assert (status, b"storage_failed" in body) == (500, True)
        try:
            await send(url, b"x")
        except (NoResponse, TransportError) as error:
            raise AssertionError("the server is gone") from error


async def test_a_connection_reads_on_when_its_upload_is_given_up_behind_a_slow_disk(
    tmp_path: Path,
) -> None:
    class Hasty(Uploads):
        async def handle(self, exchange: Exchange) -> None:
            exchange.respond(400, b"no")

    uploads = Hasty(tmp_path)
    slow = threading.Event()
    loop = asyncio.get_running_loop()
    # A disk that is behind: what would write to it is busy.
    pool = ThreadPoolExecutor(1)
    loop.set_default_executor(pool)
    loop.run_in_executor(None, slow.wait)
    async with uploads.serve() as (url, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", parse_origin(url).port)
        size = MAX_PENDING_BYTES + 1000
        writer.write(b"POST /up HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\nz" % size)
        for piece in (b"", b"z" * (MAX_PENDING_BYTES - 2), b"z" * 1001):
            writer.write(piece)
            await writer.drain()
            # The last one goes over the bound and ends the request at once.
            await asyncio.sleep(0.2)
        assert uploads.opened[-1].size_bytes == size
        assert uploads.opened[-1].full
        slow.set()
        writer.write(b"GET /else HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(), 5)
        assert answers.count(b"HTTP/1.1 400 ") == 2
        writer.close()
