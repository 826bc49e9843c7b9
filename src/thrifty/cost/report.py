"""The cost of requests: by version, deployment, tenant or day, with parts that add up.

A version costs what the machine cost while its replicas held a share of it: in part for requests, in
part idle. A version whose servers others run costs what its tokens cost. Each tenant gets the share
of the requests' part that its requests had of the time at replicas. What no replica held of the
machine is a row of its own. All sums are of whole nanos, so that the parts of every division add up
to the same total.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, select

from thrifty.cost.amounts import price_time, split, to_amount
from thrifty.cost.cells import (
    Cell,
    Parts,
    Place,
    add_cells,
    price_cell,
    read_cells,
    read_tenants,
)
from thrifty.cost.forecast import Budget, read_budgets
from thrifty.cost.savings import Saving, list_savings
from thrifty.db import Database
from thrifty.db.replica_spans import MACHINE, read_spans
from thrifty.db.rollups import DAY_S, HOUR_S
from thrifty.db.tables import rollups
from thrifty.errors import ThriftyError
from thrifty.evaluate.statistics import proportion

BY = ("version", "deployment", "tenant", "day")
HOURS_FOR_S = 45 * DAY_S
"""Longer times are read by day."""
HOW_TO_PRICE = (
    "Nobody has said what this machine costs. Write one of these into the spec and apply it: "
    "'price_per_hour: 0.40'; 'machine: {instance: aws/us-east-1/c7g.4xlarge}' (see 'thrifty "
    "prices'); 'machine: {watts: 65, per_kwh: 0.30}'. It holds from then on; for the time before "
    "there is --price-per-hour."
)


@dataclass(frozen=True)
class Line:
    """A row of the report."""

    labels: dict[str, str]
    cell: Cell
    parts: Parts

    def describe(self) -> dict[str, Any]:
        """The row as JSON shows it. Money is in the currency's unit; None: it cannot be said."""
        counts, total = self.cell.counts, self.parts.total
        answers = counts["requests"] - counts["errors"]
        tokens = counts["completion_tokens"] + counts["hit_completion_tokens"]
        rated = proportion(counts["up"], counts["up"] + counts["down"])
        accepted = answers * rated.share if rated.count else 0.0
        return {
            **self.labels,
            "cost": to_amount(total),
            "requests_cost": to_amount(self.parts.requests),
            "others_cost": to_amount(self.parts.others),
            "idle_cost": to_amount(self.parts.idle),
            "tokens_cost": to_amount(self.parts.tokens),
            "charged": self.cell.charged,
            "requests": counts["requests"],
            "answers": answers,
            "tokens_in": counts["prompt_tokens"] + counts["hit_prompt_tokens"],
            "tokens_out": tokens,
            "up": counts["up"],
            "down": counts["down"],
            "accepted_share": rated.share if rated.count else None,
            "accepted_low": rated.low if rated.count else None,
            "accepted_high": rated.high if rated.count else None,
            "per_request": _divide(total, counts["requests"]),
            "per_million_tokens": _divide(total * 1_000_000, tokens),
            "per_accepted": _divide(total, accepted),
            "per_accepted_low": _divide(total, answers * rated.high if rated.count else 0.0),
            "per_accepted_high": _divide(total, answers * rated.low if rated.count else 0.0),
            "held_s": self.cell.held_ms / 1000,
            "worked_s": self.cell.worked_ms / 1000,
            "machine_s": self.cell.machine_ms / 1000,
            "unpriced_s": self.cell.unpriced_ms / 1000,
        }


@dataclass(frozen=True)
class CostReport:
    """What a time cost."""

    by: str
    from_s: int
    until_s: float
    lines: list[Line]
    unheld_nanos: int
    """What no replica held of the machine, in nanos."""
    unheld_ms: int
    bases: list[str]
    """Where prices are from."""
    savings: list[Saving]
    budgets: list[Budget]

    @property
    def total(self) -> Line:
        """All lines as one, without what no replica held."""
        parts = Parts(
            *(
                sum(getattr(line.parts, name) for line in self.lines)
                for name in ("requests", "others", "idle", "tokens")
            )
        )
        return Line({}, add_cells(line.cell for line in self.lines), parts)

    @property
    def is_priced(self) -> bool:
        """Whether all of the time had a price."""
        return not any(line.cell.unpriced_ms for line in self.lines)

    def describe(self) -> dict[str, Any]:
        """The report as JSON shows it."""
        total = self.total
        return {
            "by": self.by,
            "from": self.from_s,
            "to": self.until_s,
            "priced": self.is_priced,
            "bases": self.bases,
            "how_to_price": None if self.is_priced else HOW_TO_PRICE,
            "lines": [line.describe() for line in self.lines],
            "total": total.describe(),
            "unheld_cost": to_amount(self.unheld_nanos),
            "unheld_s": self.unheld_ms / 1000,
            "machine_cost": to_amount(total.parts.total - total.parts.tokens + self.unheld_nanos),
            "savings": [one.describe() for one in self.savings],
            "budgets": [one.describe() for one in self.budgets],
        }


