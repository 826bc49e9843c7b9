"""Reads a piece of a file record by record. What cannot be read is set aside with its number and
the reason, and never ends the reading.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thrifty.curate.needs import need
from thrifty.curate.sources import READ_FAULTS, Piece, SourceFile
from thrifty.errors import DataError

MAX_RECORD_BYTES = 64_000_000
"""No honest row is larger; a file of other kinds may have such a line."""
BATCH_ROWS = 512
_READ_CHARS = 1 << 20
Record = dict[str, Any]


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read, and why."""

    reason: str


Found = tuple[int, Record | Broken]
"""A record and its number in the file, from 1."""


def read_piece(file: SourceFile, piece: Piece) -> Iterator[Found]:
    """The records of a piece, as a stream. Raises `DataError` if the file cannot be read at all."""
    path = Path(file.path)
    try:
        if file.format not in ("parquet", "arrow"):
            _refuse_utf16(path)
        if file.format in ("jsonl", "text"):
            yield from _read_lines(path, piece, is_json=file.format == "jsonl")
        elif file.format == "json":
            yield from _read_json(path)
        elif file.format in ("csv", "tsv"):
            yield from _read_csv(path, "," if file.format == "csv" else "\t")
        elif file.format == "parquet":
            yield from _read_parquet(path, piece)
        else:
            yield from _read_arrow(path)
    except READ_FAULTS as error:
        raise DataError(f"{path} cannot be read as {file.format}: {error}") from None


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{path} is written in UTF-16; save it as UTF-8")


def _read_lines(path: Path, piece: Piece, *, is_json: bool) -> Iterator[Found]:
    with path.open("rb") as file:
        file.seek(piece.begin)
        number = piece.first
        while file.tell() < piece.end:
            line = file.readline(MAX_RECORD_BYTES)
            if not line:
                return
            if not line.endswith(b"\n") and len(line) == MAX_RECORD_BYTES:
                while not line.endswith(b"\n") and line:
                    line = file.readline(MAX_RECORD_BYTES)
                yield number, Broken(f"longer than {MAX_RECORD_BYTES // 1_000_000} MB")
            elif line.strip():
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, _parse_line(line) if is_json else _parse_text(line)
            number += 1


def _parse_line(line: bytes) -> Record | Broken:
    try:
        value = msgspec.json.decode(line)
    except UnicodeDecodeError:
        return Broken("not UTF-8")
    except (msgspec.DecodeError, RecursionError, ValueError):
        return _parse_loosely(line)
    return value if isinstance(value, dict) else Broken("not a JSON object")


def _parse_loosely(line: bytes) -> Record | Broken:
    """JSON as Python writes it: with NaN, and with halves of surrogate pairs, which are set
    aside.
    """
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Broken("half of a surrogate pair")
    except UnicodeDecodeError:
        return Broken("not UTF-8")
    except (ValueError, RecursionError):
        return Broken("not JSON")
    return value if isinstance(value, dict) else Broken("not a JSON object")


def _parse_text(line: bytes) -> Record | Broken:
    try:
        return {"text": line.decode("utf-8").rstrip("\r\n")}
    except UnicodeDecodeError:
        return Broken("not UTF-8")


