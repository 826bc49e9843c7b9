"""What the management API takes and gives. `/openapi.json` is made from these."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from thrifty.types import Role

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Why = Annotated[
    str, Field(default="", max_length=1000, description="The reason, for the list of changes.")
]
MAX_WEIGHTS = 100
MAX_TIME_S = 1 << 40


class Request(BaseModel):
    """A request's body: closed to fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(frozen=True)


class ErrorDetail(Answer):
    """An error, in the OpenAI shape."""

    message: str
    type: str
    param: str | None = Field(None, description="The field at fault.")
    code: str | None = Field(None, description="A short name for programs.")


class ErrorAnswer(Answer):
    """The body of every answer that is an error."""

    error: ErrorDetail


class ReplicaStatus(Answer):
    """A running copy of a version."""

    id: str
    version: str = Field(description="The label of its version.")
    revision: str = Field("", description="A checksum of everything that its answers depend on.")
    state: str
    url: str | None = None
    pid: int | None = None
    memory_bytes: int | None = None
    restarts: int = 0
    message: str | None = None


class ScalingStatus(Answer):
    """The autoscaler's last decision for a version. Times are in seconds."""

    min: int = Field(description="The fewest replicas.")
    max: int = Field(description="The most replicas, starting ones included.")
    reason: str = Field("", description="What the decision rests on.")
    count: int | None = Field(None, description="How many replicas are wanted.")
    needed: int | None = Field(
        None, description="How many the objective needs, before bounds and capacity."
    )
    ready: int | None = None
    starting: int | None = None
    limit: str | None = Field(
        None, description="What keeps `count` below `needed`: `max`, or what there is no room for."
    )
    unreachable: str | None = Field(
        None, description="Why no number of replicas meets the objective."
    )
    ttft_p95_s: float | None = Field(None, description="Predicted, waiting included.")
    tpot_p95_s: float | None = Field(None, description="Predicted.")
    utilisation: float | None = Field(None, description="Predicted; 1: all is in use.")
    ttft_objective_s: float | None = None
    tpot_objective_s: float | None = None
    measured_ttft_p95_s: float | None = Field(
        None, description="Of the streams of the last minutes, waiting included."
    )
    arrivals_per_s: float | None = Field(None, description="The rate that was decided on.")
    start_s: float | None = Field(
        None, description="How long a replica takes until it is ready, as learned."
    )
    wakes: int = Field(
        0, description="How often requests have woken it from zero since the controller started."
    )
    changed_s: float | None = Field(
        None, description="When `count` changed last, in seconds since 1970."
    )


class ZeroStatus(Answer):
    """How a version stands that has no replica while nobody asks."""

    rung: str = Field(description="`awake`, `waking`, `parked`, `cached` or `stopped`.")
    standby: str = Field(
        description="What is kept while nobody asks: `stopped`, `cached` or `parked`."
    )
    held: int = Field(0, description="How many requests wait for it to wake.")
    cached_share: float | None = Field(
        None,
        description="With `standby: cached`, at zero: how much of its model is in the page cache, from 0 "
        "to 1; null where that is not known.",
    )


class VersionStatus(Answer):
    """One version of a deployment."""

    label: str
    weight: float = Field(description="Its share of the traffic, relative to the other versions.")
    share: float = Field(0.0, description="Its share of the traffic; all shares add up to 1.")
    shadow: float = Field(0.0, description="The share of requests that it gets copies of.")
    model: str = ""
    engine: str = ""
    revision: str = Field("", description="A checksum of everything that answers depend on.")
    state: str = Field("", description="`ready`, `rolling` or `waiting`.")
    message: str | None = Field(None, description="Why it is not ready.")
    ready: int = Field(0, description="How many replicas answer for it.")
    wanted: int = Field(0, description="How many replicas it should have.")
    scaling: ScalingStatus | None = Field(
        None, description="The autoscaler's decision; none where the number is fixed."
    )
    zero: ZeroStatus | None = Field(
        None, description="How it stands between none and some; none where it is never at zero."
    )


class DeploymentStatus(Answer):
    """What is served under one name."""

    name: str
    version: str = Field("", description="The label of the version with the largest weight.")
    engine: str = Field("", description="The engine of that version.")
    family: str = Field("", description="`decoder` or `encoder`.")
    versions: list[VersionStatus]
    replicas: list[ReplicaStatus]


class GatewayStatus(Answer):
    """The server that clients talk to."""

    url: str | None


class Status(Answer):
    """What is served; `deployments` is as in `thrifty status --json`."""

    deployments: list[DeploymentStatus]
    gateway: GatewayStatus


