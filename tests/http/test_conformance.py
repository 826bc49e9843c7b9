"""Requests that readers are known to disagree about (RFC 9110, RFC 9112): each is refused, or means
one thing. A request that hides in another one's body must never be answered.
"""

from __future__ import annotations

import json

import pytest

from tests.http.raw import serving
from tests.http.test_server import reflect

HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"

REFUSED: dict[str, bytes] = {
    # The request line
    "no version": b"GET / \r\nhost: x\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
    "a version of two digits": b"GET / HTTP/1.10\r\nhost: x\r\n\r\n",
    "a version in lower case": b"GET / http/1.1\r\nhost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tab in the line": b"GET\t/ HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method that is none": b"G=T / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
    "a control character in the target": b"GET /\x7f HTTP/1.1\r\nhost: x\r\n\r\n",
    "a bare CR in the line": b"GET / HTTP/1.1\rhost: x\r\n\r\n",
    # Host
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "the same Host twice": b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
    "a Host with a path": b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
    "a Host with a space": b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
    "a Host with a user": b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n",
    "a Host with a strange port": b"GET / HTTP/1.1\r\nhost: a:b\r\n\r\n",
    "a Host that is not ASCII": b"GET / HTTP/1.1\r\nhost: \xff\r\n\r\n",
    # Fields
    "a space before the colon": b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
    "a folded field": b"GET / HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n",
    "a fold at the beginning": b"GET / HTTP/1.1\r\n host: x\r\nhost: x\r\n\r\n",
    "an empty name": b"GET / HTTP/1.1\r\nhost: x\r\n: y\r\n\r\n",
    "a name with brackets": b"GET / HTTP/1.1\r\nhost: x\r\nx[]: y\r\n\r\n",
    "a NUL in a value": b"GET / HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n",
    "a bell in a value": b"GET / HTTP/1.1\r\nhost: x\r\nx: a\x07\r\n\r\n",
    "a bare CR in a value": b"GET / HTTP/1.1\r\nhost: x\r\nx: a\rb: c\r\n\r\n",
    "a bare CR as an end": b"GET / HTTP/1.1\r\nhost: x\r\n\rx: y\r\n\r\n",
    "bare LFs": b"GET / HTTP/1.1\nhost: x\n\n",
    # Lengths
    "a negative length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\nhello",
    "a signed length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
    "a length in hex": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0x5\r\n\r\nhello",
    "a length with an underscore": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1_0\r\n\r\nhello",
    "an empty length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length:\r\n\r\nhello",
    "two lengths in a field": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5, 6\r\n\r\nhello",
    "one length twice": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5, 5\r\n\r\nhello",
    "two lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 0\r\n\r\nhello",
    "a length of 2^64 + 5": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551621\r\n\r\nhello",
    # Both framings
    "length and chunked": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunked and length": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"content-length: 5\r\n\r\n0\r\n\r\n",
    # Transfer codings
    "another coding": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
    "identity": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n",
    "another coding before chunked": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked misspelt": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in quotes": b'POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked with a vertical tab": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nhost: x\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    # Chunks
    "a chunk without a size": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n\r\n",
    "a size with a sign": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a size that overflows": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than its size": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n3\r\nhello\r\n0\r\n\r\n",
    "a size ended by LF": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n5\nhello\r\n0\r\n\r\n",
    "a chunk ended by LF": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n5\r\nhello\n0\r\n\r\n",
    "an extension with a LF": b"POST / HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_readers_disagree_about_is_refused(name: str) -> None:
    async with serving(reflect) as served, served.connect() as client:
        await client.send(REFUSED[name] + HIDDEN)
        answer = await client.read_answer()
        assert answer.status in (400, 413, 501, 505)
        assert b"/hidden" not in answer.body
        await client.expect_end()


TAKEN: dict[str, tuple[bytes, dict[str, str]]] = {
    "an empty Host": (b"GET /a HTTP/1.1\r\nhost:\r\n\r\n", {"path": "/a"}),
    "a Host with a port": (b"GET /a HTTP/1.1\r\nHoSt:\tx.y:80\r\n\r\n", {"path": "/a"}),
    "a Host that is an address": (b"GET /a HTTP/1.1\r\nhost: [::1]:80\r\n\r\n", {"path": "/a"}),
    "the absolute form": (b"GET http://y/a?b HTTP/1.1\r\nhost: y\r\n\r\n", {"path": "/a", "query": "b"}),
    "no Host in HTTP/1.0": (b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", {"path": "/a"}),
    "empty lines before": (b"\r\n\r\nGET /a HTTP/1.1\r\nhost: x\r\n\r\n", {"path": "/a"}),
    "leading zeros": (b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 005\r\n\r\nhello", {"body": "hello"}),
    "a body of GET": (b"GET /a HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello", {"body": "hello"}),
    "chunked in capitals": (b"POST /a HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: CHUNKED\r\n\r\n"
                            b"5\r\nhello\r\n0\r\n\r\n", {"body": "hello"}),
    "chunked after another": (b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
                              b"5;a=\"b\"\r\nhello\r\n0\r\nhost: evil\r\n\r\n", {"body": "hello"}),
    "a request in a body": (b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
                            % (len(HIDDEN), HIDDEN), {"path": "/a"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
async def test_what_is_right_means_one_thing(name: str) -> None:
    request, expected = TAKEN[name]
    async with serving(reflect) as served, served.connect() as client:
        for _ in range(2):
            await client.send(request)
            seen = json.loads((await client.read_answer()).body)
            assert expected.items() <= seen.items()
            assert seen["headers"].get("host") != "evil"
