"""What happened in the last seconds: rows of the request log, and what waits at gateways."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import NamedTuple

import msgspec
from sqlalchemy import select

from thrifty.db.database import Database
from thrifty.db.demand import FRESH_S, Figures
from thrifty.db.tables import demand, requests

MAX_ROWS = 50_000
"""Beyond it, the figures are those of a shorter time."""
_NAMES = (
    "at_s", "deployment", "version", "replica", "status", "error", "stream", "cache",
    "prompt_tokens", "completion_tokens", "cached_tokens", "queue_ms", "ttft_ms", "tpot_ms",
    "e2e_ms",
)  # fmt: skip
_COUNTED = ("client", "batch")


class RecentRequest(NamedTuple):
    """A row of the request log, as far as a live view needs it."""

    at_s: float
    deployment: str | None
    version: str | None
    replica: str | None
    status: int
    error: str | None
    stream: bool
    cache: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    queue_ms: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float


def read_recent(database: Database, since_s: float) -> list[RecentRequest]:
    """Requests of clients and batches that began since then, the newest first, at most `MAX_ROWS`.
    Raises `DatabaseError`.
    """
    counted = requests.c.origin.is_(None) | requests.c.origin.in_(_COUNTED)
    query = (
        select(*(requests.c[name] for name in _NAMES))
        .where(requests.c.at_s >= since_s, counted)
        .order_by(requests.c.at_s.desc())
        .limit(MAX_ROWS)
    )
    with database.begin() as connection:
        return [RecentRequest(*row) for row in connection.execute(query)]


def read_waiting(database: Database) -> dict[tuple[str, str], Counter[str]]:
    """By deployment and label, the requests that wait for a slot (`queued`), for a replica (`held`),
    and that are at replicas (`in_flight`), as workers that still report say. Raises
    `DatabaseError`.
    """
    fresh = demand.c.updated_s > time.time() - FRESH_S
    query = select(demand.c.deployment, demand.c.version, demand.c.figures).where(fresh)
    with database.begin() as connection:
        rows = connection.execute(query).all()
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for deployment, version, text in rows:
        figures = msgspec.json.decode(text, type=Figures)
        found[deployment, version].update(
            queued=figures.queued, held=figures.held, in_flight=figures.in_flight
        )
    return found