class SeriesQuery(Request):
    """Which series are wanted."""

    metrics: str = Field(
        "requests",
        max_length=4000,
        description="Names parted by commas: `requests`, `errors`, `hits`, `tokens_in`, "
        "`tokens_out`, `tokens_cached`, `tokens_in_hits`, `tokens_out_hits`, `cost`, `cost_hits`, "
        "`busy_ms`, `up`, `down`; percentiles in milliseconds such as `ttft_p50`, `tpot_p95`, "
        "`e2e_p99`, `queue_p99.9`; `errors:CODE` and `cache:RESULT`.",
    )
    by: str = Field("", description="`deployment`, `version` or `tenant`; empty: one series.")
    step: str = Field("hour", description="`minute`, `hour` or `day`.")
    from_s: int | None = Field(
        None,
        alias="from",
        ge=0,
        le=MAX_TIME_S,
        description="Seconds since 1970, brought to the start of its step. Default: a day before "
        "`to`.",
    )
    to_s: int | None = Field(
        None,
        alias="to",
        ge=0,
        le=MAX_TIME_S,
        description="Seconds since 1970, the end. Default: now.",
    )
    deployment: str | None = Field(None, description="Only this deployment's.")
    version: str | None = Field(None, description="Only this version's, by its label.")
    tenant: str | None = Field(None, description="Only this tenant's.")


class SeriesModel(Answer):
    """One series of each metric."""

    labels: dict[str, str] = Field(description="What it is of; empty: of everything.")
    values: dict[str, list[int | float | None]] = Field(
        description="By metric, one for each of `times`. A count of nothing is 0, a percentile of "
        "nothing is null."
    )


class SeriesAnswer(Answer):
    """Series over the same times."""

    step_s: int
    times: list[int] = Field(description="Where the steps begin, in seconds since 1970.")
    series: list[SeriesModel] = Field(description="Those with the most requests first.")


class TrafficChange(Request):
    """New weights."""

    weights: Annotated[dict[Label, Weight], Field(min_length=1, max_length=MAX_WEIGHTS)] = Field(
        description="Relative weights by version. Versions that are not named keep theirs; not all "
        "may become 0. Weights that are so already are not recorded as a change."
    )
    force: bool = Field(
        False,
        description="Set them even while a release owns the weights, which ends it. Otherwise that is a "
        "400.",
    )
    why: Why = ""


class VersionTraffic(Answer):
    """The traffic of one version."""

    label: str
    weight: float
    share: float = Field(description="Its share of the traffic; all shares add up to 1.")
    shadow: float = Field(description="The share of requests that it gets copies of.")


class Traffic(Answer):
    """The traffic of a deployment's versions, as `thrifty traffic --json` prints it."""

    deployment: str
    versions: list[VersionTraffic] = []
    weights: dict[str, float] = Field(description="The weights alone, by label.")
    owner: str = Field("spec", description="Who set the weights: `spec`, `traffic` or `rollback`.")


class ScaleChange(Request):
    """How many replicas a version has: `count` where it is fixed, `min` and `max` where the
    autoscaler chooses.
    """

    version: Label
    count: int | None = Field(None, ge=1)
    min: int | None = Field(None, ge=0)
    max: int | None = Field(None, ge=1)
    why: Why = ""


class Scaled(Answer):
    """What is desired now."""

    deployment: str
    version: str
    count: int
    min: int | None = None
    max: int | None = None


class RestartRequest(Request):
    """Which version is restarted."""

    version: Label
    why: Why = ""


class Restarted(Answer):
    """A version that is being restarted."""

    deployment: str
    version: str
    revision: str = Field(description="That of the replicas that come.")


class DrainRequest(Request):
    """Which replica is drained."""

    replica: str = Field(min_length=1, max_length=64, description="Its id.")
    force: bool = Field(
        False,
        description="Also if no other replica of its version is ready. Otherwise that is a 409.",
    )
    why: Why = ""


class Draining(Answer):
    """A replica that is being drained."""

    deployment: str
    replica: str


class RollbackRequest(Request):
    """Why a deployment is rolled back, and what may come of it."""

    remove: bool = Field(
        False,
        description="Go back even where the deployment was not served before, which removes it. "
        "Otherwise that is a 409.",
    )
    why: Why = ""


class Change(Answer):
    """One change of a deployment's desired state."""

    id: int
    deployment: str
    at_s: float = Field(description="Seconds since 1970.")
    kind: str
    who: str
    why: str = ""


