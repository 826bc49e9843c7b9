"""The desired state of a service, as plain data: what should run, whoever asked for it.

A spec is turned into it by `plan`; `traffic`, releases and the autoscaler change parts of it. Each
field has one owner: the spec owns versions, options and bounds; `traffic` and releases own weights
once they have set them; the autoscaler owns counts. The database keeps it as JSON, with a row for
each change (`db.desired`). Nothing in it names a local path: a model is an artifact in the store.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from thrifty.db.fleet import DeploymentRow, DeploymentSettings, VersionRow, VersionSettings
from thrifty.errors import ControlError

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
"""What the label of a version must match, whole."""
_RESTARTED = "+"
"""In a revision, before how often its build was restarted by hand."""


@dataclass(frozen=True)
class DesiredReplicas:
    """How many copies of a version run, and what each may use."""

    count: int = 1
    """At least 0. Servers that others run are as many as their URLs, whatever this says. Where there
    are bounds it is the autoscaler's, and the spec's otherwise."""
    min_count: int | None = None
    """The autoscaler's bounds; None, both of them, where the count is fixed."""
    max_count: int | None = None
    idle_after_s: float | None = None
    """With `min_count` 0: after so long without a request no copy is wanted."""
    standby: str = "stopped"
    """With `min_count` 0, what is kept while no copy is wanted: `stopped` (nothing), `cached` (the
    model's files in the page cache) or `parked`."""
    cpus: int | None = None
    """Cores for each copy; None: the machine's cores, shared evenly."""
    gpus: int = 0
    """GPUs for each copy."""
    memory_limit_bytes: int | None = None
    start_timeout_s: float = 600.0

    @property
    def is_autoscaled(self) -> bool:
        """Whether the autoscaler owns the count."""
        return self.max_count is not None

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most copies; both are the count where it is fixed."""
        if self.max_count is None:
            return self.count, self.count
        return self.min_count or 0, self.max_count

    @property
    def parked(self) -> int:
        """How many copies are kept loaded and idle beside those that are wanted."""
        return 1 if self.standby == "parked" and not self.count else 0

    @property
    def keeps_files(self) -> bool:
        """Whether the model's files are kept in the page cache now."""
        return self.standby == "cached" and not self.count

    def clamp(self, count: int) -> int:
        """The nearest count within the bounds."""
        fewest, most = self.bounds
        return max(fewest, min(most, count))


@dataclass(frozen=True)
class DesiredSlo:
    """The latencies that 95 of 100 requests should stay within; None: no objective."""

    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is any."""
        return self.ttft_p95_s is not None or self.tpot_p95_s is not None


@dataclass(frozen=True)
class DesiredVersion:
    """One version: a model with an engine and its options, and its share of the traffic."""

    label: str
    model: str
    """The stored model's `name@vN`, or what an engine without stored models calls it."""
    engine: str
    revision: str
    artifact: str | None
    options: Mapping[str, Any]
    """The engine's options, resolved, as `Served.options`."""
    urls: tuple[str, ...] = ()
    """The servers that others run; empty where a fleet starts them."""
    weight: float = 1.0
    shadow: float = 0.0
    settings: VersionSettings = field(default_factory=VersionSettings)
    replicas: DesiredReplicas = DesiredReplicas()
    slo: DesiredSlo = DesiredSlo()
    image: str | None = None
    """The image of its replicas in a cluster; None: the fleet's."""

    @property
    def copies(self) -> int:
        """How many copies are wanted."""
        return len(self.urls) or self.replicas.count

    @property
    def most_copies(self) -> int:
        """How many copies may be wanted."""
        return len(self.urls) or self.replicas.bounds[1]

    @property
    def row(self) -> VersionRow:
        """The version as gateways read it."""
        return VersionRow(
            label=self.label, model=self.model, engine=self.engine, revision=self.revision,
            artifact=self.artifact, weight=self.weight, shadow=self.shadow, settings=self.settings,
        )  # fmt: skip


@dataclass(frozen=True)
class DesiredQuality:
    """Canary questions for every version."""

    questions: str
    """A file on the controller's machine, or the name of a data set."""
    every_s: float = 600.0
    count: int = 50


@dataclass(frozen=True)
class DesiredChecks:
    """What is looked at in recorded answers."""

    answers_per_s: float = 50.0
    """The most answers a second; of more, a share by conversation. 0: none."""
    judge: str | Mapping[str, Any] | None = None
    """Who scores answers: `module:function`, `deployment:NAME`, or the fields of `RemoteJudge`."""
    judge_share: float = 0.02
    judge_per_hour: int = 120
    encoder: str | None = None
    """The deployment that embeds some questions and answers; None: drift of meaning is not looked
    for."""


@dataclass(frozen=True)
class DesiredDeployment:
    """What is to be served under one name."""

    name: str
    family: str
    settings: DeploymentSettings
    versions: tuple[DesiredVersion, ...]
    """At least one, in the order of the spec."""
    quality: DesiredQuality | None = None
    improve: dict[str, Any] | None = None
    """The section `improve` of the spec, as JSON; None: there is none."""
    checks: DesiredChecks = DesiredChecks()
    drains: tuple[tuple[str, float], ...] = ()
    """Replicas that were to be drained, by id, each with when that was asked for."""

    @property
    def row(self) -> DeploymentRow:
        """The deployment as gateways read it."""
        versions = tuple(version.row for version in self.versions)
        return DeploymentRow(self.name, self.family, self.settings, versions)

    def find_version(self, label: str) -> DesiredVersion | None:
        """The version with that label."""
        return next((version for version in self.versions if version.label == label), None)


