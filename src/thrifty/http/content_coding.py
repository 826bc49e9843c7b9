"""Content codings of request bodies (RFC 9110, 8.4): gzip, deflate and zstd.

A body is decoded once it has arrived, up to a limit on its decoded size: a megabyte of zeros takes a
kilobyte on the wire. What a client sends after several codings is decoded in the reverse order.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any

from thrifty.http.exchange import Exchange
from thrifty.openai.errors import WireError, bad_request

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ACCEPTED = b"gzip, deflate, zstd"
MAX_CODINGS = 3
"""One is usual; each costs a pass over the body."""
MAX_MEMBERS = 16
"""Of gzip members or zstd frames in a row: what follows one is copied."""
MAX_WINDOW_LOG = 23
"""8 MB, the window that every receiver must take and none needs to exceed (RFC 9659)."""
_GZIP = zlib.MAX_WBITS | 16
_WITH_BODIES = frozenset({"POST", "PUT", "PATCH"})
"""What other methods send as a body is not looked at."""

Decoder = Callable[[bytes, int], bytes]
"""Decodes a body. Raises `_TooLarge` where the result has more bytes than the limit."""


class _TooLarge(Exception):
    """The decoded body exceeds the limit."""


class _Malformed(Exception):
    """The body does not have the coding that its header names."""


def read_codings(exchange: Exchange, length: int) -> list[bytes]:
    """The content codings of a request's body, in the order in which they were applied; none where
    no body is taken. `length` is the request's `Content-Length`, 0 where it has none. Raises a 415.
    """
    has_body = length > 0 or b"transfer-encoding" in exchange.headers
    if exchange.method not in _WITH_BODIES or not has_body:
        return []
    codings = [
        coding
        for part in exchange.headers[b"content-encoding"].split(b",")
        if (coding := part.strip().lower().removeprefix(b"x-")) not in (b"", b"identity")
    ]
    unknown = next((coding for coding in codings if coding not in _DECODERS), None)
    if codings and exchange.spool is not None:
        raise _unsupported("uploads are taken without a content coding", b"identity")
    if unknown is not None:
        shown = unknown[:40].decode("latin-1")
        raise _unsupported(f"the content coding {shown!r} is not supported", ACCEPTED)
    if len(codings) > MAX_CODINGS:
        what = f"the body has {len(codings)} content codings, more than {MAX_CODINGS}"
        raise _unsupported(what, ACCEPTED)
    return codings


def decode_content(
    exchange: Exchange, body: bytes, codings: list[bytes], limit_bytes: int
) -> bytes:
    """A request's body without its codings, which the request's headers do not show any more.
    Raises a 400 if it does not have them, and a 413 if it is larger than `limit_bytes` at any stage.
    """
    for coding in reversed(codings):
        try:
            body = _DECODERS[coding](body, limit_bytes)
        except _TooLarge:
            raise WireError(
                413,
                f"the request's body has more than {limit_bytes} bytes when decoded; the limit is "
                f"{limit_bytes} bytes (limits.max_body in the spec)",
                code="body_too_large",
            ) from None
        except (_Malformed, zlib.error, zstd.ZstdError) as error:
            reason = str(error).partition("\n")[0]
            raise bad_request(
                f"the request's body is not valid {coding.decode()}: {reason}",
                code="malformed_content_coding",
            ) from None
    del exchange.headers[b"content-encoding"]
    exchange.headers[b"content-length"] = b"%d" % len(body)
    return body


def _unsupported(what: str, accepted: bytes) -> WireError:
    return WireError(
        415,
        f"{what}; use one of: {accepted.decode()}",
        code="unsupported_content_coding",
        headers=((b"accept-encoding", accepted),),
    )


def _inflate(wbits: int, data: bytes, limit: int) -> bytes:
    return _decode(lambda: _Inflater(wbits), data, limit)


def _decode_deflate(data: bytes, limit: int) -> bytes:
    # RFC 9110 means the zlib format; some clients send raw deflate.
    with_header = len(data) > 1 and data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
    return _inflate(zlib.MAX_WBITS if with_header else -zlib.MAX_WBITS, data, limit)


def _decode_gzip(data: bytes, limit: int) -> bytes:
    return _inflate(_GZIP, data, limit)


def _decode_zstd(data: bytes, limit: int) -> bytes:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    return _decode(lambda: zstd.ZstdDecompressor(options=options), data, limit)


class _Inflater:
    """zlib's decompressor with the attributes of zstd's."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        """Whether the member has ended."""
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        """What follows the member."""
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most `max_length` bytes of the member."""
        return self._inner.decompress(data, max_length)


def _decode(begin: Callable[[], Any], data: bytes, limit: int) -> bytes:
    """All members (or frames) of a body."""
    pieces: list[bytes] = []
    left = limit + 1
    for _ in range(MAX_MEMBERS):
        member = begin()
        piece = member.decompress(data, left)
        pieces.append(piece)
        left -= len(piece)
        if left <= 0:
            raise _TooLarge
        if not member.eof:
            raise _Malformed("it ends early")
        data = member.unused_data
        if not data:
            return b"".join(pieces)
    raise _Malformed(f"it has more than {MAX_MEMBERS} members")


_DECODERS: dict[bytes, Decoder] = {
    b"gzip": _decode_gzip,
    b"deflate": _decode_deflate,
    b"zstd": _decode_zstd,
}
