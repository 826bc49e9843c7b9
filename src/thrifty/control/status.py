"""How far each version is on its way to the desired state, told from the database's rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.db.fleet import DeploymentRow, ReplicaRow, VersionRow
from thrifty.types import ReplicaState

_FAULTY = {
    ReplicaState.CRASH_LOOP: "is in a crash loop",
    ReplicaState.FAILED: "did not start and is started again",
    ReplicaState.BACKOFF: "has ended and waits to start again",
    ReplicaState.UNHEALTHY: "is unhealthy",
}
"""The states whose messages say what is wrong, the worst first, and what they say of a replica."""


class VersionState(StrEnum):
    """How far a version is."""

    READY = "ready"
    """It is as desired."""
    ROLLING = "rolling"
    """It is on its way."""
    WAITING = "waiting"
    """It does not get on, for the reason that is given."""


@dataclass(frozen=True)
class VersionStatus:
    """One version, as gateways route to it, and how far it is."""

    label: str
    state: VersionState
    message: str | None
    """Why it is not ready."""
    ready: int
    """How many copies answer for it."""
    wanted: int

    def __str__(self) -> str:
        return self.state.value if self.message is None else f"{self.state.value}: {self.message}"


def describe_versions(
    desired: DesiredDeployment | None,
    row: DeploymentRow | None,
    replicas: Sequence[ReplicaRow],
    messages: Mapping[tuple[str, str], str],
) -> list[VersionStatus]:
    """The versions of one deployment: those that are wanted, in their order, and then those that
    are still routed to. `messages` are the controller's, by deployment and label.
    """
    routed = {version.label: version for version in row.versions} if row is not None else {}
    found = []
    labels = set()
    for version in desired.versions if desired is not None else ():
        labels.add(version.label)
        mine = [replica for replica in replicas if replica.version == version.label]
        name = desired.name if desired is not None else ""
        message = messages.get((name, version.label))
        found.append(_describe(version, routed.get(version.label), mine, message))
    for label, going in routed.items():
        if label not in labels:
            ready = _count_ready(replicas, label, going.revision)
            message = "goes once what takes its place is ready"
            found.append(VersionStatus(label, VersionState.ROLLING, message, ready, 0))
    return found


def _describe(
    version: DesiredVersion,
    row: VersionRow | None,
    replicas: Sequence[ReplicaRow],
    message: str | None,
) -> VersionStatus:
    wanted = version.copies
    answering = _count_ready(replicas, version.label, row.revision if row is not None else "")
    ready = _count_ready(replicas, version.label, version.revision)
    others = [r for r in replicas if r.revision != version.revision]
    settled = row is not None and row.revision == version.revision and not others
    if settled and ready >= wanted and message is None:
        return VersionStatus(version.label, VersionState.READY, None, answering, wanted)
    fault = _find_fault([r for r in replicas if r.revision == version.revision])
    reason = message or fault
    if reason is not None:
        return VersionStatus(version.label, VersionState.WAITING, reason, answering, wanted)
    progress = f"{ready} of {wanted} replica{'s' if wanted != 1 else ''} ready"
    if others:
        progress += f", {len(others)} of the revision before"
    return VersionStatus(version.label, VersionState.ROLLING, progress, answering, wanted)


def _count_ready(replicas: Sequence[ReplicaRow], label: str, revision: str) -> int:
    return sum(
        replica.version == label
        and replica.revision == revision
        and replica.state == ReplicaState.READY
        for replica in replicas
    )


def _find_fault(replicas: Sequence[ReplicaRow]) -> str | None:
    """What is wrong with the copies that should be ready."""
    for state, words in _FAULTY.items():
        for replica in replicas:
            if replica.state == state:
                reason = (replica.message or "").partition("\n")[0] or "no reason is known"
                return f"{replica.id} {words}: {reason}"
    for replica in replicas:
        if replica.state == ReplicaState.STARTING and replica.message and not replica.restarts:
            return f"{replica.id} does not start yet: {replica.message.partition(chr(10))[0]}"
        if replica.state == ReplicaState.STARTING and replica.restarts:
            reason = (replica.message or "").partition("\n")[0]
            return (
                f"{replica.id} has ended before and starts again "
                f"(restarts: {replica.restarts}): {reason}"
            )
    return None
