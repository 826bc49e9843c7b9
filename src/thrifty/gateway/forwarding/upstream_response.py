"""Reads what a replica answers, as far as its head or its refusal tells."""

from __future__ import annotations

import functools
import re

from thrifty.gateway.cache.exact import Entry, Owner
from thrifty.gateway.cache.replay import can_replay, count_answers
from thrifty.gateway.forwarding.upstream_request import adds_usage
from thrifty.gateway.state.call import Call
from thrifty.gateway.state.replica import Replica
from thrifty.gateway.state.version import Version
from thrifty.http.client import Answer, BrokenResponse
from thrifty.http.types import JSON_TYPE

MAX_TYPE_BYTES = 512
"""A longer content type is not taken for valid."""
_MEDIA_TYPE = re.compile(rb"[\w!#$&^.+-]{1,64}/[\w!#$&^.+-]{1,64}(?:[ \t]*;[\x20-\x7e]{0,128})?")
_RETRY_AFTER = re.compile(rb"[0-9]{1,9}|[A-Za-z]{3}, [0-9A-Za-z: ]{20,24}GMT")
_REFUSALS = (400, 422)
_NAMES = (b"stream_options", b"include_usage")


def choose_headers(answer: Answer) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that are passed on: its content type first, and `retry-after`. A
    content type that is missing or not valid is taken for JSON.
    """
    given = answer.headers.get(b"content-type", b"")
    headers = [_read_type(given) if len(given) <= MAX_TYPE_BYTES else JSON_TYPE]
    retry_after = answer.headers.get(b"retry-after")
    if retry_after is not None and _RETRY_AFTER.fullmatch(retry_after):
        headers.append((b"retry-after", retry_after))
    return headers


@functools.lru_cache(maxsize=256)
def _read_type(given: bytes) -> tuple[bytes, bytes]:
    """The header for a content type. Servers send few different ones, again and again."""
    return (b"content-type", given) if _MEDIA_TYPE.fullmatch(given) else JSON_TYPE


def check_coding(answer: Answer) -> None:
    """Give up an answer with a content coding, which was not asked for and could not be read.
    Raises `BrokenResponse`.
    """
    coding = answer.headers.get(b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        answer.abort()
        raise BrokenResponse("the answer has a content coding, although none was asked for")


def refuses_usage(call: Call, version: Version, replica: Replica, status: int, body: bytes) -> bool:
    """Whether a replica refuses a request because of the token counts that we, and not its client,
    requested.
    """
    return (
        status in _REFUSALS
        and replica.takes_stream_options
        and adds_usage(call, version)
        and any(name in body for name in _NAMES)
    )


def stream_whole(call: Call, body: bytes) -> bytes | None:
    """The stream that a client asked for and a replica answered as a whole; None if no stream was
    asked for, or if the body is no answer that can be streamed.
    """
    parsed = call.admitted
    if not parsed.stream or not can_replay(
        body, call.endpoint, count_answers(call.endpoint, parsed.body)
    ):
        return None
    entry = Entry(body, replica="", usage=None, owner=Owner())
    return entry.as_stream(parsed.stream_options, call.response_id.text)
