"""What is known of each version and step of time: requests, tokens, and the time of replicas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, select

from thrifty.cost.amounts import price_time, split, to_nanos
from thrifty.cost.held import read_held
from thrifty.db.rollups import DAY_S
from thrifty.db.tables import ROLLUP_SKETCHES, rollups, tenant_rollups
from thrifty.observe.rollups.sketch import EMPTY, Sketch, decode_sketches, merge_sketches

COUNTS = (
    "requests", "errors", "hits", "prompt_tokens", "completion_tokens", "cached_tokens",
    "hit_prompt_tokens", "hit_completion_tokens", "other_requests", "up", "down",
)  # fmt: skip
TIMES = ("ttft", "tpot")

Place = tuple[str, str, int]
"""Deployment, version, and the day (UTC, in seconds since 1970) or 0 where days are not told apart."""


@dataclass
class Cell:
    """One version, in one step of time. Times are in milliseconds, money in nanos."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    busy_ms: float = 0.0
    """How long requests of users were at replicas, added up."""
    other_busy_ms: float = 0.0
    """So for shadows and measurements."""
    charged: float = 0.0
    """What the tokens that replicas worked on cost by `prices` of the spec."""
    charged_hits: float = 0.0
    """What tokens from caches would have cost."""
    held_ms: int = 0
    worked_ms: int = 0
    machine_ms: int = 0
    unpriced_ms: int = 0
    held_nanos: int = 0
    """What holding replicas cost, as far as there was a price."""
    sketches: dict[str, Sketch] = field(default_factory=dict)

    @property
    def external(self) -> bool:
        """Whether others run its servers, so that it costs what its tokens cost."""
        return self.machine_ms == 0 and (self.held_ms > 0 or self.charged > 0)


@dataclass(frozen=True)
class Parts:
    """What a cell cost, in nanos: parts that add up to `total`."""

    requests: int
    """The machine's time in which it worked for users."""
    others: int
    """So for shadows and measurements."""
    idle: int
    """The time in which it was held and did nothing."""
    tokens: int
    """What servers of others cost, by the prices of tokens."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.requests + self.others + self.idle + self.tokens


def price_cell(cell: Cell, fill_per_hour: float | None = None) -> Parts:
    """Divide a cell's cost. `fill_per_hour` is what a machine costs an hour where nobody had said."""
    if cell.external:
        return Parts(0, 0, 0, to_nanos(cell.charged))
    held = cell.held_nanos
    if fill_per_hour is not None:
        held += price_time(cell.unpriced_ms, fill_per_hour)
    worked = held * cell.worked_ms // cell.held_ms if cell.held_ms else 0
    requests, others = split(worked, (cell.busy_ms, cell.other_busy_ms))
    return Parts(requests, others, held - worked, 0)


def read_cells(
    connection: Connection, from_s: int, until_s: float, step_s: int, *, by_day: bool
) -> dict[Place, Cell]:
    """The cells of a time that begins with a full step; the empty deployment is the machine."""
    cells: dict[Place, Cell] = {}

    def find(deployment: str, version: str, at_s: int) -> Cell:
        day = at_s // DAY_S * DAY_S if by_day else 0
        return cells.setdefault((deployment, version, day), Cell())

    for hour in read_held(connection, from_s, until_s):
        cell = find(hour.deployment, hour.version, hour.hour_s)
        cell.held_ms += hour.held_ms
        cell.worked_ms += hour.worked_ms
        cell.machine_ms += hour.machine_ms
        cell.unpriced_ms += hour.unpriced_ms
        cell.held_nanos += hour.cost_nanos
    rows = _read_sums(connection, rollups, from_s, until_s, step_s)
    found: dict[int, list[tuple[str, Sketch]]] = {}
    places: dict[int, Cell] = {}
    for name in TIMES:
        for row, sketch in zip(rows, decode_sketches([row[name] for row in rows]), strict=True):
            cell = find(row["deployment"], row["version"], row["at_s"])
            places[id(cell)] = cell
            found.setdefault(id(cell), []).append((name, sketch))
    for key, cell in places.items():
        cell.sketches = {
            name: merge_sketches(sketch for one, sketch in found[key] if one == name)
            for name in TIMES
        }
    for row in rows:
        _add(find(row["deployment"], row["version"], row["at_s"]), row)
    return cells


def read_tenants(
    connection: Connection, from_s: int, until_s: float, step_s: int
) -> dict[tuple[str, str], dict[str, Cell]]:
    """The cells of each tenant, by deployment and version."""
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    for row in _read_sums(connection, tenant_rollups, from_s, until_s, step_s):
        tenants = found.setdefault((row["deployment"], row["version"]), {})
        _add(tenants.setdefault(row["tenant"], Cell()), row)
    return found


def add_cells(cells: Iterable[Cell]) -> Cell:
    """Several cells as one."""
    total = Cell()
    given = list(cells)
    for cell in given:
        for name in COUNTS:
            total.counts[name] += cell.counts[name]
        for name in (
            "busy_ms", "other_busy_ms", "charged", "charged_hits", "held_ms", "worked_ms",
            "machine_ms", "unpriced_ms", "held_nanos",
        ):  # fmt: skip
            setattr(total, name, getattr(total, name) + getattr(cell, name))
    total.sketches = {
        name: merge_sketches(cell.sketches.get(name, EMPTY) for cell in given) for name in TIMES
    }
    return total


def _read_sums(
    connection: Connection, table: Table, from_s: int, until_s: float, step_s: int
) -> list[Mapping[Any, Any]]:
    unused = set(ROLLUP_SKETCHES) - set(TIMES) | {"kinds"}
    columns = [column for column in table.columns if column.name not in unused]
    query = select(*columns).where(
        table.c.step_s == step_s, table.c.at_s >= from_s, table.c.at_s < until_s
    )
    return list(connection.execute(query).mappings())


def _add(cell: Cell, row: Mapping[Any, Any]) -> None:
    for name in COUNTS:
        cell.counts[name] += row[name]
    cell.busy_ms += row["busy_ms"]
    cell.other_busy_ms += row["other_busy_ms"]
    cell.charged += row["cost"]
    cell.charged_hits += row["hit_cost"]
