"""One person's lines of batches, with their results.

An input names the user of each line. Where it is gone, and where a line names nobody, the request
log tells whose a result is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, select, update

from thrifty.batches.storage import Storage
from thrifty.db.batches import ACTIVE
from thrifty.db.tables import batches, files, requests
from thrifty.erase.lines import Keep, decode, read_lines, rewrite_lines
from thrifty.erase.person import Work, in_pieces, shorten_user
from thrifty.openai.fields import read_user
from thrifty.openai.response_ids import read_number


class _Source(NamedTuple):
    """One input, which may be gone, and what was made of it."""

    file_id: str
    results: list[str]
    active: str | None
    """The batch that still reads it."""


def erase_lines(work: Work) -> int:
    """Take the person's lines out of the files of ended batches, with their results."""
    removed = 0
    attempts = _find_attempts(work)
    for source in _find_sources(work):
        custom_ids = _find_custom_ids(work, source, attempts)
        if custom_ids and source.active is not None:
            work.left.append(
                f"the batch {source.active} is under way and has lines of this user; run this again "
                "once it has ended, or cancel it"
            )
            continue
        if custom_ids:
            removed += len(custom_ids)
            for file_id in (source.file_id, *source.results):
                _rewrite(work, file_id, _keep_others(work, custom_ids))
        if not _path(work, source.file_id).exists():
            _report_unknown(work, source)
    return removed


def collect_lines(work: Work) -> list[Any]:
    """The person's lines of batches, with their results."""
    found: list[Any] = []
    attempts = _find_attempts(work)
    for source in _find_sources(work):
        custom_ids = _find_custom_ids(work, source, attempts)
        for file_id in (source.file_id, *source.results) if custom_ids else ():
            lines = read_lines(_path(work, file_id))
            found += [json.loads(line) for line in lines if _is_mine(work, line, custom_ids)]
    return found


def _find_sources(work: Work) -> list[_Source]:
    """The inputs of the person's tenants, and files that no batch has read yet."""
    tenants = work.person.tenants
    with work.database.begin() as connection:
        known = set(
            connection.execute(select(files.c.id).where(files.c.tenant.in_(tenants))).scalars()
        )
        rows = connection.execute(select(batches).where(batches.c.tenant.in_(tenants))).all()
    results: dict[str, list[str]] = {}
    active: dict[str, str] = {}
    for row in rows:
        made = [one for one in (row.output_file_id, row.error_file_id) if one is not None]
        results.setdefault(row.input_file_id, []).extend(made)
        if row.status in ACTIVE:
            active[row.input_file_id] = row.id
    inputs = (known | results.keys()).difference(*results.values())
    return [_Source(one, results.get(one, []), active.get(one)) for one in sorted(inputs)]


def _find_custom_ids(work: Work, source: _Source, attempts: set[str]) -> set[Any]:
    """The ids of the person's lines."""
    lines = read_lines(_path(work, source.file_id))
    found = {_read_custom_id(line) for line in lines if _is_request_of(work, line)}
    for result in source.results:
        for line in read_lines(_path(work, result)):
            number, attempt = _read_answer(line)
            if number in work.person.responses or attempt in attempts:
                found.add(_read_custom_id(line))
    return found


def _keep_others(work: Work, custom_ids: set[Any]) -> Keep:
    return lambda line: not _is_mine(work, line, custom_ids)


def _is_mine(work: Work, line: bytes, custom_ids: set[Any]) -> bool:
    return _is_request_of(work, line) or _read_custom_id(line) in custom_ids


def _is_request_of(work: Work, line: bytes) -> bool:
    """Whether a line of a batch is a request by the person."""
    # Decoding is slow; a name with escapes is decoded in any case.
    if b"\\u" not in line and not any(needle in line for needle in work.needles):
        return False
    value = decode(line)
    body = value.get("body") if isinstance(value, dict) else None
    if not isinstance(body, dict):
        return False
    named = (read_user(body), body.get("user"), body.get("safety_identifier"))
    return any(isinstance(one, str) and shorten_user(one) == work.person.user for one in named)


def _read_custom_id(line: bytes) -> Any:
    value = decode(line)
    found = value.get("custom_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


# Results without an input


class _Body(msgspec.Struct):
    id: Any = None


class _Response(msgspec.Struct):
    request_id: Any = None
    body: _Body | None = None


class _Result(msgspec.Struct):
    response: _Response | None = None


_decode_result = msgspec.json.Decoder(_Result).decode


def _read_answer(line: bytes) -> tuple[int | None, str | None]:
    """The number of the response in a result, and the id of the attempt that it came from."""
    try:
        response = _decode_result(line).response
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, None
    if response is None:
        return None, None
    named = response.body.id if response.body is not None else None
    attempt = response.request_id
    return (
        read_number(named) if isinstance(named, str) else None,
        attempt if isinstance(attempt, str) else None,
    )


def _find_attempts(work: Work) -> set[str]:
    """The ids of the attempts at lines of batches that are the person's requests."""
    found = _find_logged(work, requests.c.id, work.person.responses, requests.c.client_request_id)
    return {one for one in found if one is not None}


def _report_unknown(work: Work, source: _Source) -> None:
    """Say which results may be the person's, without an input and a logged request."""
    for result in source.results:
        answers = [_read_answer(line) for line in read_lines(_path(work, result))]
        numbers = {number for number, _ in answers if number is not None}
        attempts = {attempt for _, attempt in answers if attempt is not None}
        logged = _find_logged(work, requests.c.id, numbers, requests.c.id)
        column = requests.c.client_request_id
        logged |= _find_logged(work, column, attempts, column)
        unknown = sum(logged.isdisjoint(answer) for answer in answers)
        if unknown:
            work.left.append(
                f"{result} has {unknown} results of which neither an input nor the request log tells "
                f"whose they are; if they may be this user's, delete it (DELETE /v1/files/{result})"
            )


def _find_logged(
    work: Work, column: ColumnElement[Any], values: Any, wanted: ColumnElement[Any]
) -> set[Any]:
    """A column of the logged requests that have one of these values in another."""
    found: set[Any] = set()
    for some in in_pieces(values):
        with work.database.begin() as connection:
            found.update(connection.execute(select(wanted).where(column.in_(some))).scalars())
    return found


def _path(work: Work, file_id: str) -> Path:
    return Storage(work.home.files).path(file_id)


def _rewrite(work: Work, file_id: str, keep: Keep) -> None:
    """Keep some lines of a stored file, and note its new size."""
    path = _path(work, file_id)
    if rewrite_lines(path, keep):
        with work.database.begin() as connection:
            sized = update(files).where(files.c.id == file_id)
            connection.execute(sized.values(size_bytes=path.stat().st_size))
