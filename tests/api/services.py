"""The management API's services, kept in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from thrifty.api.cost_models import CostAnswer, CostQuery
from thrifty.api.models import (
    Applied,
    Change,
    CreatedKey,
    DeploymentStatus,
    Draining,
    DrainRequest,
    GatewayStatus,
    KeyInfo,
    KeyList,
    NewKey,
    NewRelease,
    Plan,
    PlanStep,
    Release,
    ReleaseDetail,
    ReleaseList,
    ReplicaStatus,
    Restarted,
    RestartRequest,
    RotateKey,
    ScaleChange,
    Scaled,
    SeriesAnswer,
    SeriesModel,
    SeriesQuery,
    Status,
    Traffic,
    VersionStatus,
)
from thrifty.api.services import not_found
from thrifty.api.view_models import (
    AlertList,
    AuditAct,
    AuditList,
    AuditVerdict,
    History,
    HistoryEntry,
    Live,
    LiveCount,
    LiveReplica,
    ModelList,
    NewSilence,
    Overview,
    Setting,
    Settings,
    SilenceModel,
)
from thrifty.api.views import WindowName
from thrifty.cost.report import CostReport
from thrifty.errors import DatabaseError, Problem, SpecError, ThriftyError
from thrifty.openai.errors import WireError, bad_request


def make_empty_report() -> CostReport:
    """A report of a time in which nothing was."""
    return CostReport("version", 0, 1.0, [], 0, 0, [], [], [])


class MemoryServices:
    """One deployment, `chat`, with the versions a and b."""

    def __init__(self) -> None:
        self.weights = {"a": 90.0, "b": 10.0}
        self.before: dict[str, float] | None = None
        self.keys: dict[str, KeyInfo] = {}
        self.releases: dict[int, Release] = {}
        self.applied: list[dict[str, Any]] = []
        self.changes: list[tuple[str, str, str]] = []
        """What was done, by whom and why."""
        self.fails: Exception | None = None
        """What reading the status raises."""
        self.hold = threading.Event()
        """Reading the status waits for this."""
        self.hold.set()
        self.holding = 0
        self.views = MemoryViews(self)
        self.asked: SeriesQuery | None = None
        """Which series were asked for last."""

    def close(self) -> None:
        pass

    def get_status(self) -> Status:
        self.holding += 1
        self.hold.wait()
        if self.fails is not None:
            raise self.fails
        versions = [
            VersionStatus(label=label, weight=weight) for label, weight in self.weights.items()
        ]
        replicas = [
            ReplicaStatus(id=f"{label}-0", version=label, state="ready") for label in self.weights
        ]
        return Status(
            deployments=[DeploymentStatus(name="chat", versions=versions, replicas=replicas)],
            gateway=GatewayStatus(url="http://127.0.0.1:8080"),
        )

    def get_series(self, asked: SeriesQuery) -> SeriesAnswer:
        metrics = asked.metrics.split(",")
        if "nonsense" in metrics:
            raise ThriftyError("'metrics' has 'nonsense', which is none")
        self.asked = asked
        values: dict[str, list[int | float | None]] = {metric: [1, None] for metric in metrics}
        series = [SeriesModel(labels={}, values=values)]
        return SeriesAnswer(step_s=60, times=[0, 60], series=series)

    def get_cost(self, asked: CostQuery) -> CostAnswer:
        if asked.by == "nonsense":
            raise ThriftyError("costs are told apart by version, not by 'nonsense'")
        return CostAnswer.model_validate(make_empty_report().describe())

    def get_traffic(self, deployment: str) -> Traffic:
        self._check(deployment)
        return Traffic(deployment=deployment, weights=self.weights)

    def set_traffic(
        self,
        deployment: str,
        weights: Mapping[str, float],
        *,
        who: str,
        why: str,
        force: bool = False,
    ) -> Traffic:
        self._check(deployment)
        for label in weights:
            if label not in self.weights:
                raise not_found("version", label)
        wanted = {**self.weights, **weights}
        if not any(wanted.values()):
            raise bad_request("not all weights may be 0", "weights", "invalid_value")
        self.before, self.weights = self.weights, wanted
        self.changes.append(("traffic", who, why))
        return Traffic(deployment=deployment, weights=self.weights, owner="traffic")

    def set_scale(self, deployment: str, change: ScaleChange, *, who: str) -> Scaled:
        self._check(deployment)
        self.changes.append(("scale", who, change.why))
        return Scaled(deployment=deployment, version=change.version, count=change.count or 1)

    def restart_version(self, deployment: str, wanted: RestartRequest, *, who: str) -> Restarted:
        self._check(deployment)
        self.changes.append(("restart", who, wanted.why))
        return Restarted(deployment=deployment, version=wanted.version, revision="r+1")

    def drain_replica(self, deployment: str, wanted: DrainRequest, *, who: str) -> Draining:
        self._check(deployment)
        self.changes.append(("drain", who, wanted.why))
        return Draining(deployment=deployment, replica=wanted.replica)

    def roll_back(self, deployment: str, *, who: str, why: str, remove: bool = False) -> Change:
        self._check(deployment)
        if self.before is None:
            raise WireError(409, "there is nothing to go back to", code="nothing_before")
        self.before, self.weights = self.weights, self.before
        self.changes.append(("rollback", who, why))
        return Change(
            id=len(self.changes), deployment=deployment, at_s=time.time(), kind="rollback",
            who=who, why=why,
        )  # fmt: skip

    def make_plan(self, spec: Mapping[str, Any]) -> Plan:
        if "model" not in spec:
            raise SpecError([Problem("modle", "is not a known key; did you mean 'model'?")])
        step = PlanStep(what=str(spec["model"]), size_bytes=100, seconds=1.5, why="it is new")
        return Plan(fetch=[step])

    def apply_spec(self, spec: Mapping[str, Any], *, reset: bool, who: str, why: str) -> Applied:
        plan = self.make_plan(spec)
        self.applied.append(dict(spec))
        self.changes.append(("reset" if reset else "apply", who, why))
        return Applied(plan=plan, held=[] if reset else ["chat: weights"])

    def list_releases(self) -> ReleaseList:
        return ReleaseList(releases=list(self.releases.values()))

    def get_release(self, release_id: int) -> ReleaseDetail:
        if release_id not in self.releases:
            raise not_found("release", str(release_id))
        return ReleaseDetail(**self.releases[release_id].model_dump(), events=[])

    def start_release(self, deployment: str, release: NewRelease, *, who: str) -> ReleaseDetail:
        self._check(deployment)
        if self.releases:
            raise ThriftyError("a release is under way")
        self.releases[1] = Release(
            id=1, deployment=deployment, candidate=release.candidate, state="running",
            stage="start", weights=self.weights, before=self.weights, plan=release.plan, figures={},
            created_s=0.0, updated_s=0.0, who=who, why=release.why,
        )  # fmt: skip
        return self.get_release(1)

    def act_on_release(self, release_id: int, act: str, *, who: str, why: str) -> ReleaseDetail:
        self.get_release(release_id)
        if act not in ("pause", "resume", "promote", "abort"):
            raise not_found("act", act)
        self.changes.append((act, who, why))
        return self.get_release(release_id)

    def add_silence(self, silence: NewSilence, *, who: str) -> SilenceModel:
        self.changes.append(("silence", who, silence.why))
        return SilenceModel(
            id=1, kind=silence.kind, deployment=silence.deployment, version=silence.version,
            until=silence.seconds, why=silence.why,
        )  # fmt: skip

    def remove_silence(self, number: int, *, who: str) -> None:
        raise not_found("silence", str(number))

    def list_keys(self) -> KeyList:
        return KeyList(keys=sorted(self.keys.values(), key=lambda key: key.name))

    def create_key(self, key: NewKey, *, who: str) -> CreatedKey:
        if key.name in self.keys:
            raise ThriftyError(f"there is a key named {key.name!r} already")
        made = KeyInfo(
            id="1", name=key.name, role=key.role, tenant=key.tenant or key.name, hint="sk-...",
            created_s=0.0, limits=key.limits,
        )  # fmt: skip
        self.keys[key.name] = made
        self.changes.append(("key", who, key.name))
        return CreatedKey(key=made, secret="sk-thrifty-secret")

    def rotate_key(self, name: str, wanted: RotateKey, *, who: str) -> CreatedKey:
        if name not in self.keys:
            raise not_found("key", name)
        self.changes.append(("rotate", who, f"{name} {wanted.keep_s:g}"))
        return CreatedKey(key=self.keys[name], secret="sk-thrifty-another")

    def revoke_key(self, name: str, *, who: str) -> None:
        if self.keys.pop(name, None) is None:
            raise not_found("key", name)
        self.changes.append(("revoke", who, name))

    def _check(self, deployment: str) -> None:
        if deployment == "away":
            raise DatabaseError("connection refused by 10.0.0.1")
        if deployment != "chat":
            raise not_found("deployment", deployment)


class MemoryViews:
    """Views of that one deployment."""

    def __init__(self, services: MemoryServices) -> None:
        self._services = services
        self.arrivals = 0
        """Grows by 10 with each look."""

    def get_overview(self, window: WindowName) -> Overview:
        return Overview(
            window=window.value, since=0.0, until=60.0, versions=[],
            step_s=60.0, times=[0.0], series=[],
        )  # fmt: skip

    def get_live(self) -> Live:
        self.arrivals += 10
        count = LiveCount(
            worker="w", deployment="chat", version="a", since_s=0.0, arrivals=self.arrivals,
            answered=0, output_tokens=0, held=0, queued=1, in_flight=2,
        )  # fmt: skip
        return Live(at=time.time(), counts=[count], replicas=[LiveReplica(id="a-0", running=1)])

    def list_history(self, deployment: str | None, limit: int) -> History:
        found = [
            HistoryEntry(
                id=number, at="2026-11-30T00:00:00+00:00", deployment="chat", kind=kind, who=who,
                why=why, versions=None,
            )
            for number, (kind, who, why) in enumerate(self._services.changes, 1)
        ]  # fmt: skip
        return History(changes=found[::-1][:limit])

    def list_models(self) -> ModelList:
        return ModelList(models=[])

    def list_alerts(self) -> AlertList:
        return AlertList(alerts=[], silences=[])

    def get_settings(self) -> Settings:
        return Settings(settings=[Setting(key="gateway.port", value=8080, origin="default")])

    def list_acts(self, limit: int) -> AuditList:
        acts = [
            AuditAct(id=number, at=0.0, act=kind, actor="p-1", details={})
            for number, (kind, _, _) in enumerate(self._services.changes, 1)
        ]
        return AuditList(acts=acts[::-1][:limit])

    def verify_audit(self) -> AuditVerdict:
        return AuditVerdict(whole=True, fault=None, head="0:" + "0" * 64, entries=0)