def _read_json(path: Path) -> Iterator[Found]:
    """The objects of an array, read as a stream."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        held = file.read(_READ_CHARS).lstrip()
        if not held.startswith("["):
            raise DataError(f"{path} is not a JSON array; a file with a record a line is 'jsonl'")
        held, number, ended = held[1:], 1, False
        while True:
            held = held.lstrip(" \t\r\n,")
            if held.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(held)
            except (ValueError, RecursionError):
                more = "" if ended or len(held) > MAX_RECORD_BYTES else file.read(
                    max(_READ_CHARS, len(held))
                )  # fmt: skip
                if not more:
                    raise DataError(
                        f"{path} is damaged, or ends too early, at its record {number}: what comes "
                        "behind cannot be told apart. Mend it, or write a record a line (.jsonl), of "
                        "which only broken ones are set aside"
                    ) from None
                held += more
                continue
            held = held[end:]
            yield number, _check_value(value)
            number += 1


def _check_value(value: Any) -> Record | Broken:
    if not isinstance(value, dict):
        return Broken("not a JSON object")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Broken("not UTF-8")
    return value


def _read_csv(path: Path, delimiter: str) -> Iterator[Found]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            _check_header(path, reader.fieldnames or ())
        except csv.Error as error:
            raise DataError(f"{path}: its first line is not CSV: {error}") from None
        number = 1
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise DataError(
                        f"{path}: a quote that opens in record {number} is never closed, so that all "
                        "behind it would be one field; close it"
                    ) from None
                yield number, Broken(f"not CSV: {error}")
                number += 1
                continue
            if None in row or None in row.values():
                yield number, Broken("another number of fields than the header")
            else:
                yield number, _check_value(row)
            number += 1


def _check_header(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise DataError(
            f"{path} has several columns that are called {twice[0]!r}; rename all but one"
        )
    other = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise DataError(
            f"{path} separates fields by {other!r}; write it with commas (.csv) or tabs (.tsv)"
        )


def _read_parquet(path: Path, piece: Piece) -> Iterator[Found]:
    file = need("pyarrow.parquet").ParquetFile(path, memory_map=False)
    number = piece.first
    for batch in file.iter_batches(BATCH_ROWS, row_groups=range(piece.begin, piece.end)):
        for row in _list_rows(batch):
            yield number, row
            number += 1


def _list_rows(batch: Any) -> Iterator[Record | Broken]:
    """The rows of a batch of Arrow. Its values are not checked before they are read: texts may not
    be UTF-8, and times finer or farther than Python's.
    """
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        # Row by row, so that only those that hold such a value are set aside.
        batch = _coarsen_times(batch)
        rows = [_read_row(batch.slice(at, 1)) for at in range(batch.num_rows)]
    for row in rows:
        yield row if isinstance(row, Broken) else _drop_filled(row)


def _read_row(batch: Any) -> Record | Broken:
    try:
        row: Record = batch.to_pylist()[0]
    except UnicodeDecodeError:
        return Broken("not UTF-8")
    except (ValueError, OverflowError) as error:
        return Broken(f"a value that cannot be read: {error}")
    return row


def _coarsen_times(batch: Any) -> Any:
    """`batch` with its times in microseconds, where they are in nanoseconds."""
    arrow = need("pyarrow")
    for at, field in enumerate(batch.schema):
        if arrow.types.is_timestamp(field.type) and field.type.unit == "ns":
            kind = arrow.timestamp("us", field.type.tz)
            batch = batch.set_column(at, field.name, batch.column(at).cast(kind, safe=False))
    return batch


def _drop_filled(row: Record) -> Record:
    """A row without the fields that Arrow fills with nothing: it gives every object in a column the
    fields of all of them.
    """
    return {key: _drop_nothing(value) for key, value in row.items()}


def _drop_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nothing(one) for key, one in value.items() if one is not None}
    return [_drop_nothing(one) for one in value] if isinstance(value, list) else value


def _read_arrow(path: Path) -> Iterator[Found]:
    """A file of Arrow IPC: the stream that `datasets` saves, or the form with a footer."""
    ipc = need("pyarrow.ipc")
    number = 1
    with path.open("rb") as source:
        magic = source.read(6)
        source.seek(0)
        if magic == b"ARROW1":
            reader = ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(ipc.open_stream(source))
        for whole in batches:
            for start in range(0, whole.num_rows, BATCH_ROWS):
                for row in _list_rows(whole.slice(start, BATCH_ROWS)):
                    yield number, row
                    number += 1


def encode(value: Any) -> bytes:
    """A row as a line of JSON, with its end."""
    buffer = io.BytesIO(msgspec.json.encode(value))
    return buffer.getvalue() + b"\n"
