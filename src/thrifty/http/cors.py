"""Cross-origin resource sharing (CORS): which web pages may read our answers.

Pure functions over header bytes, following the Fetch standard. The server adds `lines` to every
answer, errors and streams too; `preflight` answers the `OPTIONS` request that a browser sends
before one that is not simple. Credentials that browsers attach by themselves (cookies) are never
allowed: clients send their API key as a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from thrifty.http.types import encode_lines

MAX_AGE_S = 7200
"""How long a browser may keep a preflight answer. Chromium caps it at two hours."""
EXPOSED_HEADERS = (
    "retry-after",
    "x-request-id",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-thrifty-cache",
    "x-thrifty-conversation",
    "x-thrifty-feedback-token",
    "x-thrifty-replica",
    "x-thrifty-response-id",
    "x-thrifty-version",
)
"""Response headers that pages may read, beside those that the standard always lets them read."""

_TOKENS = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_DEFAULT_REQUEST_HEADERS = b"authorization, content-type"


class Cors:
    """The origins that may read our answers."""

    __slots__ = ("_allowed", "_every", "_other")

    def __init__(self, origins: Iterable[str]) -> None:
        """`origins` are origins as browsers send them (`spec.origins`), or hold `*`."""
        names = list(origins)
        exposed = (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode())
        vary = (b"vary", b"Origin")
        self._every: bytes | None = None
        if "*" in names:
            self._every = encode_lines([(b"access-control-allow-origin", b"*"), exposed])
        self._allowed = {
            name.encode(): encode_lines(
                [(b"access-control-allow-origin", name.encode()), exposed, vary]
            )
            for name in names
        }
        self._other = encode_lines([vary])

    def allows(self, origin: bytes) -> bool:
        """Whether pages of `origin` (the `Origin` header's value) may read our answers."""
        return self._every is not None or origin in self._allowed

    def lines(self, origin: bytes | None) -> bytes:
        """Header lines for an answer to a request with this `Origin` header."""
        if self._every is not None:
            return self._every
        return self._allowed.get(origin, self._other) if origin is not None else self._other

    def preflight(
        self, headers: Mapping[bytes, bytes], methods: Iterable[str]
    ) -> list[tuple[bytes, bytes]]:
        """Headers of the answer to an `OPTIONS` request, beside `lines`; none where the request is
        no preflight or its origin is not allowed. `methods` are those that its path takes.
        """
        origin = headers.get(b"origin")
        if (
            origin is None
            or b"access-control-request-method" not in headers
            or not self.allows(origin)
        ):
            return []
        wanted = headers.get(b"access-control-request-headers", b"")
        if len(wanted) > 4096 or not _TOKENS.fullmatch(wanted):
            wanted = _DEFAULT_REQUEST_HEADERS
        return [
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]
