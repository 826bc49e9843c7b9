"""Replacing ids against a slow reference with `json`, for any JSON and any split of a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thrifty.openai.events import DONE, LineEnds
from thrifty.openai.id_rewrite import IdRewriter, replace_id

OURS = b"chatcmpl-0schh38zr0mg8416gnfnp"
KEYS = st.sampled_from(["id", "object", "choices", "i", 'x"id"', "ID"]) | st.text(max_size=4)
TEXTS = st.sampled_from(["id", '"id":"x"', 'a"id', "id\\", "chatcmpl-1"]) | st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS


class Pairs(list[tuple[str, Any]]):
    """An object as a list of pairs, with repeated keys in order."""


VALUES = st.recursive(
    SCALARS,
    lambda below: (
        st.lists(below, max_size=3) | st.lists(st.tuples(KEYS, below), max_size=4).map(Pairs)
    ),
    max_leaves=12,
)
OBJECTS = st.lists(st.tuples(KEYS, VALUES), max_size=5).map(Pairs)


def read(text: bytes) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


def replaced(value: Any) -> Any:
    if not isinstance(value, Pairs):
        return value
    return Pairs((key, OURS.decode() if key == "id" else below) for key, below in value)


def shown(value: Any) -> str:
    """A form in which NaN equals NaN, and objects differ from arrays."""
    return repr(value)


@st.composite
def spellings(draw: st.DrawFn, values: st.SearchStrategy[Any], newlines: bool = True) -> str:
    """A JSON text of a value, with white space anywhere and characters escaped or not."""
    space = st.sampled_from(["", "", "", " ", "\t "] + (["\n", "\r\n"] if newlines else []))

    def string(text: str) -> str:
        if draw(st.integers(0, 3)):
            return json.dumps(text, ensure_ascii=draw(st.booleans()))
        return '"' + "".join(f"\\u{unit:04x}" for unit in units(text)) + '"'

    def write(value: Any) -> str:
        if isinstance(value, str):
            text = string(value)
        elif isinstance(value, Pairs):
            parts = [f"{draw(space)}{string(k)}{draw(space)}:{write(v)}" for k, v in value]
            text = "{" + ",".join(parts) + draw(space) + "}"
        elif isinstance(value, list):
            text = "[" + ",".join(map(write, value)) + draw(space) + "]"
        else:
            text = json.dumps(value)
        return draw(space) + text + draw(space)

    return write(draw(values))


def units(text: str) -> list[int]:
    raw = text.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(raw[i : i + 2]) for i in range(0, len(raw), 2)]


@given(spellings(OBJECTS | VALUES))
def test_only_the_top_level_id_of_a_body_changes(text: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    assert shown(read(replace_id(body, OURS))) == shown(replaced(read(body)))


@given(spellings(OBJECTS))
def test_all_other_bytes_are_unchanged(text: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    changed = replace_id(body, OURS)
    # Replacing again changes nothing: the first pass found every id and nothing else.
    assert replace_id(changed, OURS) == changed
    if "id" not in dict(read(body)):
        assert changed == body


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"id":"a","x":1}', b'{"id":"%b","x":1}'),
        (b'{"id":"a"}', b'{"id":"%b"}'),
        (b' {\n "id" :\t"a" }', b' {\n "id" :\t"%b" }'),
        (b'{"x":1,"id":"a"}', b'{"x":1,"id":"%b"}'),
        (b'{"id":"a\\"b","x":1}', b'{"id":"%b","x":1}'),
        (b'{"id":null,"x":1}', b'{"id":"%b","x":1}'),
        (b'{"id": 12 ,"x":1}', b'{"id": "%b" ,"x":1}'),
        (b'{"id":{"id":"b"},"x":1}', b'{"id":"%b","x":1}'),
        (b'{"\\u0069d":"a"}', b'{"\\u0069d":"%b"}'),
        (b'{"i\\u0064":"a"}', b'{"i\\u0064":"%b"}'),
        (b'{"x":NaN,"id":"a"}', b'{"x":NaN,"id":"%b"}'),
        (b'{"id":"a","t":[{"id":"b"}]}', b'{"id":"%b","t":[{"id":"b"}]}'),
        (b'{"t":[{"id":"b"}],"id":"a"}', b'{"t":[{"id":"b"}],"id":"%b"}'),
        (b'{"id":"a","c":"\\"id\\":\\"a\\""}', b'{"id":"%b","c":"\\"id\\":\\"a\\""}'),
        (b'{"c":"id","id":"id"}', b'{"c":"id","id":"%b"}'),
    ],
)
def test_ids_are_found_in_all_forms(body: bytes, changed: bytes) -> None:
    assert replace_id(body, OURS) == changed % OURS


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"[DONE]", b'"id"', b"{}", b'{"t":[{"id":"b"}]}', b'{"c":"id"}', b"\xff\xfe",
     b'[{"id":"a"}]', b'{"t":{"id":"b"},"u":"\\u006"}', b'{"c":"x\\"id"}', b"[" * 100_000],
)  # fmt: skip
def test_bodies_without_a_top_level_id_are_unchanged(body: bytes) -> None:
    assert replace_id(body, OURS) == body


def test_an_incomplete_text_takes_linear_time() -> None:
    replace_id(b'{"id":1,"id":2,"c":"' + b'\\"' * 2_000_000, OURS)


# Streams


def feed(stream: bytes, cuts: list[int]) -> bytes:
    rewriter, line_ends = IdRewriter(OURS), LineEnds()
    out = b"".join(
        rewriter.feed(line_ends.feed(stream[a:b]))
        for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    )
    return out + rewriter.finish()


def read_events(stream: bytes) -> list[tuple[list[str], Any]]:
    """The other lines of each event, and its data as JSON or as text."""
    events = []
    text = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode("utf-8", "surrogatepass")
    for block in text.split("\n\n"):
        lines = block.split("\n")
        data = "\n".join(line[5:].removeprefix(" ") for line in lines if line.startswith("data:"))
        others = [line for line in lines if not line.startswith("data:")]
        try:
            events.append((others, shown(replaced_if_json(data))))
        except ValueError:
            # Clients ignore an incomplete event, but no foreign id may remain in it.
            events.append((others, data if "id" not in data and "\\u" not in data else ""))
    return events


def replaced_if_json(data: str) -> Any:
    return replaced(read(data.encode("utf-8", "surrogatepass")))


CHUNKS = st.lists(st.tuples(KEYS, VALUES), max_size=3).map(
    lambda pairs: Pairs([("id", "chatcmpl-1"), ("object", "chunk"), *pairs])
)
LINES = st.one_of(
    spellings(CHUNKS, newlines=False), spellings(CHUNKS, newlines=False),
    spellings(OBJECTS, newlines=False), st.sampled_from(["[DONE]", "", '{"id":"chatcmpl-1"', "x"]),
)  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    newline = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    stream = ""
    for line in draw(st.lists(LINES, max_size=6)):
        lines = [draw(st.sampled_from(["data: ", "data: ", "data:"])) + line]
        if not draw(st.integers(0, 4)):
            lines.insert(
                draw(st.integers(0, 1)), draw(st.sampled_from(["event: x", ": id", "id: 7"]))
            )
        stream += "".join(each + newline for each in lines) + newline
    if draw(st.booleans()):
        stream = stream[: len(stream) - draw(st.integers(0, min(len(stream), 20)))]
    return stream.encode("utf-8", "surrogatepass")


@given(streams(), st.data())
@example(
    b'data: {"id":"a"}\n\ndata: {"id":"a","id":"b"}\n\ndata: {"id":"a","i\\u0064":1}\n\n', None
)
def test_each_event_of_a_stream_gets_our_id_wherever_it_is_cut(
    stream: bytes, data: st.DataObject | None
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=6))) if data else []
    assert read_events(feed(stream, cuts)) == read_events(stream)
    whole = feed(stream, list(range(1, len(stream))))
    assert read_events(whole) == read_events(stream)
    plain = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"id" not in plain.replace(b": id", b"").replace(b"id: 7", b"") and b"\\u" not in plain:
        assert whole == plain


def test_data_on_several_lines_is_one_payload() -> None:
    stream = b': note\ndata: {"x":1,\ndata: "id":\ndata: {"y":\ndata: 2}\nevent: e\ndata: }\n\n'
    changed = feed(stream, [9, 20])
    assert changed == (
        b': note\ndata: {"x":1,\ndata: "id":\ndata: "%b"\ndata: }\nevent: e\n\n' % OURS
    )


def test_events_are_released_when_complete() -> None:
    rewriter = IdRewriter(OURS)
    event = b'data: {"id":"a","x":"\xc3\xa4"}\n\n'
    for _ in range(2):
        assert rewriter.feed(event) == b'data: {"id":"%b","x":"\xc3\xa4"}\n\n' % OURS
        assert rewriter.feed(event[:9]) == b""
        assert rewriter.feed(event[9:] + event + event[:-1]) == (
            b'data: {"id":"%b","x":"\xc3\xa4"}\n\n' % OURS * 2
        )
        assert rewriter.feed(b"\n") == b'data: {"id":"%b","x":"\xc3\xa4"}\n\n' % OURS
    assert rewriter.feed(DONE) == DONE
    assert rewriter.finish() == b""


def test_a_long_event_in_many_pieces_takes_linear_time() -> None:
    rewriter = IdRewriter(OURS)
    assert rewriter.feed(b'data: {"id":"a","x":"') == b""
    for _ in range(20_000):
        assert rewriter.feed(b"x" * 1000) == b""
    assert len(rewriter.feed(b'"}\n\n')) == 20_000_024 + len(OURS)
