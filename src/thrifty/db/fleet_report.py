"""Publishes a controller's fleet: deployments for gateways to read, and replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete

from thrifty.db.changes import note_change
from thrifty.db.database import Database
from thrifty.db.desired import read_newest_change
from thrifty.db.fleet import DeploymentRow, ReplicaRow, write_deployment, write_replica
from thrifty.db.tables import deployments, replicas, versions
from thrifty.errors import StaleStateError


@dataclass(frozen=True)
class FleetReport:
    """The state that a controller publishes."""

    deployments: Mapping[str, DeploymentRow]
    messages: Mapping[tuple[str, str], str]
    """Like `FleetState.messages`."""
    replicas: Mapping[str, ReplicaRow]


def publish_fleet(
    database: Database, new: FleetReport, old: FleetReport | None, *, change_id: int
) -> None:
    """Write the differences from `old` in one transaction, so that gateways never see a part of
    them. Without `old`, write everything and delete all other rows. Changes of mere figures of
    replicas do not make gateways reload.

    `change_id` is the desired state that `new` was made for. If another writer has changed the
    weights since, raises `StaleStateError` and writes nothing. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        routed = old is None or _is_routed_otherwise(new, old)
        if routed:
            # First, so that changes of the desired state wait for it.
            note_change(connection)
        newest = read_newest_change(connection)
        if newest != change_id:
            raise StaleStateError(f"the desired state is at change {newest}, not {change_id}")
        _write_deployments(connection, new, old)
        for row_id, row in new.replicas.items():
            if old is None or old.replicas.get(row_id) != row:
                write_replica(connection, row)
        if old is None:
            connection.execute(delete(replicas).where(replicas.c.id.not_in(list(new.replicas))))
        elif gone := [row_id for row_id in old.replicas if row_id not in new.replicas]:
            connection.execute(delete(replicas).where(replicas.c.id.in_(gone)))


def _is_routed_otherwise(new: FleetReport, old: FleetReport) -> bool:
    def places(report: FleetReport) -> dict[str, tuple[str, str, str, int]]:
        return {r.id: (r.state, r.url, r.revision, r.restarts) for r in report.replicas.values()}

    return (
        new.deployments != old.deployments
        or new.messages != old.messages
        or places(new) != places(old)
    )


def _write_deployments(connection: Connection, new: FleetReport, old: FleetReport | None) -> None:
    for name, row in new.deployments.items():
        messages = {label: text for (one, label), text in new.messages.items() if one == name}
        if old is not None and old.deployments.get(name) == row:
            before = {label: text for (one, label), text in old.messages.items() if one == name}
            if before == messages:
                continue
        write_deployment(connection, row, messages)
    kept = list(new.deployments)
    if old is None or set(old.deployments) - set(kept):
        connection.execute(delete(deployments).where(deployments.c.name.not_in(kept)))
        connection.execute(delete(versions).where(versions.c.deployment.not_in(kept)))
