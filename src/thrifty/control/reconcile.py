"""One step towards the desired state: a pure function of what is wanted and what is there.

A step says which sets of replicas the fleets should run now, and what gateways should read. Applied
again and again, with what the fleets then see, steps come to an end: every version of the desired
state runs with all its copies, and nothing else does. On the way no version loses its last ready
copy before another one can answer in its place:

- *A label's revision changes* (another model, engine or option under the same label). The new copies
  start beside the old ones. The version's row, by which gateways route, keeps the old revision until
  as many new copies are ready as old ones; then it changes at once, and the old ones go. Copies of
  another revision than the row's get no traffic, so that one label never answers with two.
- *A label goes* while others stay or come. Its row stays, with its weight, until each version that
  gets traffic is ready; a version that is not ready yet has weight 0 meanwhile.
- *A label comes* beside others that stay. Its row is written at once; gateways have another version
  answer while none of its copies is ready.
- *The cores of each copy change.* As with a revision, but both answer, being the same.

Copies that come first need memory beside those that go. Where there is too little, an old copy makes
room as long as another of its kind stays; the last one is never stopped for it, and the version says
that it waits, and for what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.db.fleet import DeploymentRow, VersionRow
from thrifty.fleet.base import ObservedReplica, SetKey
from thrifty.fleet.cores import share_evenly
from thrifty.types import ReplicaState
from thrifty.units import format_bytes

UPDATE_PARTS = 4
"""An update that may not run all new copies beside the old ones replaces them in so many parts."""


_SERVE_AGAIN = (
    ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.BACKOFF, ReplicaState.FAILED,
)  # fmt: skip


@dataclass(frozen=True)
class Room:
    """What there is for copies that are started."""

    cores: int | None
    """The machine's; None where copies run elsewhere, and each gets the cores that it asks for."""
    free_memory_bytes: int
    """What can be had now, beside all that runs."""
    artifact_bytes: Mapping[str, int] = field(default_factory=dict)
    """What the copies of an artifact need at least, by its id, as far as known."""


@dataclass(frozen=True)
class SetTarget:
    """How many copies of a set should run now."""

    key: SetKey
    count: int
    even_copies: int = 0
    """As `ReplicaSet.even_copies`."""
    parked: int = 0
    """How many more should be there, loaded and idle."""


@dataclass(frozen=True)
class Step:
    """What to do now."""

    sets: tuple[SetTarget, ...]
    """Every set with at least one copy; all others go."""
    rows: Mapping[str, DeploymentRow]
    """What gateways should read; other deployments go."""
    waiting: Mapping[tuple[str, str], str]
    """Why a version (deployment, label) cannot go on now."""


def reconcile(
    desired: Mapping[str, DesiredDeployment],
    rows: Mapping[str, DeploymentRow],
    observed: Sequence[ObservedReplica],
    room: Room,
) -> Step:
    """The next step. `rows` are what gateways read now."""
    cpus = _Cpus(desired, room.cores)
    memory = _Memory(desired, observed, room)
    sets: list[SetTarget] = []
    new_rows: dict[str, DeploymentRow] = {}
    waiting: dict[tuple[str, str], str] = {}
    for name, deployment in desired.items():
        there = _Copies(copy for copy in observed if copy.key.deployment == name)
        new_rows[name] = _choose_row(deployment, rows.get(name), there)
        plan = _Plan(deployment, new_rows[name], there, cpus, memory)
        sets += plan.make_sets()
        waiting |= {(name, label): reason for label, reason in plan.waiting.items()}
    return Step(tuple(one for one in sets if one.count or one.parked), new_rows, waiting)


def count_local_copies(desired: Mapping[str, DesiredDeployment]) -> int:
    """How many copies may run of all versions that run here. Of autoscaled ones the most count, so
    that the share of each copy does not change with their number.
    """
    return sum(
        version.most_copies
        for deployment in desired.values()
        for version in deployment.versions
        if not version.urls
    )


def find_cpus(
    version: DesiredVersion, desired: Mapping[str, DesiredDeployment], cores: int | None
) -> int:
    """The cores of each copy of a version that we run; `cores` as in `Room`."""
    return _Cpus(desired, cores).find(version)[0]


class _Copies:
    """The copies of one deployment."""

    def __init__(self, copies: Iterable[ObservedReplica]) -> None:
        copies = list(copies)
        self.leaving = sum(copy.leaving for copy in copies)
        self.all = [copy for copy in copies if not copy.leaving]

    def keys(self, label: str) -> list[SetKey]:
        """The sets of a label that have copies, in order."""
        return sorted({copy.key for copy in self.all if copy.key.version == label})

    def labels(self) -> set[str]:
        """The labels that have copies."""
        return {copy.key.version for copy in self.all}

    def count(self, key: SetKey) -> int:
        """How many copies a set has."""
        return sum(copy.key == key for copy in self.all)

    def ready(self, label: str, revision: str, cpus: int | None = None) -> int:
        """How many copies of a revision are ready, of one size where that is given."""
        return sum(copy.state is ReplicaState.READY for copy in self._select(label, revision, cpus))

    def serving(self, label: str, revision: str, cpus: int | None = None) -> int:
        """How many copies of a revision are ready, or were and will be again."""
        return sum(_has_served(copy) for copy in self._select(label, revision, cpus))

    def _select(self, label: str, revision: str, cpus: int | None) -> list[ObservedReplica]:
        return [
            copy
            for copy in self.all
            if copy.key.version == label
            and copy.key.revision == revision
            and cpus in (None, copy.key.cpus)
        ]


