"""Content codings of requests, against what standard tools and attackers send."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.raw import serving
from tests.http.test_server import reflect
from tests.parts import running_echo, running_gateway
from thrifty.batches.settings import BatchSettings
from thrifty.http.content_coding import MAX_MEMBERS, decode_content, zstd
from thrifty.http.exchange import InnerExchange
from thrifty.openai.errors import WireError

TEXT = b'{"model": "echo"}' * 20


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(data) + made.flush()


CODED = {
    "gzip": gzip.compress(TEXT),
    "X-GZip": gzip.compress(TEXT),
    " zstd ": zstd.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "DEFLATE": raw_deflate(TEXT),
    "identity": TEXT,
    "": TEXT,
    "identity, gzip": gzip.compress(TEXT),
    ", gzip ,": gzip.compress(TEXT),
    "gzip, zstd": zstd.compress(gzip.compress(TEXT)),
    "zstd,gzip, deflate": zlib.compress(gzip.compress(zstd.compress(TEXT))),
}


@pytest.mark.parametrize("coding", CODED)
async def test_a_coded_body_is_what_it_was(coding: str) -> None:
    async with serving(reflect) as served, served.connect() as client:
        for _ in range(2):
            answer = await client.post(CODED[coding], headers=f"content-encoding: {coding}\r\n")
            seen = json.loads(answer.body)
            assert seen["body"] == TEXT.decode()
            assert seen["headers"]["content-length"] == str(len(TEXT))
            assert seen["headers"].get("content-encoding") in (None, coding.strip())


async def test_members_in_a_row_are_one_body() -> None:
    several = {
        "gzip": gzip.compress(b"one ") + gzip.compress(b"two"),
        "zstd": zstd.compress(b"one ") + zstd.compress(b"two"),
    }
    async with serving(reflect) as served, served.connect() as client:
        for coding, body in several.items():
            answer = await client.post(body, headers=f"content-encoding: {coding}\r\n")
            assert json.loads(answer.body)["body"] == "one two"


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, br", "gzip;q=1", "gzip gzip", "*", "é",
                                    "gzip, gzip, gzip, gzip"])  # fmt: skip
async def test_an_unknown_coding_is_refused_before_the_body(coding: str) -> None:
    async with serving(reflect) as served, served.connect() as client:
        head = f"POST / HTTP/1.1\r\nhost: x\r\ncontent-encoding: {coding}\r\n"
        await client.send(head.encode() + b"content-length: 1000\r\n\r\n")
        answer = await client.read_answer()
        assert answer.status == 415
        assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"
        await client.expect_end()


async def test_without_a_body_a_coding_means_nothing() -> None:
    async with serving(reflect) as served, served.connect() as client:
        assert (await client.get(headers="content-encoding: br\r\n")).status == 200
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-encoding: br\r\n"
                          b"content-length: 0\r\n\r\n")  # fmt: skip
        assert (await client.read_answer()).status == 200


BOMB = b"\0" * 50_000_000


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(BOMB)),
        ("deflate", zlib.compress(BOMB)),
        ("zstd", zstd.compress(BOMB)),
        ("gzip, gzip", gzip.compress(gzip.compress(BOMB))),
        ("gzip, zstd", zstd.compress(gzip.compress(BOMB))),
    ],
)
async def test_a_bomb_is_refused_at_the_limit(coding: str, body: bytes) -> None:
    assert len(body) < 100_000
    async with serving(reflect, max_body_bytes=100_000) as served, served.connect() as client:
        answer = await client.post(body, headers=f"content-encoding: {coding}\r\n")
        assert answer.status == 413
        assert b"100000 bytes" in answer.body


@pytest.mark.parametrize("cut", [b"", b"x", TEXT, gzip.compress(TEXT)[:-1], gzip.compress(TEXT)[:20],
                                 gzip.compress(TEXT) + b"garbage", zstd.compress(TEXT)[:-1],
                                 gzip.compress(b"") * (MAX_MEMBERS + 1)], ids=range(8))  # fmt: skip
@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
async def test_a_body_without_the_coding_it_names_is_refused(coding: str, cut: bytes) -> None:
    async with serving(reflect) as served, served.connect() as client:
        head = f"POST / HTTP/1.1\r\nhost: x\r\ncontent-encoding: {coding}\r\n"
        await client.send(
            head.encode() + b"transfer-encoding: chunked\r\n\r\n"
            + (b"%x\r\n%b\r\n" % (len(cut), cut) if cut else b"") + b"0\r\n\r\n"
        )  # fmt: skip
        answer = await client.read_answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (
            400, "malformed_content_coding",
        )  # fmt: skip


def test_a_window_larger_than_any_receiver_needs_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 27,
               zstd.CompressionParameter.enable_long_distance_matching: 1}  # fmt: skip
    made = zstd.ZstdCompressor(options=options)
    body = made.compress(b"x" * 20_000_000) + made.flush()
    exchange = InnerExchange("/", b"", {b"content-encoding": b"zstd"})
    with pytest.raises(WireError, match="not valid zstd"):
        decode_content(exchange, body, [b"zstd"], 100_000_000)


@given(st.lists(st.sampled_from([b"gzip", b"zstd", b"deflate"]), max_size=3), st.binary())
def test_decoding_undoes_coding(codings: list[bytes], data: bytes) -> None:
    tools = {b"gzip": gzip.compress, b"zstd": zstd.compress, b"deflate": zlib.compress}
    body = data
    for coding in codings:
        body = tools[coding](body)
    exchange = InnerExchange("/", b"", {b"content-encoding": b", ".join(codings)})
    assert decode_content(exchange, body, codings, 100_000) == data
    assert exchange.headers == {b"content-length": b"%d" % len(data)}


async def test_the_gateway_takes_coded_requests_and_marks_before_them(tmp_path: Path) -> None:
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "Hi"}],
                       "temperature": 0}).encode()  # fmt: skip
    async with running_echo() as url, running_gateway(
        tmp_path, [url], batches=BatchSettings()
    ) as gateway:  # fmt: skip
        for coding, data in (
            ("gzip", gzip.compress(body)), ("zstd", zstd.compress(body)), ("identity", body),
            ("identity", b"\xef\xbb\xbf" + body), ("gzip", gzip.compress(b"\xef\xbb\xbf" + body)),
        ):  # fmt: skip
            for _ in range(2):  # the second one is recognized by its bytes
                reply = await gateway.ask(data, headers={"content-encoding": coding})
                assert reply.status == 200
                assert reply.json()["choices"][0]["message"]["content"] == "Hi"
        headers = {"content-encoding": "gzip"}
        reply = await gateway.ask(gzip.compress(b"{}"), "/v1/batches", headers=headers)
        assert (reply.status, reply.error["param"]) == (400, "endpoint")
        reply = await gateway.ask(b"x", "/v1/files", headers=headers)
        assert (reply.status, reply.headers[b"accept-encoding"]) == (415, b"identity")
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        kind = "unsupported_content_coding"
        assert metrics.metric("thrifty_errors_total", kind=kind) == 1


async def test_a_mark_before_the_body_does_not_reach_the_replica(tmp_path: Path) -> None:
    from tests.gateway.test_upstreams import CHAT, WHOLE, head, remote

    async with remote(tmp_path, lambda _: [head(), WHOLE]) as (gateway, server):
        assert (await gateway.ask(b"\xef\xbb\xbf" + json.dumps(CHAT).encode())).status == 200
        assert server.requests[0].partition(b"\r\n\r\n")[2][:1] == b"{"
