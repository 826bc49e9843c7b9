"""Which alerts are open, and whom to tell what. Plain state and plain code: it reads no clock and
sends nothing.

A target is told once that an alert is open, again when it becomes a page, every `repeat_s` while it
stays open, and once that it is over. What could not be sent is due again at the next look. An alert
is over when it was not found for `OVER_S`, so that one that comes and goes is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from thrifty.db.alerts import KEEP_S, AlertRow, Silence
from thrifty.observe.alerts.findings import Finding
from thrifty.observe.alerts.settings import Target
from thrifty.observe.burn import PAGE

OVER_S = 300.0
FIRING, RESOLVED = "firing", "resolved"


class Notice(NamedTuple):
    """Something that a target is to be told."""

    target: Target
    alert: AlertRow
    status: str
    """`firing` or `resolved`."""


class Told(msgspec.Struct, frozen=True):
    """What a target was told last of an alert."""

    status: str
    severity: str
    at_s: float


class Book:
    """The alerts of a service."""

    def __init__(self, rows: Iterable[AlertRow] = ()) -> None:
        """`rows` are what an earlier controller left."""
        self._rows = {row.key: row for row in rows}
        self._changed: set[str] = set()

    @property
    def rows(self) -> list[AlertRow]:
        """All alerts."""
        return list(self._rows.values())

    def take_changed(self) -> list[AlertRow]:
        """The alerts that are to be saved."""
        changed = [self._rows[key] for key in self._changed if key in self._rows]
        self._changed.clear()
        return changed

    def give_back(self, rows: Sequence[AlertRow]) -> None:
        """Have alerts saved again that could not be."""
        self._changed |= {row.key for row in rows}

    def note(self, findings: Iterable[Finding], kinds: Collection[str], now_s: float) -> None:
        """Take in what a look found. Of other kinds than `kinds` nothing was looked at."""
        found = {finding.key: finding for finding in findings}
        for key, finding in found.items():
            self._open(key, finding, now_s)
        for key, row in list(self._rows.items()):
            if row.resolved_s is not None:
                if not -KEEP_S < now_s - row.resolved_s < KEEP_S:
                    del self._rows[key]
            # The clock may have been set: what lies in the future counts as long ago.
            elif key not in found and row.kind in kinds and not 0 <= now_s - row.seen_s < OVER_S:
                self._put(replace(row, resolved_s=now_s))

    def list_due(
        self,
        targets: Sequence[Target],
        silences: Sequence[Silence],
        repeat_s: float,
        now_s: float,
    ) -> list[Notice]:
        """What is to be told, and to whom."""
        due = []
        for row in self._rows.values():
            if any(one.covers(row.kind, row.deployment, row.version, now_s) for one in silences):
                continue
            told = _decode_told(row.told)
            for target in targets:
                last = told.get(target.name)
                status = _find_due(row, target, last, repeat_s, now_s)
                if status is not None:
                    due.append(Notice(target, row, status))
        return due

    def note_told(self, notice: Notice, now_s: float) -> None:
        """Note that a target was told."""
        row = self._rows.get(notice.alert.key)
        if row is None:
            return
        told = dict(_decode_told(row.told))
        told[notice.target.name] = Told(notice.status, row.severity, now_s)
        self._put(replace(row, told=msgspec.json.encode(told).decode()))

    def _open(self, key: str, finding: Finding, now_s: float) -> None:
        known = self._rows.get(key)
        if known is None or known.resolved_s is not None:
            # What was over is new; targets that were told of its end hear of the beginning again.
            self._put(
                AlertRow(
                    key, finding.kind, finding.severity, finding.deployment, finding.version,
                    finding.summary, finding.runbook, now_s, now_s,
                    told=known.told if known is not None else "{}",
                )
            )  # fmt: skip
        else:
            self._put(
                replace(known, severity=finding.severity, summary=finding.summary, seen_s=now_s)
            )

    def _put(self, row: AlertRow) -> None:
        self._rows[row.key] = row
        self._changed.add(row.key)


def _find_due(
    row: AlertRow, target: Target, last: Told | None, repeat_s: float, now_s: float
) -> str | None:
    """What a target is to be told of an alert now, if anything."""
    firing = last is not None and last.status == FIRING
    if row.resolved_s is not None:
        return RESOLVED if firing else None
    if target.severity == PAGE and row.severity != PAGE:
        return None
    if last is None or not firing:
        return FIRING
    if row.severity == PAGE and last.severity != PAGE:
        return FIRING
    # A clock that was set back must not silence an alert for as long.
    return FIRING if not 0 <= now_s - last.at_s < repeat_s else None


def _decode_told(text: str) -> Mapping[str, Told]:
    try:
        return msgspec.json.decode(text, type=dict[str, Told])
    except (msgspec.DecodeError, msgspec.ValidationError):
        return {}
