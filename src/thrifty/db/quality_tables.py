"""The tables of what is found out about answers; `tables` has them, too, with all others."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
)

from thrifty.db.metadata import metadata

unchecked_rows = Table(
    "unchecked_rows",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("numbers", LargeBinary, nullable=False),
)
"""Numbers (MessagePack) of rows of the request log whose answers are still to be checked: the notes of
`unrolled_rows`, passed on in the transaction that adds them to the rollups."""

answer_checks = Table(
    "answer_checks",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("faults", Integer, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("flags", Integer, nullable=False),
)
"""Answers that were checked, by the `id` of `requests`: a bit for each fault that was found
(`quality.detect`), the place of the answer in its session, from 1, and `flags` (`quality.check`).
Kept for days, so that what follows in a conversation can be told."""

quality_sums = Table(
    "quality_sums",
    metadata,
    Column("step_s", Integer, primary_key=True, autoincrement=False),
    Column("at_s", BigInteger, primary_key=True, autoincrement=False),
    Column("deployment", String(64), primary_key=True),
    Column("version", String(128), primary_key=True),
    Column("counts", Text, nullable=False),
    Column("sketches", LargeBinary, nullable=False),
)
"""What checks of answers found, by hour and day (`step_s`), deployment and version. `counts` is JSON:
numbers by name; `sketches` MessagePack: distributions by name (`observe.rollups.sketch`)."""

quality_state = Table(
    "quality_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("turn", BigInteger, nullable=False),
)
"""One row. `turn` counts what was added to the sums, so that two processes cannot add at once."""

answer_scores = Table(
    "answer_scores",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at_s", Double, nullable=False),
    Column("deployment", String(64), nullable=False),
    Column("version", String(128), nullable=False),
    Column("judge", String(255), nullable=False),
    Column("score", Double),
    Index(None, "deployment", "at_s"),
    Index(None, "at_s"),
)
"""Answers that chance chose for the judge, by the `id` of `requests`, with the score from 0 to 1 that
it gave (NULL: not yet)."""

drift_looks = Table(
    "drift_looks",
    metadata,
    Column("at_s", BigInteger, primary_key=True, autoincrement=False),
    Column("deployment", String(64), primary_key=True),
    Column("version", String(128), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("before", BigInteger, nullable=False),
    Column("now", BigInteger, nullable=False),
    Column("effect", Double, nullable=False),
    Column("p_value", Double, nullable=False),
    Column("drifted", Boolean, nullable=False),
)
"""Comparisons of one day (from `at_s` on) with the days before, one row for each figure: how many
conversations there were `before` and `now`, how far apart they are, and whether that is a change. The
empty version is the deployment: what it was asked."""

answer_vectors = Table(
    "answer_vectors",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at_s", Double, nullable=False),
    Column("deployment", String(64), nullable=False),
    Column("version", String(128), nullable=False),
    Column("asked", LargeBinary),
    Column("answer", LargeBinary),
    Index(None, "deployment", "at_s"),
    Index(None, "at_s"),
)
"""Answers that chance chose for the encoder, by the `id` of `requests`: the embeddings of the question
and of the answer, of length 1, as float16 (NULL: not yet)."""

quality_answers = Table(
    "quality_answers",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("at_s", Double, nullable=False),
    Column("deployment", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("revision", String(32), nullable=False),
    Column("questions", String(16), nullable=False),
    Column("question", Integer, nullable=False),
    Column("right", Boolean),
    Column("faults", Text, nullable=False),
    Index(None, "deployment", "version", "at_s"),
    Index(None, "at_s"),
)
"""What each version answered to canary questions: whether it was right (NULL: there was no answer),
and faults that show at a glance. Answers themselves are not kept."""
