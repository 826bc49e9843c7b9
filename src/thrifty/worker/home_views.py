"""The views of the management API on the database and the store of a home; implements `Views`."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from thrifty.api.view_models import (
    AuditAct,
    AuditList,
    AuditVerdict,
    History,
    HistoryEntry,
    Live,
    LiveCount,
    LiveReplica,
    ModelList,
    Overview,
    Series,
    Setting,
    Settings,
    StoredModel,
    VersionFigures,
)
from thrifty.api.views import WindowName
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.control.applied import read_applied
from thrifty.control.merge import list_fields
from thrifty.control.service_api import describe_history
from thrifty.db import Database
from thrifty.db.audit import list_acts, verify_audit
from thrifty.db.demand import read_demand
from thrifty.db.desired import Desired, read_desired, read_history
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.db.fleet import FleetState, ReplicaRow, read_fleet
from thrifty.db.overview import Counts, Opinions, Version, Window, find_percentile, read_window
from thrifty.errors import ArtifactError, SpecError
from thrifty.gateway.state.estimate import compute_cost
from thrifty.home import Home
from thrifty.spec import parse_spec

WINDOWS = {
    WindowName.HOUR: (3600.0, 60),
    WindowName.DAY: (86_400.0, 48),
    WindowName.MONTH: (30 * 86_400.0, 60),
}
"""How long each window is, in seconds, and into how many steps it is divided."""
KEEP_S = 5.0
"""How long figures of a window are shown before they are read anew."""
MAX_MODELS = 500
LOOK_BACK = 100
_LONG = frozenset({"samples", "answers", "questions"})
"""Measured values that are long lists; the command line has them."""


class HomeViews:
    """What there is to see in one home. The methods block and may run on threads."""

    def __init__(self, database: Database, home: Home) -> None:
        self._database = database
        self._home = home
        self._lock = threading.Lock()
        self._overviews: dict[WindowName, tuple[float, Overview]] = {}

    def get_overview(self, window: WindowName) -> Overview:
        """Figures by version over a window that ends now. Raises `DatabaseError`."""
        with self._lock:  # one reader reads for all
            kept = self._overviews.get(window)
            if kept is None or time.monotonic() - kept[0] > KEEP_S:
                kept = (time.monotonic(), self._make_overview(window))
                self._overviews[window] = kept
            return kept[1]

    def _make_overview(self, window: WindowName) -> Overview:
        length_s, steps = WINDOWS[window]
        now_s = time.time()
        found = read_window(self._database, now_s - length_s, now_s, steps)
        desired, fleet = read_desired(self._database), read_fleet(self._database)
        known = [(row.name, v.label) for row in fleet.deployments for v in row.versions]
        names = list(dict.fromkeys([*known, *sorted({*found.totals, *found.opinions})]))
        shown = [name for name in names if all(name)]  # others reached no version
        return Overview(
            window=window.value,
            since=found.since_s,
            until=found.until_s,
            read_from=found.read_from_s,
            rows=found.rows,
            versions=[_describe_version(name, found, desired, fleet) for name in shown],
            step_s=found.step_s,
            times=[found.since_s + i * found.step_s for i in range(steps)],
            series=[_make_series(name, found, steps) for name in shown],
        )

    def get_live(self) -> Live:
        """What is going on now. Raises `DatabaseError`."""
        fleet = read_fleet(self._database)
        counts = [
            LiveCount(
                worker=row.worker, deployment=row.deployment, version=row.version,
                since_s=row.figures.since_s, arrivals=row.figures.arrivals,
                answered=row.figures.answered, output_tokens=row.figures.output_tokens,
                held=row.figures.held, queued=row.figures.queued,
                in_flight=row.figures.in_flight,
            )
            for row in read_demand(self._database, fresh=True)
        ]  # fmt: skip
        replicas = [_describe_load(row) for row in fleet.replicas]
        return Live(at=time.time(), counts=counts, replicas=replicas)

    def list_history(self, deployment: str | None, limit: int) -> History:
        """Changes of the desired state. Raises `ControlError` and `DatabaseError`."""
        if deployment is None and not read_history(self._database, None, 1):
            return History(changes=[])
        changes = describe_history(self._database, deployment, limit)
        return History(changes=[HistoryEntry.model_validate(one) for one in changes])

    def list_models(self) -> ModelList:
        """The stored models, the newest first. Raises `DatabaseError`."""
        store = Store(self._home.models)
        served: defaultdict[str, list[str]] = defaultdict(list)
        for row in read_fleet(self._database).deployments:
            for version in row.versions:
                if version.artifact is not None:
                    served[version.artifact].append(f"{row.name}/{version.label}")
        versions = sorted(store.versions(), key=lambda one: one.created, reverse=True)
        found = []
        for version in versions[:MAX_MODELS]:
            try:
                artifact = store.load(version.artifact)
            except ArtifactError:
                continue  # removed meanwhile
            found.append(_describe_model(store, version, artifact, served[artifact.id]))
        return ModelList(models=found)

    def get_settings(self) -> Settings:
        """The spec in force. Raises `DatabaseError`."""
        desired = read_desired(self._database)
        applied = read_applied(desired.service)
        if applied is None:
            return Settings(settings=[])
        try:
            rows = parse_spec(dict(applied.written), "spec").explain()
        except SpecError:
            rows = [(key, value, "spec") for key, value in applied.written.items()]
        found = [
            Setting(key=key, value=_to_json(value), origin="default" if origin == "default" else "spec")
            for key, value, origin in rows
        ]  # fmt: skip
        changed = [
            Setting(key=key, value=_to_json(value), origin=self._find_author(name))
            for name, state in desired.deployments.items()
            for key, value in _list_changed(applied.deployments.get(name), state)
        ]
        return Settings(settings=[*changed, *found])

    def _find_author(self, deployment: str) -> str:
        for change in read_history(self._database, deployment, LOOK_BACK):
            if change.kind != "apply":
                return f"{change.kind}, {change.who}"
        return "changed since"

    def list_acts(self, limit: int) -> AuditList:
        """Administrative acts. Raises `DatabaseError`."""
        return AuditList(
            acts=[
                AuditAct(
                    id=one.id, at=one.at_ms / 1000, act=one.act, actor=one.actor,
                    details=json.loads(one.details),
                )
                for one in list_acts(self._database, limit)
            ]
        )  # fmt: skip

    def verify_audit(self) -> AuditVerdict:
        """Read the audit log's whole chain. Raises `DatabaseError`."""
        verdict = verify_audit(self._database)
        return AuditVerdict(
            whole=verdict.fault is None, fault=verdict.fault, head=str(verdict.head),
            entries=verdict.head.count,
        )  # fmt: skip


