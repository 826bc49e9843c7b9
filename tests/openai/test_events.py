"""Server-sent events against a slow, obvious parser, for streams cut at any byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.openai.errors import WireError
from thrifty.openai.events import (
    DONE,
    LineEnds,
    Usage,
    encode_error_event,
    encode_event,
    may_hold_usage,
    parse_usage,
    read_data,
    read_stream,
    split_events,
)


def read_slowly(stream: bytes) -> tuple[list[list[bytes]], list[bytes]]:
    """The lines of each complete event and of the incomplete one, read byte by byte."""
    events: list[list[bytes]] = []
    lines: list[bytes] = []
    line = b""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    for i in range(len(stream)):
        byte = stream[i : i + 1]
        if byte == b"\n" and stream[i - 1 : i] == b"\r":
            continue
        if byte not in (b"\n", b"\r"):
            line += byte
            continue
        if line:
            lines.append(line)
        elif lines:
            events.append(lines)
            lines = []
        line = b""
    return events, lines + ([line] if line else [])


def feed(stream: bytes, cuts: list[int]) -> tuple[list[bytes], bytes]:
    """The events of `stream` when it arrives in pieces cut at `cuts`."""
    found: list[bytes] = []
    rest = b""
    line_ends = LineEnds()
    for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events, rest = split_events(rest + line_ends.feed(stream[a:b]))
        found += events
    return found, rest


TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)
LINE = st.one_of(
    TEXT.map(lambda t: f"data: {t}".encode()),
    TEXT.map(lambda t: f"data:{t}".encode()),
    TEXT.map(lambda t: f": {t}".encode()),
    st.sampled_from([b"event: error", b"data", b"id: 7", b"retry: 5"]),
)
NEWLINES = st.sampled_from([b"\n", b"\r\n", b"\r"])
BOM = st.sampled_from([b"", b"\xef\xbb\xbf"])
EVENTS = st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5)


@given(EVENTS, NEWLINES, BOM, LINE | st.just(b""), st.data())
def test_events_are_the_same_wherever_the_stream_is_cut(
    events: list[list[bytes]], newline: bytes, bom: bytes, unfinished: bytes, data: st.DataObject
) -> None:
    stream = b"".join(b"".join(line + newline for line in lines) + newline for lines in events)
    stream = bom + stream + unfinished
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=8)))
    found, rest = feed(stream, cuts)
    expected, expected_rest = read_slowly(stream)
    assert expected == events
    assert [event.split(b"\n")[:-2] for event in found] == expected
    assert all(event.endswith(b"\n\n") and b"\r" not in event for event in found)
    assert rest == b"\n".join(expected_rest)


@given(EVENTS, NEWLINES, BOM)
def test_events_are_the_same_byte_by_byte(
    events: list[list[bytes]], newline: bytes, bom: bytes
) -> None:
    stream = b"".join(b"".join(line + newline for line in lines) + newline for lines in events)
    stream = bom + stream
    found, rest = feed(stream, list(range(1, len(stream))))
    assert [event.split(b"\n")[:-2] for event in found] == events
    assert rest == b""
    assert read_stream(stream) == [data for event in found if (data := read_data(event))]


def test_the_last_event_of_a_whole_stream_may_lack_its_blank_line() -> None:
    for end in (b"", b"\n", b"\r", b"\r\n"):
        assert read_stream(b": hi\r\rdata:1\n\ndata: 2" + end) == [b"1", b"2"]


@given(st.binary(max_size=60).filter(lambda b: b"\r" not in b))
def test_nothing_is_lost_or_added(stream: bytes) -> None:
    events, rest = split_events(stream)
    assert b"".join(events) + rest == stream
    assert b"\n\n" not in rest


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x \n\n", b" x "),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: error\ndata: a\nid: 7\n\n", b"a"),
        (b": ping\n\n", b""),
        (b"data:\n\n", b""),
        (b"datum: x\n\n", b""),
        (b"", b""),
        (b"data: [DONE]\n\n", b"[DONE]"),
    ],
)
def test_an_event_holds_its_data_lines(event: bytes, data: bytes) -> None:
    assert read_data(event) == data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON)
def test_an_encoded_event_round_trips(value: Any) -> None:
    event = encode_event(value)
    assert split_events(event) == ([event], b"")
    assert json.loads(read_data(event)) == value


def test_the_end_mark_is_an_event() -> None:
    assert split_events(DONE) == ([DONE], b"")
    assert read_data(DONE) == b"[DONE]"


def test_an_error_event_is_what_client_libraries_raise() -> None:
    error = WireError(502, "it broke\noff", type="server_error", code="replica_lost")
    event = encode_error_event(error)
    assert split_events(event) == ([event], b"")
    assert json.loads(read_data(event)) == {
        "error": {"message": "it broke\noff", "type": "server_error", "param": None,
                  "code": "replica_lost"}
    }  # fmt: skip


# Token counts


def chunk(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


CHOICE = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}


@pytest.mark.parametrize(
    ("data", "usage", "alone"),
    [
        (chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4}), Usage(3, 4), True),
        (chunk(usage={"prompt_tokens": 3, "completion_tokens": 4}), Usage(3, 4), True),
        (chunk(choices=None, usage={"prompt_tokens": 3}), Usage(3, 0), True),
        (chunk(choices=[CHOICE], usage={"completion_tokens": 4}), Usage(0, 4), False),
        (chunk(choices=[CHOICE], usage=None), None, False),
        (chunk(choices=[CHOICE]), None, False),
        (chunk(choices=[], usage={"prompt_tokens": "3"}), None, True),
        (chunk(choices=[], usage=[1]), None, True),
        (
            chunk(choices=[], usage={"prompt_tokens": 3.0, "completion_tokens": None}),
            Usage(3),
            True,
        ),
        (chunk(choices=[], usage={"prompt_tokens": 2.5}), None, True),
        (chunk(choices=[], usage={"prompt_tokens": -1}), None, True),
        (chunk(choices=[], usage={"prompt_tokens": 10**30}), None, True),
        (chunk(choices=[], usage={"completion_tokens": True}), None, True),
        (chunk(choices=[], usage=None), None, False),
        (chunk(choices={}, usage={"prompt_tokens": 3}), None, False),
        (b"[DONE]", None, False),
        (b"", None, False),
        (b"[]", None, False),
        (b'{"usage": {"prompt_tokens": 3}', None, False),
        (b'{"usage": \xff}', None, False),
        (b'{"choices": ' + b"[" * 100_000, None, False),
    ],
)
def test_complete_usage_is_parsed(data: bytes, usage: Usage | None, alone: bool) -> None:
    assert parse_usage(data) == (usage, alone)


@pytest.mark.parametrize(
    ("details", "cached"),
    [({"cached_tokens": 5}, 5), ({"cached_tokens": 10}, 9), ({"cached_tokens": -1}, 0), ({"cached_tokens": None}, 0), ({}, 0), (None, 0), ({"audio_tokens": 1}, 0)],
)  # fmt: skip
def test_cached_tokens_are_those_of_the_prefix_cache(
    details: dict[str, Any] | None, cached: int
) -> None:
    usage, _ = parse_usage(chunk(usage={"prompt_tokens": 9, "prompt_tokens_details": details}))
    assert usage is not None
    assert usage.cached_tokens == cached
    bare, _ = parse_usage(chunk(usage={"prompt_tokens": 9}))
    assert bare is not None
    assert bare.cached_tokens == 0


@given(st.text(max_size=20), st.booleans())
def test_text_in_an_answer_is_not_taken_for_usage(text: str, ascii_only: bool) -> None:
    for content in (text, f'{text}"usage":{text}', '"usage": {"prompt_tokens": 1}'):
        delta = {"choices": [{**CHOICE, "delta": {"content": content, "arguments": content}}]}
        for separators in ((",", ":"), (", ", ": ")):
            data = json.dumps(delta, ensure_ascii=ascii_only, separators=separators)
            assert not may_hold_usage(data.encode("utf-8", "surrogatepass"))


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.booleans())
def test_real_usage_is_noticed_and_read(prompt: int, completion: int, spaced: bool) -> None:
    fields = {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}
    data = json.dumps(fields, separators=(", ", ": ") if spaced else (",", ":")).encode()
    assert may_hold_usage(data)
    assert parse_usage(data) == (Usage(prompt, completion), True)
    assert may_hold_usage(encode_event(fields))
