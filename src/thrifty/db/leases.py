"""Leases: rows that allow one process at a time to do something, as long as it renews them.

Times are those of the database's clock, so the clocks of hosts need not agree.
"""

from __future__ import annotations

import os
import secrets
import socket
import time

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from thrifty.db.database import Database
from thrifty.db.tables import leases


def make_owner() -> str:
    """A name for the owner of a lease that nobody else has or had: host, process, random part."""
    return f"{socket.gethostname()[:64]}/{os.getpid()}/{secrets.token_hex(8)}"


def take_lease(database: Database, name: str, owner: str, ttl_s: float, *, force: bool) -> bool:
    """Take or renew a lease for `ttl_s`; returns whether `owner` now holds it.

    A lease of another owner is taken over once it has expired, or at once with `force`, for callers
    that know that its owner has ended. Raises `DatabaseError`.
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
    """The current or last owner of a lease. Raises `DatabaseError`."""
    with database.begin() as connection:
        return connection.execute(select(leases.c.owner).where(leases.c.name == name)).scalar()


def is_held(database: Database, name: str) -> bool:
    """Whether a lease has not expired. Raises `DatabaseError`."""
    with database.begin() as connection:
        until_s = connection.execute(select(leases.c.until_s).where(leases.c.name == name)).scalar()
        return until_s is not None and until_s >= read_clock_s(connection)


def release_lease(database: Database, name: str, owner: str) -> None:
    """Release a lease, if `owner` holds it. Raises `DatabaseError`."""
    with database.begin() as connection:
        connection.execute(
            update(leases).where(leases.c.name == name, leases.c.owner == owner).values(until_s=0.0)
        )


def read_clock_s(connection: Connection) -> float:
    """Seconds since 1970 by the clock of the database's host."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(
        connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one()
    )
