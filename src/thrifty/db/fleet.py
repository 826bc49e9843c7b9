"""Rows of deployments, versions, replicas and gateways: the controller writes, gateways read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, delete, insert, select, update

from thrifty.db.cache import Purge, read_purges
from thrifty.db.changes import note_change, read_change
from thrifty.db.database import Database
from thrifty.db.keys import Key, read_key
from thrifty.db.releases import HeldConversations, read_held
from thrifty.db.sanitize import sanitize_values
from thrifty.db.scaling import ScalingRow, read_scaling_rows
from thrifty.db.sign_ins import SignIn, read_sign_ins
from thrifty.db.tables import deployments, gateways, keys, replicas, versions


@dataclass(frozen=True)
class DeploymentSettings:
    """Settings of a deployment that apply to all of its versions. Times are in seconds."""

    routing: str = "auto"
    cache_when: str = "deterministic"
    cache_ttl_s: float = 3600.0
    max_tokens: int | None = None
    waiting: int = 1000
    wait_timeout_s: float = 30.0
    first_token_timeout_s: float = 600.0
    idle_timeout_s: float = 120.0
    created_s: float = 0.0
    timeout_s: float | None = None
    """Maximum time until an answer begins."""
    hedge_s: float | None = None
    """Time until a second replica is asked."""
    wake_timeout_s: float = 300.0
    """How long a request waits for a deployment at zero to start."""
    waiting_bytes: int = 64_000_000
    """The size of the requests that may wait, in each worker."""
    keep_alive_s: float | None = None
    """How often a stream that waits gets a comment; None: never."""
    aliases: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    """Deployments that answer if this one cannot."""
    priority: int = 0
    """Deployments with a larger one get their replicas first; gateways do not use it."""


@dataclass(frozen=True)
class VersionSettings:
    """Settings of one version: its engine's capabilities, and its prices."""

    honours: tuple[str, ...] | None = None
    """Request fields that the engine honours; None if only the external server knows."""
    upstream_model: str | None = None
    """The servers' name of the model, if it differs."""
    key_env: str | None = None
    """The environment variable that holds the servers' key."""
    salt_field: str | None = None
    """The request field that separates tenants in the engine's prefix cache, if there is one."""
    priority_field: str | None = None
    """The request field for priorities, by which batch lines may wait, if there is one."""
    takes_stream_options: bool = True
    """Whether the gateway may ask for the token counts of every stream."""
    load_path: str | None = "/load"
    """The path at which replicas report their load; None if they do not."""
    accepts_response_id: bool = False
    """Whether the engine takes its response id from the header `x-request-id`."""
    slots: int | None = None
    """Concurrent requests per replica; None means unlimited."""
    batch_slots: int = 32
    """Concurrent requests that a replica can process, as a limit for batches."""
    context_length: int | None = None
    """The longest prompt and answer together, in tokens; None if only the server knows."""
    wakes: bool = False
    """Whether it has no replica while nobody asks, so that a request has to wake one."""
    on_demand: bool = False
    """Whether others start its servers when requests wait, so that nobody may listen for now."""
    price_input: float = 0.0
    """Price per million tokens, as are the other prices."""
    price_cached: float = 0.0
    price_output: float = 0.0
    ttft_objective_s: float | None = None
    """The time to the first token that 95 of 100 streams should stay within, if there is one."""
    tpot_objective_s: float | None = None
    """As `ttft_objective_s`, for each further token."""


@dataclass(frozen=True)
class VersionRow:
    """One version of a deployment."""

    label: str
    """The label in headers, metrics, traffic weights and logs; unique in the deployment."""
    model: str
    """The stored model's `name@vN`, or the name that an engine without stored models uses."""
    engine: str
    revision: str
    """Changes whenever answers may change: the model's bytes, the engine, its options."""
    artifact: str | None = None
    weight: float = 1.0
    """Its share of the conversations, relative to the other versions' weights; at least 0."""
    shadow: float = 0.0
    """The share of requests, from 0 to 1, that are copied to it; their answers are discarded."""
    settings: VersionSettings = VersionSettings()


@dataclass(frozen=True)
class DeploymentRow:
    """What is served under one name."""

    name: str
    family: str
    settings: DeploymentSettings
    versions: tuple[VersionRow, ...]
    """At least one, in the order of the spec."""


