"""How a service is: its deployments with their versions and replicas, and how far it is on its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from thrifty.control.standby import FindFolder, measure_standby
from thrifty.control.status import VersionState, VersionStatus, describe_versions
from thrifty.db import Database
from thrifty.db.demand import read_held
from thrifty.db.desired import read_desired
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.fleet import ReplicaRow, VersionRow, read_fleet
from thrifty.db.scaling import ScalingRow, read_scaling
from thrifty.errors import FleetError
from thrifty.fleet.process import ProcessId
from thrifty.types import OnProgress, Progress, ReplicaState, ignore_progress

POLL_S = 0.1


def read_status(database: Database, find_folder: FindFolder | None = None) -> list[dict[str, Any]]:
    """Each deployment with its versions and its replicas, as `thrifty status --json` shows them. With
    `find_folder`, of this machine's store, also what of models at zero is in the page cache.
    """
    desired, fleet = read_desired(database), read_fleet(database)
    scaling, held = read_scaling(database), read_held(database)
    rows = {row.name: row for row in fleet.deployments}
    found = []
    for name in dict.fromkeys([*desired.deployments, *rows]):
        state, row = desired.deployments.get(name), rows.get(name)
        replicas = [replica for replica in fleet.replicas if replica.deployment == name]
        statuses = describe_versions(state, row, replicas, fleet.messages)
        known: dict[str, VersionRow] = {v.label: v for v in (row.versions if row else ())}
        known |= {v.label: v.row for v in (state.versions if state else ())}
        total = sum(known[status.label].weight for status in statuses) or 1.0
        versions = [
            {
                **_describe_version(known[s.label], s, total),
                "scaling": _describe_scaling(state, s.label, scaling.get((name, s.label))),
                "zero": _describe_zero(
                    state, s, replicas, held.get((name, s.label), 0), find_folder
                ),
            }
            for s in statuses
        ]
        main = max(versions, key=lambda version: float(version["weight"]))
        found.append(
            {
                "name": name, "version": main["label"], "engine": main["engine"],
                "family": state.family if state else row.family if row else "",
                "versions": versions,
                "replicas": [_describe_replica(replica) for replica in replicas],
            }
        )  # fmt: skip
    return found


def _describe_version(row: VersionRow, status: VersionStatus, total: float) -> dict[str, Any]:
    return {
        "label": row.label, "weight": row.weight, "share": row.weight / total,
        "shadow": row.shadow, "engine": row.engine, "model": row.model, "revision": row.revision,
        "state": status.state.value, "message": status.message, "ready": status.ready,
        "wanted": status.wanted,
    }  # fmt: skip


def _describe_scaling(
    state: DesiredDeployment | None, label: str, row: ScalingRow | None
) -> dict[str, Any] | None:
    """The autoscaler's last decision for a version; None where the spec leaves it nothing to do."""
    version = state.find_version(label) if state is not None else None
    if version is None or not (version.replicas.is_autoscaled or version.slo.is_set):
        return None
    fewest, most = version.replicas.bounds
    bounds = {"min": fewest, "max": most}
    if row is None:
        return {**bounds, "reason": "the autoscaler has not decided yet"}
    figures = msgspec.structs.asdict(row)
    for name in ("deployment", "version", "fewest", "most"):
        del figures[name]
    return {**bounds, **figures}


def _describe_zero(
    state: DesiredDeployment | None,
    status: VersionStatus,
    replicas: Sequence[ReplicaRow],
    held: int,
    find_folder: FindFolder | None,
) -> dict[str, Any] | None:
    """How a version that may be at zero stands: on which rung, how many requests wait for it, and how
    much of its model is in the page cache where that is kept there; None for others.
    """
    version = state.find_version(status.label) if state is not None else None
    if version is None or not version.settings.wakes:
        return None
    mine = {replica.state for replica in replicas if replica.version == status.label}
    if status.ready:
        rung = "awake"
    elif status.wanted:
        rung = "waking"
    else:
        rung = "parked" if ReplicaState.PARKED in mine else "stopped"
    cached = None
    if find_folder is not None and version.replicas.keeps_files:
        found = measure_standby(version, find_folder)
        cached = found.share if found is not None else None
        rung = "cached" if cached == 1.0 and rung == "stopped" else rung
    return {
        "rung": rung, "standby": version.replicas.standby, "held": held, "cached_share": cached,
    }  # fmt: skip


