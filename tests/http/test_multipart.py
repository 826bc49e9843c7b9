"""Forms, as clients send them and as nobody should."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thrifty.http import multipart
from thrifty.http.multipart import find_parts, read_boundary
from thrifty.openai.errors import WireError

B = b"XyZ"


def form(*parts: tuple[str, bytes], boundary: bytes = B) -> bytes:
    data = b""
    for head, content in parts:
        data += b"--%b\r\ncontent-disposition: form-data; %b\r\n\r\n%b\r\n" % (
            boundary, head.encode(), content,
        )  # fmt: skip
    return data + b"--%b--\r\n" % boundary


def parse(data: bytes, boundary: bytes = B) -> list[tuple[str, str | None, bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        parts = find_parts(file.fileno(), len(data), boundary)
        return [(p.name, p.filename, os.pread(file.fileno(), p.size_bytes, p.start)) for p in parts]


def test_malformed_forms_write_nothing_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WireError):
        parse(b"--XyZrest\r\n")
    assert not caplog.records


@pytest.mark.parametrize(
    ("head", "filename"),
    [
        ('name="f"; filename="ü.jsonl"', "ü.jsonl"),
        ("name=f; filename*=UTF-8''%C3%BC.jsonl", None),  # not in forms: RFC 7578, section 4.2
        (r'name="f"; filename="a \"b\".jsonl"', 'a "b".jsonl'),
        ('name="f"; filename=""', ""),
        ("name=f", None),
    ],
)
def test_filenames(head: str, filename: str | None) -> None:
    assert parse(form((head, b"x"))) == [("f", filename, b"x")]


def test_fields_and_a_file() -> None:
    data = form(
        ('name="purpose"', b"batch"), ('name="file"; filename="in put.jsonl"', b"{}\r\n{}\n")
    )
    assert parse(data) == [("purpose", None, b"batch"), ("file", "in put.jsonl", b"{}\r\n{}\n")]
    assert parse(b"a preamble\r\n" + data) == parse(data)


@given(
    contents=st.lists(
        st.binary(max_size=60) | st.text("\r\n-XyZ ", max_size=60).map(str.encode), max_size=4
    ),
    window=st.integers(16, 64),
)
@example(contents=[b"\r\n--Xy", b"\r\n--Xy\r\n", b""], window=16)
def test_any_content_comes_back_wherever_windows_end(contents: list[bytes], window: int) -> None:
    contents = [c for c in contents if b"\r\n--XyZ" not in c]
    data = form(*((f'name="f{i}"', content) for i, content in enumerate(contents)))
    before = multipart.WINDOW_BYTES
    multipart.WINDOW_BYTES = window
    try:
        assert [content for _, _, content in parse(data)] == contents
    finally:
        multipart.WINDOW_BYTES = before


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no part"),
        (b"nothing here", "no part"),
        (form(('name="a"', b"x"))[:-10], "boundary is missing"),
        (form(("filename=x", b"x")), "has no name"),
        (b"--XyZrest\r\n", "not valid, near byte 5"),
        (b"--XyZ\r\ncontent-disposition: form-data; name=a\r\nno end", "not valid, near byte 49"),
        (b"--XyZ\r\ncontent-disposition: form-data; name=a\r\nx-other: no end", "do not end"),
        (b"--XyZ\r\nx-long: " + b"y" * 20_000, "not valid, near byte"),
        (form(('name="a"\r\n' + "\r\n".join(f"x-{n}: 1" for n in range(20)), b"x")), "not valid"),
        (form(*(('name="a"', b"x") for _ in range(40))), "more than 32"),
        (b"--XyZ\r\n\r\nno headers\r\n--XyZ--", "has no name"),
    ],
)
def test_what_is_no_form_is_told(data: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match) as caught:
        parse(data)
    assert caught.value.code == "malformed_form"


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    try:
        parse(b"--XyZ\r\n" + data)
    except WireError as error:
        fault = error
        assert (fault.status, fault.code) == (400, "malformed_form")


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
    ],
)
def test_boundary(header: bytes, boundary: bytes) -> None:
    assert read_boundary(header) == boundary


@pytest.mark.parametrize(
    "header",
    [b"", b"application/json", b"multipart/form-data", b"multipart/mixed; boundary=a",
     b"multipart/form-data; boundary=" + b"x" * 71],
)  # fmt: skip
def test_no_boundary(header: Any) -> None:
    with pytest.raises(WireError, match="form"):
        read_boundary(header)
