"""One look at a service: find what is wrong, keep it, and tell whom it concerns."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from thrifty.db import Database
from thrifty.db.alerts import (
    AlertRow,
    Objective,
    Silence,
    count_thumbs,
    read_alerts,
    read_silences,
    read_spending,
    save_alerts,
)
from thrifty.errors import DatabaseError
from thrifty.observe.alerts.book import Book
from thrifty.observe.alerts.counts import Counts
from thrifty.observe.alerts.findings import (
    BUDGET,
    CRASH_LOOP,
    DATABASE,
    DRIFT,
    ERRORS,
    FEEDBACK,
    QUALITY,
    SLOW,
    Finding,
    find_budgets,
    find_burns,
    find_crash_loops,
    find_feedback_drops,
)
from thrifty.observe.alerts.settings import AlertSettings, Slo
from thrifty.observe.alerts.targets import TargetError, send_notice
from thrifty.observe.burn import PAGE

log = logging.getLogger(__name__)

AWAY_S = 300.0
"""A database that could not be read for so long is an alert."""
THUMBS_EVERY_S = 600.0
DAY_S = 86400
Crash = tuple[str, str, str, str]
"""Deployment, version, id and message of a replica that ends again and again."""


class Watch:
    """Looks when it is told to. Used by one thread at a time."""

    def __init__(
        self,
        database: Callable[[], Database],
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`environment` holds the secrets of targets."""
        self.stopping = threading.Event()
        """Set it to have a look end early."""
        self._database = database
        self._environment = environment
        self._clock = clock
        self._counts = Counts(clock=clock)
        self._book = Book()
        self._loaded = False
        self._silences: Sequence[Silence] = ()
        self._away_since_s: float | None = None
        self._thumbs: list[Finding] = []
        self._thumbs_s: float | None = None
        self._faults: dict[str, str] = {}

    @property
    def alerts(self) -> list[AlertRow]:
        """All alerts, those that are over included."""
        return self._book.rows

    def look(
        self,
        settings: AlertSettings,
        slos: Sequence[Slo],
        crashes: Iterable[Crash],
        answers: Sequence[Finding] | None = None,
    ) -> None:
        """Look once. `answers` is what is wrong with answers; None: it is not known. Blocks, also
        on targets. What the database does not take is kept in memory.
        """
        now_s = self._clock()
        findings, kinds = self._find(settings, slos, now_s)
        if settings.crash_loops:
            findings += find_crash_loops(crashes)
        if answers is not None:
            findings += answers
            kinds |= {QUALITY, DRIFT}
        self._book.note(findings, {*kinds, CRASH_LOOP, DATABASE}, now_s)
        self._tell(settings, now_s)
        changed = self._book.take_changed()
        try:
            if changed:
                save_alerts(self._database(), changed)
        except (DatabaseError, sqlite3.Error, OSError):
            self._book.give_back(changed)

    def _find(
        self, settings: AlertSettings, slos: Sequence[Slo], now_s: float
    ) -> tuple[list[Finding], set[str]]:
        """What the database shows, and the kinds that were looked for."""
        findings: list[Finding] = []
        kinds: set[str] = set()
        try:
            database = self._database()
            self._load(database)
            self._silences = read_silences(database)
            self._counts.read(database, [_make_objective(slo) for slo in slos])
            findings += find_burns(self._counts, settings, slos)
            if self._counts.complete:
                kinds |= {ERRORS, SLOW}
            if settings.budget is not None:
                findings += find_budgets(read_spending(database, now_s), settings.budget)
            findings += self._find_feedback(database, settings, now_s)
            kinds |= {BUDGET, FEEDBACK}
            self._away_since_s = None
        except (DatabaseError, sqlite3.Error, OSError) as error:
            since_s = self._away_since_s
            if since_s is None:
                self._away_since_s = time.monotonic()
            elif time.monotonic() - since_s >= AWAY_S:
                summary = f"the database cannot be read: {error}"
                findings.append(Finding(DATABASE, PAGE, "", "", "", summary))
        return findings, kinds

    def _load(self, database: Database) -> None:
        """Go on with what an earlier controller left."""
        if not self._loaded:
            rows = {row.key: row for row in read_alerts(database)}
            self._book = Book((rows | {row.key: row for row in self._book.rows}).values())
            self._loaded = True

    def _find_feedback(
        self, database: Database, settings: AlertSettings, now_s: float
    ) -> list[Finding]:
        if settings.feedback_drop is None:
            return []
        if self._thumbs_s is None or time.monotonic() - self._thumbs_s >= THUMBS_EVERY_S:
            self._thumbs_s = time.monotonic()
            now = count_thumbs(database, now_s - DAY_S, now_s)
            before = count_thumbs(database, now_s - 8 * DAY_S, now_s - DAY_S)
            self._thumbs = find_feedback_drops(now, before, settings.feedback_drop)
        return self._thumbs

    def _tell(self, settings: AlertSettings, now_s: float) -> None:
        notices = self._book.list_due(settings.targets, self._silences, settings.repeat_s, now_s)
        broken: set[str] = set()
        for notice in notices:
            name = notice.target.name
            if self.stopping.is_set() or name in broken:
                continue
            try:
                send_notice(notice.target, notice.alert, notice.status, self._environment)
            except TargetError as error:
                # The next look tries again; one try for each target is enough for this one.
                broken.add(name)
                if self._faults.get(name) != str(error):
                    log.error("an alert cannot be sent: %s", error)
                self._faults[name] = str(error)
            else:
                self._faults.pop(name, None)
                self._book.note_told(notice, now_s)


def _make_objective(slo: Slo) -> Objective:
    ttft_ms = None if slo.ttft_s is None else slo.ttft_s * 1e3
    return Objective(
        slo.deployment, slo.version, ttft_ms, None if slo.tpot_s is None else slo.tpot_s * 1e3
    )
