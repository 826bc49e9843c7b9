"""Sums of rows of the request log, by time and labels: whole columns at a time, because a service
writes thousands of rows a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.db.rollups import DAY_S, HOUR_S, MINUTE_S, ROW_COLUMNS, SUMS
from thrifty.db.tables import ROLLUP_NUMBERS, ROLLUP_SKETCHES

USERS = (None, "client", "batch")
"""Origins of requests that count; gateways of the first release wrote none."""
MAX_BUSY_S = 86400.0
"""No request is counted as at work for longer."""
GENERATED = (None, "", "miss", "bypass")
"""What the log says of answers that no cache gave."""

FineKey = tuple[int, str, str, str]
"""Time, deployment, version and tenant."""
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass
class Sum:
    """What is added to one sum."""

    numbers: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    errors: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    values: dict[str, list[FloatArray]] = field(
        default_factory=lambda: {name: [] for name in ROLLUP_SKETCHES}
    )

    def add(self, other: Sum) -> None:
        """Add another sum."""
        for name, value in other.numbers.items():
            self.numbers[name] += value
        self.errors.update(other.errors)
        self.cache.update(other.cache)
        for name, values in other.values.items():
            self.values[name] += values


def find_starts(at_s: FloatArray, oldest_s: Mapping[int, float]) -> IntArray:
    """When the shortest steps that are kept at some times begin; days for times of which nothing is
    kept. `oldest_s` says from when on sums of each step are kept.
    """
    step = np.full(len(at_s), DAY_S)
    for step_s in (HOUR_S, MINUTE_S):
        step[at_s >= oldest_s[step_s]] = step_s
    starts: IntArray = (at_s // step).astype(np.int64) * step
    return starts


def sum_rows(rows: Sequence[Sequence[Any]], oldest_s: Mapping[int, float]) -> dict[FineKey, Sum]:
    """The sums of rows of the log (`ROW_COLUMNS`), each by the shortest step that is kept at its
    time.

    Those whose answers a replica gave keep it busy from the end of their queueing on, in the
    minutes in which they were there.
    """
    if not rows:
        return {}
    columns = dict(zip(ROW_COLUMNS, zip(*rows, strict=True), strict=True))
    labels = [
        [value or "" for value in columns[name]] for name in ("deployment", "version", "tenant")
    ]
    at_s = np.array(columns["at_s"], np.float64)
    starts = find_starts(at_s, oldest_s)
    places: dict[FineKey, int] = {}
    keys = zip(starts.tolist(), *labels, strict=True)
    groups = np.fromiter((places.setdefault(key, len(places)) for key in keys), np.int64, len(rows))
    sums = [Sum() for _ in places]
    users = _flag(columns["origin"], USERS)
    generated = _flag(columns["cache"], GENERATED)
    _add_numbers(sums, groups, columns, users, generated)
    _add_kinds(sums, groups, columns, users)
    fine = dict(zip(places, sums, strict=True))
    queue_ms, e2e_ms = _read(columns["queue_ms"]), _read(columns["e2e_ms"])
    busy_ms = np.maximum(0.0, e2e_ms - queue_ms)
    end_s = at_s + e2e_ms / 1e3
    minute = (end_s - busy_ms / 1e3) // MINUTE_S * MINUTE_S
    within = (end_s < minute + MINUTE_S) & (find_starts(minute, oldest_s) == starts)
    for name, chosen in (("busy_ms", users), ("other_busy_ms", ~users)):
        _add_totals(sums, groups, name, generated & chosen & within, busy_ms)
        for row in np.nonzero(generated & chosen & ~within)[0].tolist():
            parts = list(_list_busy(float(end_s[row]), float(busy_ms[row])))
            begins = find_starts(np.array([begin for begin, _ in parts], np.float64), oldest_s)
            for start, (_, part_ms) in zip(begins.tolist(), parts, strict=True):
                key = (start, labels[0][row], labels[1][row], labels[2][row])
                fine.setdefault(key, Sum()).numbers[name] += part_ms
    return fine


def _add_numbers(
    sums: list[Sum],
    groups: IntArray,
    columns: Mapping[str, Sequence[Any]],
    users: BoolArray,
    generated: BoolArray,
) -> None:
    status = np.array(columns["status"], np.int64)
    failed = users & (~_flag(columns["error"], (None,)) | (status >= 400))
    _add_totals(sums, groups, "requests", users)
    _add_totals(sums, groups, "other_requests", ~users)
    _add_totals(sums, groups, "errors", failed)
    _add_totals(sums, groups, "hits", users & ~generated)
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "cost"):
        amounts = _read(columns[name])
        _add_totals(sums, groups, name, users & generated, amounts)
        if name != "cached_tokens":
            _add_totals(sums, groups, f"hit_{name}", users & ~generated, amounts)
    # Lines of batches wait for others, and would hide how long clients wait.
    served = users & ~failed & ~_flag(columns["origin"], ("batch",))
    for name in ROLLUP_SKETCHES:
        times_ms = np.array(columns[f"{name}_ms"], np.float64)
        chosen = served & ~np.isnan(times_ms)
        if name == "queue":
            chosen &= generated
        _add_values(sums, groups, name, chosen, times_ms)


def _add_kinds(
    sums: list[Sum], groups: IntArray, columns: Mapping[str, Sequence[Any]], users: BoolArray
) -> None:
    rows = zip(
        groups.tolist(), users.tolist(), columns["cache"], columns["error"], columns["status"],
        strict=True,
    )  # fmt: skip
    cache: Counter[tuple[int, str]] = Counter()
    errors: Counter[tuple[int, str]] = Counter()
    for group, user, how, error, status in rows:
        if user:
            if how:
                cache[group, how] += 1
            if error is not None or status >= 400:
                errors[group, error or str(status)] += 1
    for (group, how), count in cache.items():
        sums[group].cache[how] += count
    for (group, kind), count in errors.items():
        sums[group].errors[kind] += count


def _add_totals(
    sums: list[Sum],
    groups: IntArray,
    name: str,
    chosen: BoolArray,
    amounts: FloatArray | None = None,
) -> None:
    """Add up the chosen rows, or their amounts, in each group."""
    if not chosen.any():
        return
    weights = None if amounts is None else amounts[chosen]
    totals = np.bincount(groups[chosen], weights, len(sums))
    whole = name in ROLLUP_NUMBERS
    for one, total in zip(sums, totals.tolist(), strict=True):
        if total:
            one.numbers[name] += round(total) if whole else total


def _add_values(
    sums: list[Sum], groups: IntArray, name: str, chosen: BoolArray, amounts: FloatArray
) -> None:
    """Keep the amounts of the chosen rows, in each group."""
    (rows,) = np.nonzero(chosen)
    rows = rows[np.argsort(groups[rows], kind="stable")]
    ends = np.searchsorted(groups[rows], np.arange(1, len(sums) + 1))
    for one, part in zip(sums, np.split(amounts[rows], ends[:-1]), strict=True):
        if len(part):
            one.values[name].append(part)


def _list_busy(end_s: float, busy_ms: float) -> Iterator[tuple[int, float]]:
    """The minutes in which a request was at a replica, and for how long, in milliseconds."""
    begin_s = end_s - busy_ms / 1e3
    minute = int(begin_s // MINUTE_S) * MINUTE_S
    if end_s < minute + MINUTE_S:
        yield minute, busy_ms
        return
    end_s = min(end_s, begin_s + MAX_BUSY_S)
    while begin_s < end_s:
        minute = int(begin_s // MINUTE_S) * MINUTE_S
        until_s = min(end_s, minute + MINUTE_S)
        yield minute, (until_s - begin_s) * 1e3
        begin_s = until_s


def _flag(values: Iterable[Any], wanted: tuple[Any, ...]) -> BoolArray:
    """Which values are among those that are wanted."""
    return np.array([value in wanted for value in values], np.bool_)


def _read(values: Sequence[Any]) -> FloatArray:
    """A column as numbers; 0 where it has none."""
    found = np.array(values, np.float64)
    found[np.isnan(found)] = 0.0
    return found