@dataclass(frozen=True)
class ReplicaRow:
    """One replica, as the controller last saw it."""

    id: str
    deployment: str
    engine: str
    version: str
    """The label of its version."""
    revision: str
    artifact: str | None
    url: str
    state: str
    pid: int | None = None
    process_created_s: float | None = None
    memory_bytes: int | None = None
    restarts: int = 0
    message: str | None = None
    load: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class GatewayRow:
    """One gateway worker."""

    id: str
    url: str
    pid: int
    process_created_s: float
    state: str


@dataclass(frozen=True)
class FleetState:
    """Everything that routing depends on, read in one transaction."""

    change: int
    deployments: list[DeploymentRow]
    replicas: list[ReplicaRow]
    keys: list[Key]
    gateways: list[GatewayRow] = field(default_factory=list)
    purges: list[Purge] = field(default_factory=list)
    """The purges in effect, oldest first."""
    messages: dict[tuple[str, str], str] = field(default_factory=dict)
    """Why the controller cannot continue with a version, by deployment and label."""
    scaling: dict[tuple[str, str], ScalingRow] = field(default_factory=dict)
    """What the autoscaler says of a version, by deployment and label."""
    held: dict[str, HeldConversations] = field(default_factory=dict)
    """Conversations that go on by older weights, by deployment."""
    sign_ins: list[SignIn] = field(default_factory=list)
    """Who is signed in to the console through an identity provider."""


def save_deployment(database: Database, row: DeploymentRow) -> None:
    """Write a new or changed deployment with its versions. Versions it no longer has are
    deleted.
    """
    with database.begin() as connection:
        write_deployment(connection, row)
        note_change(connection)


def write_deployment(
    connection: Connection, row: DeploymentRow, messages: Mapping[str, str] | None = None
) -> None:
    """Like `save_deployment`, in the caller's transaction, which must note the change. `messages`
    holds, by label, why the controller cannot continue with a version.
    """
    now_s = time.time()
    main = max(row.versions, key=lambda version: version.weight)
    settings = {**asdict(main.settings), **asdict(row.settings)}
    values = {
        "name": row.name, "family": row.family, "engine": main.engine, "version": main.label,
        "revision": main.revision, "artifact": main.artifact, "settings": _dump(settings),
        "updated_s": now_s,
    }  # fmt: skip
    _upsert(connection, deployments, deployments.c.name == row.name, values)
    connection.execute(delete(versions).where(versions.c.deployment == row.name))
    for position, version in enumerate(row.versions):
        values = {
            **asdict(version), "deployment": row.name, "position": position,
            "settings": _dump(version.settings), "message": (messages or {}).get(version.label),
            "updated_s": now_s,
        }  # fmt: skip
        # The message may quote a server, which may send anything.
        connection.execute(insert(versions).values(sanitize_values(versions, values)))


def set_shares(
    connection: Connection, name: str, shares: Mapping[str, tuple[float, float]]
) -> None:
    """Set the weights and shadows of a deployment's versions, by label, in the caller's
    transaction, which must note the change. Labels without a row are ignored.
    """
    row = (
        connection.execute(select(deployments).where(deployments.c.name == name)).mappings().first()
    )
    if row is None:
        return
    query = select(versions).where(versions.c.deployment == name).order_by(versions.c.position)
    known = _read_deployment(row, connection.execute(query).mappings().all())
    changed = tuple(
        replace(version, weight=shares[version.label][0], shadow=shares[version.label][1])
        if version.label in shares
        else version
        for version in known.versions
    )
    write_deployment(connection, replace(known, versions=changed))


def write_replica(connection: Connection, row: ReplicaRow) -> None:
    """Write one replica, in the caller's transaction."""
    values = {
        **asdict(row),
        "load": None if row.load is None else _dump(dict(row.load)),
        "updated_s": time.time(),
    }
    # A server's message may hold anything; it must not block the other replicas.
    values = sanitize_values(replicas, values)
    _upsert(connection, replicas, replicas.c.id == row.id, values)


def save_replicas(database: Database, rows: list[ReplicaRow], *, routing_changed: bool) -> None:
    """Write the current state of replicas. With `routing_changed`, gateways read them at once;
    figures such as memory and load wait for the next regular read.
    """
    with database.begin() as connection:
        for row in rows:
            write_replica(connection, row)
        if routing_changed:
            note_change(connection)