@dataclass(frozen=True)
class DesiredCapacity:
    """What all replicas may take together, for the autoscaler; None: no bound of the spec."""

    cpus: int | None = None
    gpus: int | None = None
    memory_bytes: int | None = None
    per_hour: float | None = None
    price_per_hour: float = 0.0
    """What the machine costs an hour, for reports: a default, where nobody said."""
    stated_per_hour: float | None = None
    """What the spec says that the machine costs an hour; None: nothing."""
    basis: str = ""
    """Where that is from."""


@dataclass(frozen=True)
class DesiredService:
    """What all deployments share."""

    gateway: Mapping[str, Any] = field(default_factory=dict)
    """The gateway workers' settings, and how many workers there are, as plain data."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The spec that was applied last, as written: the next `apply` changes what differs from it."""
    capacity: DesiredCapacity = DesiredCapacity()
    records: Mapping[str, Any] = field(default_factory=dict)
    """How long sums of requests are kept, as `observe.rollups.roll.Keep`."""
    budgets: Mapping[str, float] = field(default_factory=dict)
    """What replicas may cost in a month, by deployment; the empty name has the service's."""
    fleet: Mapping[str, Any] = field(default_factory=dict)
    """Where replicas run, with its settings, as plain data; empty: on this machine."""
    alerts: Mapping[str, Any] = field(default_factory=dict)
    """What is an alert and who is told, as plain data (`observe.alerts.settings`)."""
    text_keys: str = ""
    """Where the keys of encrypted texts are (`db.sealed_text`); empty: texts are written plain."""


DesiredState = DesiredDeployment | DesiredService


def find_build(revision: str) -> str:
    """The build that a revision runs, however often it was restarted."""
    return revision.partition(_RESTARTED)[0]


def next_revision(revision: str) -> str:
    """The revision of the same build, restarted once more."""
    build, _, count = revision.partition(_RESTARTED)
    return f"{build}{_RESTARTED}{int(count or 0) + 1}"


def encode_desired(state: DesiredState) -> str:
    """The state as JSON."""
    return msgspec.json.encode(state).decode()


def decode_deployment(text: str) -> DesiredDeployment:
    """The deployment that `encode_desired` made. Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(text, type=DesiredDeployment)


def decode_service(text: str) -> DesiredService:
    """The service that `encode_desired` made. Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(text, type=DesiredService)


def differ_in_shares_only(old: DesiredDeployment, new: DesiredDeployment) -> bool:
    """Whether two states of a deployment are the same but for weights and shadows."""
    return old != new and _without_shares(old) == _without_shares(new)


def _without_shares(state: DesiredDeployment) -> DesiredDeployment:
    versions = tuple(replace(version, weight=1.0, shadow=0.0) for version in state.versions)
    return replace(state, versions=versions)


def check_deployment(state: DesiredDeployment) -> None:
    """Raise `ControlError` where a state makes no sense, whoever made it."""
    fault = _find_fault(state)
    if fault is not None:
        raise ControlError(f"the deployment {state.name!r} cannot be so: {fault}")


def _find_fault(state: DesiredDeployment) -> str | None:
    if not state.name:
        return "it has no name"
    if not state.versions:
        return "it has no version; remove the deployment instead"
    labels = [version.label for version in state.versions]
    for label in labels:
        if not LABEL.fullmatch(label):
            return f"the label {label!r} does not match {LABEL.pattern}"
        if labels.count(label) > 1:
            return f"two versions have the label {label!r}"
    for version in state.versions:
        if not (math.isfinite(version.weight) and version.weight >= 0):
            return f"the weight of {version.label!r} is {version.weight}; it must be at least 0"
        if not 0 <= version.shadow <= 1:
            return f"the shadow of {version.label!r} is {version.shadow}; it must be from 0 to 1"
        if version.replicas.count < 0:
            return f"{version.label!r} has {version.replicas.count} replicas"
        fault = _find_count_fault(version)
        if fault is not None:
            return fault
    if not any(version.weight > 0 for version in state.versions):
        return "all weights are 0, so that no version would answer"
    return None


def _find_count_fault(version: DesiredVersion) -> str | None:
    replicas, slo = version.replicas, version.slo
    if (replicas.min_count is None) != (replicas.max_count is None):
        return f"{version.label!r} has one of two bounds"
    fewest, most = replicas.bounds
    if not 0 <= fewest <= most:
        return f"the bounds of {version.label!r} are {fewest} and {most}"
    if replicas.clamp(replicas.count) != replicas.count:
        return (
            f"{version.label!r} would have {replicas.count} replicas, and its bounds are "
            f"{fewest} and {most}"
        )
    for objective in (slo.ttft_p95_s, slo.tpot_p95_s, replicas.idle_after_s):
        if objective is not None and not (math.isfinite(objective) and objective > 0):
            return f"{version.label!r} has a time of {objective}; it must be greater than 0"
    return None
