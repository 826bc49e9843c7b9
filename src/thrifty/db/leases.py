"""Leases: what one process at a time may do, told by a row that it keeps fresh.

Times are the database's own, so that hosts need not agree on theirs.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from thrifty.db.database import Database
from thrifty.db.tables import leases


def take_lease(database: Database, name: str, owner: str, ttl_s: float, *, force: bool) -> bool:
    """Take or renew a lease for `ttl_s`; returns whether it is `owner`'s now.

    Another's is taken over once it has run out, or at once with `force`, for callers who know that
    its owner has ended. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        now_s = read_clock_s(connection)
        free = (leases.c.owner == owner) | (leases.c.until_s < now_s)
        statement = update(leases).where(leases.c.name == name)
        if not force:
            statement = statement.where(free)
        values = {"owner": owner, "until_s": now_s + ttl_s}
        if connection.execute(statement.values(values)).rowcount:
            return True
        known = connection.execute(select(leases.c.owner).where(leases.c.name == name)).scalar()
        if known is not None:
            return False
        try:
            with connection.begin_nested():
                connection.execute(insert(leases).values(name=name, **values))
        except IntegrityError:
            return False
        return True


def read_owner(database: Database, name: str) -> str | None:
    """Who has, or last had, a lease. Raises `DatabaseError`."""
    with database.begin() as connection:
        return connection.execute(select(leases.c.owner).where(leases.c.name == name)).scalar()


def release_lease(database: Database, name: str, owner: str) -> None:
    """Give a lease back, if it is `owner`'s. Raises `DatabaseError`."""
    with database.begin() as connection:
        connection.execute(
            update(leases).where(leases.c.name == name, leases.c.owner == owner).values(until_s=0.0)
        )


def read_clock_s(connection: Connection) -> float:
    """Seconds since 1970, as the database's host has it."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(
        connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one()
    )
