"""Begins turns of the loop by the schedule: in time, when there is enough new feedback, after drift,
and when there is a new teacher.

A turn runs in a process of its own (`thrifty.improve.process`), one of a service at a time, so that
neither the control loop nor memory that replicas need is given to it for longer than it takes. What
is due is told by the database: when the last run began, how much feedback came since, whether a day
since then was another than the days before, and which teacher the last run had.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping

from thrifty.db import Database
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.drift import read_looks
from thrifty.db.improve import (
    FAILED,
    RELEASING,
    RUNNING,
    count_new_feedback,
    fail_step,
    find_active_run,
    lease_name,
    read_runs,
    set_run_state,
)
from thrifty.db.leases import is_held
from thrifty.db.releases import read_release
from thrifty.db.rollups import DAY_S
from thrifty.errors import ControlError, DatabaseError, FleetError
from thrifty.fleet.process import ManagedProcess, start_process
from thrifty.home import Home
from thrifty.spec.judges import DEPLOYMENT

log = logging.getLogger(__name__)

LOOK_S = 5.0
RETRY_S = 3600.0
"""A step that failed is tried again after this long."""
MOST_TRIES = 3
"""A step whose process ended so often without saying why counts as one that failed."""
GRACE_S = 15.0
"""For a turn when the service stops; the next service goes on with it."""
EVERY, FEEDBACK, GO_ON, DRIFT, TEACHER = "every", "feedback", "go_on", "drift", "teacher"
ROLE = "improve"
_MODULE = "thrifty.improve.process"


class Improving:
    """See the module's docstring. `run` belongs on the controller's event loop."""

    def __init__(
        self,
        database: Callable[[], Database],
        desired: Callable[[], Mapping[str, DesiredDeployment]],
        home: Home,
    ) -> None:
        self._database = database
        self._desired = desired
        self._home = home
        self._began_s = time.time()
        self._process: ManagedProcess | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                if self._process is not None and self._process.alive:
                    continue
                self._process = None
                try:
                    await self._look()
                except (DatabaseError, sqlite3.Error, OSError):
                    continue  # the control loop says why
                except Exception:
                    # A fault of ours in one turn must not end all later ones.
                    log.exception("a look at the loop's schedule failed")
        finally:
            if self._process is not None:
                with contextlib.suppress(FleetError):
                    await self._process.stop(GRACE_S)

    async def _look(self) -> None:
        """Begin the first turn that is due."""
        desired = self._desired()
        for name, deployment in desired.items():
            if deployment.improve is None:
                continue
            teacher = identify_teacher(deployment.improve.get("teacher"), desired)
            await asyncio.to_thread(fail_killed, self._database(), name)
            reason = await asyncio.to_thread(
                find_due, self._database(), name, deployment.improve, self._began_s, teacher
            )
            if reason is not None:
                self._start(name, reason)
                return

    def _start(self, deployment: str, reason: str) -> None:
        process_id = f"{ROLE}-{deployment}"
        log.info("a turn of the loop of %s begins (%s)", deployment, reason)
        self._process = start_process(
            [sys.executable, "-m", _MODULE, deployment, reason],
            role=ROLE, process_id=process_id, home=self._home.root,
            log_path=self._home.log_of(process_id),
        )  # fmt: skip


def fail_killed(database: Database, deployment: str) -> None:
    """Note a run as failed whose step ended its process each time, for want of memory perhaps, so that
    it is tried again as rarely as others that fail. Raises `DatabaseError`.
    """
    run = find_active_run(database, deployment)
    if run is None or run.state != RUNNING or is_held(database, lease_name(deployment)):
        return
    for name, step in run.steps.items():
        if step.state != RUNNING or step.tries < MOST_TRIES:
            continue
        text = (
            f"its process ended {step.tries} times without saying why; it was killed, perhaps for want "
            f"of memory. See the log {ROLE}-{deployment} and the kernel's, then go on with: thrifty "
            f"improve run {deployment}"
        )
        log.warning("the step %s of run %d of the loop failed: %s", name, run.id, text)
        fail_step(database, run, name, text)
        set_run_state(database, run, FAILED, f"{name}: {text}")
        return


def find_due(
    database: Database,
    deployment: str,
    settings: Mapping[str, object],
    began_s: float,
    teacher: str | None = None,
) -> str | None:
    """Why a turn of a deployment is due now: `every`, `feedback`, `drift`, `teacher`, or `go_on` for
    one whose process has ended; None where none is. `began_s` is when the first interval begins, where
    there was no run, and `teacher` the teacher as it is now. Raises `DatabaseError`.
    """
    now_s = time.time()
    runs = read_runs(database, deployment, limit=1)
    last = runs[0] if runs else None
    if last is not None and last.is_active:
        if last.state == RUNNING:
            return None if is_held(database, lease_name(deployment)) else GO_ON
        if last.state == FAILED and now_s - last.updated_s >= RETRY_S:
            return GO_ON
        if last.state == RELEASING and _has_ended(database, last.steps["release"].outputs):
            return GO_ON
        return None
    since_s = last.created_s if last is not None else 0.0
    every_s, most = settings.get("every"), settings.get("feedback")
    passed_s = now_s - (since_s or began_s)
    # Where the clock was set back, a run now begins the interval anew.
    if isinstance(every_s, int | float) and not 0 <= passed_s < every_s:
        return EVERY
    if isinstance(most, int) and count_new_feedback(database, deployment, since_s, most) >= most:
        return FEEDBACK
    if settings.get("drift") and has_drifted(database, deployment, since_s or began_s):
        return DRIFT
    known = None if last is None or "collect" not in last.steps else last.steps["collect"].outputs
    if teacher is not None and (known is None or known.get("teacher") != teacher):
        return TEACHER
    return None


def has_drifted(database: Database, deployment: str, since_s: float) -> bool:
    """Whether a day that ended since then was another than the days before. Raises
    `DatabaseError`.
    """
    looks = read_looks(database, since_s - DAY_S, deployment)
    return any(one.drifted and one.at_s + DAY_S > since_s for one in looks)


def identify_teacher(named: object, desired: Mapping[str, DesiredDeployment]) -> str | None:
    """What tells one teacher from the next: the version of a deployment with most of its traffic, or
    a server and its model. None where there is none.
    """
    if isinstance(named, Mapping):
        return f"{named.get('model')} at {named.get('url')}"
    if not isinstance(named, str):
        return None
    there = desired.get(named.removeprefix(DEPLOYMENT))
    if there is None or not there.versions:
        return None
    main = max(there.versions, key=lambda version: version.weight)
    return f"{there.name}: {main.label} ({main.artifact or main.revision})"


def _has_ended(database: Database, outputs: Mapping[str, object]) -> bool:
    try:
        return not read_release(database, int(str(outputs.get("release")))).is_active
    except (ControlError, ValueError):
        return True
