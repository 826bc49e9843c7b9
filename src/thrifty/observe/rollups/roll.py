"""Adds what is new in the request log, and new thumbs, to the sums by minute, hour and day.

A step reads notes, the rows that they name and the sums that these belong to, and writes the new
sums and takes the notes away in one transaction (`db.rollups.write_step`). Rows count where their
own time says, however late they are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, Table

from thrifty.db import Database
from thrifty.db.desired import read_desired
from thrifty.db.rollups import (
    DAY_S,
    HOUR_S,
    MINUTE_S,
    STEPS_S,
    SUMS,
    RolledMeanwhileError,
    Step,
    Thumb,
    drop_lost_thumbs,
    ensure_state,
    prune_rollups,
    read_buckets,
    read_named_tenants,
    read_notes,
    read_old_rows,
    read_rows,
    read_state,
    read_thumbs,
    write_step,
)
from thrifty.db.tables import ROLLUP_SKETCHES, rollups, tenant_rollups
from thrifty.observe.rollups.sketch import extend_sketch

OTHER_TENANTS = "(other)"
"""Stands for the tenants beyond the cap. No key can have this name."""
MAX_TENANTS = 200
MAX_KINDS = 50
"""The most kinds of errors in one sum; further ones count as `other`."""
STEP_NOTES = 32
"""Notes in a step, each of up to 512 rows."""
STEP_ROWS = 5_000
"""Rows from before there were rollups, and thumbs, in a step."""
LOST_S = 86400.0
"""Thumbs whose response is not in the log after so long are given up."""
USERS = (None, "client", "batch")
"""Origins of requests that count; gateways of the first release wrote none."""
MAX_BUSY_S = 86400.0
"""No request is counted as at work for longer."""
GENERATED = (None, "", "miss", "bypass")
"""What the log says of answers that no cache gave."""

FineKey = tuple[int, str, str, str]
"""Time, deployment, version and tenant."""


@dataclass(frozen=True)
class Keep:
    """How long sums are kept, in seconds, and how many tenants have sums of their own in a day."""

    minutes_s: float = 2 * 86400.0
    hours_s: float = 90 * 86400.0
    days_s: float = 5 * 365 * 86400.0
    tenants: int = MAX_TENANTS

    def of_step(self, step_s: int) -> float:
        """How long sums of one step are kept."""
        return {MINUTE_S: self.minutes_s, HOUR_S: self.hours_s, DAY_S: self.days_s}[step_s]


def open_roller(database: Database) -> Roller:
    """A roller that keeps sums as long as the service's spec says. Raises `DatabaseError`."""
    service = read_desired(database).service
    return Roller(database, Keep(**service.records) if service is not None else None)


@dataclass
class _Sum:
    """What is added to one sum."""

    numbers: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    errors: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    values: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in ROLLUP_SKETCHES}
    )

    def add_row(self, row: Sequence[Any]) -> None:
        """Add a row of the log (`ROW_COLUMNS`), but for how long its request was at a replica.

        At thousands of rows a second, reading them by name would take longer than adding them.
        """
        (
            _, _, origin, _, _, _, status, error, cache, prompt_tokens, completion_tokens,
            cached_tokens, queue_ms, ttft_ms, tpot_ms, e2e_ms, cost,
        ) = row  # fmt: skip
        numbers = self.numbers
        if origin not in USERS:
            numbers["other_requests"] += 1
            return
        numbers["requests"] += 1
        hit = cache not in GENERATED
        if hit:
            numbers["hits"] += 1
            numbers["hit_prompt_tokens"] += prompt_tokens or 0
            numbers["hit_completion_tokens"] += completion_tokens or 0
            numbers["hit_cost"] += cost or 0.0
        else:
            numbers["prompt_tokens"] += prompt_tokens or 0
            numbers["completion_tokens"] += completion_tokens or 0
            numbers["cached_tokens"] += cached_tokens or 0
            numbers["cost"] += cost or 0.0
        if cache:
            self.cache[cache] = self.cache.get(cache, 0) + 1
        if error is not None or status >= 400:
            numbers["errors"] += 1
            self.errors[error or str(status)] += 1
        elif origin != "batch":
            # Lines of batches wait for others, and would hide how long clients wait.
            values = self.values
            values["e2e"].append(e2e_ms)
            if ttft_ms is not None:
                values["ttft"].append(ttft_ms)
            if tpot_ms is not None:
                values["tpot"].append(tpot_ms)
            if not hit and queue_ms is not None:
                values["queue"].append(queue_ms)

    def add(self, other: _Sum) -> None:
        """Add another sum."""
        for name, value in other.numbers.items():
            self.numbers[name] += value
        self.errors.update(other.errors)
        self.cache.update(other.cache)
        for name, values in other.values.items():
            self.values[name] += values