def _has_served(copy: ObservedReplica) -> bool:
    """Whether a copy answers, or did before and will again."""
    if copy.state is ReplicaState.STARTING:
        return copy.row.restarts > 0
    return copy.state in _SERVE_AGAIN


def _enough(ready: int, wanted: int, old: int) -> bool:
    """Whether so many ready copies can take over from `old` ready ones."""
    return ready >= min(wanted, max(1, old))


def _choose_row(
    desired: DesiredDeployment, current: DeploymentRow | None, there: _Copies
) -> DeploymentRow:
    """What gateways should read of a deployment now."""
    known = {version.label: version for version in current.versions} if current else {}
    versions = [_choose_version(v, known.get(v.label), there) for v in desired.versions]
    retained = _find_retained(desired, versions, known, there)
    if any(version.weight > 0 for version in retained):
        fresh = {v.label for v in versions if not there.ready(v.label, v.revision)}
        versions = [replace(v, weight=0.0, shadow=0.0) if v.label in fresh else v for v in versions]
    return DeploymentRow(desired.name, desired.family, desired.settings, (*versions, *retained))


def _choose_version(
    wanted: DesiredVersion, current: VersionRow | None, there: _Copies
) -> VersionRow:
    """The row of a version: the old revision's until the new one can take over."""
    row = wanted.row
    if current is None or current.revision == row.revision:
        return row
    old_ready = there.ready(row.label, current.revision)
    if not there.serving(row.label, current.revision) or _enough(
        there.ready(row.label, row.revision), wanted.copies, old_ready
    ):
        return row
    return replace(current, weight=row.weight, shadow=row.shadow)


def _find_retained(
    desired: DesiredDeployment,
    versions: Sequence[VersionRow],
    known: Mapping[str, VersionRow],
    there: _Copies,
) -> list[VersionRow]:
    """The versions that are not wanted any more, but still needed."""
    labels = {version.label for version in versions}
    going = [
        version
        for label, version in known.items()
        if label not in labels and there.serving(label, version.revision)
    ]
    old_ready = sum(there.ready(version.label, version.revision) for version in going)
    for wanted, version in zip(desired.versions, versions, strict=True):
        ready = there.ready(version.label, version.revision)
        if wanted.weight > 0 and not _enough(ready, wanted.copies, old_ready):
            return going
    return []


class _Cpus:
    """How many cores each copy gets."""

    def __init__(self, desired: Mapping[str, DesiredDeployment], cores: int | None) -> None:
        self._cores = cores
        self._copies = count_local_copies(desired)

    def find(self, version: DesiredVersion) -> tuple[int, int]:
        """The cores of each copy, and over how many copies all are shared, if they are."""
        if version.urls:
            return 0, 0
        if self._cores is None:
            return version.replicas.cpus or 1, 0
        if version.replicas.cpus is not None:
            return max(1, min(version.replicas.cpus, self._cores)), 0
        return share_evenly(self._cores, self._copies)[0], self._copies


