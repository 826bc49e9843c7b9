"""Reads the rollups as series over time: counts, sums and percentiles by deployment, version or
tenant. Only rollups are read, never the request log, so that the time does not depend on how many
requests there were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Table, select

from thrifty.db import Database
from thrifty.db.rollups import DAY_S, HOUR_S, MINUTE_S
from thrifty.db.tables import ROLLUP_SKETCHES, rollups, tenant_rollups
from thrifty.errors import ThriftyError
from thrifty.observe.rollups.sketch import Sketch, decode_sketches, merge_sketches

STEPS = {"minute": MINUTE_S, "hour": HOUR_S, "day": DAY_S}
LABELS: dict[str, tuple[str, ...]] = {
    "": (),
    "deployment": ("deployment",),
    "version": ("deployment", "version"),
    "tenant": ("tenant",),
}
"""What series are told apart by, by the name of the division."""
MAX_POINTS = 3000
MAX_METRICS = 50

Row = Mapping[Any, Any]
Value = float | None

SUMS = {
    "requests": "requests",
    "errors": "errors",
    "hits": "hits",
    "tokens_in": "prompt_tokens",
    "tokens_out": "completion_tokens",
    "tokens_cached": "cached_tokens",
    "tokens_in_hits": "hit_prompt_tokens",
    "tokens_out_hits": "hit_completion_tokens",
    "cost": "cost",
    "cost_hits": "hit_cost",
    "busy_ms": "busy_ms",
    "up": "up",
    "down": "down",
}
"""Metrics that add up, with their columns."""
_PERCENTILE = re.compile(rf"({'|'.join(ROLLUP_SKETCHES)})_p([0-9]{{1,2}}(?:\.[0-9])?)")
_KIND = re.compile(r"(errors|cache):(.{1,64})")


@dataclass(frozen=True)
class Asked:
    """Which series are wanted. Times are seconds since 1970; `until_s` is not part of them."""

    metrics: tuple[str, ...]
    by: str = ""
    step: str = "hour"
    from_s: int = 0
    until_s: int = 0
    deployment: str | None = None
    version: str | None = None
    tenant: str | None = None


@dataclass(frozen=True)
class Series:
    """The values of each metric, one for each time."""

    labels: dict[str, str]
    values: dict[str, list[Value]]


@dataclass(frozen=True)
class Found:
    """Series over the same times, which are the starts of steps."""

    step_s: int
    times: list[int]
    series: list[Series]


def read_series(database: Database, asked: Asked) -> Found:
    """The series that are wanted, those with the most requests first; without a division, one.

    A count where nothing happened is 0; a percentile of nothing is None. Raises `ThriftyError` for
    what cannot be asked, naming it, and `DatabaseError`.
    """
    step_s = _find_step(asked)
    first = asked.from_s // step_s * step_s
    times = range(first, asked.until_s, step_s)
    if len(times) > MAX_POINTS:
        raise ThriftyError(
            f"from {asked.from_s} to {asked.until_s} there are {len(times)} {asked.step}s, more than "
            f"{MAX_POINTS}; ask for a longer step or a shorter time"
        )
    readers = {metric: _find_reader(metric) for metric in asked.metrics}
    rows = _read_rows(database, asked, step_s, first, readers.values())
    names = LABELS[asked.by]
    groups: dict[tuple[str, ...], dict[int, list[Row]]] = {} if names else {(): {}}
    for row in rows:
        labels = tuple(row[name] for name in names)
        groups.setdefault(labels, {}).setdefault(row["at_s"], []).append(row)
    series = [
        Series(dict(zip(names, labels, strict=True)), _read_values(readers, found, times))
        for labels, found in sorted(groups.items(), key=_by_size)
    ]
    return Found(step_s, list(times), series)


def _read_values(
    readers: Mapping[str, _Reader], found: Mapping[int, Sequence[Row]], times: Sequence[int]
) -> dict[str, list[Value]]:
    merged: dict[str, dict[int, Sketch]] = {}
    for name in {one.sketch for one in readers.values() if one.sketch}:
        decoded = iter(decode_sketches([row[name] for rows in found.values() for row in rows]))
        merged[name] = {
            at_s: merge_sketches([next(decoded) for _ in rows]) for at_s, rows in found.items()
        }
    values: dict[str, list[Value]] = {}
    for metric, reader in readers.items():
        if reader.sketch:
            sketches, share = merged[reader.sketch], reader.share
            values[metric] = [
                sketches[at_s].quantile(share) if at_s in sketches else None for at_s in times
            ]
        else:
            values[metric] = [reader.add_up(found.get(at_s, ())) for at_s in times]
    return values


def _add_nothing(rows: Sequence[Row]) -> float:
    return 0


@dataclass(frozen=True)
class _Reader:
    """Makes a metric's value of the rows of one time: a sum, or a percentile of a sketch."""

    column: str
    add_up: Callable[[Sequence[Row]], float] = _add_nothing
    sketch: str = ""
    share: float = 0.0