class Roller:
    """Keeps the rollups of one database up to date. Used by one thread at a time; several
    processes may do so at once, of which one at a time succeeds.
    """

    def __init__(self, database: Database, keep: Keep | None = None) -> None:
        self._database = database
        self._keep = keep or Keep()
        self.is_behind = False
        """Whether the last step left some of what was there."""

    def has_new(self) -> bool:
        """Whether there is something to add. Raises `DatabaseError`."""
        with self._database.begin() as connection:
            if read_state(connection).has_old or read_notes(connection, 1)[0]:
                return True
            return bool(read_thumbs(connection, 1))

    def catch_up(self) -> int:
        """Add all that is new; returns how many rows of the log that were. Raises
        `DatabaseError`.
        """
        total = 0
        while True:
            try:
                found = self.roll()
            except RolledMeanwhileError:
                continue
            if found is None:
                return total
            total += found

    def roll(self) -> int | None:
        """Do one step; returns how many rows of the log it added, None if there was nothing to do.
        Raises `RolledMeanwhileError` if another process did a step meanwhile, and `DatabaseError`.
        """
        with self._database.begin() as connection:
            read = self._read(connection)
        if read is None:
            return None
        step, count = read
        if step.state.turn == 0:
            ensure_state(self._database)
        write_step(self._database, step)
        return count

    def prune(self) -> int:
        """Delete sums that are kept no longer, and thumbs on nothing; returns how many sums that
        were. Raises `DatabaseError`.
        """
        now_s = time.time()
        drop_lost_thumbs(self._database, now_s - LOST_S)
        return sum(
            prune_rollups(self._database, step_s, self._keep.of_step(step_s), now_s)
            for step_s in STEPS_S
        )

    def _read(self, connection: Connection) -> tuple[Step, int] | None:
        """The next step, and how many rows it adds; None if there is nothing to do."""
        state = read_state(connection)
        old: list[Any] = []
        old_after = state.old_after
        if state.has_old:
            old, old_after = read_old_rows(connection, state, STEP_ROWS)
        notes, numbers = read_notes(connection, STEP_NOTES)
        if len(notes) == STEP_NOTES:
            # Rows that both name can only be told apart where all notes are known.
            old, old_after = [], state.old_after
        counted = {row.id for row in old}
        numbers = [
            one
            for one in dict.fromkeys(numbers)
            if one not in counted and not old_after < one <= state.old_until
        ]
        thumbs = read_thumbs(connection, STEP_ROWS)
        self.is_behind = state.has_old or len(notes) == STEP_NOTES or len(thumbs) == STEP_ROWS
        if not (notes or thumbs or old_after != state.old_after):
            return None
        rows = [*old, *read_rows(connection, numbers)]
        oldest_s = _find_oldest(self._keep)
        fine = self._sum_up(connection, rows, thumbs, oldest_s)
        totals, tenants = _spread(fine, oldest_s)
        return Step(
            state, old_after, notes, [one.note for one in thumbs],
            _merge(connection, rollups, totals), _merge(connection, tenant_rollups, tenants),
        ), len(rows)  # fmt: skip

    def _sum_up(
        self,
        connection: Connection,
        rows: Iterable[Any],
        thumbs: Iterable[Thumb],
        oldest_s: Mapping[int, float],
    ) -> dict[FineKey, _Sum]:
        """Sums by deployment, version, tenant, and the shortest step that is kept at that time."""
        fine: dict[FineKey, _Sum] = {}

        def find(at_s: float, labels: tuple[str, str, str]) -> _Sum:
            step_s = MINUTE_S if at_s >= oldest_s[MINUTE_S] else _find_step(at_s, oldest_s)
            key = (int(at_s // step_s) * step_s, *labels)
            found = fine.get(key)
            if found is None:
                found = fine[key] = _Sum()
            return found

        for row in rows:
            (
                _,
                at_s,
                origin,
                deployment,
                version,
                tenant,
                _,
                _,
                cache,
                *_,
                queue_ms,
                _,
                _,
                e2e_ms,
                _,
            ) = row
            labels = (deployment or "", version or "", tenant or "")
            find(at_s, labels).add_row(row)
            if cache in GENERATED:
                name = "busy_ms" if origin in USERS else "other_busy_ms"
                for minute, busy_ms in _list_busy(at_s, queue_ms, e2e_ms):
                    find(minute, labels).numbers[name] += busy_ms
        for thumb in thumbs:
            found = find(thumb.at_s, (thumb.deployment, thumb.version, thumb.tenant))
            found.numbers["up"] += thumb.up
            found.numbers["down"] += thumb.down
        return self._cap_tenants(connection, fine)

    def _cap_tenants(
        self, connection: Connection, fine: dict[FineKey, _Sum]
    ) -> dict[FineKey, _Sum]:
        """Have the tenants beyond the cap of a day count as one. Those that are seen first keep
        their names; of those seen in one step, the ones with the most requests.
        """
        asked: dict[int, Counter[str]] = {}
        for (at_s, _, _, tenant), found in fine.items():
            counts = asked.setdefault(_floor(at_s, DAY_S), Counter())
            counts[tenant] += int(found.numbers["requests"])
        named: dict[int, set[str]] = {}
        for day, tenants in asked.items():
            known = read_named_tenants(connection, day) - {OTHER_TENANTS}
            fresh = sorted(set(tenants) - known, key=lambda one: (-tenants[one], one))
            named[day] = known | set(fresh[: max(0, self._keep.tenants - len(known))])
        capped: dict[FineKey, _Sum] = {}
        for key, found in fine.items():
            at_s, deployment, version, tenant = key
            if tenant in named[_floor(at_s, DAY_S)]:
                capped[key] = found
            else:
                other = (at_s, deployment, version, OTHER_TENANTS)
                capped.setdefault(other, _Sum()).add(found)
        return capped


def _list_busy(at_s: float, queue_ms: float | None, e2e_ms: float) -> list[tuple[int, float]]:
    """The minutes in which a request was at a replica, and for how long, in milliseconds."""
    busy_ms = max(0.0, e2e_ms - (queue_ms or 0.0))
    end_s = at_s + e2e_ms / 1e3
    begin_s = end_s - busy_ms / 1e3
    minute = int(begin_s // MINUTE_S) * MINUTE_S
    if end_s < minute + MINUTE_S:
        return [(minute, busy_ms)]
    found = []
    end_s = min(end_s, begin_s + MAX_BUSY_S)
    while begin_s < end_s:
        minute = _floor(begin_s, MINUTE_S)
        until_s = min(end_s, minute + MINUTE_S)
        found.append((minute, (until_s - begin_s) * 1e3))
        begin_s = until_s
    return found


def _find_oldest(keep: Keep) -> dict[int, float]:
    """From when on sums of each step are kept."""
    now_s = time.time()
    return {step_s: now_s - keep.of_step(step_s) - step_s for step_s in STEPS_S}


def _find_step(at_s: float, oldest_s: Mapping[int, float]) -> int:
    """The shortest step that is kept at a time; days for those that are not kept at all."""
    for step_s in STEPS_S:
        if at_s >= oldest_s[step_s]:
            return step_s
    return DAY_S


def _spread(
    fine: Mapping[FineKey, _Sum], oldest_s: Mapping[int, float]
) -> tuple[dict[Any, _Sum], dict[Any, _Sum]]:
    """The sums of each step, without and with tenants. What a step keeps no longer is left out."""
    totals: dict[Any, _Sum] = {}
    tenants: dict[Any, _Sum] = {}
    for (start_s, deployment, version, tenant), found in fine.items():
        for step_s in STEPS_S:
            at_s = _floor(start_s, step_s)
            if start_s < oldest_s[step_s]:
                continue
            key = (step_s, at_s, deployment, version)
            totals.setdefault(key, _Sum()).add(found)
            tenants.setdefault((*key, tenant), _Sum()).add(found)
    return totals, tenants


def _merge(connection: Connection, table: Table, sums: Mapping[Any, _Sum]) -> list[dict[str, Any]]:
    """Whole rows: what the table has, with the sums added."""
    names = [column.name for column in table.primary_key.columns]
    times: dict[int, set[int]] = {}
    for key in sums:
        times.setdefault(key[0], set()).add(key[1])
    known = {}
    for step_s, starts in times.items():
        for row in read_buckets(connection, table, step_s, sorted(starts)):
            key = tuple(row._mapping[name] for name in names)
            if key in sums:
                known[key] = row._mapping
    return [
        dict(zip(names, key, strict=True)) | _add_to(known.get(key), found)
        for key, found in sums.items()
    ]


def _add_to(row: Mapping[str, Any] | None, found: _Sum) -> dict[str, Any]:
    old = row or {}
    kinds = msgspec.json.decode(old.get("kinds") or b"{}")
    for name, counts in (("errors", found.errors), ("cache", found.cache)):
        if counts:
            kinds[name] = _add_kinds(kinds.get(name, {}), counts)
    merged: dict[str, Any] = {name: old.get(name, 0) + found.numbers[name] for name in SUMS}
    merged["kinds"] = msgspec.json.encode(kinds).decode() if kinds else None
    for name, values in found.values.items():
        data = old.get(name)
        if values:
            data = extend_sketch(data, values)
        merged[name] = data
    return merged


def _add_kinds(known: dict[str, int], counts: Counter[str]) -> dict[str, int]:
    for kind, count in counts.items():
        shown = kind if kind in known or len(known) < MAX_KINDS else "other"
        known[shown] = known.get(shown, 0) + count
    return known


def _floor(at_s: float, step_s: int) -> int:
    return int(at_s // step_s) * step_s
