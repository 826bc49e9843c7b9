"""One person's data in files: lines of batches, exported training rows, copies of the request log,
and logs of processes.

Files are replaced whole by ones without the lines; logs, which processes have open, are overwritten
in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select, update

from thrifty.artifacts import Store
from thrifty.batches.storage import Storage
from thrifty.db.batches import ACTIVE
from thrifty.db.erasures import list_exports
from thrifty.db.tables import batches, files
from thrifty.erase.person import Work
from thrifty.errors import ThriftyError
from thrifty.files import replace_atomically
from thrifty.observe.record_files import PARQUET, filter_records, read_records
from thrifty.openai.fields import read_user

MIN_NAME = 4
"""Shorter names are not looked for in logs, where they would be parts of other words."""
MASK = b"*"
Keep = Callable[[bytes], bool]


def erase_lines(work: Work) -> int:
    """Take the person's lines out of the files of ended batches, with their results."""
    removed = 0
    for file_id, results, active in _find_batch_files(work):
        path = _path(work, file_id)
        ids = _find_custom_ids(work, path)
        if not ids:
            continue
        if active:
            work.left.append(
                f"the batch {active} is under way and has lines of this user; run this again once "
                "it has ended, or cancel it"
            )
            continue
        removed += _rewrite_file(work, file_id, lambda line: not _is_of(work, line))
        for result in results:
            _rewrite_file(work, result, _keep_others(ids))
    return removed


def _keep_others(ids: set[Any]) -> Keep:
    return lambda line: _read_custom_id(line) not in ids


def collect_lines(work: Work) -> list[Any]:
    """The person's lines of batches, with their results."""
    found: list[Any] = []
    for file_id, results, _ in _find_batch_files(work):
        path = _path(work, file_id)
        ids = _find_custom_ids(work, path)
        if not ids:
            continue
        found += [json.loads(line) for line in _read_lines(path) if _is_of(work, line)]
        for result in results:
            lines = _read_lines(_path(work, result))
            found += [json.loads(line) for line in lines if _read_custom_id(line) in ids]
    return found


def _find_batch_files(work: Work) -> list[tuple[str, list[str], str | None]]:
    """Each uploaded file of the person's tenants, the results made from it, and the batch that
    still reads it.
    """
    tenants = work.person.tenants
    with work.database.begin() as connection:
        known = set(
            connection.execute(select(files.c.id).where(files.c.tenant.in_(tenants))).scalars()
        )
        rows = connection.execute(select(batches).where(batches.c.tenant.in_(tenants))).all()
    results: dict[str, list[str]] = {}
    active: dict[str, str] = {}
    made: set[str] = set()
    for row in rows:
        own = [one for one in (row.output_file_id, row.error_file_id) if one is not None]
        made.update(own)
        results.setdefault(row.input_file_id, []).extend(own)
        if row.status in ACTIVE:
            active[row.input_file_id] = row.id
    return [(one, results.get(one, []), active.get(one)) for one in sorted(known - made)]


def _find_custom_ids(work: Work, path: Path) -> set[Any]:
    return {_read_custom_id(line) for line in _read_lines(path) if _is_of(work, line)}


def _is_of(work: Work, line: bytes) -> bool:
    """Whether a line of a batch is a request by the person."""
    # Decoding is slow; a name with escapes is decoded in any case.
    if b"\\u" not in line and not any(needle in line for needle in work.needles):
        return False
    value = _decode(line)
    body = value.get("body") if isinstance(value, dict) else None
    return isinstance(body, dict) and work.person.user in (
        read_user(body), body.get("user"), body.get("safety_identifier"),
    )  # fmt: skip