def make_report(
    database: Database,
    *,
    by: str,
    from_s: float,
    until_s: float,
    fill_per_hour: float | None = None,
    speeds: Mapping[tuple[str, str], Any] | None = None,
) -> CostReport:
    """The cost of a time, from the start of its first hour (or day, for longer times) on.

    `fill_per_hour` is what the machine costs where nobody had said; `speeds` says how much faster a
    compressed version is than its parent (`savings.Speed`), by deployment and version. Raises
    `ThriftyError`, and `DatabaseError`.
    """
    if by not in BY:
        raise ThriftyError(f"costs are told apart by {', '.join(BY)}, not by {by[:60]!r}")
    if until_s <= from_s:
        raise ThriftyError("the end of the time must be later than its start")
    with database.begin() as connection:
        step_s = _choose_step(connection, from_s, until_s)
        start = int(from_s // step_s) * step_s
        cells = read_cells(connection, start, until_s, step_s, by_day=by == "day")
        machine = add_cells(cell for place, cell in cells.items() if _is_machine(place))
        own = {place: cell for place, cell in cells.items() if not _is_machine(place)}
        priced = {place: price_cell(cell, fill_per_hour) for place, cell in own.items()}
        if by == "tenant":
            lines = _divide_by_tenant(connection, own, priced, (start, until_s, step_s))
        else:
            lines = _group(own, priced, by)
        spans = read_spans(connection, start, until_s)
        savings = list_savings(connection, own, priced, spans, until_s, speeds or {})
        budgets = read_budgets(connection, until_s, fill_per_hour)
    unheld_ms, unheld = _find_unheld(machine, own.values(), priced.values(), fill_per_hour)
    bases = sorted({span.basis for span in spans if span.basis and span.replica == MACHINE})
    if fill_per_hour is not None:
        bases.append(f"--price-per-hour {fill_per_hour:g} where nothing was said")
    return CostReport(by, start, until_s, lines, unheld, unheld_ms, bases, savings, budgets)


def _choose_step(connection: Connection, from_s: float, until_s: float) -> int:
    """Hours for short times, as far back as there are sums by hour; else days."""
    if until_s - from_s > HOURS_FOR_S:
        return DAY_S
    first_hour, first_day = (
        connection.execute(
            select(func.min(rollups.c.at_s)).where(rollups.c.step_s == step_s)
        ).scalar()
        for step_s in (HOUR_S, DAY_S)
    )
    if first_hour is None or first_day is None:
        return HOUR_S
    return HOUR_S if from_s >= first_hour or first_day >= first_hour - DAY_S else DAY_S


def _is_machine(place: Place) -> bool:
    return place[0] == MACHINE


def _group(own: Mapping[Place, Cell], priced: Mapping[Place, Parts], by: str) -> list[Line]:
    groups: dict[tuple[tuple[str, str], ...], list[Place]] = {}
    for place in own:
        deployment, version, day = place
        labels: tuple[tuple[str, str], ...] = (("deployment", deployment),)
        if by == "version":
            labels += (("version", version),)
        elif by == "day":
            labels = (("day", datetime.fromtimestamp(day, UTC).strftime("%Y-%m-%d")),)
        groups.setdefault(labels, []).append(place)
    lines = [
        Line(
            dict(labels),
            add_cells(own[place] for place in places),
            _add_parts(priced[place] for place in places),
        )
        for labels, places in groups.items()
    ]
    if by == "day":
        return sorted(lines, key=lambda line: line.labels["day"])
    return sorted(lines, key=lambda line: (-line.parts.total, *line.labels.values()))


def _divide_by_tenant(
    connection: Connection,
    own: Mapping[Place, Cell],
    priced: Mapping[Place, Parts],
    when: tuple[int, float, int],
) -> list[Line]:
    """Lines of tenants, then of what belongs to none: idle time, shadows and measurements."""
    found = read_tenants(connection, *when)
    cells: dict[str, list[Cell]] = {}
    parts: dict[str, list[Parts]] = {}
    rest: list[Line] = []
    for place, cell in own.items():
        tenants, price = found.get(place[:2], {}), priced[place]
        names = sorted(tenants)
        shared = split(price.requests, [tenants[name].busy_ms for name in names]) if names else []
        tokens = split(price.tokens, [tenants[name].charged for name in names]) if names else []
        for name, of_requests, of_tokens in zip(names, shared, tokens, strict=True):
            cells.setdefault(name, []).append(tenants[name])
            parts.setdefault(name, []).append(Parts(of_requests, 0, 0, of_tokens))
        left = Parts(
            price.requests - sum(shared), price.others, price.idle, price.tokens - sum(tokens)
        )
        held = Cell(
            held_ms=cell.held_ms, worked_ms=cell.worked_ms, machine_ms=cell.machine_ms,
            unpriced_ms=cell.unpriced_ms, held_nanos=cell.held_nanos,
        )  # fmt: skip
        labels = {"tenant": "", "deployment": place[0], "version": place[1], "of": "no tenant"}
        rest.append(Line(labels, held, left))
    lines = [
        Line(
            {"tenant": name, "deployment": "", "version": "", "of": "tenant"},
            add_cells(cells[name]), _add_parts(parts[name]),
        )
        for name in cells
    ]  # fmt: skip
    lines.sort(key=lambda line: (-line.parts.total, line.labels["tenant"]))
    return lines + sorted(rest, key=lambda line: -line.parts.total)


def _add_parts(parts: Iterable[Parts]) -> Parts:
    given: Sequence[Parts] = list(parts)
    return Parts(
        sum(one.requests for one in given), sum(one.others for one in given),
        sum(one.idle for one in given), sum(one.tokens for one in given),
    )  # fmt: skip


def _find_unheld(
    machine: Cell,
    own: Iterable[Cell],
    priced: Iterable[Parts],
    fill_per_hour: float | None,
) -> tuple[int, int]:
    """How much of the machine's time no replica held, in milliseconds, and its cost in nanos.
    Replicas that make room for others may hold more than all of it for a while; then it is 0.
    """
    whole = machine.held_nanos
    if fill_per_hour is not None:
        whole += price_time(machine.unpriced_ms, fill_per_hour)
    held = sum(one.total - one.tokens for one in priced)
    unheld_ms = machine.machine_ms - sum(cell.machine_ms for cell in own)
    return max(0, unheld_ms), max(0, whole - held)


def _divide(nanos: int, count: float) -> float | None:
    return to_amount(nanos) / count if count > 0 else None
