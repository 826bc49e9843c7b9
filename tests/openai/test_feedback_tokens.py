"""Tokens for feedback: they permit what they were made for, and tell nobody the tenant."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from thrifty.openai.feedback_tokens import TOKEN_CHARS, FeedbackTokens, TokenHolder

TOKENS = FeedbackTokens(b"s" * 32)
TENANTS = st.text("abcXYZ019._@-", max_size=64)


@given(st.integers(0, 2**63 - 1), TENANTS)
def test_a_token_gives_back_what_it_was_made_for(number: int, tenant: str) -> None:
    token = TOKENS.make(number, tenant)
    assert len(token) == TOKEN_CHARS
    assert TOKENS.read(token.encode()) == TokenHolder(number, tenant)
    assert FeedbackTokens(b"t" * 32).read(token.encode()) is None


@given(st.integers(0, 87), st.integers(1, 255))
def test_a_changed_token_is_none(place: int, change: int) -> None:
    data = bytearray(base64.urlsafe_b64decode(TOKENS.make(12345, "ann") + "=="))
    data[place] ^= change
    assert TOKENS.read(base64.urlsafe_b64encode(bytes(data)).rstrip(b"=")) is None


@given(st.binary(max_size=200))
def test_other_bytes_are_none(data: bytes) -> None:
    assert TOKENS.read(data) is None
    assert TOKENS.read(data.ljust(TOKEN_CHARS, b"A")[:TOKEN_CHARS]) is None


def test_the_tenant_cannot_be_read() -> None:
    data = base64.urlsafe_b64decode(TOKENS.make(7, "acme") + "==")
    assert b"acme" not in data
    assert b"\0\0\0\0" not in data[8:]
