"""What the autoscaler decided last of each version, for people and metrics to read."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, delete, insert, select

from thrifty.db.database import Database
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import scaling


class ScalingRow(msgspec.Struct, frozen=True):
    """The last decision for one version. Times are in seconds."""

    deployment: str
    version: str
    """The version's label."""
    count: int
    """How many replicas are wanted."""
    needed: int
    """How many the objective needs, before bounds and capacity."""
    fewest: int
    most: int
    ready: int
    starting: int
    reason: str
    limit: str | None = None
    """What keeps `count` below `needed`: `max`, or the resource that is short."""
    unreachable: str | None = None
    """Why no number of replicas meets the objective."""
    ttft_p95_s: float | None = None
    """Predicted of `count` replicas; None: not known, or without an end."""
    tpot_p95_s: float | None = None
    utilisation: float | None = None
    ttft_objective_s: float | None = None
    tpot_objective_s: float | None = None
    measured_ttft_p95_s: float | None = None
    """Of the streams of the last minutes, waiting included."""
    arrivals_per_s: float = 0.0
    start_s: float = 0.0
    """How long a replica takes until it is ready."""
    wakes: int = 0
    """How often requests have woken it from zero since the controller started."""
    changed_s: float | None = None
    """When the count changed last, in seconds since 1970; None: not since the controller started."""


def save_scaling(database: Database, rows: Mapping[tuple[str, str], ScalingRow]) -> None:
    """Replace all rows by these. Raises `DatabaseError`."""
    now_s = time.time()
    with database.begin() as connection:
        connection.execute(delete(scaling))
        for (deployment, version), row in rows.items():
            values = {
                "deployment": deployment, "version": version, "updated_s": now_s,
                "figures": msgspec.json.encode(row).decode(),
            }  # fmt: skip
            connection.execute(insert(scaling).values(sanitize_values(scaling, values)))


def read_scaling(database: Database) -> dict[tuple[str, str], ScalingRow]:
    """The rows, by deployment and label. Raises `DatabaseError`."""
    with database.begin() as connection:
        return read_scaling_rows(connection)


def read_scaling_rows(connection: Connection) -> dict[tuple[str, str], ScalingRow]:
    """As `read_scaling`, in the caller's transaction."""
    rows = connection.execute(select(scaling.c.figures)).all()
    found = [msgspec.json.decode(row[0], type=ScalingRow) for row in rows]
    return {(row.deployment, row.version): row for row in found}
