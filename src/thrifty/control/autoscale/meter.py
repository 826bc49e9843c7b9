"""From the rows of gateway workers to what the policy takes.

Adds up what workers report. A worker that starts anew or goes takes nothing away from the totals;
where a worker's row is missing or stale, there are no figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from thrifty.control.autoscale.types import Demand, Key
from thrifty.db.demand import BUCKETS, DemandRow, Figures

STALE_S = 10.0
"""A row that was not written for so long is stale. Workers write theirs every 3 s at least."""
_SUMS = (
    "arrivals", "answered", "prompt_tokens", "output_tokens", "held_s", "streamed", "begin_s",
    "timed", "token_s", "busy_s",
)  # fmt: skip
_HISTOGRAMS = ("begin_buckets", "token_buckets", "ttft_buckets")


@dataclass
class _Source:
    """One row, as it was read last."""

    figures: Figures
    changed_s: float


@dataclass
class _Totals:
    """What was added up of one version."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    buckets: dict[str, list[float]] = field(
        default_factory=lambda: {name: [0.0] * BUCKETS for name in _HISTOGRAMS}
    )
    elapsed_s: float = 0.0


class Meter:
    """Adds up the rows. `now_s` is a clock that never jumps, such as `time.monotonic`."""

    def __init__(self) -> None:
        self._sources: dict[tuple[str, Key], _Source] = {}
        self._totals: dict[Key, _Totals] = {}
        self._began = False

    def take(self, rows: Iterable[DemandRow], now_s: float) -> None:
        """Add what has been counted since the last call. Of rows that were there at the first call
        only later counts are added.
        """
        there: set[tuple[str, Key]] = set()
        covered: dict[Key, list[float]] = {}
        for row in rows:
            place = row.worker, (row.deployment, row.version)
            there.add(place)
            known = self._sources.get(place)
            if known is not None and known.figures.since_s == row.figures.since_s:
                if row.figures.writes == known.figures.writes:
                    continue
                before = known.figures
            else:
                before = Figures() if self._began else row.figures
            self._sources[place] = _Source(row.figures, now_s)
            self._add(place[1], before, row.figures)
            covered.setdefault(place[1], []).append(row.figures.counted_s - before.counted_s)
        for key, times in covered.items():
            self._totals[key].elapsed_s += sum(times) / max(1, self._count_fresh(key, now_s))
        self._sources = {place: one for place, one in self._sources.items() if place in there}
        self._began = True

    def read(self, key: Key, workers: int, now_s: float) -> Demand | None:
        """The demand of one version, which `workers` gateway workers report; None where figures are
        missing or stale.
        """
        fresh = [one.figures for one in self._fresh(key, now_s)]
        if not fresh or len(fresh) < workers:
            return None
        totals = self._totals[key]
        found: dict[str, Any] = {**totals.sums}
        found |= {name: tuple(counts) for name, counts in totals.buckets.items()}
        return Demand(
            **found,
            elapsed_s=totals.elapsed_s,
            held=self.count_held(key, now_s),
            queued=sum(one.queued for one in fresh),
            in_flight=sum(one.in_flight for one in fresh),
        )

    def count_held(self, key: Key, now_s: float) -> int:
        """How many requests wait at one version because no replica is ready, as the workers say that
        report: those that do not can only add to it.
        """
        return sum(one.figures.held for one in self._fresh(key, now_s))

    def read_work(self, now_s: float) -> dict[str, float]:
        """What is left to say at each replica that is not idle."""
        work: dict[str, float] = {}
        for (_, _), source in self._sources.items():
            if now_s - source.changed_s <= STALE_S:
                for replica, count in source.figures.work.items():
                    work[replica] = work.get(replica, 0.0) + count
        return work

    def _fresh(self, key: Key, now_s: float) -> list[_Source]:
        return [
            source
            for (_, place), source in self._sources.items()
            if place == key and now_s - source.changed_s <= STALE_S
        ]

    def _count_fresh(self, key: Key, now_s: float) -> int:
        return len(self._fresh(key, now_s))

    def _add(self, key: Key, before: Figures, after: Figures) -> None:
        totals = self._totals.setdefault(key, _Totals())
        for name in _SUMS:
            totals.sums[name] += max(0.0, getattr(after, name) - getattr(before, name))
        for name in _HISTOGRAMS:
            counts = totals.buckets[name]
            pairs = zip(getattr(after, name), getattr(before, name), strict=False)
            for bucket, (new, old) in enumerate(pairs):
                counts[bucket] += max(0, new - old)
