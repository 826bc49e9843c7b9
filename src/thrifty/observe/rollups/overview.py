"""What happened over a window, by version: read from the rollups, whatever the log holds besides.

Two things are not in the rollups. Failures of the service, apart from mistakes of clients, come
from the log, which has an index of failed requests; corrections come from feedback. Of both, at
most the newest `MAX_ROWS` of a window are counted.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import or_, select

from thrifty.db.database import Database
from thrifty.db.request_queries import is_failed
from thrifty.db.tables import feedback, requests, rollups
from thrifty.observe.rollups.series import STEPS
from thrifty.observe.rollups.sketch import EMPTY, Sketch, decode_sketches, merge_sketches
from thrifty.openai.response_ids import EPOCH_S

WINDOWS = {"hour": ("minute", 60), "day": ("hour", 24), "month": ("day", 30)}
"""The step of each window, and how many there are."""
MAX_ROWS = 20_000
TIMES = ("ttft", "tpot", "e2e")
NUMBERS = (
    "requests", "errors", "hits", "prompt_tokens", "completion_tokens", "cached_tokens",
    "hit_prompt_tokens", "hit_completion_tokens", "up", "down", "cost", "hit_cost",
)  # fmt: skip
Version = tuple[str, str]
"""A deployment and the label of a version."""


@dataclass
class Sums:
    """What one version did in a step, or in all of them."""

    numbers: Counter[str] = field(default_factory=Counter)
    """By the names of `NUMBERS`, and `failed` and `corrected`."""
    times: dict[str, Sketch] = field(default_factory=lambda: dict.fromkeys(TIMES, EMPTY))
    """Milliseconds, by the names of `TIMES`."""

    def percentile(self, name: str, share: float) -> float | None:
        """A percentile of one of the times; None of nothing."""
        return self.times[name].quantile(share)


@dataclass(frozen=True)
class Window:
    """The figures of a window that ends now. `times` are the starts of its steps."""

    step_s: int
    times: tuple[int, ...]
    until_s: float
    totals: Mapping[Version, Sums]
    steps: Mapping[Version, Sequence[Sums]]


def read_window(database: Database, name: str, now_s: float | None = None) -> Window:
    """The figures of a window by its name in `WINDOWS`. Raises `DatabaseError`."""
    until_s = time.time() if now_s is None else now_s
    step, count = WINDOWS[name]
    step_s = STEPS[step]
    last = int(until_s) // step_s * step_s
    times = tuple(range(last - (count - 1) * step_s, last + 1, step_s))
    place = {at_s: index for index, at_s in enumerate(times)}
    steps: defaultdict[Version, list[Sums]] = defaultdict(lambda: [Sums() for _ in times])
    rows = _read_rollups(database, step_s, times[0])
    sketches = {name: decode_sketches([row[name] for row in rows]) for name in TIMES}
    for number, row in enumerate(rows):
        if row["at_s"] in place:
            into = steps[row["deployment"], row["version"]][place[row["at_s"]]]
            into.numbers.update({key: row[key] for key in NUMBERS})
            into.times = {name: sketches[name][number] for name in TIMES}
    for kind, found in (("failed", _read_failed), ("corrected", _read_corrected)):
        for at_s, deployment, version in found(database, times[0]):
            index = place.get(int(at_s) // step_s * step_s)
            if index is not None and deployment and version:
                steps[deployment, version][index].numbers[kind] += 1
    totals = {version: _add(parts) for version, parts in steps.items()}
    return Window(step_s, times, until_s, totals, dict(steps))


def _add(parts: Iterable[Sums]) -> Sums:
    found = list(parts)
    numbers: Counter[str] = Counter()
    for one in found:
        numbers.update(one.numbers)
    times = {name: merge_sketches([one.times[name] for one in found]) for name in TIMES}
    return Sums(numbers, times)


def _read_rollups(database: Database, step_s: int, first: int) -> Sequence[Mapping[str, Any]]:
    names = ("at_s", "deployment", "version", *NUMBERS, *TIMES)
    query = select(*(rollups.c[name] for name in names)).where(
        rollups.c.step_s == step_s, rollups.c.at_s >= first
    )
    with database.begin() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _read_failed(database: Database, since_s: int) -> Sequence[Any]:
    """The requests that the service failed: 5xx, or broken off after they began."""
    table = requests
    counted = or_(table.c.origin.is_(None), table.c.origin.in_(("client", "batch")))
    query = (
        select(table.c.at_s, table.c.deployment, table.c.version)
        .where(is_failed(), table.c.id >= max(0, since_s - EPOCH_S) * 1000 << 22)
        .where(or_(table.c.status >= 500, table.c.status < 400), counted)
        .order_by(table.c.id.desc())
        .limit(MAX_ROWS)
    )
    with database.begin() as connection:
        return connection.execute(query).all()


def _read_corrected(database: Database, since_s: int) -> Sequence[Any]:
    query = (
        select(feedback.c.updated_s, requests.c.deployment, requests.c.version)
        .select_from(feedback.join(requests, requests.c.id == feedback.c.response))
        .where(feedback.c.updated_s >= since_s, feedback.c.kind == "correction")
        .order_by(feedback.c.updated_s.desc())
        .limit(MAX_ROWS)
    )
    with database.begin() as connection:
        return connection.execute(query).all()
