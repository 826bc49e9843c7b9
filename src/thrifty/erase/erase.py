"""Erases one person: the note first, so that nothing comes after it, then every store, then the
traces that a database leaves of deleted rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from thrifty.db import Database
from thrifty.db.erasures import finish_erasure, note_erasure, note_subject_export
from thrifty.db.subjects import open_subjects
from thrifty.erase.person import Person, Work, find_person
from thrifty.erase.stores import ERASERS, REQUESTS
from thrifty.errors import ThriftyError
from thrifty.home import Home
from thrifty.openai.response_ids import EPOCH_S

REWRITE_S = 30.0
"""How long writers and readers of the database may be in the way."""
OnStep = Callable[[str], None]


@dataclass
class Erasure:
    """What was erased, by store; what could not be, and what should be known."""

    counts: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def count_person(database: Database, user: str, tenant: str | None) -> Person:
    """What the database knows to be a person's, for a question before the deed."""
    return find_person(database, open_subjects(database), user, tenant)


def erase_person(
    database: Database,
    home: Home,
    user: str,
    tenant: str | None = None,
    on_step: OnStep = lambda step: None,
    *,
    who: str = "",
) -> Erasure:
    """Erase a person's data up to now, in one tenant or (None) in all. It may be done again, after
    a crash too. `on_step` is told the name of each step; `who` does it, for the audit log. Raises `ThriftyError`.
    """
    person = count_person(database, user, tenant)
    until_response = int((time.time() - EPOCH_S) * 1000) << 22
    ids = note_erasure(database, sorted(person.pseudonyms), until_response, who=who)
    # What was written since the first look.
    work = Work(database, home, count_person(database, user, tenant), tenant, who)
    erasure = Erasure(left=work.left, notes=work.notes)
    for eraser in ERASERS:
        if eraser is REQUESTS and work.left:
            # The next erasure finds by them what is left now.
            erasure.counts[eraser.name] = 0
            if work.person.responses:
                work.left.append(
                    f"{len(work.person.responses)} rows of the request log, whose texts are gone: what "
                    "is left above is found by them; erase again once it can be erased"
                )
            continue
        on_step(eraser.name)
        erasure.counts[eraser.name] = eraser.erase(work)
    work.left += work.apart
    if database.is_sqlite:
        on_step("rewriting the database")
        _rewrite(database, work)
    finish_erasure(database, ids, json.dumps(asdict(erasure)))
    return erasure


def collect_person(
    database: Database, home: Home, user: str, tenant: str | None = None, *, who: str = ""
) -> dict[str, list[Any]]:
    """All data of a person, by store. `who` asks, for the audit log. Raises `ThriftyError`."""
    work = Work(database, home, count_person(database, user, tenant), tenant)
    note_subject_export(database, sorted(work.person.pseudonyms), who=who)
    return {eraser.name: eraser.collect(work) for eraser in ERASERS}


def _rewrite(database: Database, work: Work) -> None:
    """Write the SQLite file anew without what was deleted, and empty its write-ahead log.

    `secure_delete` overwrites deleted rows where they stand, but not copies that earlier releases,
    or a page that was rebuilt, left behind. Writers wait meanwhile, as for any other transaction.
    """
    deadline_s = time.monotonic() + REWRITE_S
    while True:
        try:
            with database.engine.connect() as plain:
                connection = plain.execution_options(isolation_level="AUTOCOMMIT")
                connection.execute(text("VACUUM"))
                busy = connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0]
        except OperationalError as error:
            reason = str(error.orig)
        else:
            if not busy:
                return
            reason = "something reads it"
        if time.monotonic() > deadline_s:
            work.left.append(
                f"the database's files may still hold deleted bytes ({reason}); run this again"
            )
            return
        time.sleep(0.2)


def require_user(user: str) -> str:
    """A user's name that can be erased."""
    if not user.strip():
        raise ThriftyError("name the user, as requests name it in their field 'user'")
    return user
