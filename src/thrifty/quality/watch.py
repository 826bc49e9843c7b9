"""Looks at recorded answers while a controller runs: checks, judges and drift, on threads of its own.

Of the controllers that share a database one does it, by a lease. No request waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from thrifty.background import step_back
from thrifty.db import Database
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.drift import drop_looks
from thrifty.db.leases import make_owner, take_lease
from thrifty.db.vectors import drop_vectors
from thrifty.errors import DatabaseError
from thrifty.observe.clock_watch import ClockWatch
from thrifty.observe.rollups.roll import Keep
from thrifty.quality.check import AnswerChecker
from thrifty.quality.drift import look_at_days
from thrifty.quality.embedding import Embedding
from thrifty.quality.judging import Judging

log = logging.getLogger(__name__)

LEASE = "quality"
LEASE_S = 30.0
RENEW_S = 10.0
POLL_S = 2.0
KEEP_VECTORS_S = 12 * 86400.0
"""A day may be compared three days late with the seven before it."""
CLEAN_S = 300.0
"""How often days are compared, and what is kept no longer is deleted."""


class AnswerWatch:
    """See the module's docstring. `run` belongs on the controller's event loop."""

    def __init__(
        self,
        database: Callable[[], Database],
        desired: Callable[[], Mapping[str, DesiredDeployment]],
        find_keep: Callable[[], Mapping[str, Any]],
    ) -> None:
        """`find_keep` gives the fields of `observe.rollups.roll.Keep`."""
        self._database = database
        self._desired = desired
        self._find_keep = find_keep
        self._judging = Judging(database, desired)
        self._owner = make_owner()
        self._clock = ClockWatch()
        self._stopping = threading.Event()
        self._holds = threading.Event()
        self._opened: tuple[Database, AnswerChecker] | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        threads = [
            threading.Thread(target=self._check_on, name="answer-checks", daemon=True),
            threading.Thread(target=self._judge_on, name="answer-judge", daemon=True),
            threading.Thread(target=self._embed_on, name="answer-encoder", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._stopping.set()

    def _judge_on(self) -> None:
        step_back()
        self._judging.run(self._stopping, self._holds.is_set)

    def _embed_on(self) -> None:
        step_back()
        embedding = Embedding()
        while not self._stopping.wait(POLL_S):
            try:
                for one in list(self._desired().values()) if self._holds.is_set() else ():
                    while embedding.embed_next(self._database(), one):
                        if self._stopping.is_set():
                            return
            except (DatabaseError, sqlite3.Error, OSError):
                continue  # the checks say why
            except Exception:
                log.exception("answers could not be embedded")
                self._stopping.wait(CLEAN_S)

    def _check_on(self) -> None:
        step_back()
        cleaned_s, renewed_s, away = 0.0, -RENEW_S, False
        while not self._stopping.wait(POLL_S):
            try:
                database = self._database()
                # An idle service writes no more often than the lease needs.
                if not self._holds.is_set() or time.monotonic() - renewed_s >= RENEW_S:
                    renewed_s = time.monotonic()
                    if not take_lease(database, LEASE, self._owner, LEASE_S, force=False):
                        self._holds.clear()
                        continue
                    self._holds.set()
                self._check_some(database)
                due = time.monotonic() - cleaned_s >= CLEAN_S
                # Days are compared and deleted by the clock, so that it must be right.
                if due and self._clock.may_delete():
                    cleaned_s = time.monotonic()
                    self._clean(database)
                away = False
            except (DatabaseError, sqlite3.Error, OSError) as error:
                if not away:
                    log.warning("answers cannot be checked: %s", error)
                away = True
            except Exception:
                # A fault of ours in one step must not end all later ones.
                log.exception("answers could not be checked")

    def _check_some(self, database: Database) -> None:
        if self._opened is None or self._opened[0] is not database:
            self._opened = database, AnswerChecker(database)
        settings = {name: one.checks for name, one in self._desired().items()}
        self._opened[1].step(settings)

    def _clean(self, database: Database) -> None:
        keep = Keep(**self._find_keep())
        for one in look_at_days(database, time.time()):
            if one.drifted:
                log.warning(
                    "%s %s: %s is another than in the days before (by %.2f)",
                    one.deployment, one.version or "as it was asked", one.name, one.effect,
                )  # fmt: skip
        drop_looks(database, time.time() - keep.days_s)
        drop_vectors(database, time.time() - KEEP_VECTORS_S)
        assert self._opened is not None
        self._opened[1].clean(keep)
