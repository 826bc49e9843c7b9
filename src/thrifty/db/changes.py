"""The counter that tells gateways to reload their routing table."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from thrifty.db.tables import changes


def note_change(connection: Connection) -> None:
    """Count a change of deployments, replicas or keys, in the transaction that makes it.

    Transactions that call this first run one after another.
    """
    if not _count_up(connection):
        try:
            with connection.begin_nested():
                connection.execute(insert(changes).values(id=1, routing=1))
        except IntegrityError:
            _count_up(connection)


def _count_up(connection: Connection) -> bool:
    statement = update(changes).where(changes.c.id == 1).values(routing=changes.c.routing + 1)
    return connection.execute(statement).rowcount > 0


def read_change(connection: Connection) -> int:
    """The value of the counter."""
    return int(connection.execute(select(changes.c.routing).where(changes.c.id == 1)).scalar() or 0)
