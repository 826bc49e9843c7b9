"""What stream options add to events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.openai.errors import WireError
from thrifty.openai.events import DONE, encode_event, may_hold_usage
from thrifty.openai.stream_options import (
    PADDED_BYTES,
    StreamOptions,
    pad_events,
    parse_stream_options,
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, StreamOptions()),
        ({}, StreamOptions()),
        ({"include_obfuscation": False}, StreamOptions()),
        ({"include_usage": True}, StreamOptions(usage=True)),
        ({"continuous_usage_stats": True}, StreamOptions(continuous=True)),
        ({"include_obfuscation": True, "include_usage": True}, StreamOptions(True, False, True)),
    ],
)
def test_options_of_a_stream(given: Any, expected: StreamOptions) -> None:
    assert parse_stream_options({"stream": True, "stream_options": given}) == expected
    if given is not None:
        with pytest.raises(WireError, match="'stream': true"):
            parse_stream_options({"stream_options": given})


@given(st.lists(st.text(max_size=90), max_size=5))
def test_padded_events_say_the_same_and_their_sizes_less(texts: list[str]) -> None:
    events = [{"id": "x", "choices": [{"index": 0, "delta": {"content": t}}]} for t in texts]
    last = encode_event({"choices": [], "usage": {}}) + DONE
    padded = pad_events(b"".join(map(encode_event, events)) + last)
    *found, usage, done, rest = padded.split(b"\n\n")
    assert (usage + b"\n\n" + done + b"\n\n", rest) == (last, b"")
    for event, padded_event in zip(events, found, strict=True):
        told = json.loads(padded_event.removeprefix(b"data: "))
        assert isinstance(told.pop("obfuscation"), str)
        assert told == event
        assert (len(padded_event) + 2) % PADDED_BYTES == 0


def test_padding_differs_from_time_to_time() -> None:
    event = encode_event({"choices": [{"text": "x" * 20}]})
    assert len({pad_events(event) for _ in range(5)}) == 5


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (b'{"choices":[{}],"usage":null}', False),
        (b'{"choices":[{}],"usage":null}{"choices":[],"usage":{"prompt_tokens":1}}', True),
        (b'{"usage": null}', True),
        (b'{"text":"\\"usage\\":{"}', False),
    ],
)
def test_only_chunks_with_counts_are_looked_into(chunk: bytes, expected: bool) -> None:
    assert may_hold_usage(chunk) is expected
