"""The tables of the loop: releases and turns; `db.tables` gives them out."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    String,
    Table,
    Text,
)

from thrifty.db.metadata import metadata

releases = Table(
    "releases",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("deployment", String(64), nullable=False),
    Column("candidate", String(64), nullable=False),
    Column("active_on", String(64), unique=True),
    Column("state", String(16), nullable=False),
    Column("edition", Integer, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("updated_s", Double, nullable=False),
    Column("active_s", Double, nullable=False),
    Column("record", Text, nullable=False),
    Column("figures", Text, nullable=False),
    Index(None, "deployment"),
)
"""Releases: a version on its way to a larger share. `record` is JSON with the plan, the weights
before and the steps taken; `figures` what was measured last. `edition` counts decisions, so that
two who decide at once do not both succeed. `active_on` is the deployment while the release is under
way (NULL afterwards), so that there is one at a time. `active_s` is the time spent, without
pauses."""

release_events = Table(
    "release_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("release_id", Integer, nullable=False),
    Column("at_s", Double, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", Text, nullable=False),
    Column("figures", Text, nullable=False),
    Index(None, "release_id"),
)
"""What was decided in each release: when, by whom, why, and the figures that it was decided on."""

release_pairs = Table(
    "release_pairs",
    metadata,
    Column("release_id", Integer, primary_key=True),
    Column("shadow", BigInteger, primary_key=True, autoincrement=False),
    Column("response", BigInteger, nullable=False),
    Column("conversation_id", String(32)),
    Column("outcome", Integer, nullable=False),
    Column("place", Integer, nullable=False, server_default="0"),
)
"""Pairs of answers to one request that a judge compared: `outcome` is 1 where the candidate's
(`shadow`) was better, -1 where it was worse, 0 where they tied, and 2 where the judge said nothing
usable. Both numbers are ids of `requests`. `place` is where it came among the release's pairs: what
they have proved depends on their order."""

release_ratings = Table(
    "release_ratings",
    metadata,
    Column("release_id", Integer, primary_key=True, autoincrement=False),
    Column("conversation_id", String(32), primary_key=True),
    Column("response", BigInteger),
    Column("score", Double, nullable=False),
)
"""What a judge said of conversations while a release was in its canary, from 0 to 1, of the answer
`response`; below 0: nothing usable."""

improve_runs = Table(
    "improve_runs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("deployment", String(64), nullable=False),
    Column("active_on", String(64), unique=True),
    Column("state", String(16), nullable=False),
    Column("began_by", String(16), nullable=False),
    Column("who", String(128), nullable=False),
    Column("created_s", Double, nullable=False),
    Column("updated_s", Double, nullable=False),
    Column("settings", Text, nullable=False),
    Column("message", Text, nullable=False),
    Index(None, "deployment"),
)
"""Turns of the loop. `active_on` is the deployment until the run has ended (NULL afterwards), so
that there is one at a time. `settings` is the section `improve` of the spec when it began, as
JSON."""

improve_steps = Table(
    "improve_steps",
    metadata,
    Column("run_id", Integer, primary_key=True, autoincrement=False),
    Column("step", String(16), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("began_s", Double, nullable=False),
    Column("ended_s", Double),
    Column("inputs", Text, nullable=False),
    Column("outputs", Text, nullable=False),
    Column("error", Text, nullable=False),
)
"""What each step of a run was given, what it came to, and why it failed; `inputs` and `outputs` are
JSON."""

held_conversations = Table(
    "held_conversations",
    metadata,
    Column("deployment", String(64), primary_key=True),
    Column("updated_s", Double, nullable=False),
    Column("keep_s", Double, nullable=False),
    Column("weights", Text, nullable=False),
    Column("conversations", Text, nullable=False),
)
"""Conversations that began before a release changed the weights, and stay on their versions: their
versions follow from `weights` (JSON) in place of the current ones. `conversations` holds the hashes
in their ids, one a line. Those without a request for `keep_s` are dropped."""
