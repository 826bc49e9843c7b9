"""Rows of files and batches. Callers name a tenant and see only that tenant's rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Select, Table, delete, func, insert, select, tuple_, update

from thrifty.db.database import Database
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import batches, files, leases
from thrifty.errors import DatabaseError

LEASE = "batches"
"""The lease of the process that runs batches."""


class BatchStatus(StrEnum):
    """The states of a batch, as OpenAI names them."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ACTIVE = (
    BatchStatus.VALIDATING,
    BatchStatus.IN_PROGRESS,
    BatchStatus.FINALIZING,
    BatchStatus.CANCELLING,
)
CANCELLABLE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


@dataclass(frozen=True)
class FileRow:
    """One file. Its contents are stored elsewhere."""

    id: str
    tenant: str
    filename: str
    purpose: str
    size_bytes: int
    created_s: float
    expires_s: float | None = None


@dataclass(frozen=True)
class BatchCounts:
    """The progress of a batch; tokens are those of completed lines."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class BatchRow:
    """One batch."""

    id: str
    tenant: str
    key_id: str | None
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    created_s: float
    expires_s: float
    output_file_id: str | None = None
    error_file_id: str | None = None
    metadata: Mapping[str, str] | None = None
    output_keep_s: float | None = None
    in_progress_s: float | None = None
    finalizing_s: float | None = None
    completed_s: float | None = None
    failed_s: float | None = None
    expired_s: float | None = None
    cancelling_s: float | None = None
    cancelled_s: float | None = None
    counts: BatchCounts = BatchCounts()
    errors: Sequence[Mapping[str, Any]] | None = None


class LeaseLost(DatabaseError):
    """Another process runs batches now; nothing was written."""


# Files


def insert_file(database: Database, row: FileRow) -> None:
    """Write a file's row. Raises `DatabaseError`."""
    with database.begin() as connection:
        connection.execute(insert(files).values(sanitize_values(files, asdict(row))))


def find_file(database: Database, tenant: str, file_id: str) -> FileRow | None:
    """A tenant's file. Raises `DatabaseError`."""
    query = select(files).where(files.c.id == file_id, files.c.tenant == tenant)
    with database.begin() as connection:
        row = connection.execute(query).mappings().first()
    return FileRow(**row) if row is not None else None


def list_files(
    database: Database,
    tenant: str,
    *,
    purpose: str | None,
    after: str | None,
    limit: int,
    newest_first: bool,
) -> tuple[list[FileRow], bool]:
    """A page of a tenant's files, and whether there are more. Raises `DatabaseError`."""
    query = select(files).where(files.c.tenant == tenant)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    rows, more = _read_page(database, query, files, tenant, after, limit, newest_first)
    return [FileRow(**row) for row in rows], more


def delete_file(database: Database, tenant: str, file_id: str) -> str | None:
    """Delete a tenant's file, unless a batch needs it; then return that batch's id. Raises
    `DatabaseError`.
    """
    with database.begin() as connection:
        user = connection.execute(
            select(batches.c.id).where(
                batches.c.input_file_id == file_id,
                batches.c.tenant == tenant,
                batches.c.status.in_(ACTIVE),
            )
        ).scalar()
        if user is None:
            connection.execute(delete(files).where(files.c.id == file_id, files.c.tenant == tenant))
        return user


def take_expired_files(database: Database, now_s: float, limit: int = 1000) -> list[str]:
    """Delete expired files, except inputs of active batches; returns their ids. Raises
    `DatabaseError`.
    """
    needed = select(batches.c.input_file_id).where(batches.c.status.in_(ACTIVE))
    with database.begin() as connection:
        doomed = (
            connection.execute(
                select(files.c.id)
                .where(files.c.expires_s < now_s, files.c.id.not_in(needed))
                .limit(limit)
            )
            .scalars()
            .all()
        )
        connection.execute(delete(files).where(files.c.id.in_(doomed)))
    return list(doomed)


def find_known_files(database: Database, ids: Iterable[str]) -> set[str]:
    """Those of `ids` that have a row. Raises `DatabaseError`."""
    with database.begin() as connection:
        query = select(files.c.id).where(files.c.id.in_(list(ids)))
        return set(connection.execute(query).scalars())


# Batches, for clients


def insert_batch(database: Database, row: BatchRow, most_active: int) -> bool:
    """Insert a new batch, unless its tenant already has `most_active` active ones; returns whether
    it was inserted. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        count = connection.execute(
            select(func.count())
            .select_from(batches)
            .where(batches.c.tenant == row.tenant, batches.c.status.in_(ACTIVE))
        ).scalar_one()
        if count >= most_active:
            return False
        connection.execute(insert(batches).values(sanitize_values(batches, _to_values(row))))
        return True


def find_batch(database: Database, tenant: str, batch_id: str) -> BatchRow | None:
    """A tenant's batch. Raises `DatabaseError`."""
    query = select(batches).where(batches.c.id == batch_id, batches.c.tenant == tenant)
    with database.begin() as connection:
        row = connection.execute(query).mappings().first()
    return _from_values(row) if row is not None else None


def list_batches(
    database: Database, tenant: str, *, after: str | None, limit: int
) -> tuple[list[BatchRow], bool]:
    """A page of a tenant's batches, newest first, and whether there are more. Raises
    `DatabaseError`.
    """
    query = select(batches).where(batches.c.tenant == tenant)
    rows, more = _read_page(database, query, batches, tenant, after, limit, newest_first=True)
    return [_from_values(row) for row in rows], more