def _read_custom_id(line: bytes) -> Any:
    value = _decode(line)
    found = value.get("custom_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _decode(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _path(work: Work, file_id: str) -> Path:
    return Storage(work.home.files).path(file_id)


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return


def _rewrite_file(work: Work, file_id: str, keep: Keep) -> int:
    """Keep some lines of a stored file, and note its new size; returns how many are gone."""
    path = _path(work, file_id)
    if not path.exists():
        return 0
    removed = _rewrite(path, keep)
    if removed:
        with work.database.begin() as connection:
            sized = update(files).where(files.c.id == file_id)
            connection.execute(sized.values(size_bytes=path.stat().st_size))
    return removed


def _rewrite(path: Path, keep: Keep) -> int:
    """Keep the lines for which `keep` is true; returns how many are gone."""
    removed = 0
    lines = [line for line in _read_lines(path) if not keep(line)]
    if not lines:
        return 0
    with replace_atomically(path, mode=0o600) as temporary, temporary.open("wb") as target:
        for line in _read_lines(path):
            if keep(line):
                target.write(line)
            else:
                removed += 1
    return removed


def erase_exports(work: Work) -> int:
    """Take the person's rows out of exported files, and name models trained on them."""
    removed = 0
    for path in list_exports(work.database):
        try:
            if path.suffix == PARQUET:
                gone = filter_records(path, lambda record: not _is_record_of(work, record))
            else:
                gone = _rewrite(path, lambda line: not _is_row_of(work, line))
        except OSError as error:
            work.left.append(f"{path} cannot be rewritten: {error.strerror or error}")
            continue
        except ThriftyError as error:
            work.left.append(f"{path} cannot be rewritten: {error}")
            continue
        if gone:
            removed += gone
            work.notes += _find_models(work, path)
    return removed


def collect_exports(work: Work) -> list[Any]:
    """The person's rows of exported files."""
    found: list[Any] = []
    for path in list_exports(work.database):
        if path.suffix != PARQUET:
            lines = _read_lines(path)
            found += [json.loads(line) for line in lines if _is_row_of(work, line)]
        elif path.exists():
            found += [one for one in read_records(path) if _is_record_of(work, one)]
    return found


def _is_row_of(work: Work, line: bytes) -> bool:
    row = _decode(line)
    if not isinstance(row, dict):
        return False
    return _is_record_of(work, row) if "end_user" in row else is_row_of(work, row)


def is_row_of(work: Work, row: Mapping[str, Any]) -> bool:
    """Whether a training row came from the person, by its provenance."""
    given = row.get("provenance")
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, dict) and (
            one.get("response") in work.person.responses
            or not work.person.responses.isdisjoint(one.get("responses") or ())
            or work.person.pseudonyms & set(one.get("subjects") or ())
        ):
            return True
    return False


def _is_record_of(work: Work, record: dict[str, Any]) -> bool:
    """Whether a row of the request log or a piece of feedback is the person's, or about them."""
    person = work.person
    if record["end_user"] == person.user:
        return (record.get("tenant") or "") in person.tenants
    number = record["response"] if "response" in record else record.get("id")
    nameless = record["end_user"] is None
    return number in person.responses or (
        nameless and record.get("conversation_id") in person.conversations
    )


def _find_models(work: Work, path: Path) -> list[str]:
    """The stored models whose recipe names a file."""
    names = find_models(work, lambda recipe: str(path) in recipe or path.name in recipe)
    return [f"the model {label} was trained on rows of {path}" for label in names]


def find_models(work: Work, is_named_in: Callable[[str], bool]) -> list[str]:
    """The labels of stored models by whose lineages, as JSON, a thing is named."""
    found = []
    for version in Store(work.home.models).versions():
        recipe = msgspec.json.encode(msgspec.to_builtins(version.lineage)).decode()
        if is_named_in(recipe):
            found.append(version.label)
    return found


def erase_recorded(work: Work) -> int:
    """Remove the copies of the request log that evaluations made: they do not tell whose a
    conversation is, and are made anew where they are needed.
    """
    folder = work.home.evaluations / "recorded"
    paths = [*folder.glob("*.jsonl")] if folder.is_dir() else []
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def erase_in_logs(work: Work) -> int:
    """Overwrite the person's name in the logs of processes."""
    if len(work.person.user) < MIN_NAME:
        return 0
    paths = [*work.home.logs.iterdir()] if work.home.logs.is_dir() else []
    return sum(_mask(path, needle) for path in paths if path.is_file() for needle in work.needles)


def _mask(path: Path, needle: bytes) -> int:
    """Overwrite a text in a file that a process may be writing; returns how often."""
    count, position = 0, 0
    try:
        with path.open("r+b") as file:
            for line in iter(file.readline, b""):
                found = line.find(needle)
                while found >= 0:
                    os.pwrite(file.fileno(), MASK * len(needle), position + found)
                    count += 1
                    found = line.find(needle, found + len(needle))
                position += len(line)
    except OSError as error:
        raise ThriftyError(f"{path} cannot be rewritten: {error.strerror or error}") from None
    return count
