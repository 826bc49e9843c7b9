"""Who is signed in to the console through an identity provider.

A person who signs in is a key that nobody holds: a row with the SHA-256 of random bytes, a role and a
tenant. The cookie of the console stands for it as it stands for an API key (`http.sessions`), so that
every check of a key holds for persons, too. Rows end by themselves.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from thrifty.db.audit import record_act
from thrifty.db.changes import note_change
from thrifty.db.database import Database
from thrifty.db.keys import Key, hash_key
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import sign_ins
from thrifty.types import Role

NAME_PREFIX = "oidc:"
"""Begins the names of persons, and of no key."""
MAX_SIGN_INS = 10_000
"""How many people may be signed in at once; the oldest go first."""


@dataclass(frozen=True)
class Person:
    """Who signs in. `id` (16 hex digits) is the same each time; `rules` name those of the spec by
    which the role was given.
    """

    id: str
    name: str
    role: Role
    tenant: str
    rules: str


@dataclass(frozen=True)
class SignIn:
    """A person who is signed in."""

    key: Key
    rules: str
    until_s: float


def add_sign_in(database: Database, person: Person, ttl_s: float) -> str:
    """Sign a person in for `ttl_s`; returns the hash that a cookie is made for. Raises
    `DatabaseError`.
    """
    digest, now_s = hash_key(secrets.token_bytes(32)), time.time()
    row = {
        "hash": digest, "person": person.id, "name": person.name, "role": person.role.value,
        "tenant": person.tenant, "rules": person.rules, "at_s": now_s, "until_s": now_s + ttl_s,
    }  # fmt: skip
    with database.begin() as connection:
        note_change(connection)
        connection.execute(delete(sign_ins).where(sign_ins.c.until_s <= now_s))
        beyond = select(sign_ins.c.hash).order_by(sign_ins.c.at_s.desc()).offset(MAX_SIGN_INS - 1)
        doomed = list(connection.execute(beyond.limit(100)).scalars())
        if doomed:
            connection.execute(delete(sign_ins).where(sign_ins.c.hash.in_(doomed)))
        connection.execute(insert(sign_ins).values(sanitize_values(sign_ins, row)))
        record_act(connection, "console.sign_in", person.name, role=person.role.value)
    return digest


def end_sign_in(database: Database, digest: str) -> bool:
    """Sign out; returns whether there was anybody. Raises `DatabaseError`."""
    with database.begin() as connection:
        note_change(connection)
        return _end(connection, sign_ins.c.hash == digest) > 0


def end_sign_ins(database: Database, name: str | None, who: str) -> int:
    """Sign out everybody of a name, or everybody (None); returns how many. `who` does it, for the
    audit log. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        note_change(connection)
        count = _end(connection, sign_ins.c.name == name if name is not None else None)
        record_act(connection, "console.sign_out", who, names={"person": name}, count=count)
    return count


def list_sign_ins(database: Database) -> list[SignIn]:
    """Who is signed in, the newest last. Raises `DatabaseError`."""
    with database.begin() as connection:
        return read_sign_ins(connection)


def read_sign_ins(connection: Connection) -> list[SignIn]:
    """As `list_sign_ins`, in the caller's transaction."""
    query = select(sign_ins).where(sign_ins.c.until_s > time.time()).order_by(sign_ins.c.at_s)
    return [_read(row) for row in connection.execute(query).mappings()]


def _end(connection: Connection, chosen: Any) -> int:
    statement = delete(sign_ins)
    return connection.execute(statement if chosen is None else statement.where(chosen)).rowcount


def _read(row: Mapping[Any, Any]) -> SignIn:
    key = Key(
        id=row["person"], name=row["name"], role=Role(row["role"]), tenant=row["tenant"],
        hash=row["hash"], hint="", created_s=row["at_s"], revoked_s=None,
    )  # fmt: skip
    return SignIn(key, row["rules"], row["until_s"])