def remove_replicas(database: Database, ids: list[str]) -> None:
    """Delete replicas that are gone for good."""
    with database.begin() as connection:
        connection.execute(delete(replicas).where(replicas.c.id.in_(ids)))
        note_change(connection)


def save_gateway(database: Database, row: GatewayRow) -> None:
    """Write one gateway worker."""
    with database.begin() as connection:
        values = {**asdict(row), "updated_s": time.time()}
        _upsert(connection, gateways, gateways.c.id == row.id, values)
        note_change(connection)


def remove_gateway(database: Database, gateway_id: str) -> None:
    """Delete a gateway worker."""
    with database.begin() as connection:
        connection.execute(delete(gateways).where(gateways.c.id == gateway_id))
        note_change(connection)


def read_gateways(database: Database) -> list[GatewayRow]:
    """All gateway workers."""
    with database.begin() as connection:
        return _read_gateways(connection)


def read_change_count(database: Database) -> int:
    """The number of routing changes so far; cheap to read."""
    with database.begin() as connection:
        return read_change(connection)


def read_fleet(database: Database) -> FleetState:
    """Read everything that routing depends on."""
    with database.begin() as connection:
        change = read_change(connection)
        deployment_rows = connection.execute(select(deployments)).mappings().all()
        version_rows = (
            connection.execute(select(versions).order_by(versions.c.position)).mappings().all()
        )
        replica_rows = connection.execute(select(replicas).order_by(replicas.c.id)).mappings().all()
        gateway_rows = _read_gateways(connection)
        key_rows = (
            connection.execute(select(keys).where(keys.c.revoked_s.is_(None))).mappings().all()
        )
        purges = read_purges(connection)
        scaling = read_scaling_rows(connection)
        held = read_held(connection)
        signed_in = read_sign_ins(connection)
    return FleetState(
        change,
        [_read_deployment(row, version_rows) for row in deployment_rows],
        [
            ReplicaRow(
                **{
                    **_without(row, "updated_s"),
                    "load": None if row["load"] is None else _load(row["load"]),
                }
            )
            for row in replica_rows
        ],
        [read_key(row) for row in key_rows],
        gateway_rows,
        purges,
        {
            (row["deployment"], row["label"]): row["message"]
            for row in version_rows
            if row["message"] is not None
        },
        scaling,
        {one.deployment: one for one in held},
        signed_in,
    )


def _read_deployment(
    row: Mapping[Any, Any], version_rows: Sequence[Mapping[Any, Any]]
) -> DeploymentRow:
    return DeploymentRow(
        row["name"],
        row["family"],
        msgspec.json.decode(row["settings"], type=DeploymentSettings),
        _read_versions(row, version_rows),
    )


def _read_versions(
    deployment: Mapping[Any, Any], rows: Sequence[Mapping[Any, Any]]
) -> tuple[VersionRow, ...]:
    """The versions of one deployment. A controller of the first release writes none; then the
    deployment's own row describes its only version.
    """
    found = tuple(
        VersionRow(
            **{
                **_without(row, "deployment", "position", "message", "updated_s"),
                "settings": msgspec.json.decode(row["settings"], type=VersionSettings),
            }
        )
        for row in rows
        if row["deployment"] == deployment["name"]
    )
    if found:
        return found
    settings = msgspec.json.decode(deployment["settings"], type=VersionSettings)
    label = deployment["version"]
    return (
        VersionRow(
            label, label, deployment["engine"], deployment["revision"], deployment["artifact"],
            settings=settings,
        ),
    )  # fmt: skip


def _read_gateways(connection: Connection) -> list[GatewayRow]:
    rows = connection.execute(select(gateways).order_by(gateways.c.id)).mappings().all()
    return [GatewayRow(**_without(row, "updated_s")) for row in rows]


def _upsert(connection: Connection, table: Table, where: Any, values: dict[str, Any]) -> None:
    if connection.execute(update(table).where(where).values(values)).rowcount == 0:
        connection.execute(insert(table).values(values))


def _without(row: Mapping[Any, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


def _dump(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _load(text: str) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.json.decode(text)
    return value
