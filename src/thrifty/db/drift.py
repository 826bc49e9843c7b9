"""Comparisons of days with the days before: one row for each figure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, select

from thrifty.db.database import Database
from thrifty.db.quality_sums import insert_new
from thrifty.db.tables import drift_looks


class DriftLook(msgspec.Struct, frozen=True):
    """One figure of one day, compared."""

    at_s: int
    """Start of the day."""
    deployment: str
    version: str
    """Empty: the deployment, by what it was asked."""
    name: str
    before: int
    now: int
    effect: float
    p_value: float
    """Adjusted for the figures of the look."""
    drifted: bool


def save_looks(database: Database, looks: Sequence[DriftLook]) -> None:
    """Write looks; those that another process has written stay. Raises `DatabaseError`."""
    with database.begin() as connection:
        insert_new(connection, drift_looks, [msgspec.structs.asdict(one) for one in looks])


def read_looks(
    database: Database, since_s: float = 0.0, deployment: str | None = None
) -> list[DriftLook]:
    """Looks from a time on, the oldest first. Raises `DatabaseError`."""
    names = DriftLook.__struct_fields__
    query = select(*(drift_looks.c[name] for name in names)).where(drift_looks.c.at_s >= since_s)
    if deployment is not None:
        query = query.where(drift_looks.c.deployment == deployment)
    with database.begin() as connection:
        return [DriftLook(*row) for row in connection.execute(query.order_by(drift_looks.c.at_s))]


def drop_looks(database: Database, before_s: float) -> None:
    """Delete the looks from before a time. Raises `DatabaseError`."""
    with database.begin() as connection:
        connection.execute(delete(drift_looks).where(drift_looks.c.at_s < before_s))
