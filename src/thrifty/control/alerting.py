"""Alerts of a running service: the controller looks at it every so often."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import msgspec

from thrifty.control.budgets import find_month_budgets
from thrifty.control.loop import ControlLoop
from thrifty.db import Database
from thrifty.db.desired_state import DesiredService
from thrifty.errors import DatabaseError
from thrifty.observe.alerts.findings import DRIFT, QUALITY, Finding
from thrifty.observe.alerts.settings import AlertSettings, Slo
from thrifty.observe.alerts.watch import Crash, Watch
from thrifty.observe.burn import TICKET
from thrifty.quality.worse import find_drift, find_worse
from thrifty.spec.alerts import AlertsSpec
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

EVERY_S = 15.0
ANSWERS_EVERY_S = 300.0
"""How often versions' answers are compared."""


class Alerting:
    """Looks at a service until it is cancelled. Used on the controller's event loop."""

    def __init__(self, database: Callable[[], Database], loop: ControlLoop) -> None:
        self._loop = loop
        self._watch = Watch(database)
        self._database = database
        self._answers: list[Finding] | None = None
        self._answers_s = -ANSWERS_EVERY_S

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await asyncio.sleep(EVERY_S)
                await self._look()
            except asyncio.CancelledError:
                self._watch.stopping.set()
                raise
            except Exception:
                # A fault of ours in one look must not end all later ones.
                log.exception("the service cannot be watched")

    async def _look(self) -> None:
        desired = self._loop.desired
        if desired.service is None:
            return
        settings = read_settings(desired.service)
        slos = [
            Slo(deployment.name, version.label, version.slo.ttft_p95_s, version.slo.tpot_p95_s)
            for deployment in desired.deployments.values()
            for version in deployment.versions
            if version.slo.is_set
        ]
        crashes: list[Crash] = [
            (one.row.deployment, one.row.version, one.row.id, one.row.message or "")
            for one in self._loop.observe()
            if one.state is ReplicaState.CRASH_LOOP
        ]
        versions = {
            (deployment.name, version.label)
            for deployment in desired.deployments.values()
            for version in deployment.versions
        }
        if time.monotonic() - self._answers_s >= ANSWERS_EVERY_S:
            self._answers_s = time.monotonic()
            self._answers = await asyncio.to_thread(self._find_answers, settings, versions)
        await asyncio.to_thread(self._watch.look, settings, slos, crashes, self._answers)

    def _find_answers(
        self, settings: AlertSettings, versions: set[tuple[str, str]]
    ) -> list[Finding] | None:
        """What is wrong with answers; what was found before while the database is away."""
        try:
            return find_slow_faults(self._database(), settings, versions)
        except (DatabaseError, sqlite3.Error, OSError):
            return self._answers


def find_slow_faults(
    database: Database, settings: AlertSettings, versions: set[tuple[str, str]]
) -> list[Finding]:
    """What is looked for every few minutes: versions that answer worse than others, drift, and
    budgets of the month. Raises `DatabaseError`.
    """
    found: list[Finding] = []
    if settings.quality_drop is not None:
        worse = find_worse(database, versions, settings.quality_drop)
        found += [Finding(QUALITY, TICKET, *one) for one in worse]
    if settings.drift:
        drift = find_drift(database, versions, time.time())
        found += [Finding(DRIFT, TICKET, *one) for one in drift]
    if settings.budget is not None:
        found += find_month_budgets(database, settings.budget, time.time())
    return found


def describe_alerts(spec: AlertsSpec) -> dict[str, Any]:
    """What a spec says of alerts, as values of JSON."""
    return {
        "availability": spec.availability,
        "minimum": spec.minimum,
        "feedback_drop": spec.feedback_drop,
        "quality_drop": spec.quality_drop,
        "drift": spec.drift,
        "budget": spec.budget,
        "crash_loops": spec.crash_loops,
        "repeat_s": spec.repeat,
        "targets": [one.model_dump(mode="json") for one in spec.targets],
    }


def read_settings(service: DesiredService) -> AlertSettings:
    """What is watched; the defaults where another release wrote the state."""
    try:
        return msgspec.convert(service.alerts, AlertSettings)
    except msgspec.ValidationError as error:
        log.error("the alerts of the desired state cannot be read (%s); the defaults hold", error)
        return AlertSettings()
