"""Restarting a version, and draining a replica: changes of the desired state like any other.

A version is restarted by a new revision of the same build (`r-1234+2` is the second time): new
replicas become ready before old ones drain, as in an update. A replica that is drained gets no new
requests, finishes what it answers and is stopped; another one takes its place. The order to drain
holds for the process that ran when it was given, and never for one that got its name later.
"""

from __future__ import annotations

import time
from dataclasses import replace

from thrifty.control.service_api import Actor, check_served
from thrifty.db import Database
from thrifty.db.desired import DRAIN, RESTART, Desired, DesiredChange, change_desired
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion, next_revision
from thrifty.db.fleet import ReplicaRow, read_fleet
from thrifty.db.releases import read_active
from thrifty.errors import ControlError
from thrifty.types import ReplicaState

KEPT_ORDERS = 20
"""So many orders to drain are kept of a deployment; carried out they have no effect."""
_GOING = (ReplicaState.DRAINING, ReplicaState.STOPPED)


def restart_version(database: Database, deployment: str, label: str, actor: Actor) -> str:
    """Replace every replica of a version by a new one, without a gap; returns the new revision.
    Raises `ControlError`.
    """
    check_served(database, deployment, label)
    if read_active(database, deployment):
        raise ControlError(
            f"a release of {deployment!r} is under way, which a restart would end; pause does not "
            "help: promote or abort it first (thrifty release)"
        )
    revision = ""

    def decide(state: Desired) -> list[DesiredChange]:
        nonlocal revision
        there, version = _find(state, deployment, label)
        revision = next_revision(version.revision)
        changed = replace(version, revision=revision)
        versions = tuple(changed if one.label == label else one for one in there.versions)
        return [DesiredChange(deployment, replace(there, versions=versions))]

    change_desired(database, decide, kind=RESTART, who=actor.who, why=actor.why)
    return revision


def drain_replica(
    database: Database, deployment: str, replica_id: str, actor: Actor, *, force: bool = False
) -> None:
    """Take a replica away once it has finished what it answers, and start another one. Raises
    `ControlError`: for one that is not there, for the last one that is ready unless `force`, and
    where replicas are not ours to drain.
    """
    state = read_fleet(database)
    rows = [row for row in state.replicas if row.deployment == deployment]
    row = next((one for one in rows if one.id == replica_id), None)
    if row is None or row.state in _GOING:
        known = ", ".join(one.id for one in rows if one.state not in _GOING) or "none"
        raise ControlError(f"{deployment!r} has no replica {replica_id!r} to drain; it has {known}")
    ready = [one for one in rows if one.version == row.version and one.state == ReplicaState.READY]
    if [one.id for one in ready] == [replica_id] and not force:
        raise ControlError(
            f"{replica_id} is the only replica of {row.version} that is ready; restart the version "
            "instead, which starts another one first, or drain it by force"
        )

    def decide(desired: Desired) -> list[DesiredChange]:
        there, version = _find(desired, deployment, row.version)
        _require_ours(desired, version, row)
        orders = [one for one in there.drains if one[0] != replica_id]
        drains = (*orders, (replica_id, time.time()))[-KEPT_ORDERS:]
        return [DesiredChange(deployment, replace(there, drains=drains))]

    change_desired(database, decide, kind=DRAIN, who=actor.who, why=actor.why)


def _find(state: Desired, deployment: str, label: str) -> tuple[DesiredDeployment, DesiredVersion]:
    there = state.deployments.get(deployment)
    version = there.find_version(label) if there is not None else None
    if there is None or version is None:
        raise ControlError(f"{deployment!r} has no version {label!r} any more")
    if version.urls:
        raise ControlError(
            f"{deployment}/{label} is served by servers that others run; restart them where they run"
        )
    return there, version


def _require_ours(state: Desired, version: DesiredVersion, row: ReplicaRow) -> None:
    """Raise `ControlError` where a scheduler has the replica's process, and not the controller."""
    fleet = state.service.fleet.get("kind", "local") if state.service is not None else "local"
    if fleet != "local" or row.pid is None:
        raise ControlError(
            f"single replicas are drained on this machine alone, and those of {version.label} run "
            f"on {fleet}; restart the version, or have {fleet} take the replica away"
        )
