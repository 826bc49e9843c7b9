"""`multipart/form-data` (RFC 7578) in a file: the offsets of its parts.

The body is on disk already, so parts are described by their offsets, and the kernel copies the
large one. The file is searched in windows: one search over hundreds of megabytes would hold
Python's interpreter lock and stall the event loop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from email.message import Message

from thrifty.openai.errors import bad_request

WINDOW_BYTES = 1 << 18
MAX_PARTS = 32
MAX_HEAD_BYTES = 16_384


@dataclass(frozen=True)
class Part:
    """One field of a form: the bytes from `start` up to `end`."""

    name: str
    filename: str | None
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return self.end - self.start


def read_boundary(content_type: bytes) -> bytes:
    """The boundary that a `Content-Type` names. Raises a 400 if it is not that of a form."""
    message = Message()
    message["content-type"] = content_type.decode("latin-1")
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/form-data" or not boundary:
        raise bad_request(
            "send the file as multipart/form-data, with the fields 'purpose' and 'file'",
            code="malformed_form",
        )
    if len(boundary) > 70:
        raise _malformed("its boundary is longer than 70 characters")
    return boundary.encode("latin-1")


def find_parts(descriptor: int, size_bytes: int, boundary: bytes) -> list[Part]:
    """The parts of the form in a file. Blocks. Raises a 400."""
    mark = b"--" + boundary
    delimiter = b"\r\n" + mark
    parts: list[Part] = []
    if os.pread(descriptor, len(mark), 0) == mark:
        position = len(mark)
    else:
        found = _find(descriptor, delimiter, 0, size_bytes)
        if found < 0:
            raise _malformed("it holds no part")
        position = found + len(delimiter)
    while True:
        begin = os.pread(descriptor, MAX_HEAD_BYTES, position)
        if begin.startswith(b"--"):
            return parts
        padding = len(begin) - len(begin.lstrip(b" \t"))
        if begin[padding : padding + 2] != b"\r\n":
            raise _malformed("a boundary is not followed by a new line")
        # A part without headers begins with the empty line.
        head_end = begin.find(b"\r\n\r\n", padding)
        if head_end < 0:
            raise _malformed("the headers of a part do not end")
        start = position + head_end + 4
        end = _find(descriptor, delimiter, start - 2, size_bytes)
        if end < 0:
            raise _malformed("its last boundary is missing; was it sent whole?")
        if len(parts) == MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")
        name, filename = _read_head(begin[padding + 2 : head_end])
        parts.append(Part(name, filename, start, max(start, end)))
        position = end + len(delimiter)


def _find(descriptor: int, needle: bytes, start: int, size_bytes: int) -> int:
    """The first offset of `needle` from `start` on; -1 if there is none."""
    position = start
    while position < size_bytes:
        window = os.pread(descriptor, WINDOW_BYTES, position)
        found = window.find(needle)
        if found >= 0:
            return position + found
        if len(window) < len(needle):
            return -1
        position += len(window) - len(needle) + 1
    return -1


def _read_head(head: bytes) -> tuple[str, str | None]:
    message = Message()
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon and name.strip().lower() == b"content-disposition":
            message["content-disposition"] = value.strip().decode("utf-8", "replace")
    given = message.get_param("name", header="content-disposition")
    if not isinstance(given, str) or not given:
        raise _malformed("a part has no name")
    return given, message.get_filename()


def _malformed(what: str) -> Exception:
    return bad_request(f"this is not a valid multipart form: {what}", code="malformed_form")
