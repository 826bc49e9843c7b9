"""Cookies that stand for an API key in the browser of the person who typed it in, or for a person
whom an identity provider named (`db.sign_ins`).

A page that holds an API key in JavaScript gives it to every script that ever runs in the page. The
console therefore exchanges the key for a cookie once: scripts cannot read it (`HttpOnly`), other
sites' pages cannot have it sent (`SameSite=Strict`), and it expires. Its value is the SHA-256 of
the key with the time it expires and a MAC over both, so that no server keeps sessions, all workers
know each other's, and a key that is revoked ends its sessions at once.

`SameSite` takes other ports of one host for the same site. A request that relies on the cookie must
therefore come from a page of ours as well: its `Origin` must be this service, or the browser must
say that it is the same (`Sec-Fetch-Site`). Origins in `gateway.cors` do not count.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable
from hashlib import blake2b

from thrifty.http.exchange import Exchange
from thrifty.http.same_origin import SameOrigin

COOKIE = "thrifty-session"
TTL_S = 12 * 3600.0
"""How long a person stays signed in."""
_MAC_BYTES = 20
_VALUE = re.compile(rb"([0-9a-f]{64})\.([0-9]{10,11})\.([0-9a-f]{40})")
_PREFIX = COOKIE.encode() + b"="


class Sessions:
    """Makes and reads the cookies. `secret` (16 to 64 bytes) is shared by all workers."""

    def __init__(
        self, secret: bytes, same_origin: SameOrigin, clock: Callable[[], float] = time.time
    ) -> None:
        self._mac = blake2b(key=secret, digest_size=_MAC_BYTES, person=b"console-session")
        # Without the origins of `gateway.cors`: their pages may call the API with keys of their own.
        self._same_origin = same_origin.without_origins()
        self._clock = clock

    def find_key(self, exchange: Exchange) -> str | None:
        """The SHA-256 of the key that the request's cookie stands for; None where there is no
        cookie, or one that is expired or not ours. Raises a 403 for a request that a page of
        another origin may have sent.
        """
        header = exchange.headers.get(b"cookie")
        if header is None or _PREFIX not in header:
            return None
        found = next((self._read(part) for part in header.split(b";") if _PREFIX in part), None)
        if found is not None:
            self._same_origin.check(exchange)
        return found

    def make_cookie(self, key_hash: str, *, secure: bool, ttl_s: float = TTL_S) -> bytes:
        """The value of `Set-Cookie` that signs in the holder of a key."""
        signed = f"{key_hash}.{int(self._clock() + ttl_s)}"
        return self._write(f"{signed}.{self._sign(signed.encode())}", int(ttl_s), secure=secure)

    def clear_cookie(self, *, secure: bool) -> bytes:
        """The value of `Set-Cookie` that signs out."""
        return self._write("", 0, secure=secure)

    def _write(self, value: str, seconds: int, *, secure: bool) -> bytes:
        rest = "; Secure" if secure else ""
        return (
            f"{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{rest}"
        ).encode()

    def _read(self, part: bytes) -> str | None:
        part = part.strip()
        match = _VALUE.fullmatch(part[len(_PREFIX) :]) if part.startswith(_PREFIX) else None
        if match is None or int(match[2]) <= self._clock():
            return None
        signed = part[len(_PREFIX) :].rpartition(b".")[0]
        if not hmac.compare_digest(match[3], self._sign(signed).encode()):
            return None
        return match[1].decode()

    def _sign(self, data: bytes) -> str:
        mac = self._mac.copy()
        mac.update(data)
        return mac.hexdigest()