def _find_step(asked: Asked) -> int:
    if asked.step not in STEPS:
        raise ThriftyError(f"'step' must be {', '.join(STEPS)}, not {asked.step[:60]!r}")
    if asked.by not in LABELS:
        known = ", ".join(name for name in LABELS if name)
        raise ThriftyError(f"'by' must be one of {known}, or left out, not {asked.by[:60]!r}")
    if not asked.metrics or len(asked.metrics) > MAX_METRICS:
        raise ThriftyError(f"'metrics' must name 1 to {MAX_METRICS} metrics, parted by commas")
    if asked.until_s <= asked.from_s:
        raise ThriftyError(f"'to' ({asked.until_s}) must be later than 'from' ({asked.from_s})")
    return STEPS[asked.step]


def _find_reader(metric: str) -> _Reader:
    column = SUMS.get(metric)
    if column is not None:
        return _Reader(column, lambda rows: sum(row[column] for row in rows))
    if found := _PERCENTILE.fullmatch(metric):
        return _Reader(found[1], sketch=found[1], share=float(found[2]) / 100)
    if found := _KIND.fullmatch(metric):
        group, kind = found[1], found[2]
        return _Reader("kinds", lambda rows: sum(_count_kind(row, group, kind) for row in rows))
    percentiles = ", ".join(f"{name}_p95" for name in ROLLUP_SKETCHES)
    raise ThriftyError(
        f"'metrics' has {metric[:60]!r}, which is none; there are {', '.join(SUMS)}, percentiles in "
        f"milliseconds ({percentiles}; p0 to p99.9), errors:CODE and cache:RESULT"
    )


def _count_kind(row: Row, group: str, kind: str) -> int:
    if row["kinds"] is None:
        return 0
    return int(msgspec.json.decode(row["kinds"]).get(group, {}).get(kind, 0))


def _read_rows(
    database: Database, asked: Asked, step_s: int, first: int, readers: Iterable[_Reader]
) -> Sequence[Row]:
    by_tenant = asked.by == "tenant" or asked.tenant is not None
    table: Table = tenant_rollups if by_tenant else rollups
    wanted = {"at_s", "requests", *LABELS[asked.by], *(one.column for one in readers)}
    query = select(*(table.c[name] for name in sorted(wanted))).where(
        table.c.step_s == step_s, table.c.at_s >= first, table.c.at_s < asked.until_s
    )
    for name in ("deployment", "version", "tenant"):
        value = getattr(asked, name)
        if value is not None:
            query = query.where(table.c[name] == value)
    with database.begin() as connection:
        return connection.execute(query).mappings().all()


def _by_size(group: tuple[tuple[str, ...], dict[int, list[Row]]]) -> tuple[int, tuple[str, ...]]:
    labels, found = group
    return -sum(row["requests"] for rows in found.values() for row in rows), labels
