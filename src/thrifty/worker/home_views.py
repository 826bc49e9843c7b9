"""The views of the management API on the database and the store of a home; implements `Views`."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from thrifty.api.improve_models import ImproveRunDetail, ImproveRuns
from thrifty.api.quality_models import Quality
from thrifty.api.services import not_found
from thrifty.api.view_models import (
    AlertList,
    AlertModel,
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
    SilenceModel,
    StoredModel,
    VersionFigures,
)
from thrifty.api.views import WindowName
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.control.applied import read_applied
from thrifty.control.merge import list_fields
from thrifty.control.service_api import describe_history
from thrifty.db import Database
from thrifty.db.alerts import Silence, read_alerts, read_silences
from thrifty.db.audit import list_acts, verify_audit
from thrifty.db.demand import read_demand
from thrifty.db.desired import Desired, read_desired, read_history
from thrifty.db.desired_state import DesiredDeployment, DesiredSlo, DesiredVersion
from thrifty.db.fleet import FleetState, ReplicaRow, read_fleet
from thrifty.db.improve import read_runs
from thrifty.errors import ArtifactError, ControlError, SpecError
from thrifty.home import Home
from thrifty.observe.rollups.overview import Sums, Version, Window, read_window
from thrifty.quality.figures import describe_quality
from thrifty.spec import parse_spec
from thrifty.worker import improve_views

MAX_MODELS = 500
LOOK_BACK = 100
_LONG = frozenset({"samples", "answers", "questions"})
"""Measured values that are long lists; the command line has them."""


class HomeViews:
    """What there is to see in one home. The methods block and may run on threads."""

    def __init__(self, database: Database, home: Home) -> None:
        self._database = database
        self._home = home

    def get_overview(self, window: WindowName) -> Overview:
        """Figures by version over a window that ends now. Raises `DatabaseError`."""
        found = read_window(self._database, window.value)
        desired, fleet = read_desired(self._database), read_fleet(self._database)
        known = [(row.name, v.label) for row in fleet.deployments for v in row.versions]
        # Those that are gone stay as long as the window has requests of them; without a version
        # are requests that reached none.
        names = [name for name in dict.fromkeys([*known, *sorted(found.totals)]) if all(name)]
        return Overview(
            window=window.value,
            since=found.times[0],
            until=found.until_s,
            versions=[_describe_version(name, found, desired, fleet) for name in names],
            step_s=found.step_s,
            times=list(found.times),
            series=[_make_series(name, found) for name in names],
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
            for one in row.versions:
                if one.artifact is not None:
                    served[one.artifact].append(f"{row.name}/{one.label}")
        versions = sorted(store.versions(), key=lambda one: one.created, reverse=True)
        found = []
        for version in versions[:MAX_MODELS]:
            try:
                artifact = store.load(version.artifact)
            except ArtifactError:
                continue  # removed meanwhile
            found.append(_describe_model(store, version, artifact, served[artifact.id]))
        return ModelList(models=found)

    def list_alerts(self) -> AlertList:
        """What is wrong, and what was in the last days. Raises `DatabaseError`."""
        silences, now_s = read_silences(self._database), time.time()
        found = []
        for row in read_alerts(self._database):
            ends = [
                one.until_s
                for one in silences
                if one.covers(row.kind, row.deployment, row.version, now_s)
            ]
            found.append(
                AlertModel(
                    kind=row.kind, severity=row.severity, deployment=row.deployment,
                    version=row.version, summary=row.summary, runbook=row.runbook,
                    since=row.since_s, resolved=row.resolved_s,
                    silenced_until=max(ends, default=None),
                )
            )  # fmt: skip
        return AlertList(alerts=found, silences=[describe_silence(one) for one in silences])

    def get_quality(self, deployment: str | None) -> Quality:
        """What is known of the quality of answers. Raises `DatabaseError`."""
        return Quality.model_validate(describe_quality(self._database, time.time(), deployment))

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

    def list_improve_runs(self, deployment: str | None) -> ImproveRuns:
        """Runs of the loop. Raises `DatabaseError`."""
        return improve_views.list_runs(self._database, deployment)

    def get_improve_run(self, run_id: int) -> ImproveRunDetail:
        """One run of the loop. Raises a 404 and `DatabaseError`."""
        try:
            return improve_views.get_run(self._database, self._home, run_id)
        except ControlError:
            known = [str(one.id) for one in read_runs(self._database, limit=5)]
            raise not_found("run", str(run_id), known) from None

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


def describe_silence(silence: Silence) -> SilenceModel:
    """A silence as the management API shows it."""
    return SilenceModel(
        id=silence.id, kind=silence.kind, deployment=silence.deployment, version=silence.version,
        until=silence.until_s, why=silence.why,
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
    sums = window.totals.get(name, Sums())
    numbers = sums.numbers
    state = desired.deployments.get(name[0])
    version = state.find_version(name[1]) if state is not None else None
    slo = version.slo if version is not None else DesiredSlo()
    ttft, tpot = _to_ms(slo.ttft_p95_s), _to_ms(slo.tpot_p95_s)
    return VersionFigures(
        deployment=name[0],
        version=name[1],
        requests=numbers["requests"],
        failed=numbers["failed"],
        refused=max(0, numbers["errors"] - numbers["failed"]),
        cache_hits=numbers["hits"],
        prompt_tokens=numbers["prompt_tokens"],
        cached_tokens=numbers["cached_tokens"],
        completion_tokens=numbers["completion_tokens"],
        ttft_p50_ms=sums.percentile("ttft", 0.5),
        ttft_p95_ms=sums.percentile("ttft", 0.95),
        tpot_p95_ms=sums.percentile("tpot", 0.95),
        e2e_p95_ms=sums.percentile("e2e", 0.95),
        ttft_objective_ms=ttft,
        tpot_objective_ms=tpot,
        within_objective=sums.times["ttft"].share_within(ttft) if ttft is not None else None,
        liked=numbers["up"],
        disliked=numbers["down"],
        corrected=numbers["corrected"],
        cost=numbers["cost"] if _is_priced(name, fleet) or numbers["cost"] else None,
        saved=numbers["hit_cost"],
    )


def _to_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _is_priced(name: Version, fleet: FleetState) -> bool:
    for row in fleet.deployments:
        for version in row.versions:
            if (row.name, version.label) == name:
                prices = version.settings
                return bool(prices.price_input or prices.price_output or prices.price_cached)
    return False


def _make_series(name: Version, window: Window) -> Series:
    steps = window.steps.get(name, [Sums()] * len(window.times))

    def count(key: str) -> list[float | None]:
        return [float(one.numbers[key]) for one in steps]

    return Series(
        labels={"deployment": name[0], "version": name[1]},
        values={
            "requests": count("requests"),
            "failed": count("failed"),
            "completion_tokens": count("completion_tokens"),
            "liked": count("up"),
            "disliked": count("down"),
            "ttft_p95_ms": [one.percentile("ttft", 0.95) for one in steps],
            "e2e_p95_ms": [one.percentile("e2e", 0.95) for one in steps],
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
