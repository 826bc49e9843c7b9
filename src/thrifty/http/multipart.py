"""`multipart/form-data` (RFC 7578) in a file: where each part lies, without reading it all at once.

The body is on disk already. python-multipart parses it window by window, this notes the offsets, and
the large part is then copied by the kernel. One search over hundreds of megabytes would hold
Python's interpreter lock, and the event loop with it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from thrifty.openai.errors import WireError, bad_request

WINDOW_BYTES = 1 << 18
MAX_PARTS = 32
MAX_HEADERS = 16
MAX_HEADER_BYTES = 16_384
MAX_BOUNDARY_BYTES = 70
"""As RFC 2046 has it."""

_silent = logging.getLogger(f"{__name__}.parser")
"""The parser's own logger would write a line for each malformed form that a client sends."""
_silent.disabled = True


@dataclass(frozen=True)
class Part:
    """One field of a form. Its bytes lie from `start` up to `end`."""

    name: str
    filename: str | None
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return self.end - self.start


def read_boundary(content_type: bytes) -> bytes:
    """The boundary that a `Content-Type` names. Raises a 400 if it is not a form's."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise bad_request(
            "send the file as multipart/form-data, with the fields 'purpose' and 'file'",
            code="malformed_form",
        )
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise _malformed(f"its boundary is longer than {MAX_BOUNDARY_BYTES} characters")
    return boundary


def find_parts(descriptor: int, size_bytes: int, boundary: bytes) -> list[Part]:
    """The parts of the form in a file. Blocks. Raises a 400."""
    position = _find_first(descriptor, boundary)
    reader = _Reader(boundary)
    while position < size_bytes and not reader.ended:
        window = os.pread(descriptor, min(WINDOW_BYTES, size_bytes - position), position)
        if not window:
            break
        reader.read(window, position)
        position += len(window)
    return reader.finish()


def _find_first(descriptor: int, boundary: bytes) -> int:
    """Where the first boundary is. What precedes it says nothing, and must fit into one window."""
    mark = b"--" + boundary
    begin = os.pread(descriptor, max(WINDOW_BYTES, len(mark)), 0)
    if begin.startswith(mark):
        return 0
    found = begin.find(b"\r\n" + mark)
    if found < 0:
        raise _malformed("it holds no part")
    return found + 2


class _Reader:
    """Notes where parts begin and end while the parser goes through the form."""

    def __init__(self, boundary: bytes) -> None:
        self.ended = False
        self._parts: list[Part] = []
        self._window = b""
        self._window_start = 0
        self._in_headers = False
        self._header = (b"", b"")
        self._named: tuple[str, str | None] | None = None
        self._start: int | None = None
        self._size_bytes = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._take_field,
                "on_header_value": self._take_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
        self._parser.logger = _silent

    def read(self, window: bytes, start: int) -> None:
        """Go on with the bytes of the form that begin at `start`."""
        self._window, self._window_start = window, start
        try:
            self._parser.write(window)
        except MultipartParseError as error:
            place = start + max(error.offset, 0)
            raise _malformed(
                f"a boundary or the header of a part is not valid, near byte {place}"
            ) from None

    def finish(self) -> list[Part]:
        """The parts, once all is read."""
        if self._in_headers:
            raise _malformed("the headers of a part do not end")
        if not self.ended:
            raise _malformed("its last boundary is missing; was it sent whole?")
        return self._parts

    def _begin_part(self) -> None:
        if len(self._parts) == MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")
        self._in_headers = True
        self._header = (b"", b"")
        self._named = None
        self._start, self._size_bytes = None, 0

    def _take_field(self, data: bytes, start: int, end: int) -> None:
        field, value = self._header
        self._header = (field + data[start:end], value)

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        field, value = self._header
        self._header = (field, value + data[start:end])

    def _end_header(self) -> None:
        field, value = self._header
        self._header = (b"", b"")
        if field.lower() != b"content-disposition":
            return
        _, options = parse_options_header(value)
        name, filename = options.get(b"name", b""), options.get(b"filename")
        if name:
            shown = None if filename is None else filename.decode("utf-8", "replace")
            self._named = (name.decode("utf-8", "replace"), shown)

    def _end_headers(self) -> None:
        self._in_headers = False
        if self._named is None:
            raise _malformed("a part has no name")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._start is None:
            # Bytes at the end of the last window that might have begun a boundary are handed over
            # now, from the parser's own copy.
            from_window = data is self._window
            self._start = self._window_start + (start if from_window else start - end)
        self._size_bytes += end - start

    def _end_part(self) -> None:
        assert self._named is not None
        start = self._start or 0
        self._parts.append(Part(*self._named, start, start + self._size_bytes))

    def _end(self) -> None:
        self.ended = True


def _malformed(what: str) -> WireError:
    return bad_request(f"this is not a valid multipart form: {what}", code="malformed_form")
