"""One person's data in files: exported training rows, copies of the request log, what evaluations
and gates keep, and logs of processes.

Files are replaced whole by ones without the lines; logs, which processes have open, are overwritten
in place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import msgspec

from thrifty.artifacts import Store
from thrifty.artifacts.disk import try_lock_file
from thrifty.db.erasures import list_exports
from thrifty.erase.lines import decode, read_lines, rewrite_lines
from thrifty.erase.person import Work
from thrifty.errors import ThriftyError
from thrifty.evaluate.gate_record import withhold_stored
from thrifty.observe.record_files import PARQUET, filter_records, read_records

MIN_NAME = 4
"""Shorter names are not looked for in logs, where they would be parts of other words."""
MASK = b"*"


def erase_exports(work: Work) -> int:
    """Take the person's rows out of exported files, and name models trained on them."""
    removed = 0
    for path in list_exports(work.database):
        try:
            if path.suffix == PARQUET:
                gone = filter_records(path, lambda record: not _is_record_of(work, record))
            else:
                gone = rewrite_lines(path, lambda line: not _is_row_of(work, line))
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
            lines = read_lines(path)
            found += [json.loads(line) for line in lines if _is_row_of(work, line)]
        elif path.exists():
            found += [one for one in read_records(path) if _is_record_of(work, one)]
    return found


def _is_row_of(work: Work, line: bytes) -> bool:
    row = decode(line)
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
    """Remove what evaluations made of users' texts: copies of the request log, predictions and
    vectors of them, and answers to questions. They do not tell whose a text is, and are made anew
    where they are needed.
    """
    home = work.home.evaluations
    removed = 0
    for path in (home / "recorded").glob("*.jsonl"):
        path.unlink(missing_ok=True)
        removed += 1
    exported = set(list_exports(work.database))
    for place in (home / "references").glob("*"):
        if _is_of_users(work, place, exported):
            removed += _remove_kept(
                work, place, place / "lock", *(place / "candidates").glob("*.lock")
            )
    for path in (home / "answers").glob("chat-*.jsonl"):
        removed += _remove_kept(work, path, path.with_suffix(".lock"))
    for place in (*(home / "embeddings").glob("*"), *(home / "searches" / "embeddings").glob("*")):
        removed += _remove_kept(work, place, *place.glob("*.lock"))
    return removed


def _is_of_users(work: Work, reference: Path, exported: Set[Path]) -> bool:
    """Whether a reference's predictions are on what users wrote, or nobody can tell."""
    try:
        text = Path(json.loads((reference / "meta.json").read_bytes())["text"])
        return text in exported or work.home.may_hold_texts(text)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _remove_kept(work: Work, place: Path, *locks: Path) -> int:
    """Remove what an evaluation keeps, unless one is writing it; returns how many are gone."""
    with contextlib.ExitStack() as stack:
        if not all(stack.enter_context(try_lock_file(lock)) for lock in locks):
            work.apart.append(
                f"an evaluation is writing {place}, which may be on the person's texts; erase again "
                "once it has ended"
            )
            return 0
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
            for lock in locks:
                lock.unlink(missing_ok=True)
    return 1


def erase_examples(work: Work) -> int:
    """Take texts of users out of the records of gates, where earlier releases wrote some: they do
    not tell whose they are.
    """
    changed = 0
    for path in work.home.gates.glob("*.json"):
        try:
            changed += withhold_stored(work.home, path)
        except OSError as error:
            work.apart.append(f"{path} cannot be rewritten: {error.strerror or error}")
        except ThriftyError as error:
            work.apart.append(f"{error}; remove it if it may hold texts of users")
    return changed


def erase_in_logs(work: Work) -> int:
    """Overwrite the person's name in the logs of processes."""
    if len(work.person.user) < MIN_NAME:
        return 0
    paths = [*work.home.logs.iterdir()] if work.home.logs.is_dir() else []
    return sum(_mask(work, path) for path in paths if path.is_file())


def _mask(work: Work, path: Path) -> int:
    """Overwrite the person's name in a file that a process may be writing; returns how often."""
    count, position = 0, 0
    try:
        with path.open("r+b") as file:
            for line in iter(file.readline, b""):
                for needle in work.needles:
                    found = line.find(needle)
                    while found >= 0:
                        os.pwrite(file.fileno(), MASK * len(needle), position + found)
                        count += 1
                        found = line.find(needle, found + len(needle))
                position += len(line)
    except OSError as error:
        work.apart.append(f"{path} cannot be rewritten: {error.strerror or error}")
    return count
