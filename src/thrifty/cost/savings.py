"""What was saved, each against a stated baseline. docs/cost.md has the formulas.

No saving is money that was not paid: where the number of replicas is fixed, it is time of the machine
that something else could use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from thrifty.cost.amounts import to_amount, to_nanos
from thrifty.cost.cells import Cell, Parts, Place, add_cells
from thrifty.db.replica_spans import Span
from thrifty.db.tables import versions

QUICK = 0.1
"""The quickest tenth of requests stands for requests that have a replica for themselves."""


@dataclass(frozen=True)
class Speed:
    """How fast a version's model and the model it was made from are, in tokens a second."""

    model: str
    parent: str
    tokens_per_s: float
    parent_tokens_per_s: float
    streams: str


@dataclass(frozen=True)
class Saving:
    """What one measure saved one version; `nanos` is None where that cannot be said."""

    what: str
    deployment: str
    version: str
    nanos: int | None
    seconds: float | None
    baseline: str
    """What it is compared to, or why nothing can be said."""

    def describe(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "what": self.what, "deployment": self.deployment, "version": self.version,
            "saved": None if self.nanos is None else to_amount(self.nanos),
            "saved_s": self.seconds, "baseline": self.baseline,
        }  # fmt: skip


def list_savings(
    connection: Connection,
    own: Mapping[Place, Cell],
    priced: Mapping[Place, Parts],
    spans: Iterable[Span],
    until_s: float,
    speeds: Mapping[tuple[str, str], Speed],
) -> list[Saving]:
    """What each version saved; measures that do not concern a version are left out."""
    cells: dict[tuple[str, str], list[Cell]] = {}
    nanos: dict[tuple[str, str], list[Parts]] = {}
    for place, cell in own.items():
        cells.setdefault(place[:2], []).append(cell)
        nanos.setdefault(place[:2], []).append(priced[place])
    spans, waking = list(spans), _read_waking(connection)
    found: list[Saving | None] = []
    for key in sorted(cells):
        cell = add_cells(cells[key])
        requests = sum(one.requests for one in nanos[key])
        held = sum(one.total - one.tokens for one in nanos[key])
        found.append(_by_cache(key, cell, requests))
        if not cell.external and cell.held_ms:
            found.append(_by_batching(key, cell, held))
            found.append(_by_compression(key, cell, requests, speeds.get(key)))
            if key in waking:
                found.append(_by_zero(key, cell, held, spans, until_s))
    return [one for one in found if one is not None]


def _by_cache(key: tuple[str, str], cell: Cell, requests_nanos: int) -> Saving | None:
    if not cell.counts["hits"]:
        return None
    if cell.external:
        baseline = "each hit generated, by the prices of tokens"
        return Saving("cache", *key, to_nanos(cell.charged_hits), None, baseline)
    generated, spared = cell.counts["completion_tokens"], cell.counts["hit_completion_tokens"]
    baseline = "each hit generated, at what a generated token of this version cost for requests"
    if not generated:
        why = "nothing was generated in this time, so that a token's cost is not known"
        return Saving("cache", *key, None, None, why)
    seconds = cell.worked_ms / 1000 * spared / generated
    return Saving("cache", *key, requests_nanos * spared // generated, seconds, baseline)


def _by_batching(key: tuple[str, str], cell: Cell, held_nanos: int) -> Saving | None:
    answered = cell.counts["requests"] - cell.counts["hits"] - cell.counts["errors"]
    if answered <= 0:
        return None
    # Hits are the quickest of all, and none of them had a replica.
    first = cell.sketches["ttft"]
    hits = min(cell.counts["hits"], first.count)
    share = (hits + QUICK * (first.count - hits)) / max(1, first.count)
    first_ms = first.quantile(share) if first.count > hits else None
    token_ms = cell.sketches["tpot"].quantile(QUICK)
    if first_ms is None or token_ms is None:
        why = "no request was streamed, so that the time of one alone is not known"
        return Saving("batching", *key, None, None, why)
    further = max(0, cell.counts["completion_tokens"] - answered)
    alone_ms = answered * first_ms + further * token_ms
    saved_ms = max(0.0, alone_ms - cell.worked_ms)
    baseline = (
        f"one request after another, each as fast as the quickest tenth ({first_ms:.3g} ms to the "
        f"first token, {token_ms:.3g} ms for each further one)"
    )
    nanos = held_nanos * round(saved_ms) // cell.held_ms
    return Saving("batching", *key, nanos, saved_ms / 1000, baseline)


def _by_compression(
    key: tuple[str, str], cell: Cell, requests_nanos: int, speed: Speed | None
) -> Saving | None:
    if speed is None:
        return None
    ratio = speed.tokens_per_s / speed.parent_tokens_per_s - 1
    baseline = (
        f"{speed.parent} at {speed.parent_tokens_per_s:.3g} tokens/s in place of {speed.model} at "
        f"{speed.tokens_per_s:.3g}, as measured here with {speed.streams} streams"
    )
    seconds = cell.worked_ms / 1000 * ratio
    return Saving("compression", *key, round(requests_nanos * ratio), seconds, baseline)


def _by_zero(
    key: tuple[str, str], cell: Cell, held_nanos: int, spans: Iterable[Span], until_s: float
) -> Saving | None:
    own = [span for span in spans if (span.deployment, span.version) == key]
    if not own:
        return None
    first_s = min(span.from_s for span in own)
    covered_s, reached_s = 0.0, first_s
    for span in sorted(own, key=lambda one: one.from_s):
        covered_s += max(0.0, span.until_s - max(span.from_s, reached_s))
        reached_s = max(reached_s, span.until_s)
    saved_s = max(0.0, until_s - first_s - covered_s)
    baseline = "one replica held all the time since the first one started in this time"
    nanos = held_nanos * round(saved_s * 1000) // cell.held_ms
    return Saving("scaling to zero", *key, nanos, saved_s, baseline)


def _read_waking(connection: Connection) -> set[tuple[str, str]]:
    """The versions that have no replica while nobody asks."""
    rows = connection.execute(select(versions.c.deployment, versions.c.label, versions.c.settings))
    return {(row[0], row[1]) for row in rows if msgspec.json.decode(row[2]).get("wakes")}
