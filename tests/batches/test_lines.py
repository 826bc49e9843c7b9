"""Lines of input files, and the records that answer them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.batches.lines import (
    InputIndex,
    TooManyLines,
    index_input,
    make_answer_record,
    make_error_record,
    read_lines,
)

CHAT = "/v1/chat/completions"


def line(custom_id: Any = "a", **changes: Any) -> bytes:
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
    whole = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}
    return json.dumps(whole).encode()


def index(*lines: bytes, max_lines: int = 100, max_bytes: int = 10_000) -> InputIndex:
    file = io.BytesIO(b"\n".join(lines))
    return index_input(file, CHAT, max_lines=max_lines, max_bytes=max_bytes)


@pytest.mark.parametrize(
    ("data", "code", "param", "custom_id"),
    [
        (b"{not json", "invalid_json_line", None, None),
        (b"[1, 2]", "invalid_json_line", None, None),
        (b"\xff\xfe", "invalid_json_line", None, None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None, None),
        (b"[" * 100_000, "invalid_json_line", None, None),
        (line(None), "missing_required_parameter", "custom_id", None),
        (line(7), "invalid_value", "custom_id", None),
        (line(""), "invalid_value", "custom_id", None),
        (line("x" * 600), "invalid_value", "custom_id", "x" * 512),
        (line(method=None), "missing_required_parameter", "method", "a"),
        (line(method="GET"), "invalid_method", "method", "a"),
        (line(url=None), "missing_required_parameter", "url", "a"),
        (line(url="/v1/embeddings"), "invalid_url", "url", "a"),
        (line(url=5), "invalid_url", "url", "a"),
        (line(body=None), "invalid_body", "body", "a"),
        (line(body="text"), "invalid_body", "body", "a"),
        (line(body=7).replace(b"7", b'{"temperature": 1e400}'), "invalid_body", "body", "a"),
        (line(body=7).replace(b"7", b'{"user": "\xff"}'), "invalid_body", "body", "a"),
        (line(body=7).replace(b"7", b'{"seed": %b}' % (b"9" * 5000)), "invalid_body", "body", "a"),
        (line(body={"model": "echo", "stream": True}), "invalid_value", "stream", "a"),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}',
         "missing_required_parameter", "body", "a"),
    ],
)  # fmt: skip
def test_a_bad_line_is_reported_with_its_reason(
    data: bytes, code: str, param: str | None, custom_id: str | None
) -> None:
    found = index(line("first"), data, line("last"), max_bytes=200_000)
    (bad,) = found.bad
    assert (bad.number, bad.code, bad.param, bad.custom_id) == (2, code, param, custom_id)
    assert list(found.numbers) == [1, 3]


def test_a_repeated_custom_id_is_refused() -> None:
    found = index(line("a"), line("b"), line("a"))
    assert [(bad.number, bad.code, bad.custom_id) for bad in found.bad] == [
        (3, "duplicate_custom_id", "a")
    ]
    assert list(found.numbers) == [1, 2]


def test_a_line_that_is_too_long_is_refused() -> None:
    found = index(line("a"), line("b", body={"model": "x" * 5000}), line("c"), max_bytes=1000)
    assert [(bad.number, bad.code) for bad in found.bad] == [(2, "body_too_large")]
    assert list(found.numbers) == [1, 3]


def test_empty_lines_and_a_byte_order_mark_do_not_count() -> None:
    file = io.BytesIO(b"\xef\xbb\xbf" + line("a") + b"\r\n\n   \n" + line("b") + b"\n\n")
    found = index_input(file, CHAT, max_lines=9, max_bytes=9999)
    assert (found.total, found.bad, list(found.numbers)) == (2, [], [1, 4])
    assert index(b"", b"  ").total == 0


def test_too_many_lines() -> None:
    with pytest.raises(TooManyLines):
        index(*(line(str(i)) for i in range(5)), max_lines=4)
    assert index(*(line(str(i)) for i in range(4)), max_lines=4).total == 4


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=30, unique=True))
def test_lines_are_read_at_their_offsets(tmp_path_factory: Any, ids: list[str]) -> None:
    path: Path = tmp_path_factory.mktemp("lines") / "in.jsonl"
    pad = {"model": "echo", "prompt": "x" * 3000}
    path.write_bytes(b"\n".join(line(i, body={**pad, "i": i}) for i in ids))
    with path.open("rb") as file:
        found = index_input(file, CHAT, max_lines=100, max_bytes=1_000_000)
        read = read_lines(file.fileno(), found, list(range(len(ids)))[::-1], CHAT)
    assert [entry.custom_id for entry in read] == ids[::-1]
    assert json.loads(read[0].body)["i"] == ids[-1]
    assert read[0].model == "echo"


def test_records_are_single_lines_of_json() -> None:
    body = json.dumps({"choices": [], "text": "ä\n"}, indent=2).encode()
    record = make_answer_record("batch_req_x_7", 'q"uote', 200, "req-1", body)
    assert record.count(b"\n") == 1
    whole = json.loads(record)
    assert whole["custom_id"] == 'q"uote'
    assert whole["response"] == {
        "status_code": 200, "request_id": "req-1", "body": {"choices": [], "text": "ä\n"},
    }  # fmt: skip
    assert whole["error"] is None
    failed = json.loads(make_error_record("batch_req_x_8", None, "invalid_url", "No.", "url", 8))
    assert failed["response"] is None
    assert failed["error"] == {
        "code": "invalid_url", "message": "No.", "type": "invalid_request_error", "param": "url",
        "line": 8,
    }  # fmt: skip
