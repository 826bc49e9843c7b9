"""Asks canary questions on schedule, in the controller: one thread, one question at a time."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping

from thrifty.artifacts import Store
from thrifty.db import Database
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.fleet import read_fleet
from thrifty.db.quality import read_last_round, save_answers
from thrifty.errors import DatabaseError, ThriftyError
from thrifty.home import Home

log = logging.getLogger(__name__)

LOOK_S = 1.0
RETRY_S = 60.0
"""After questions could not be read, or a version had no replica."""


class QualityChecks:
    """See the module's docstring. `run` belongs on the controller's event loop."""

    def __init__(
        self,
        database: Callable[[], Database],
        desired: Callable[[], Mapping[str, DesiredDeployment]],
        home: Home,
        store: Store,
    ) -> None:
        self._database = database
        self._desired = desired
        self._home = home
        self._store = store
        self._due_s: dict[tuple[str, str, str], float] = {}
        """When each version is to be asked next, on the steady clock."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                wanted = any(one.quality is not None for one in self._desired().values())
                if wanted and self._thread is None:
                    self._thread = threading.Thread(
                        target=self._ask_on, name="canary-questions", daemon=True
                    )
                    self._thread.start()
                await asyncio.sleep(LOOK_S)
        finally:
            self._stopping.set()

    def _ask_on(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                for deployment in list(self._desired().values()):
                    if deployment.quality is not None:
                        self._ask_deployment(deployment)
            except (DatabaseError, sqlite3.Error, OSError):
                continue  # the control loop says why
            except Exception:
                # A fault of ours in one round must not end all later ones.
                log.exception("a round of canary questions failed")
                self._stopping.wait(RETRY_S)

    def _ask_deployment(self, deployment: DesiredDeployment) -> None:
        """Ask the versions that are due."""
        quality = deployment.quality
        assert quality is not None
        due = [one for one in deployment.versions if self._is_due(deployment.name, one.label, one.revision, quality.every_s)]  # fmt: skip
        if not due:
            return
        # Only who asks needs what reads questions.
        from thrifty.quality.ask import ask_version, load_questions

        places = {one.label: (deployment.name, one.label, one.revision) for one in due}
        try:
            questions = load_questions(quality, self._home.data, self._store)
        except ThriftyError as error:
            log.warning("%s: no canary questions: %s", deployment.name, error)
            for place in places.values():
                self._due_s[place] = time.monotonic() + RETRY_S
            return
        state = read_fleet(self._database())
        for version in due:
            answers = ask_version(
                questions, state, deployment.name, version.row, self._stopping.is_set
            )
            if self._stopping.is_set():
                return
            save_answers(self._database(), answers)
            wait_s = quality.every_s if answers else min(RETRY_S, quality.every_s)
            self._due_s[places[version.label]] = time.monotonic() + wait_s

    def _is_due(self, name: str, label: str, revision: str, every_s: float) -> bool:
        place = (name, label, revision)
        if place not in self._due_s:
            # A controller that is new goes on with the schedule of the one before.
            last_s = read_last_round(self._database()).get((name, label))
            ago_s = time.time() - last_s if last_s is not None else every_s
            self._due_s[place] = time.monotonic() + max(0.0, every_s - max(0.0, ago_s))
        return time.monotonic() >= self._due_s[place]
