"""Who is meant by an end user's name, and which responses and conversations are that person's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from thrifty.db import Database
from thrifty.db.subjects import Subjects
from thrifty.db.tables import feedback, files, keys, requests, tenant_rollups
from thrifty.home import Home
from thrifty.openai.fields import MAX_USER
from thrifty.untrusted_text import sanitize_text

PIECE = 500


@dataclass(frozen=True)
class Person:
    """An end user with what the database knows to be theirs."""

    name: str
    """As it was given."""
    user: str
    """As the request log has it, which keeps no more than `MAX_USER` characters."""
    tenants: frozenset[str]
    """Where the user may have data, which may still wait in a gateway; without a key it is the
    empty tenant.
    """
    pseudonyms: frozenset[str]
    """In each of these tenants."""
    asked: frozenset[int]
    """The responses to requests that name the user."""
    responses: frozenset[int]
    """These, and those to requests that name nobody in the user's conversations."""
    conversations: frozenset[str]


@dataclass
class Work:
    """What an eraser works on. `left` collects what cannot be erased now, and what to do then."""

    database: Database
    home: Home
    person: Person
    tenant: str | None = None
    """The one that is meant; None for all."""
    who: str = ""
    """Who does it, for the audit log."""
    left: list[str] = field(default_factory=list)
    """What the next erasure has to do, for which it needs the request log."""
    apart: list[str] = field(default_factory=list)
    """What is left, too, and is found without the request log, or not by an erasure at all."""
    notes: list[str] = field(default_factory=list)
    """What should be known beside the counts, such as models that were trained on the data."""

    @property
    def needles(self) -> tuple[bytes, ...]:
        """The user's name as it stands in JSON, with and without escapes."""
        found: set[bytes] = set()
        for name in (self.person.name, self.person.user):
            found.add(name.encode("utf-8", "surrogatepass"))
            found.add(msgspec.json.encode(name.encode("utf-8", "replace").decode())[1:-1])
        # The longest first: the shorter ones may be parts of it.
        return tuple(sorted(found, key=len, reverse=True))


def find_person(database: Database, subjects: Subjects, name: str, tenant: str | None) -> Person:
    """Look a user up, in one tenant or (None) in all. Raises `DatabaseError`."""
    user = shorten_user(name)
    asked = select(requests.c.id, requests.c.tenant, requests.c.conversation_id)
    asked = asked.where(requests.c.end_user == user)
    said = select(feedback.c.tenant).where(feedback.c.end_user == user)
    uploaded, holders = select(files.c.tenant), select(keys.c.tenant)
    served = select(tenant_rollups.c.tenant)
    if tenant is not None:
        own = requests.c.tenant.is_(None) if tenant == "" else requests.c.tenant == tenant
        asked = asked.where(own)
        said = said.where(feedback.c.tenant == tenant)
        uploaded = uploaded.where(files.c.tenant == tenant)
        holders = holders.where(keys.c.tenant == tenant)
        served = served.where(tenant_rollups.c.tenant == tenant)
    responses, conversations = set(), set()
    tenants = {""} if tenant is None else {tenant}
    with database.begin() as connection:
        for row in connection.execute(asked):
            responses.add(row.id)
            tenants.add(row.tenant or "")
            if row.conversation_id is not None:
                conversations.add(row.conversation_id)
        for query in (said, uploaded, holders, served):
            tenants.update(connection.execute(query.distinct()).scalars())
        nameless = _find_nameless(connection, conversations)
    return Person(
        name,
        user,
        frozenset(tenants),
        # Rows that came from files of others name their users in full.
        frozenset(subjects.name(one, known) for one in tenants for known in (name, user)),
        frozenset(responses),
        frozenset(responses | nameless),
        frozenset(conversations),
    )


def _find_nameless(connection: Connection, conversations: Iterable[str]) -> set[int]:
    """The responses to requests that name nobody in these conversations."""
    found: set[int] = set()
    for some in in_pieces(conversations):
        query = select(requests.c.id).where(
            requests.c.conversation_id.in_(some), requests.c.end_user.is_(None)
        )
        found.update(connection.execute(query).scalars())
    return found


def shorten_user(name: str) -> str:
    """The name of an end user as the request log has it."""
    return sanitize_text(name, MAX_USER)


def in_pieces(values: Iterable[Any]) -> Iterator[Sequence[Any]]:
    """Values in their order, as many at a time as one statement takes."""
    ordered = sorted(values)
    for start in range(0, len(ordered), PIECE):
        yield ordered[start : start + PIECE]