class NewRelease(Request):
    """A version to release."""

    candidate: Label = Field(description="The label of one of the deployment's versions.")
    plan: dict[str, Any] = Field(
        default={},
        description="The plan, as in the file of `thrifty release --plan`. Its judge may be a "
        "deployment; functions and servers elsewhere are for plans on the service's machine.",
    )
    why: Why = ""


class ReleaseAct(Request):
    """Why something is done to a release."""

    why: Why = ""


class ReleaseEvent(Answer):
    """One decision in a release."""

    at_s: float = Field(description="Seconds since 1970.")
    kind: str
    who: str
    why: str
    figures: dict[str, Any] = Field(description="What it was decided on.")


class Release(Answer):
    """A version on its way to all of the traffic."""

    id: int
    deployment: str
    candidate: str
    state: str = Field(
        description="`running`, `paused`, `promoted`, `rolled_back`, `aborted` or `ended`."
    )
    verdict: str | None = Field(
        None,
        description="`better`, `not worse`, `nothing worse`, `worse` or `inconclusive`; null: not yet.",
    )
    message: str = Field("", description="Why it is paused, or has ended.")
    stage: str = Field(description="`start`, `shadow`, or a share such as `25%`.")
    share: float = Field(0.0, description="The candidate's share in the last step, from 0 to 1.")
    weights: dict[str, float] = Field(description="The weights that it has set.")
    before: dict[str, float] = Field(description="The weights before.")
    plan: dict[str, Any]
    figures: dict[str, Any] = Field(description="Each metric with its interval and verdict.")
    created_s: float
    updated_s: float
    active_s: float = Field(0.0, description="The time it has run, pauses left out.")
    who: str
    why: str = ""


class ReleaseList(Answer):
    """The newest releases, the newest first."""

    releases: list[Release]


class ReleaseDetail(Release):
    """A release with all decisions, oldest first."""

    events: list[ReleaseEvent]


class PlanStep(Answer):
    """One thing that would be done."""

    what: str
    size_bytes: int | None = None
    seconds: float | None = None
    why: str


class Plan(Answer):
    """What applying a spec would do."""

    fetch: list[PlanStep] = []
    choose: list[PlanStep] = []
    prepare: list[PlanStep] = []
    start: list[PlanStep] = []
    stop: list[PlanStep] = []
    change: list[PlanStep] = []


class PlanRequest(Request):
    """A spec to look at."""

    spec: dict[str, Any] = Field(description="The spec, as a mapping.")


class ApplyRequest(Request):
    """A spec to apply."""

    spec: dict[str, Any] = Field(description="The spec, as a mapping.")
    reset: bool = Field(False, description="Also take back what operators have set since.")
    why: Why = ""


class Applied(Answer):
    """What was done, or begun."""

    plan: Plan
    held: list[str] = Field(default=[], description="What stays because an operator has set it.")


class KeyLimitsModel(Request):
    """What a key may use at most; null: no limit."""

    rpm: int | None = Field(None, ge=1, description="Requests a minute.")
    tpm: int | None = Field(None, ge=1, description="Tokens a minute, of prompts and answers.")
    concurrency: int | None = Field(None, ge=1, description="Requests at once.")
    budget_day: float | None = Field(None, ge=0, description="Spend on a day (UTC).")
    budget_month: float | None = Field(None, ge=0, description="Spend in a calendar month (UTC).")


class NewKey(Request):
    """A key to make."""

    name: str = Field(min_length=1, max_length=64)
    role: Role = Role.USER
    tenant: str | None = Field(None, description="Default: the name.")
    limits: KeyLimitsModel = KeyLimitsModel()
    deployments: list[str] | None = Field(
        None, max_length=100, description="Only these may be called; for the role user. null: all."
    )
    expires_s: float | None = Field(
        None, description="When it ends by itself, in seconds since 1970. null: never."
    )


class RotateKey(Request):
    """How a key gets another secret."""

    keep_s: float = Field(
        0.0,
        ge=0,
        le=30 * 86400,
        description="How long the secret of before stays good, in seconds.",
    )


class KeyInfo(Answer):
    """A key, without its secret."""

    id: str
    name: str
    role: Role
    tenant: str
    hint: str = Field(description="How the secret begins.")
    created_s: float = Field(description="Seconds since 1970.")
    limits: KeyLimitsModel
    deployments: list[str] | None = None
    expires_s: float | None = None


class KeyList(Answer):
    """The keys that are not revoked, by name."""

    keys: list[KeyInfo]


class CreatedKey(Answer):
    """A new key."""

    key: KeyInfo
    secret: str = Field(description="What the holder sends. It is stored nowhere.")
