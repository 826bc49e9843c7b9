"""The counter that tells gateways to read their routing table anew."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from thrifty.db.tables import changes


def note_change(connection: Connection) -> None:
    """Count one change of deployments, replicas or keys, in the transaction that made it."""
    result = connection.execute(
        update(changes).where(changes.c.id == 1).values(routing=changes.c.routing + 1)
    )
    if result.rowcount == 0:
        connection.execute(insert(changes).values(id=1, routing=1))


def read_change(connection: Connection) -> int:
    """The counter's value."""
    return int(connection.execute(select(changes.c.routing).where(changes.c.id == 1)).scalar() or 0)
