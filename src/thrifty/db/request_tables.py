"""The tables of the request log and of feedback. `tables` has them, too, with all others.

Indexes of some rows are small, and databases use them only where a query has their condition in the
same words: `FAILED`, `DISLIKED`, or `e2e_ms >= ` one of `SLOW_MS`.
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
    text,
)

from thrifty.db.metadata import metadata
from thrifty.db.sealed_text import SealedText

FAILED = "error IS NOT NULL OR status >= 400"
"""Requests that failed."""
UNVERSIONED = "version IS NULL AND deployment IS NOT NULL"
"""Requests of a deployment that no version has: the first release knew none."""
DISLIKED = "kind = 'thumbs' AND value = 0 OR kind = 'rating' AND value <= 2"
"""Feedback of who disliked an answer."""
SLOW_MS = (2_000, 10_000, 60_000)
"""Requests that took at least so many milliseconds have an index each, so that slow ones are found
where they are rare."""


def _index_part(name: str, column: str, where: str) -> Index:
    """An index of the rows of which a condition holds."""
    return Index(name, column, sqlite_where=text(where), postgresql_where=text(where))


requests = Table(
    "requests",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("at_s", Double, nullable=False),
    Column("request_id", String(64)),
    Column("client_request_id", String(64)),
    Column("conversation_id", String(32)),
    Column("origin", String(16)),
    Column("shadow_of", BigInteger),
    Column("rerouted", Boolean),
    Column("endpoint", String(32), nullable=False),
    Column("deployment", String(64)),
    Column("version", String(128)),
    Column("replica", String(64)),
    Column("tenant", String(64)),
    Column("key_id", String(32)),
    Column("end_user", Text),
    Column("status", Integer, nullable=False),
    Column("error", String(64)),
    Column("stream", Boolean, nullable=False),
    Column("cache", String(8)),
    Column("attempts", Integer, nullable=False),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("cached_tokens", Integer),
    Column("queue_ms", Double),
    Column("ttft_ms", Double),
    Column("tpot_ms", Double),
    Column("e2e_ms", Double, nullable=False),
    Column("overhead_us", Double),
    Column("tags", Text),
    Column("cost", Double),
    Column("max_tokens", Integer),
    Index(None, "at_s"),
    Index(None, "conversation_id"),
    _index_part("ix_requests_failed", "id", FAILED),
    _index_part("ix_requests_unversioned", "deployment", UNVERSIONED),
    *(
        _index_part(f"ix_requests_{name}", name, f"{name} IS NOT NULL")
        for name in ("request_id", "client_request_id", "end_user", "tenant", "version")
    ),
    *(
        _index_part(f"ix_requests_slow_{least_ms}", "id", f"e2e_ms >= {least_ms}")
        for least_ms in SLOW_MS
    ),
)
"""One row per response, without prompts and answers. `id` is the number in the response's id.
`origin` is the source of the request (NULL: a client, before origins were recorded); `shadow_of` is
the response that a shadow copies; `rerouted` marks answers by a version other than the chosen one.
Only gateway workers of the first release write `request_id`. `tags` is the request's `metadata` as
JSON. `cost` is by the version's prices for tokens; a cache hit has what it saved there.
`max_tokens` is the bound that the request set on its answer."""

request_texts = Table(
    "request_texts",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("request_id", String(64)),
    Column("at_s", Double, nullable=False),
    Column("prompt", SealedText("request_texts.prompt"), nullable=False),
    Column("answer", SealedText("request_texts.answer"), nullable=False),
    Column("facts", SealedText("request_texts.facts")),
    Index(None, "at_s"),
)
"""Prompts and answers, if `record.prompts` is set. `id` is that of `requests`. `facts` is JSON: the
format that was asked for, and why choices ended (`observe.texts`)."""

feedback = Table(
    "feedback",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("identity", String(32), nullable=False, unique=True),
    Column("kind", String(80), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("response", BigInteger),
    Column("conversation_id", String(32)),
    Column("end_user", Text),
    Column("client_id", String(128)),
    Column("source", String(8), nullable=False),
    Column("value", Double),
    Column("text", SealedText("feedback.text")),
    Column("tags", Text),
    Column("at_s", Double, nullable=False),
    Column("updated_s", Double, nullable=False),
    Column("changes", Integer, nullable=False),
    Index(None, "response"),
    _index_part("ix_feedback_disliked", "response", DISLIKED),
    Index(None, "conversation_id"),
    Index(None, "tenant", "end_user", "at_s"),
    Index(None, "updated_s"),
)
"""What people think of answers: one row for each kind of feedback on a response or a conversation.
`identity` is a hash of what makes two pieces of feedback the same one; the newest value replaces
the one before. `response` is the `id` of `requests`, whose row may be written later. `source` is
`key` or `token`."""

feedback_history = Table(
    "feedback_history",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    Column("feedback_id", BigInteger, nullable=False),
    Column("at_s", Double, nullable=False),
    Column("value", Double),
    Column("text", SealedText("feedback_history.text")),
    Column("tags", Text),
    Index(None, "feedback_id"),
)
"""Values of feedback that were replaced, with the time at which each was given."""
