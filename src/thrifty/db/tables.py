"""The database tables. Times are seconds since 1970 (UTC), as `_s` in a name indicates.

Every change needs a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    String,
    Table,
    Text,
)

from thrifty.db.loop_tables import held_conversations as held_conversations
from thrifty.db.loop_tables import improve_runs as improve_runs
from thrifty.db.loop_tables import improve_steps as improve_steps
from thrifty.db.loop_tables import release_events as release_events
from thrifty.db.loop_tables import release_pairs as release_pairs
from thrifty.db.loop_tables import release_ratings as release_ratings
from thrifty.db.loop_tables import releases as releases
from thrifty.db.metadata import metadata as metadata
from thrifty.db.quality_tables import answer_checks as answer_checks
from thrifty.db.quality_tables import answer_scores as answer_scores
from thrifty.db.quality_tables import answer_vectors as answer_vectors
from thrifty.db.quality_tables import drift_looks as drift_looks
from thrifty.db.quality_tables import quality_answers as quality_answers
from thrifty.db.quality_tables import quality_state as quality_state
from thrifty.db.quality_tables import quality_sums as quality_sums
from thrifty.db.quality_tables import unchecked_rows as unchecked_rows
from thrifty.db.request_tables import feedback as feedback
from thrifty.db.request_tables import feedback_history as feedback_history
from thrifty.db.request_tables import request_texts as request_texts
from thrifty.db.request_tables import requests as requests
from thrifty.db.sum_tables import ROLLUP_AMOUNTS as ROLLUP_AMOUNTS
from thrifty.db.sum_tables import ROLLUP_NUMBERS as ROLLUP_NUMBERS
from thrifty.db.sum_tables import ROLLUP_SKETCHES as ROLLUP_SKETCHES
from thrifty.db.sum_tables import replica_hours as replica_hours
from thrifty.db.sum_tables import replica_spans as replica_spans
from thrifty.db.sum_tables import rollup_state as rollup_state
from thrifty.db.sum_tables import rollups as rollups
from thrifty.db.sum_tables import tenant_rollups as tenant_rollups
from thrifty.db.sum_tables import unrolled_rows as unrolled_rows
from thrifty.db.sum_tables import unrolled_thumbs as unrolled_thumbs

changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("routing", BigInteger, nullable=False),
)
"""One row. `routing` increases whenever gateways must reload deployments, replicas or keys."""

deployments = Table(
    "deployments",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("engine", String(32), nullable=False),
    Column("version", String(128), nullable=False),
    Column("revision", String(32), nullable=False),
    Column("artifact", String(64)),
    Column("family", String(16), nullable=False),
    Column("settings", Text, nullable=False),
    Column("updated_s", Double, nullable=False),
)
"""The served deployments. `settings` is JSON with the settings that gateways need. `engine`,
`version`, `revision` and `artifact` are those of the version with the largest weight, for gateway
workers of the first release; `versions` has all of them."""

versions = Table(
    "versions",
    metadata,
    Column("deployment", String(64), primary_key=True),
    Column("label", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("engine", String(32), nullable=False),
    Column("revision", String(32), nullable=False),
    Column("artifact", String(64)),
    Column("weight", Double, nullable=False),
    Column("shadow", Double, nullable=False),
    Column("settings", Text, nullable=False),
    Column("message", Text),
    Column("updated_s", Double, nullable=False),
)
"""The versions of each deployment: what answers depend on, and the share of the traffic.
`settings` is JSON; `message` is the reason if the controller cannot continue with it."""

desired = Table(
    "desired",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("state", Text, nullable=False),
    Column("change_id", BigInteger, nullable=False),
)
"""The desired state of each deployment, and of the service itself under the empty name, as JSON.
The control loop reconciles the actual state with it."""

desired_changes = Table(
    "desired_changes",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("at_s", Double, nullable=False),
    Column("name", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", Text, nullable=False),
    Column("state", Text),
    Index(None, "name"),
)
"""Every change of the desired state: the state after it (NULL: the deployment was removed), when,
by whom and why. `kind` is `apply`, `traffic`, `scale`, `rollback`, `release` or `autoscale`."""

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
"""Secrets shared by all processes of a service, such as the key that signs response ids."""

replicas = Table(
    "replicas",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("deployment", String(64), nullable=False),
    Column("engine", String(32), nullable=False),
    Column("version", String(128), nullable=False),
    Column("revision", String(32), nullable=False),
    Column("artifact", String(64)),
    Column("url", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("pid", Integer),
    Column("process_created_s", Double),
    Column("memory_bytes", BigInteger),
    Column("restarts", Integer, nullable=False),
    Column("message", Text),
    Column("load", Text),
    Column("updated_s", Double, nullable=False),
    Index(None, "deployment"),
)
"""The observed replicas. Only the controller writes them. `load` is JSON."""

gateways = Table(
    "gateways",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_created_s", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("updated_s", Double, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(24), nullable=False),
    Column("created_s", Double, nullable=False),
    Column("revoked_s", Double),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("concurrency", BigInteger),
    Column("budget_day", Double),
    Column("budget_month", Double),
    Column("operator", Boolean),
    Column("deployments", Text),
    Column("expires_s", Double),
    Column("previous_hash", String(64)),
    Column("previous_until_s", Double),
)
"""API keys. `hash` is the SHA-256 of the key; the key itself is not stored. NULL limits are
unlimited. `role` has the names of version 0.1, which may run at the same time: viewers are stored
as `monitor`, operators as `user` with `operator` set. `deployments` is a JSON list of those that it
may call; NULL: all."""

key_spend = Table(
    "key_spend",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("spend", Double, nullable=False),
    Column("updated_s", Double, nullable=False),
    Index(None, "updated_s"),
)
"""The spend of each key per day (UTC). Every gateway worker adds to it."""

erasures = Table(
    "erasures",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("at_s", Double, nullable=False),
    Column("subject", String(24), nullable=False),
    Column("until_response", BigInteger, nullable=False),
    Column("report", Text),
)
"""Persons whose data were erased, by pseudonym: their responses up to a number are gone, and rows
of these that still wait in a gateway are dropped. `report` is JSON; NULL while the erasure goes on,
or where it was killed."""

exports = Table(
    "exports",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("at_s", Double, nullable=False),
    Column("path", Text, nullable=False),
    Column("form", String(8), nullable=False),
)
"""Files of training rows that were written, so that a person's rows can be taken out of them."""

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("act", String(32), nullable=False),
    Column("actor", String(24), nullable=False),
    Column("details", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)