def cancel_batch(database: Database, tenant: str, batch_id: str, now_s: float) -> bool:
    """Mark a tenant's batch for cancellation; returns whether it could be. Raises
    `DatabaseError`.
    """
    with database.begin() as connection:
        result = connection.execute(
            update(batches)
            .where(
                batches.c.id == batch_id,
                batches.c.tenant == tenant,
                batches.c.status.in_(CANCELLABLE),
            )
            .values(status=BatchStatus.CANCELLING, cancelling_s=now_s)
        )
    return result.rowcount > 0


# Batches, for their runner


def read_active_batches(database: Database, limit: int) -> list[BatchRow]:
    """Active batches of all tenants, oldest first. Raises `DatabaseError`."""
    query = (
        select(batches)
        .where(batches.c.status.in_(ACTIVE))
        .order_by(batches.c.created_s, batches.c.id)
        .limit(limit)
    )
    with database.begin() as connection:
        return [_from_values(row) for row in connection.execute(query).mappings()]


def save_counts(database: Database, owner: str, counts: Mapping[str, BatchCounts]) -> None:
    """Write the progress of batches. Raises `DatabaseError`, `LeaseLost`."""
    for batch_id, count in counts.items():
        _update(database, owner, batch_id, ACTIVE, asdict(count))


def move_batch(
    database: Database,
    owner: str,
    batch_id: str,
    before: Sequence[BatchStatus],
    status: BatchStatus,
    now_s: float,
    counts: BatchCounts,
) -> bool:
    """Move a batch to another status, if its status is one of `before`; returns whether it was.
    Raises `DatabaseError`, `LeaseLost`.
    """
    values = {"status": status, f"{status.value}_s": now_s, **asdict(counts)}
    return _update(database, owner, batch_id, before, values)


def end_batch(
    database: Database,
    owner: str,
    row: BatchRow,
    status: BatchStatus,
    now_s: float,
    output: FileRow | None,
    errors: FileRow | None,
) -> None:
    """Write a batch's end and its result files in one transaction. Idempotent. Raises
    `DatabaseError`, `LeaseLost`.
    """
    made = [file for file in (output, errors) if file is not None]
    with database.begin() as connection:
        connection.execute(delete(files).where(files.c.id.in_([file.id for file in made])))
        if made:
            connection.execute(
                insert(files), [sanitize_values(files, asdict(file)) for file in made]
            )
        values = {
            "status": status,
            f"{status.value}_s": now_s,
            "output_file_id": output.id if output is not None else None,
            "error_file_id": errors.id if errors is not None else None,
            "errors": _dump(row.errors),
            **asdict(row.counts),
        }
        result = connection.execute(
            update(batches)
            .where(batches.c.id == row.id, _is_owner(owner), batches.c.status.in_(ACTIVE))
            .values(sanitize_values(batches, values))
        )
        if not result.rowcount:
            raise LeaseLost(f"another process has ended {row.id}")


def _update(
    database: Database,
    owner: str,
    batch_id: str,
    before: Sequence[BatchStatus],
    values: dict[str, Any],
) -> bool:
    with database.begin() as connection:
        result = connection.execute(
            update(batches)
            .where(batches.c.id == batch_id, batches.c.status.in_(before), _is_owner(owner))
            .values(sanitize_values(batches, values))
        )
        if result.rowcount:
            return True
        if not connection.execute(select(_is_owner(owner))).scalar():
            raise LeaseLost("another process runs batches now")
    return False


def _is_owner(owner: str) -> Any:
    return select(leases.c.name).where(leases.c.name == LEASE, leases.c.owner == owner).exists()


def _read_page(
    database: Database,
    query: Select[Any],
    table: Table,
    tenant: str,
    after: str | None,
    limit: int,
    newest_first: bool,
) -> tuple[Sequence[Any], bool]:
    order = tuple_(table.c.created_s, table.c.id)
    with database.begin() as connection:
        if after is not None:
            last = connection.execute(
                select(table.c.created_s).where(table.c.id == after, table.c.tenant == tenant)
            ).scalar()
            if last is None:
                raise KeyError(after)
            mark = tuple_(last, after)
            query = query.where(order < mark if newest_first else order > mark)
        columns = (table.c.created_s, table.c.id)
        ordered = query.order_by(*(c.desc() if newest_first else c for c in columns))
        rows = connection.execute(ordered.limit(limit + 1)).mappings().all()
    return rows[:limit], len(rows) > limit


_COUNTS = tuple(BatchCounts.__dataclass_fields__)


def _to_values(row: BatchRow) -> dict[str, Any]:
    values = asdict(row)
    counts = values.pop("counts")
    return {
        **values,
        **counts,
        "metadata": _dump(row.metadata),
        "errors": _dump(row.errors),
    }


def _from_values(values: Mapping[Any, Any]) -> BatchRow:
    rest = {name: value for name, value in values.items() if name not in _COUNTS}
    row = BatchRow(**{**rest, "status": BatchStatus(rest["status"])})
    return replace(
        row,
        metadata=_load(rest["metadata"]),
        errors=_load(rest["errors"]),
        counts=BatchCounts(**{name: values[name] for name in _COUNTS}),
    )


def _dump(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _load(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)
