"""Parses lines of input files, and makes the records that answer them.

A record's id ends with the number of its line. From it, a runner that takes over a batch knows
which lines are finished, including those without a usable `custom_id`.
"""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from dataclasses import dataclass, field
from typing import IO, Any

import msgspec

from thrifty.openai.errors import INVALID_REQUEST
from thrifty.openai.fields import show_value

MAX_CUSTOM_ID = 512
PAUSE_EVERY = 64
"""Lines checked in one go; after them, the thread yields to the event loop's thread."""
PAUSE_S = 0.0005
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A valid request."""

    number: int
    """Starts at 1; empty lines count."""
    custom_id: str
    body: bytes
    model: str | None


@dataclass(frozen=True)
class BadLine:
    """An invalid line."""

    number: int
    custom_id: str | None
    code: str
    message: str
    param: str | None = None


class LineFault(Exception):
    """The reason why a line is invalid."""

    def __init__(
        self, code: str, message: str, param: str | None = None, custom_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.custom_id = custom_id


class TooManyLines(Exception):
    """The file has more lines than a batch may have."""


@dataclass
class InputIndex:
    """The positions of a file's requests, and its invalid lines."""

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    bad: list[BadLine] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The number of lines, without empty ones."""
        return len(self.offsets) + len(self.bad)


class _RawLine(msgspec.Struct):
    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"")


_decode_line = msgspec.json.Decoder(_RawLine).decode
_decode_body = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def index_input(file: IO[bytes], endpoint: str, *, max_lines: int, max_bytes: int) -> InputIndex:
    """Check every line. Blocks, but yields to other threads. Raises `TooManyLines`, `OSError`."""
    index = InputIndex()
    seen: set[bytes] = set()
    number, offset = 0, 0
    file.seek(0)
    while True:
        data = file.readline(max_bytes + 1)
        if not data:
            return index
        number += 1
        length = len(data)
        whole = data.endswith(b"\n")
        while not whole and length > max_bytes:
            # The line is too long to keep; find its end.
            rest = file.readline(max_bytes + 1)
            length += len(rest)
            whole = rest.endswith(b"\n") or not rest
        if length > max_bytes + 1:
            index.bad.append(_too_long(number, length, max_bytes))
        elif data.strip() and data.strip() != _BOM:
            try:
                line = parse_line(data, number, endpoint)
                digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
                if digest in seen:
                    raise LineFault(
                        "duplicate_custom_id",
                        f"The custom_id {show_value(line.custom_id)} is already used on an earlier "
                        "line; each line needs its own.",
                        "custom_id",
                        line.custom_id,
                    )
                seen.add(digest)
                index.offsets.append(offset)
                index.numbers.append(number)
            except LineFault as fault:
                index.bad.append(
                    BadLine(number, fault.custom_id, fault.code, str(fault), fault.param)
                )
        if index.total > max_lines:
            raise TooManyLines
        offset += length
        if number % PAUSE_EVERY == 0:
            time.sleep(PAUSE_S)


def read_lines(
    descriptor: int, index: InputIndex, positions: list[int], endpoint: str
) -> list[Line]:
    """Read the requests at these positions of the index. Blocks. Raises `OSError`."""
    lines = []
    for position in positions:
        data = _read_line(descriptor, index.offsets[position])
        lines.append(parse_line(data, index.numbers[position], endpoint))
    return lines


def parse_line(data: bytes, number: int, endpoint: str) -> Line:
    """Parse one line. Raises `LineFault`."""
    data = data.removeprefix(_BOM) if number == 1 else data
    try:
        raw = _decode_line(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineFault(
            "invalid_json_line", f"Line {number} is not a JSON object: {error}."
        ) from None
    custom_id = _check_custom_id(raw.custom_id)
    if raw.method is None:
        raise _missing("method", custom_id)
    if raw.method != "POST":
        raise LineFault(
            "invalid_method",
            f"'method' must be 'POST', not {show_value(raw.method)}.",
            "method",
            custom_id,
        )
    if raw.url is None:
        raise _missing("url", custom_id)
    if raw.url != endpoint:
        raise LineFault(
            "invalid_url",
            f"'url' must be the batch's endpoint, {endpoint!r}, not {show_value(raw.url)}.",
            "url",
            custom_id,
        )
    body = bytes(raw.body)
    if not body:
        raise _missing("body", custom_id)
    try:
        # All of it: a number out of range is found only here.
        decoded = _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineFault(
            "invalid_body", f"'body' must be a JSON object: {error}.", "body", custom_id
        ) from None
    if not isinstance(decoded, dict):
        raise LineFault("invalid_body", "'body' must be a JSON object.", "body", custom_id)
    if decoded.get("stream"):
        raise LineFault("invalid_value", "'stream' is not allowed in a batch.", "stream", custom_id)
    model = decoded.get("model")
    return Line(number, custom_id, body, model if isinstance(model, str) else None)


def make_answer_record(
    record_id: str, custom_id: str | None, status: int, request_id: str, body: bytes
) -> bytes:
    """The record of a line that got an HTTP response, successful or not. `body` is its JSON."""
    if b"\n" in body or b"\r" in body:
        # The body is pretty-printed, but a record is one line.
        body = _encode(msgspec.json.decode(body))
    return b'{"id":%b,"custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n' % (
        _encode(record_id),
        _encode(custom_id),
        status,
        _encode(request_id),
        body,
    )  # fmt: skip


def make_error_record(
    record_id: str, custom_id: str | None, code: str, message: str, param: str | None, line: int
) -> bytes:
    """The record of a line without a response."""
    error = {
        "code": code,
        "message": message,
        "type": INVALID_REQUEST if code not in UNTRIED else "batch_error",
        "param": param,
        "line": line,
    }
    record = {"id": record_id, "custom_id": custom_id, "response": None, "error": error}
    return _encode(record) + b"\n"


UNTRIED = frozenset({"batch_cancelled", "batch_expired", "key_revoked"})
"""Codes of lines that were not at fault."""


def _check_custom_id(value: Any) -> str:
    if value is None:
        raise LineFault(
            "missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id"
        )
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CUSTOM_ID:
        raise LineFault(
            "invalid_value",
            f"'custom_id' must be a string of 1 to {MAX_CUSTOM_ID} characters, not {show_value(value)}.",
            "custom_id",
            value[:MAX_CUSTOM_ID] if isinstance(value, str) and value else None,
        )
    return value


def _missing(name: str, custom_id: str) -> LineFault:
    return LineFault(
        "missing_required_parameter", f"Missing required parameter: '{name}'.", name, custom_id
    )


def _too_long(number: int, length: int, limit: int) -> BadLine:
    return BadLine(
        number,
        None,
        "body_too_large",
        f"The line has {length} bytes, but the limit is {limit} (limits.max_body in the spec).",
    )


def _read_line(descriptor: int, offset: int) -> bytes:
    pieces = []
    while True:
        data = os.pread(descriptor, 1 << 14, offset)
        end = data.find(b"\n")
        if end >= 0 or not data:
            pieces.append(data[: end + 1] if end >= 0 else b"")
            return b"".join(pieces)
        pieces.append(data)
        offset += len(data)
