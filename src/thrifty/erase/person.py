"""Who is meant by an end user's name, and which responses and conversations are that person's."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from sqlalchemy import select

from thrifty.db import Database
from thrifty.db.subjects import Subjects
from thrifty.db.tables import feedback, files, keys, requests
from thrifty.home import Home


@dataclass(frozen=True)
class Person:
    """An end user with what the database knows to be theirs."""

    user: str
    """As in the field `user` of requests."""
    tenants: frozenset[str]
    """Where the user may have data, which may still wait in a gateway; without a key it is the
    empty tenant.
    """
    known_in: frozenset[str]
    """The tenants in which the user has asked or said something."""
    pseudonyms: frozenset[str]
    """In each of these tenants."""
    responses: frozenset[int]
    conversations: frozenset[str]


@dataclass
class Work:
    """What an eraser works on. `left` collects what cannot be erased now, and what to do then."""

    database: Database
    home: Home
    person: Person
    who: str = ""
    """Who does it, for the audit log."""
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What should be known beside the counts, such as models that were trained on the data."""

    @property
    def needles(self) -> tuple[bytes, ...]:
        """The user's name as it stands in JSON, with and without escapes."""
        encoded = self.person.user.encode("utf-8", "surrogatepass")
        in_json = msgspec.json.encode(self.person.user.encode("utf-8", "replace").decode())[1:-1]
        return tuple({encoded, in_json})


def find_person(database: Database, subjects: Subjects, user: str, tenant: str | None) -> Person:
    """Look a user up, in one tenant or (None) in all. Raises `DatabaseError`."""
    asked = select(requests.c.id, requests.c.tenant, requests.c.conversation_id)
    asked = asked.where(requests.c.end_user == user)
    said = select(feedback.c.tenant).where(feedback.c.end_user == user)
    uploaded, holders = select(files.c.tenant), select(keys.c.tenant)
    if tenant is not None:
        own = requests.c.tenant.is_(None) if tenant == "" else requests.c.tenant == tenant
        asked = asked.where(own)
        said = said.where(feedback.c.tenant == tenant)
        uploaded = uploaded.where(files.c.tenant == tenant)
        holders = holders.where(keys.c.tenant == tenant)
    responses, conversations = set(), set()
    known_in: set[str] = set()
    tenants = {""} if tenant is None else {tenant}
    with database.begin() as connection:
        for row in connection.execute(asked):
            responses.add(row.id)
            known_in.add(row.tenant or "")
            if row.conversation_id is not None:
                conversations.add(row.conversation_id)
        known_in.update(connection.execute(said.distinct()).scalars())
        for query in (uploaded, holders):
            tenants.update(connection.execute(query.distinct()).scalars())
    tenants |= known_in
    return Person(
        user,
        frozenset(tenants),
        frozenset(known_in),
        frozenset(subjects.name(one, user) for one in tenants),
        frozenset(responses),
        frozenset(conversations),
    )