def _describe_load(row: ReplicaRow) -> LiveReplica:
    load = row.load or {}
    return LiveReplica(
        id=row.id, running=load.get("running") or 0, waiting=load.get("waiting") or 0,
        kv_usage=load.get("kv_usage") or 0, memory_bytes=row.memory_bytes,
    )  # fmt: skip


def _describe_version(
    name: Version, window: Window, desired: Desired, fleet: FleetState
) -> VersionFigures:
    counts = window.totals.get(name, Counts())
    said = window.opinions.get(name, Opinions())
    state = desired.deployments.get(name[0])
    version = state.find_version(name[1]) if state is not None else None
    slo = version.slo if version is not None else None
    ttft = slo.ttft_p95_s * 1000 if slo is not None and slo.ttft_p95_s is not None else None
    tpot = slo.tpot_p95_s * 1000 if slo is not None and slo.tpot_p95_s is not None else None
    within = None
    if ttft is not None and counts.ttft_ms:
        within = sum(value <= ttft for value in counts.ttft_ms) / len(counts.ttft_ms)
    return VersionFigures(
        deployment=name[0], version=name[1], requests=counts.requests, failed=counts.failed,
        refused=counts.refused, cache_hits=counts.cache_hits,
        prompt_tokens=counts.prompt_tokens, cached_tokens=counts.cached_tokens,
        completion_tokens=counts.completion_tokens,
        ttft_p50_ms=find_percentile(counts.ttft_ms, 0.5),
        ttft_p95_ms=find_percentile(counts.ttft_ms, 0.95),
        tpot_p95_ms=find_percentile(counts.tpot_ms, 0.95),
        e2e_p95_ms=find_percentile(counts.e2e_ms, 0.95),
        ttft_objective_ms=ttft, tpot_objective_ms=tpot, within_objective=within,
        liked=said.liked, disliked=said.disliked, corrected=said.corrected, judged=said.judged,
        cost=_find_cost(name, counts, fleet),
    )  # fmt: skip


