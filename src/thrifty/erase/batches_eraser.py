"""One person's lines of batches, with their results.

An input names the user of each line. Where it is gone, and where a line names nobody, the request
log tells whose a result is. Results belong to lines by their numbers: ids that clients give may be
missing, or stand on several lines. So erased lines of inputs leave empty ones behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, select, update

from thrifty.batches.storage import Storage
from thrifty.db.batches import ACTIVE
from thrifty.db.tables import batches, files, requests
from thrifty.erase.lines import Keep, blank_lines, decode, read_lines, rewrite_lines
from thrifty.erase.person import Work, in_pieces, shorten_user
from thrifty.openai.fields import read_user
from thrifty.openai.response_ids import read_number


class _Source(NamedTuple):
    """One input, which may be gone, and what was made of it."""

    file_id: str
    results: list[str]
    active: str | None
    """The batch that still reads it."""


class _Lines(NamedTuple):
    """Which lines of an input, and of its results, are the person's."""

    numbers: set[int]
    """Of the input's lines, from 1 on."""
    attempts: set[str]
    """At the person's requests."""


def erase_lines(work: Work) -> int:
    """Take the person's lines out of the files of ended batches, with their results."""
    removed = 0
    attempts = _find_attempts(work)
    for source in _find_sources(work):
        mine = _find_lines(work, source, attempts)
        if mine.numbers and source.active is not None:
            work.left.append(
                f"the batch {source.active} is under way and has lines of this user; run this again "
                "once it has ended, or cancel it"
            )
            continue
        if mine.numbers:
            removed += len(mine.numbers)
            # The input last: it leads to the results, should this be interrupted.
            for result in source.results:
                path = _path(work, result)
                if rewrite_lines(path, _keep_others(work, mine)):
                    _note_size(work, result, path)
            path = _path(work, source.file_id)
            if path.exists():
                blank_lines(path, mine.numbers)
                _note_size(work, source.file_id, path)
        if not _path(work, source.file_id).exists():
            _report_unknown(work, source)
    return removed


def collect_lines(work: Work) -> list[Any]:
    """The person's lines of batches, with their results."""
    found: list[Any] = []
    attempts = _find_attempts(work)
    for source in _find_sources(work):
        mine = _find_lines(work, source, attempts)
        lines = enumerate(read_lines(_path(work, source.file_id)), 1)
        found += [json.loads(line) for number, line in lines if number in mine.numbers]
        for result in source.results:
            lines_of = read_lines(_path(work, result))
            found += [json.loads(line) for line in lines_of if _is_result_of(work, line, mine)]
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


def _find_lines(work: Work, source: _Source, attempts: set[str]) -> _Lines:
    """The person's lines, by the input and by what the request log tells of results."""
    mine = _Lines(set(_find_named(work, _path(work, source.file_id))), attempts)
    for result in source.results:
        for line in read_lines(_path(work, result)):
            answer = _read_answer(line)
            if answer.line is not None and _is_answer_to(work, answer, attempts):
                mine.numbers.add(answer.line)
    return mine


def _find_named(work: Work, path: Path) -> Iterator[int]:
    """The numbers of the lines of an input that name the person."""
    for number, line in enumerate(read_lines(path), 1):
        if _is_request_of(work, line):
            yield number


def _keep_others(work: Work, mine: _Lines) -> Keep:
    return lambda line: not _is_result_of(work, line, mine)


def _is_result_of(work: Work, line: bytes, mine: _Lines) -> bool:
    answer = _read_answer(line)
    return answer.line in mine.numbers or _is_answer_to(work, answer, mine.attempts)


def _is_answer_to(work: Work, answer: _Answer, attempts: set[str]) -> bool:
    """Whether the request log tells that a result is the person's."""
    return answer.number in work.person.responses or answer.attempt in attempts


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


# Results


class _Answer(NamedTuple):
    """What a result tells of where it came from."""

    line: int | None = None
    """The number of its line in the input, which its id ends with."""
    number: int | None = None
    """Of the response."""
    attempt: str | None = None


class _Body(msgspec.Struct):
    id: Any = None


class _Response(msgspec.Struct):
    request_id: Any = None
    body: _Body | None = None


class _Result(msgspec.Struct):
    id: Any = None
    response: _Response | None = None


_MAX_DIGITS = 12
_decode_result = msgspec.json.Decoder(_Result).decode


def _read_answer(line: bytes) -> _Answer:
    try:
        result = _decode_result(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Answer()
    _, _, place = result.id.rpartition("_") if isinstance(result.id, str) else ("", "", "")
    answer = _Answer(int(place) if place.isdecimal() and len(place) < _MAX_DIGITS else None)
    response = result.response
    if response is None:
        return answer
    named = response.body.id if response.body is not None else None
    attempt = response.request_id
    return answer._replace(
        number=read_number(named) if isinstance(named, str) else None,
        attempt=attempt if isinstance(attempt, str) else None,
    )


def _find_attempts(work: Work) -> set[str]:
    """The ids of the attempts at lines of batches that are the person's requests."""
    found = _find_logged(work, requests.c.id, work.person.responses, requests.c.client_request_id)
    return {one for one in found if one is not None}


def _report_unknown(work: Work, source: _Source) -> None:
    """Say which results may be the person's, without an input and a logged request."""
    for result in source.results:
        answers = [_read_answer(line) for line in read_lines(_path(work, result))]
        numbers = {one.number for one in answers if one.number is not None}
        attempts = {one.attempt for one in answers if one.attempt is not None}
        logged = _find_logged(work, requests.c.id, numbers, requests.c.id)
        column = requests.c.client_request_id
        logged |= _find_logged(work, column, attempts, column)
        unknown = sum(logged.isdisjoint((one.number, one.attempt)) for one in answers)
        if unknown:
            work.apart.append(
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


def _note_size(work: Work, file_id: str, path: Path) -> None:
    """Note the new size of a stored file."""
    with work.database.begin() as connection:
        sized = update(files).where(files.c.id == file_id)
        connection.execute(sized.values(size_bytes=path.stat().st_size))
