"""Ready replicas that the service itself asks directly, past the gateway, so that nothing counts
against a user's key or in users' statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.db.fleet import FleetState, VersionRow
from thrifty.types import ReplicaState


@dataclass(frozen=True)
class ReadyReplica:
    """Where a version answers."""

    url: str
    model: str
    """What its server calls the model."""
    key_env: str | None
    """The environment variable that holds the server's key."""
    version: str
    """Its label."""
    revision: str


def find_ready_replica(
    state: FleetState, deployment: str, version: VersionRow | None = None
) -> ReadyReplica | None:
    """A ready replica of a version, by default of the one with most of the traffic that has one."""
    rows = (one.versions for one in state.deployments if one.name == deployment)
    known = sorted(next(rows, ()), key=lambda one: -one.weight)
    for wanted in known if version is None else (version,):
        place = (deployment, wanted.label, wanted.revision)
        for row in state.replicas:
            is_its = (row.deployment, row.version, row.revision) == place
            if is_its and row.state == ReplicaState.READY:
                settings = wanted.settings
                return ReadyReplica(
                    row.url, settings.upstream_model or deployment, settings.key_env, wanted.label,
                    wanted.revision,
                )  # fmt: skip
    return None