def _find_cost(name: Version, counts: Counts, fleet: FleetState) -> float | None:
    for row in fleet.deployments:
        for version in row.versions:
            prices = version.settings
            priced = prices.price_input or prices.price_output or prices.price_cached
            if (row.name, version.label) == name and priced:
                return compute_cost(
                    prices, counts.prompt_tokens, counts.completion_tokens, counts.cached_tokens
                )
    return None


def _make_series(name: Version, window: Window, steps: int) -> Series:
    counts = window.steps.get(name, [Counts()] * steps)
    said = window.opinion_steps.get(name, [Opinions()] * steps)
    return Series(
        labels={"deployment": name[0], "version": name[1]},
        values={
            "requests": [float(one.requests) for one in counts],
            "failed": [float(one.failed) for one in counts],
            "ttft_p95_ms": [find_percentile(one.ttft_ms, 0.95) for one in counts],
            "e2e_p95_ms": [find_percentile(one.e2e_ms, 0.95) for one in counts],
            "completion_tokens": [float(one.completion_tokens) for one in counts],
            "liked": [float(one.liked) for one in said],
            "disliked": [float(one.disliked) for one in said],
        },
    )


def _describe_model(
    store: Store, version: NamedVersion, artifact: Artifact, served: Iterable[str]
) -> StoredModel:
    what, lineage = artifact.description, version.lineage
    measured = []
    for one in store.read_measurements(artifact.id):
        values = {key: value for key, value in one.values.items() if key not in _LONG}
        measured.append({**msgspec.to_builtins(one), "values": values})
    return StoredModel(
        name=version.label, id=artifact.id, format=what.format.value, family=what.family.value,
        architecture=what.architecture, context_length=what.context_length,
        parameters=what.parameters, weights=what.weights, size_bytes=artifact.size_bytes,
        created=version.created, source=lineage.source,
        parents=[{"id": parent.id, "name": parent.name} for parent in lineage.parents],
        recipe=msgspec.to_builtins(lineage.recipe), made_by=lineage.made_by, measured=measured,
        served_by=sorted(served),
    )  # fmt: skip


def _list_changed(
    wanted: DesiredDeployment | None, state: DesiredDeployment
) -> list[tuple[str, Any]]:
    """What differs from what the spec came to: key and value."""
    if wanted is None:
        return [(state.name, "not in the spec")]
    found: list[tuple[str, Any]] = []
    for version in state.versions:
        asked = wanted.find_version(version.label)
        if asked is None:
            found.append((f"{state.name}.{version.label}", "not in the spec"))
        else:
            found += _compare(state.name, asked, version)
    return found


def _compare(name: str, asked: DesiredVersion, version: DesiredVersion) -> list[tuple[str, Any]]:
    before, now = list_fields(asked), list_fields(version)
    return [
        (f"{name}.{version.label}.{field}", version.model if field == "build" else value)
        for field, value in now.items()
        if before[field] != value
    ]


def _to_json(value: Any) -> Any:
    """A value as JSON has it."""
    return json.loads(json.dumps(value, default=str))