def _describe_replica(row: ReplicaRow) -> dict[str, Any]:
    return {
        "id": row.id, "url": row.url, "state": _true_state(row), "version": row.version,
        "revision": row.revision, "pid": row.pid, "memory_bytes": row.memory_bytes,
        "restarts": row.restarts, "message": row.message,
    }  # fmt: skip


def _true_state(row: ReplicaRow) -> str:
    """The state, unless the process is plainly gone (its controller may be, too)."""
    gone = row.pid is not None and row.process_created_s is not None and not is_there(row)
    return "gone" if gone else row.state


def wait_until_settled(
    database: Database,
    is_alive: Callable[[], bool],
    on_progress: OnProgress = ignore_progress,
    *,
    timeout_s: float | None = None,
) -> None:
    """Wait until what runs is what is wanted. `is_alive` says whether a controller runs. Blocks. Raises
    `FleetError` where that does not come about, with what to do.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    told: tuple[int, int] | None = None
    while True:
        state = read_progress(database)
        if (state.ready, state.wanted) != told:
            told = (state.ready, state.wanted)
            on_progress(Progress("load", state.ready, max(state.wanted, 1), "replicas ready"))
        if state.stuck is not None:
            raise FleetError(state.stuck)
        if state.settled:
            return
        if not is_alive():
            raise FleetError(
                "the controller does not run, so that nothing is started; the change is kept, and "
                "'thrifty up' with the same spec carries it out"
            )
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise FleetError(
                f"not everything is ready after {timeout_s:g} s: {state.left}; it goes on "
                "(thrifty status)"
            )
        time.sleep(POLL_S)


@dataclass(frozen=True)
class ServiceProgress:
    """How far what runs is on its way to what is wanted."""

    ready: int
    wanted: int
    settled: bool
    left: str
    """What is not as wanted yet, in words."""
    stuck: str | None
    """Why it does not get further by itself, with what to do."""


def read_progress(database: Database) -> ServiceProgress:
    """How far the service is."""
    desired, fleet = read_desired(database), read_fleet(database)
    rows = {row.name: row for row in fleet.deployments}
    ready = wanted = 0
    left: list[str] = []
    stuck: str | None = None
    for name in dict.fromkeys([*desired.deployments, *rows]):
        state = desired.deployments.get(name)
        replicas = [replica for replica in fleet.replicas if replica.deployment == name]
        for one in describe_versions(state, rows.get(name), replicas, fleet.messages):
            ready += min(one.ready, one.wanted)
            wanted += one.wanted
            if one.state is not VersionState.READY:
                left.append(f"{name}/{one.label} is {one}")
        copies = sum(v.copies for v in (state.versions if state else ()))
        running = sum(replica.state != ReplicaState.PARKED for replica in replicas)
        if running > copies:
            left.append(f"{name}: {running - copies} more replicas than wanted")
        lost = next((r for r in replicas if r.state == ReplicaState.CRASH_LOOP), None)
        if lost is not None and stuck is None:
            stuck = (
                f"the replica {lost.id} does not start: {lost.message}\nTo take the change back: "
                f"thrifty rollback {name}"
            )
    workers = int(desired.service.gateway.get("workers", 1)) if desired.service else 0
    if len(fleet.gateways) != workers:
        left.append(f"{len(fleet.gateways)} of {workers} gateway workers run")
    return ServiceProgress(ready, wanted, not left, "; ".join(left), stuck)


def is_there(row: ReplicaRow) -> bool:
    """Whether the replica's process runs, whether a controller does or not."""
    if row.pid is None or row.process_created_s is None:
        return False
    return ProcessId(row.pid, row.process_created_s).find() is not None
