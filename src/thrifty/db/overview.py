"""What happened lately, by version: figures from the newest rows of the request log and feedback.

Reading is bounded: of a window, at most the newest `MAX_ROWS` requests and judgements are looked
at. Ids of responses begin with their time, so the primary key finds them without a scan, whatever
the log holds besides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import or_, select

from thrifty.db.database import Database
from thrifty.db.tables import feedback, requests

MAX_ROWS = 20_000
EPOCH_S = 1_577_836_800
"""Ids of responses count milliseconds from here (`openai.response_ids`), above 22 other bits."""
COUNTED = ("client", "batch")
"""Origins in users' statistics: no measurements, no shadow copies."""
Version = tuple[str, str]
"""A deployment and the label of a version."""


@dataclass
class Counts:
    """Requests of one version in one window or step. Times are lists of milliseconds."""

    requests: int = 0
    failed: int = 0
    """Failed by the service (5xx), or broken off; not by the client's mistake."""
    refused: int = 0
    """Answered with a 4xx."""
    cache_hits: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)
    e2e_ms: list[float] = field(default_factory=list)


@dataclass
class Opinions:
    """What people said of one version's answers in one window or step."""

    liked: int = 0
    disliked: int = 0
    corrected: int = 0
    judged: int = 0
    """Thumbs, ratings and corrections."""


@dataclass(frozen=True)
class Window:
    """Figures from `since_s` to `until_s`, in steps of `step_s`."""

    since_s: float
    until_s: float
    step_s: float
    totals: dict[Version, Counts]
    steps: dict[Version, list[Counts]]
    opinions: dict[Version, Opinions]
    opinion_steps: dict[Version, list[Opinions]]
    rows: int
    """How many requests were looked at."""
    read_from_s: float
    """Older requests than this were not looked at; `since_s` where all were."""


def read_window(database: Database, since_s: float, until_s: float, steps: int) -> Window:
    """The figures of a window. Raises `DatabaseError`."""
    step_s = (until_s - since_s) / steps
    made = Window(since_s, until_s, step_s, {}, {}, {}, {}, 0, since_s)
    totals: defaultdict[Version, Counts] = defaultdict(Counts)
    parts: defaultdict[Version, list[Counts]] = defaultdict(lambda: _make_list(Counts, steps))
    count, oldest_s = 0, until_s
    for row in _read_requests(database, since_s, until_s):
        key = (row[1] or "", row[2] or "")
        count, oldest_s = count + 1, row[0]
        place = min(steps - 1, max(0, int((row[0] - since_s) / step_s)))
        _count(totals[key], row)
        _count(parts[key][place], row)
    opinions: defaultdict[Version, Opinions] = defaultdict(Opinions)
    said: defaultdict[Version, list[Opinions]] = defaultdict(lambda: _make_list(Opinions, steps))
    for at_s, kind, value, deployment, label in _read_opinions(database, since_s, until_s):
        key = (deployment or "", label or "")
        place = min(steps - 1, max(0, int((at_s - since_s) / step_s)))
        _judge(opinions[key], kind, value)
        _judge(said[key][place], kind, value)
    read_from_s = oldest_s if count == MAX_ROWS else since_s
    return Window(
        made.since_s, until_s, step_s, dict(totals), dict(parts), dict(opinions), dict(said),
        count, read_from_s,
    )  # fmt: skip


def _make_list(kind: Any, steps: int) -> list[Any]:
    return [kind() for _ in range(steps)]


def _read_requests(database: Database, since_s: float, until_s: float) -> Iterator[Sequence[Any]]:
    table = requests
    query = (
        select(
            table.c.at_s, table.c.deployment, table.c.version, table.c.status, table.c.error,
            table.c.cache, table.c.prompt_tokens, table.c.cached_tokens,
            table.c.completion_tokens, table.c.ttft_ms, table.c.tpot_ms, table.c.e2e_ms,
        )
        .where(table.c.id >= _first_id(since_s), table.c.id < _first_id(until_s))
        .where(or_(table.c.origin.is_(None), table.c.origin.in_(COUNTED)))
        .order_by(table.c.id.desc())
        .limit(MAX_ROWS)
    )  # fmt: skip
    with database.begin() as connection:
        yield from connection.execute(query).all()


def _first_id(at_s: float) -> int:
    return max(0, int((at_s - EPOCH_S) * 1000)) << 22


def _read_opinions(database: Database, since_s: float, until_s: float) -> list[Any]:
    query = (
        select(
            feedback.c.updated_s, feedback.c.kind, feedback.c.value, requests.c.deployment,
            requests.c.version,
        )
        .select_from(feedback.join(requests, requests.c.id == feedback.c.response))
        .where(feedback.c.updated_s >= since_s, feedback.c.updated_s < until_s)
        .where(feedback.c.kind.in_(("thumbs", "rating", "correction")))
        .order_by(feedback.c.updated_s.desc())
        .limit(MAX_ROWS)
    )  # fmt: skip
    with database.begin() as connection:
        return list(connection.execute(query).all())


def _count(into: Counts, row: Sequence[Any]) -> None:
    _, _, _, status, error, cache, prompt, cached, completion, ttft, tpot, e2e = row
    into.requests += 1
    if status >= 500 or (status < 400 and error is not None):
        into.failed += 1
    elif status >= 400:
        into.refused += 1
    if cache and cache not in ("miss", "bypass"):
        into.cache_hits += 1
    into.prompt_tokens += prompt or 0
    into.cached_tokens += cached or 0
    into.completion_tokens += completion or 0
    if status == 200:
        into.e2e_ms.append(e2e)
        if ttft is not None:
            into.ttft_ms.append(ttft)
        if tpot is not None:
            into.tpot_ms.append(tpot)


def _judge(into: Opinions, kind: str, value: float | None) -> None:
    into.judged += 1
    if kind == "correction":
        into.corrected += 1
    elif value is None:
        return
    elif kind == "thumbs":
        into.liked += value > 0
        into.disliked += value <= 0
    else:
        into.liked += value >= 4
        into.disliked += value <= 2


def find_percentile(values: list[float], share: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
