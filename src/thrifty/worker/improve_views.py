"""The views of the loop: runs as the console shows them, without settings and local paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thrifty.api.improve_models import (
    GateSlice,
    ImproveRunDetail,
    ImproveRunModel,
    ImproveRuns,
    ImproveSchedule,
    ImproveStepModel,
)
from thrifty.db import Database
from thrifty.db.desired import read_desired
from thrifty.db.improve import ImproveRun, ImproveStep, count_new_feedback, read_run, read_runs
from thrifty.home import Home

MOST_RUNS, MOST_COUNTED, MOST_SLICES = 50, 10_000, 200
RECORD = "record"


def list_runs(database: Database, deployment: str | None) -> ImproveRuns:
    """The newest runs, of one deployment or of all. Raises `DatabaseError`."""
    runs = read_runs(database, deployment, MOST_RUNS)
    newest = {run.deployment: run.created_s for run in reversed(runs)}
    schedules = []
    for name, one in read_desired(database).deployments.items():
        if one.improve is None or deployment not in (None, name):
            continue
        since_s = newest.get(name, 0.0)
        schedules.append(ImproveSchedule(
            deployment=name, every_s=one.improve.get("every"),
            feedback=one.improve.get("feedback"), drift=bool(one.improve.get("drift")),
            teacher=one.improve.get("teacher") is not None,
            new_feedback=count_new_feedback(database, name, since_s, MOST_COUNTED),
        ))  # fmt: skip
    return ImproveRuns(
        runs=[ImproveRunModel.model_validate(describe(run)) for run in runs], schedules=schedules
    )


def get_run(database: Database, home: Home, run_id: int) -> ImproveRunDetail:
    """One run. Raises `ControlError` where there is none, and `DatabaseError`."""
    run = read_run(database, run_id)
    gate = run.steps.get("gate")
    return ImproveRunDetail.model_validate(
        {**describe(run), "slices": [] if gate is None else read_slices(home, gate)}
    )


def describe(run: ImproveRun) -> dict[str, Any]:
    """A run as JSON shows it."""
    release = run.steps.get("release")
    number = release.outputs.get("release") if release is not None else None
    return {
        "id": run.id, "deployment": run.deployment, "state": run.state, "began_by": run.began_by,
        "who": run.who, "created_s": run.created_s, "updated_s": run.updated_s,
        "message": run.message, "release": number,
        "steps": [ImproveStepModel.model_validate(_describe_step(one)) for one in run.steps.values()],
    }  # fmt: skip


def _describe_step(one: ImproveStep) -> dict[str, Any]:
    outputs = {
        name: Path(str(value)).name if name == RECORD else value
        for name, value in one.outputs.items()
    }
    return {
        "step": one.step, "state": one.state, "tries": one.tries, "began_s": one.began_s,
        "ended_s": one.ended_s, "outputs": outputs, "error": one.error,
    }  # fmt: skip


def read_slices(home: Home, gate: ImproveStep) -> list[GateSlice]:
    """The slices in the gate's record, without its examples, which users may have asked; none where
    the record is on another machine.
    """
    path = home.gates / Path(str(gate.outputs.get(RECORD, ""))).name
    try:
        slices = json.loads(path.read_text(encoding="utf-8"))["slices"]
    except (OSError, ValueError, KeyError):
        return []
    failed = set(gate.outputs.get("failed") or ())
    return [
        GateSlice.model_validate({**one, "failed": f"{one['metric']}: {one['name']}" in failed})
        for one in slices[:MOST_SLICES]
    ]
