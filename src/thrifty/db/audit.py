"""The audit log: every administrative act, in a chain that shows when it was tampered with.

An entry's hash is the SHA-256 of the hash before it and of the entry as canonical JSON (RFC 8785),
so that a changed, removed or inserted entry breaks the chain. The head (the number of entries and
the last hash) is signed with a secret of the service, so that entries missing at the end show.
Whoever can write the database and read its secrets can forge both; a head that was kept elsewhere
(`thrifty audit head`) shows that, too.

Entries are written in the transaction of the act itself: there is no act without an entry. They hold
pseudonyms in place of names of persons, keys and tenants, and hashes in place of contents. The
history of changes (`desired_changes`) holds the states themselves and the reasons.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from thrifty.db.database import Database
from thrifty.db.secrets import read_secret_in
from thrifty.db.subjects import SECRET as SUBJECTS_SECRET
from thrifty.db.subjects import Subjects
from thrifty.db.tables import audit, audit_head

SECRET = "audit"  # noqa: S105
FIRST_HASH = "0" * 64
UNKNOWN = "unknown"
"""The actor where nobody was named."""


@dataclass(frozen=True)
class AuditEntry:
    """One act. `actor` is a pseudonym; `details` is canonical JSON."""

    id: int
    at_ms: int
    act: str
    actor: str
    details: str
    hash: str


@dataclass(frozen=True)
class Head:
    """How many entries there are, and the hash of the last one."""

    count: int
    hash: str

    def __str__(self) -> str:
        return f"{self.count}:{self.hash}"


@dataclass(frozen=True)
class Verdict:
    """Whether the chain is whole; `fault` says what is wrong with it."""

    head: Head
    fault: str | None = None


def record_act(
    connection: Connection,
    act: str,
    who: str,
    *,
    names: Mapping[str, str | None] | None = None,
    **details: str | int | None,
) -> None:
    """Append an act to the log, in the transaction of `connection`.

    `names` are names of persons, keys or tenants, which become pseudonyms; `details` are kept as
    they are. Acts that are written at once wait for each other.
    """
    secret = read_secret_in(connection, SECRET)
    subjects = Subjects(read_secret_in(connection, SUBJECTS_SECRET))
    kept: dict[str, Any] = {k: v for k, v in details.items() if v is not None}
    kept |= {k: subjects.name(None, v) for k, v in (names or {}).items() if v is not None}
    _take_next(connection)
    row = connection.execute(select(audit_head).where(audit_head.c.id == 1)).one()
    entry = {
        "id": row.entries,
        "at_ms": int(time.time() * 1000),
        "act": act,
        "actor": subjects.name(None, who) if who else UNKNOWN,
        "details": canonical_json(kept),
    }
    digest = _hash_entry(row.hash, entry)
    connection.execute(insert(audit).values(**entry, hash=digest))
    signature = _sign(secret, Head(row.entries, digest))
    connection.execute(
        update(audit_head).where(audit_head.c.id == 1).values(hash=digest, signature=signature)
    )


def _take_next(connection: Connection) -> None:
    """Count one more entry; from then on no other transaction can, until this one ends."""
    kind = sqlite if connection.dialect.name == "sqlite" else postgresql
    first = {"id": 1, "entries": 1, "hash": FIRST_HASH, "signature": ""}
    statement = kind.insert(audit_head).values(first)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["id"], set_={"entries": audit_head.c.entries + 1}
        )
    )


def canonical_json(value: Mapping[str, Any]) -> str:
    """JSON by RFC 8785, for objects of texts, whole numbers and null under ASCII names."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _hash_entry(before: str, entry: Mapping[str, Any]) -> str:
    text = before + canonical_json(entry)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _sign(secret: bytes, head: Head) -> str:
    return hmac.new(secret, f"audit-head {head}".encode(), hashlib.sha256).hexdigest()


def list_acts(database: Database, limit: int, who: str | None = None) -> list[AuditEntry]:
    """The newest acts, of all or of one actor by name, the newest first. Raises
    `DatabaseError`.
    """
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    with database.begin() as connection:
        if who is not None:
            subjects = Subjects(read_secret_in(connection, SUBJECTS_SECRET))
            query = query.where(audit.c.actor == subjects.name(None, who))
        return [AuditEntry(**row) for row in connection.execute(query).mappings()]


def verify_audit(database: Database, kept: Head | None = None) -> Verdict:
    """Read the whole chain. `kept` is a head from an earlier time that the chain must contain.
    Raises `DatabaseError`.
    """
    with database.begin() as connection:
        secret = read_secret_in(connection, SECRET)
        # Before the head, which never counts less than there is.
        newest = connection.execute(select(func.max(audit.c.id))).scalar() or 0
        row = connection.execute(select(audit_head)).first()
        head = Head(0, FIRST_HASH) if row is None else Head(row.entries, row.hash)
        streamed = select(audit).where(audit.c.id <= head.count).order_by(audit.c.id)
        with connection.execute(streamed.execution_options(yield_per=1000)) as result:
            fault = _find_fault((AuditEntry(**one) for one in result.mappings()), head, kept)
    if row is None and newest:
        fault = "there are entries and no head"
    elif newest > head.count:
        fault = f"there are entries behind the head, which counts {head.count}"
    elif fault is None and row is not None and row.signature != _sign(secret, head):
        fault = "the signature of the head is wrong: the head was changed by hand"
    return Verdict(head, fault)


def _find_fault(entries: Iterator[AuditEntry], head: Head, kept: Head | None) -> str | None:
    last, count = FIRST_HASH, 0
    seen_kept = kept is None or (kept.count == 0 and kept.hash == FIRST_HASH)
    for entry in entries:
        count += 1
        if entry.id != count:
            return f"entry {count} is missing"
        values = {name: getattr(entry, name) for name in ("id", "at_ms", "act", "actor", "details")}
        last = _hash_entry(last, values)
        if last != entry.hash:
            return f"entry {count} was changed, or one before it"
        if kept is not None and count == kept.count:
            if last != kept.hash:
                return f"entry {count} is not the one of the head that was kept: it was rewritten"
            seen_kept = True
    if count != head.count:
        return f"entries are missing at the end: the head counts {head.count}, there are {count}"
    if last != head.hash:
        return "the last entry is not the one of the head"
    if not seen_kept and kept is not None:
        return (
            f"entries are missing at the end: the kept head counts {kept.count}, there are {count}"
        )
    return None


def parse_head(text: str) -> Head:
    """A head as `thrifty audit head` prints it. Raises `ValueError`."""
    count, colon, digest = text.strip().partition(":")
    if not colon or not count.isdecimal() or len(digest) != 64:
        raise ValueError(f"{text[:100]!r} is not a head; it looks like 12:HASH, with 64 hex digits")
    return Head(int(count), digest)