class _Memory:
    """What is free for copies that come before others go."""

    def __init__(
        self,
        desired: Mapping[str, DesiredDeployment],
        observed: Sequence[ObservedReplica],
        room: Room,
    ) -> None:
        self._room = room
        self._seen: dict[tuple[str, str], int] = {}
        for copy in observed:
            if copy.state is ReplicaState.READY:
                place = (copy.key.deployment, copy.key.revision)
                used = copy.row.memory_bytes or 0
                self._seen[place] = max(used, self._seen.get(place, 0))
        versions = {
            (deployment.name, version.revision): version
            for deployment in desired.values()
            for version in deployment.versions
        }
        # What starting copies have not taken yet is not free.
        claimed = 0
        for copy in observed:
            version = versions.get((copy.key.deployment, copy.key.revision))
            if copy.state is ReplicaState.STARTING and version is not None:
                need = self.need(copy.key.deployment, version)
                claimed += max(0, need - (copy.row.memory_bytes or 0))
        self.free = max(0, room.free_memory_bytes - claimed)

    def need(self, deployment: str, version: DesiredVersion) -> int:
        """What one copy takes, as far as it can be told; 0 where it cannot."""
        seen = self._seen.get((deployment, version.revision))
        if seen:
            return seen
        return self._room.artifact_bytes.get(version.artifact or "", 0)

    def take(self, need: int, wanted: int) -> int:
        """Take the memory of so many copies, or of as many as fit; returns how many."""
        count = wanted if need <= 0 else min(wanted, self.free // need)
        self.free -= count * need
        return count


class _Plan:
    """The sets of one deployment."""

    def __init__(
        self,
        desired: DesiredDeployment,
        row: DeploymentRow,
        there: _Copies,
        cpus: _Cpus,
        memory: _Memory,
    ) -> None:
        self.waiting: dict[str, str] = {}
        self._desired = desired
        self._row = {version.label: version for version in row.versions}
        self._there = there
        self._cpus = cpus
        self._memory = memory

    def make_sets(self) -> list[SetTarget]:
        """What should run now."""
        labels = {version.label for version in self._desired.versions}
        kept = {
            key: self._there.count(key)
            for label in sorted(self._there.labels() - labels)
            for key in self._there.keys(label)
            if label in self._row and self._row[label].revision == key.revision
            if self._there.serving(label, key.revision, key.cpus)
        }
        sets = []
        for version in self._desired.versions:
            size, even_copies = self._cpus.find(version)
            key = SetKey(self._desired.name, version.label, version.revision, size)
            kept |= self._keep_old(version, key)
            wanted = self._bound_update(version, key, kept)
            count = self._count_new(version, key, kept, wanted)
            sets.append(SetTarget(key, count, even_copies, version.replicas.parked))
        return sets + [SetTarget(key, count) for key, count in kept.items()]

    def _keep_old(self, version: DesiredVersion, key: SetKey) -> dict[SetKey, int]:
        """The sets of a label that make way for another one, as long as they are needed."""
        old = [one for one in self._there.keys(version.label) if one != key]
        old = [one for one in old if one.revision == self._row[version.label].revision]
        ready = self._there.ready(version.label, key.revision, key.cpus)
        old_ready = sum(self._there.ready(one.version, one.revision, one.cpus) for one in old)
        if _enough(ready, version.copies, old_ready):
            return {}
        return {
            one: self._there.count(one)
            for one in old
            if self._there.serving(one.version, one.revision, one.cpus)
        }

    def _bound_update(self, version: DesiredVersion, key: SetKey, kept: dict[SetKey, int]) -> int:
        """How many copies of the new set may run beside the old ones without more than the most in
        all. Old ones make room in `kept`, a few at a time, and the last one that is ready stays: where
        at most one may run, the new one starts beside it.
        """
        wanted, most = version.copies, version.replicas.bounds[1]
        old = [one for one in kept if one.version == version.label]
        have = sum(kept[one] for one in old)
        if not have or not version.replicas.is_autoscaled or have + wanted <= most:
            return wanted
        ready = self._there.ready(version.label, key.revision, key.cpus)
        batch = max(1, most // UPDATE_PARTS, most - have)
        count = max(1, min(wanted, ready + batch))
        surplus = have - max(0 if ready else 1, most - count)
        for one in old:
            less = min(kept[one], max(0, surplus))
            kept[one] -= less
            surplus -= less
        return count

    def _count_new(
        self, version: DesiredVersion, key: SetKey, kept: dict[SetKey, int], wanted: int
    ) -> int:
        """How many copies of the new set should run now; makes room in `kept` where it must."""
        have = self._there.count(key)
        missing = wanted - have
        if missing <= 0 or version.urls or not self._has_ready():
            return wanted
        need = self._memory.need(self._desired.name, version)
        fit = self._memory.take(need, missing)
        if fit == missing:
            return wanted
        starting = have - self._there.ready(version.label, key.revision, key.cpus)
        # In steps, so that the message does not change with every page that somebody takes.
        free = self._memory.free // (need // 10 or 1) * (need // 10 or 1)
        self.waiting[version.label] = (
            f"{missing - fit} more cop{'ies' if missing - fit > 1 else 'y'} of about "
            f"{format_bytes(need)} need{'s' if missing - fit == 1 else ''} memory, and about "
            f"{format_bytes(free)} is free"
        )
        if not fit and not starting and not self._there.leaving:
            self._make_room(version, kept)
        return have + fit

    def _make_room(self, version: DesiredVersion, kept: dict[SetKey, int]) -> None:
        """Let one old copy go, if another one of its label stays ready."""
        staying = {other.label for other in self._desired.versions} - {version.label}
        for key in kept:
            if key.version in staying:
                continue
            ready = self._there.ready(key.version, key.revision, key.cpus)
            if kept[key] > 0 and ready >= 2:
                kept[key] -= 1
                return
        if kept:
            self.waiting[version.label] += (
                "; the last copy that serves is not stopped for it. Free some memory, or stop and "
                "start the service (thrifty down, thrifty up)"
            )

    def _has_ready(self) -> bool:
        return any(copy.state is ReplicaState.READY for copy in self._there.all)
