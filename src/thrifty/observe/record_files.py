"""Files of records for other programs: JSON lines, or Parquet through pyarrow (an extra).

Records are written page by page, so that memory does not grow with them. One person's rows can be
found again in a file by the same columns as in the database, and taken out (`filter_records`).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, LargeBinary, Table, select

from thrifty.db import Database
from thrifty.db.tables import (
    ROLLUP_SKETCHES,
    feedback,
    replica_spans,
    requests,
    rollups,
    tenant_rollups,
)
from thrifty.errors import ThriftyError
from thrifty.files import replace_atomically
from thrifty.observe.rollups.sketch import decode_sketch
from thrifty.openai.response_ids import ResponseIds

PAGE = 10_000
PARQUET, JSON_LINES = ".parquet", ".jsonl"
PERCENTILES = (50, 90, 95, 99)

Record = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of records: a table, its order, and the column with their time."""

    table: Table
    order: tuple[str, ...]
    time: str
    of_persons: bool = False
    """Whether `thrifty forget` has to look into files of them."""
    has_tenant: bool = True


KINDS = {
    "requests": Kind(requests, ("id",), "at_s", of_persons=True),
    "feedback": Kind(feedback, ("id",), "updated_s", of_persons=True),
    "rollups": Kind(rollups, ("step_s", "at_s", "deployment", "version"), "at_s", has_tenant=False),
    "tenant-rollups": Kind(
        tenant_rollups, ("step_s", "at_s", "deployment", "version", "tenant"), "at_s"
    ),
    "replicas": Kind(replica_spans, ("id",), "started_s", has_tenant=False),
}


def check_export(what: str, path: Path, tenant: str | None) -> Kind:
    """The kind of records that can be written to such a file. Raises `ThriftyError`."""
    kind = KINDS.get(what)
    if kind is None:
        raise ThriftyError(f"{what[:60]!r} is no kind of records; there are {', '.join(KINDS)}")
    if path.suffix not in (PARQUET, JSON_LINES):
        raise ThriftyError(
            f"{path} must end in {PARQUET} or {JSON_LINES}, which says what it holds"
        )
    if tenant is not None and not kind.has_tenant:
        raise ThriftyError(f"{what} are not told apart by tenant; leave --tenant out")
    if path.suffix == PARQUET:
        _import_pyarrow()
    return kind


def write_records(
    database: Database,
    kind: Kind,
    path: Path,
    ids: ResponseIds,
    *,
    since_s: float | None = None,
    tenant: str | None = None,
    on_count: Callable[[int], None] = lambda count: None,
) -> int:
    """Write all records of a kind; returns how many. The file is there whole or not at all. Raises
    `ThriftyError`, and `DatabaseError`.
    """
    pages = _read_pages(database, kind, ids, since_s, tenant)
    return _write(path, _list_columns(kind), _count(pages, on_count))


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file. Raises `ThriftyError`, and `OSError`."""
    if path.suffix != PARQUET:
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)
        return
    pyarrow = _import_pyarrow()
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(PAGE):
            yield from batch.to_pylist()


def filter_records(path: Path, keep: Callable[[Record], bool]) -> int:
    """Rewrite a Parquet file with the records for which `keep` is true; returns how many are gone.
    Raises `ThriftyError`, and `OSError`.
    """
    pyarrow = _import_pyarrow()
    if not path.exists() or all(keep(record) for record in read_records(path)):
        return 0
    removed = 0
    with (
        pyarrow.parquet.ParquetFile(path) as file,
        replace_atomically(path, mode=0o600) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, file.schema_arrow) as writer,
    ):
        for batch in file.iter_batches(PAGE):
            kept = [keep(record) for record in batch.to_pylist()]
            removed += len(kept) - sum(kept)
            writer.write_batch(batch.filter(pyarrow.array(kept)))
    return removed


def _read_pages(
    database: Database, kind: Kind, ids: ResponseIds, since_s: float | None, tenant: str | None
) -> Iterator[list[Record]]:
    table = kind.table
    order = [table.c[name] for name in kind.order]
    query = select(table).order_by(*order).limit(PAGE)
    if since_s is not None:
        query = query.where(table.c[kind.time] >= since_s)
    if tenant is not None:
        own = table.c.tenant == tenant
        query = query.where(own | table.c.tenant.is_(None) if tenant == "" else own)
    after: tuple[Any, ...] | None = None
    while True:
        page = query if after is None else query.where(_is_after(order, after))
        with database.begin() as connection:
            rows = connection.execute(page).mappings().all()
        if rows:
            yield [_make_record(kind, row, ids) for row in rows]
        if len(rows) < PAGE:
            return
        after = tuple(rows[-1][name] for name in kind.order)


def _is_after(order: Sequence[Column[Any]], after: tuple[Any, ...]) -> Any:
    """Whether a row comes after another one in an order of several columns."""
    found = order[-1] > after[-1]
    for column, value in zip(reversed(order[:-1]), reversed(after[:-1]), strict=True):
        found = (column > value) | ((column == value) & found)
    return found


def _make_record(kind: Kind, row: Mapping[Any, Any], ids: ResponseIds) -> Record:
    record = dict(row)
    for name in ROLLUP_SKETCHES:
        if name in kind.table.c:
            sketch = decode_sketch(record.pop(name))
            for percent in PERCENTILES:
                record[f"{name}_p{percent}"] = sketch.quantile(percent / 100)
    number = record.get("id") if kind.table is requests else record.get("response")
    if kind.of_persons:
        tenant = record["tenant"] or ""
        record["response_id"] = None if number is None else ids.write(number, tenant)
    return record


def _list_columns(kind: Kind) -> dict[str, str]:
    """The type of each column, by Arrow's name for it."""
    columns = {}
    for column in kind.table.columns:
        if isinstance(column.type, LargeBinary):
            continue
        columns[column.name] = _name_type(column)
    for name in ROLLUP_SKETCHES:
        if name in kind.table.c:
            columns |= {f"{name}_p{percent}": "double" for percent in PERCENTILES}
    if kind.of_persons:
        columns["response_id"] = "string"
    return columns


def _name_type(column: Column[Any]) -> str:
    if isinstance(column.type, Boolean):
        return "bool"
    if isinstance(column.type, Integer | BigInteger):
        return "int64"
    return "double" if isinstance(column.type, Float) else "string"


def _count(
    pages: Iterator[list[Record]], on_count: Callable[[int], None]
) -> Iterator[list[Record]]:
    total = 0
    for page in pages:
        yield page
        total += len(page)
        on_count(total)


def _write(path: Path, columns: Mapping[str, str], pages: Iterator[list[Record]]) -> int:
    total = 0
    try:
        with replace_atomically(path, mode=0o600) as temporary:
            if path.suffix == JSON_LINES:
                with temporary.open("w") as file:
                    for page in pages:
                        file.writelines(json.dumps(record) + "\n" for record in page)
                        total += len(page)
                return total
            pyarrow = _import_pyarrow()
            types = {
                "bool": pyarrow.bool_(), "int64": pyarrow.int64(), "double": pyarrow.float64(),
                "string": pyarrow.string(),
            }  # fmt: skip
            schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
            with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for page in pages:
                    writer.write_table(pyarrow.Table.from_pylist(page, schema))
                    total += len(page)
    except OSError as error:
        raise ThriftyError(f"cannot write {path}: {error.strerror or error}") from None
    return total


def _import_pyarrow() -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise ThriftyError(
            "Parquet needs pyarrow: pip install 'thrifty[parquet]'; .jsonl needs nothing"
        ) from None
