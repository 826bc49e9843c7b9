"""Files that records are appended to in groups; a group counts once it is synced.

After a crash the file is read back, and whatever follows the last complete record is cut off. A
line is finished once its record is complete; otherwise it is processed again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thrifty.files import sync
from thrifty.openai.events import read_usage


@dataclass
class Tokens:
    """Token counts of answered lines."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def add(self, other: Tokens) -> None:
        """Add the counts of `other`."""
        self.prompt += other.prompt
        self.completion += other.completion
        self.cached += other.cached


class _Body(msgspec.Struct):
    usage: Any = None


class _Response(msgspec.Struct):
    body: msgspec.Raw = msgspec.Raw(b"")


class _Record(msgspec.Struct):
    id: str
    response: _Response | None = None


_decode_record = msgspec.json.Decoder(_Record).decode
_decode_body = msgspec.json.Decoder(_Body).decode


def read_tokens(body: bytes) -> Tokens:
    """The token counts in an answer's body. Raises `msgspec.DecodeError` if it is not a JSON
    object, `UnicodeDecodeError` if it is not text, and `RecursionError` if it is too deep.
    """
    body.decode()
    usage = read_usage(_decode_body(body).usage)
    if usage is None:
        return Tokens()
    return Tokens(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


class ResultFile:
    """One file of records. Used by one thread at a time; every method may block."""

    def __init__(self, path: Path) -> None:
        """Open the file, new or existing. Raises `OSError`."""
        self.path = path
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size_bytes = 0
        if is_new:
            sync(path.parent)

    def recover(self, prefix: str) -> tuple[list[int], Tokens]:
        """The numbers of the lines with records in the file, and their token counts; cuts off an
        incomplete record. Every record's id begins with `prefix`.
        """
        numbers: list[int] = []
        tokens = Tokens()
        good = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for data in file:
                record = _read_record(data, prefix)
                if record is None:
                    break
                numbers.append(int(record.id.removeprefix(prefix)))
                if record.response is not None:
                    tokens.add(read_tokens(bytes(record.response.body)))
                good += len(data)
        if os.fstat(self._descriptor).st_size != good:
            os.ftruncate(self._descriptor, good)
            os.fsync(self._descriptor)
        self.size_bytes = good
        return numbers, tokens

    def append(self, records: list[bytes]) -> None:
        """Write a group of records and wait until they are on disk. Raises `OSError`; then none of
        them counts, and the file is unchanged.
        """
        view = memoryview(b"".join(records))
        offset = self.size_bytes
        try:
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self.size_bytes)
            raise
        self.size_bytes = offset

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_record(data: bytes, prefix: str) -> _Record | None:
    """One record; None if it is incomplete or belongs to another batch."""
    if not data.endswith(b"\n"):
        return None
    try:
        record = _decode_record(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    is_ours = record.id.startswith(prefix) and record.id.removeprefix(prefix).isdecimal()
    return record if is_ours else None
