"""Files that records are appended to: a group at a time, synced before it counts.

After a crash the file is read back. What follows the last whole record is cut off: a line is
finished once its record is whole, and otherwise it is done again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thrifty.batches.storage import sync_folder


@dataclass
class Tokens:
    """Tokens of the lines that were answered."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def add(self, other: Tokens) -> None:
        """Count another's too."""
        self.prompt += other.prompt
        self.completion += other.completion
        self.cached += other.cached


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


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
    """The tokens that an answer's body tells of. Raises `msgspec.DecodeError` where it is not a
    JSON object, `UnicodeDecodeError` where it is not text.
    """
    body.decode()
    try:
        usage = msgspec.convert(_decode_body(body).usage, _Usage | None)
    except msgspec.ValidationError:
        if not body.lstrip().startswith(b"{"):
            raise
        return Tokens()  # counts that are none
    if usage is None:
        return Tokens()
    details = usage.prompt_tokens_details
    return Tokens(
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        (details.cached_tokens or 0) if details is not None else 0,
    )


class ResultFile:
    """One file of records. Used by one thread at a time; everything here may block."""

    def __init__(self, path: Path) -> None:
        """Open the file, new or as it was left. Raises `OSError`."""
        self.path = path
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size_bytes = 0
        if is_new:
            sync_folder(path.parent)

    def recover(self, prefix: str) -> tuple[list[int], Tokens]:
        """The numbers of the lines whose records are here, and their tokens; cuts off what is torn.
        `prefix` is what every record's id begins with.
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
        """Write a group of records and wait until the disk has them. Raises `OSError`; then none
        of them counts, and the file is as before.
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
        """Close it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_record(data: bytes, prefix: str) -> _Record | None:
    """One record; None where it is not whole, or not this batch's."""
    if not data.endswith(b"\n"):
        return None
    try:
        record = _decode_record(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    is_ours = record.id.startswith(prefix) and record.id.removeprefix(prefix).isdecimal()
    return record if is_ours else None
