"""What the views of the management API give: figures, history, models, settings, audit."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thrifty.api.models import Answer, Request, Why


class VersionFigures(Answer):
    """What one version did in a window. Times are in milliseconds."""

    deployment: str
    version: str
    requests: int
    failed: int = Field(description="Failed by the service (5xx), or broken off.")
    refused: int = Field(description="Answered with a 4xx.")
    cache_hits: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    tpot_p95_ms: float | None = None
    e2e_p95_ms: float | None = None
    ttft_objective_ms: float | None = Field(None, description="Of the spec (`slo`).")
    tpot_objective_ms: float | None = None
    within_objective: float | None = Field(
        None, description="The share of requests whose first token came within the objective."
    )
    liked: int = Field(0, description="Thumbs up, as they are now.")
    disliked: int = 0
    corrected: int = 0
    cost: float | None = Field(
        None, description="By the spec's prices as they were then; none without prices."
    )
    saved: float = Field(0, description="What answers from caches would have cost.")


class Series(Answer):
    """Values of one version, one for each time."""

    labels: dict[str, str]
    values: dict[str, list[float | None]]


class Overview(Answer):
    """What happened in a window. `hour` has minutes, `day` hours and `month` 30 days, UTC; the last
    step goes on.
    """

    window: str
    since: float = Field(description="Seconds since 1970, as all times here.")
    until: float
    versions: list[VersionFigures]
    step_s: float
    times: list[float]
    series: list[Series]


class HistoryVersion(Answer):
    """A version in a past state."""

    label: str
    weight: float
    replicas: int
    model: str


class HistoryEntry(Answer):
    """One change of the desired state."""

    id: int
    at: str
    deployment: str | None
    kind: str
    who: str
    why: str
    versions: list[HistoryVersion] | None = Field(
        None, description="The state after it; none where the deployment was removed."
    )


class History(Answer):
    """Changes of the desired state, the newest first."""

    changes: list[HistoryEntry]


class StoredModel(Answer):
    """A stored model: its description, lineage and measurements."""

    name: str
    id: str
    format: str
    family: str
    architecture: str
    context_length: int
    parameters: int
    weights: str
    size_bytes: int
    created: str
    source: str | None
    parents: list[dict[str, str]]
    recipe: dict[str, Any]
    made_by: str
    measured: list[dict[str, Any]]
    served_by: list[str] = Field(description="`deployment/version` that serve it.")


class ModelList(Answer):
    """The store."""

    models: list[StoredModel]


class Setting(Answer):
    """One key of the spec in force."""

    key: str
    value: Any
    origin: str = Field(description="`spec`, `default`, or who changed it since.")


class Settings(Answer):
    """The spec that was applied last, and what was changed since."""

    settings: list[Setting]


class AuditAct(Answer):
    """One administrative act."""

    id: int
    at: float
    act: str
    actor: str = Field(description="A pseudonym.")
    details: dict[str, Any]


class AuditList(Answer):
    """Administrative acts, the newest first."""

    acts: list[AuditAct]


class AuditVerdict(Answer):
    """Whether the audit log is whole."""

    whole: bool
    fault: str | None
    head: str = Field(description="The number of entries and the last hash, to be kept elsewhere.")
    entries: int


class AlertModel(Answer):
    """Something that is or was wrong. Times are seconds since 1970."""

    kind: str
    severity: str
    deployment: str
    version: str
    summary: str
    runbook: str = Field(description="The page of the documentation that says what to do.")
    since: float
    resolved: float | None = Field(None, description="When it was over; null: it is open.")
    silenced_until: float | None = None


class SilenceModel(Answer):
    """Alerts that nobody is told of for a while; null means any."""

    id: int
    kind: str | None
    deployment: str | None
    version: str | None
    until: float
    why: str


class AlertList(Answer):
    """Alerts, the newest first, and silences."""

    alerts: list[AlertModel]
    silences: list[SilenceModel]


class NewSilence(Request):
    """Which alerts nobody is told of, and for how long. What is left out means any."""

    kind: str | None = Field(None, max_length=32)
    deployment: str | None = Field(None, max_length=64)
    version: str | None = Field(None, max_length=64)
    seconds: float = Field(gt=0, le=30 * 86_400, description="How long.")
    why: Why = ""


class LiveCount(Answer):
    """What one gateway worker counted of one version; totals only grow."""

    worker: str
    deployment: str
    version: str
    since_s: float
    arrivals: int
    answered: int
    output_tokens: int
    held: int
    queued: int
    in_flight: int


class LiveReplica(Answer):
    """The load of one replica."""

    id: str
    running: float = 0
    waiting: float = 0
    kv_usage: float = 0
    memory_bytes: int | None = None


class Live(Answer):
    """What is going on now."""

    at: float
    counts: list[LiveCount]
    replicas: list[LiveReplica]
