"""Tokens that let a browser give feedback on one response without an API key.

A token holds the response's number and its tenant, which is encrypted because tenants are nobody's
business but the operator's. The number is unique, so the keystream (a keyed hash of it) is used
once. A MAC covers both. The holder can give feedback on that one response and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import blake2b
from typing import NamedTuple

HEADER = "x-thrifty-feedback-token"
TENANT_BYTES = 64
"""Tenants have at most 64 ASCII characters; shorter ones are padded, so that none tells its length."""
MAC_BYTES = 16
TOKEN_CHARS = 118
_BYTES = 8 + TENANT_BYTES + MAC_BYTES


class TokenHolder(NamedTuple):
    """Whose feedback a token permits, and on which response."""

    response: int
    tenant: str


class FeedbackTokens:
    """Makes and reads tokens. `secret` (16 to 64 bytes) is shared by all workers of a service."""

    def __init__(self, secret: bytes) -> None:
        self._stream = blake2b(key=secret, digest_size=TENANT_BYTES, person=b"feedback-stream")
        self._mac = blake2b(key=secret, digest_size=MAC_BYTES, person=b"feedback-token")

    def make(self, response: int, tenant: str) -> str:
        """The token of a tenant's response."""
        number = response.to_bytes(8)
        data = number + self._hide(number, tenant.encode().ljust(TENANT_BYTES, b"\0"))
        return base64.urlsafe_b64encode(data + self._sign(data)).decode().rstrip("=")

    def read(self, token: bytes) -> TokenHolder | None:
        """What a token permits; None for everything that is not one of ours. Never raises."""
        if len(token) != TOKEN_CHARS:
            return None
        try:
            data = base64.b64decode(token + b"==", altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            return None
        if len(data) != _BYTES:
            return None
        signed, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
        if not hmac.compare_digest(mac, self._sign(signed)):
            return None
        tenant = self._hide(signed[:8], signed[8:]).rstrip(b"\0").decode()
        return TokenHolder(int.from_bytes(signed[:8]), tenant)

    def _hide(self, number: bytes, tenant: bytes) -> bytes:
        stream = self._stream.copy()
        stream.update(number)
        key = int.from_bytes(stream.digest())
        return (int.from_bytes(tenant) ^ key).to_bytes(TENANT_BYTES)

    def _sign(self, data: bytes) -> bytes:
        mac = self._mac.copy()
        mac.update(data)
        return mac.digest()