"""Administrative acts, numbered from 1, each with a hash over itself and the hash before it.
`actor` is a pseudonym, `details` canonical JSON."""

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("entries", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("signature", String(64), nullable=False),
)
"""One row: the number of acts, the hash of the last one, and a signature over both."""

cache_purges = Table(
    "cache_purges",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("deployment", String(64)),
    Column("version", String(128)),
    Column("tenant", String(64)),
)
"""Cache purges. `id` is the time in milliseconds and always increases."""

cache_stats = Table(
    "cache_stats",
    metadata,
    Column("worker", String(96), primary_key=True),
    Column("updated_s", Double, nullable=False),
    Column("stats", Text, nullable=False),
)
"""The cache statistics of each gateway worker, as JSON."""

demand = Table(
    "demand",
    metadata,
    Column("worker", String(96), primary_key=True),
    Column("deployment", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("updated_s", Double, nullable=False),
    Column("figures", Text, nullable=False),
)
"""What each gateway worker is asked of each version, as JSON (`db.demand`). The autoscaler reads
it."""

scaling = Table(
    "scaling",
    metadata,
    Column("deployment", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("updated_s", Double, nullable=False),
    Column("figures", Text, nullable=False),
)
"""What the autoscaler decided last of each version, as JSON (`db.scaling`). The controller writes
it; `thrifty status` and the gateways' metrics show it."""

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double),
    Index(None, "tenant", "created_s"),
    Index(None, "expires_s"),
)
"""Uploaded files, and results of batches. The contents are in `THRIFTY_HOME/files`."""

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("key_id", String(32)),
    Column("endpoint", String(32), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("completion_window", String(32), nullable=False),
    Column("metadata", Text),
    Column("output_keep_s", Double),
    Column("status", String(16), nullable=False),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double, nullable=False),
    Column("in_progress_s", Double),
    Column("finalizing_s", Double),
    Column("completed_s", Double),
    Column("failed_s", Double),
    Column("expired_s", Double),
    Column("cancelling_s", Double),
    Column("cancelled_s", Double),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("errors", Text),
    Index(None, "tenant", "created_s"),
    Index(None, "status"),
)
"""Batches of the Batch API. `metadata` and `errors` are JSON. Written by the gateway worker that
holds the lease `batches`; any worker may create and cancel them."""

leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("until_s", Double, nullable=False),
)
"""The exclusive rights of processes, with their expiry on the database's clock."""

alerts = Table(
    "alerts",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("severity", String(8), nullable=False),
    Column("deployment", String(64), nullable=False),
    Column("version", String(128), nullable=False),
    Column("summary", Text, nullable=False),
    Column("runbook", Text, nullable=False),
    Column("since_s", Double, nullable=False),
    Column("seen_s", Double, nullable=False),
    Column("resolved_s", Double),
    Column("told", Text, nullable=False),
)
"""Alerts that are open, and those that were over a while ago. The controller writes them. `told` is
JSON: what each target was told last, and when."""

alert_silences = Table(
    "alert_silences",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("kind", String(32)),
    Column("deployment", String(64)),
    Column("version", String(128)),
    Column("until_s", Double, nullable=False),
    Column("why", Text, nullable=False),
)
"""Alerts that nobody is told of for a while; NULL means any."""

text_keys = Table(
    "text_keys",
    metadata,
    Column("source", String(512), primary_key=True),
    Column("writes", Boolean, nullable=False),
    Column("at_s", Double, nullable=False),
)
"""Where the keys of encrypted texts are read from (`sealed_text`), and which place writes now.
Never the keys."""

sign_ins = Table(
    "sign_ins",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("person", String(16), nullable=False),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("rules", String(16), nullable=False),
    Column("at_s", Double, nullable=False),
    Column("until_s", Double, nullable=False),
    Index(None, "until_s"),
)
"""Who is signed in to the console through an identity provider. `hash` is the SHA-256 of a secret
that nobody keeps, which stands for the person as a key's does; `rules` are those of the spec by
which the role was given."""
