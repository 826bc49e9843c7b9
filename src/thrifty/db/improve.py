"""Turns of the loop in the database: one row for each run, one for each of its steps.

A step is written when it begins and when it ends, so that whoever takes a run over finds what is
done. Who may work on a run is said by a lease (`db.leases`), not here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, case, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from thrifty.db.audit import record_act
from thrifty.db.database import Database
from thrifty.db.sanitize import sanitize_values
from thrifty.db.tables import feedback, improve_runs, improve_steps, requests
from thrifty.errors import ControlError

RUNNING, WAITING, RELEASING, FAILED = "running", "waiting", "releasing", "failed"
"""States of a run that has not ended: a step works, a person is waited for, the release decides, or
a step failed and may be tried again."""
PROMOTED, ROLLED_BACK, ABORTED = "promoted", "rolled_back", "aborted"
REFUSED, DECLINED, NOTHING, GIVEN_UP = "refused", "declined", "nothing", "given_up"
"""How a run ends: as its release did, by the gate, by a person, for want of feedback, or because
another one was begun in its place."""
ACTIVE = (RUNNING, WAITING, RELEASING, FAILED)
DONE = "done"
"""The state of a step that has ended well."""
APPROVE = "approve"
"""The step in which a person lets a version be released."""


def lease_name(deployment: str) -> str:
    """The lease of the process that works on a deployment."""
    return f"improve:{deployment}"


@dataclass(frozen=True)
class ImproveStep:
    """One step of a run."""

    step: str
    state: str
    """`running`, `failed` or `done`."""
    tries: int
    """With this one, in a row: a step that said why it failed begins with the first again."""
    began_s: float
    ended_s: float | None
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    error: str = ""


@dataclass(frozen=True)
class ImproveRun:
    """One turn of the loop."""

    id: int
    deployment: str
    state: str
    began_by: str
    """`command`, `every` or `feedback`."""
    who: str
    created_s: float
    updated_s: float
    settings: dict[str, Any]
    message: str
    steps: dict[str, ImproveStep] = field(default_factory=dict)
    """By name, in the order in which they began."""

    @property
    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ACTIVE

    def find_outputs(self, step: str) -> dict[str, Any] | None:
        """What a step came to; None where it is not done."""
        found = self.steps.get(step)
        return found.outputs if found is not None and found.state == DONE else None


def create_run(
    database: Database, deployment: str, settings: Mapping[str, Any], *, began_by: str, who: str
) -> ImproveRun:
    """Begin a run. Raises `ControlError` where one of the deployment has not ended."""
    now_s = time.time()
    values = {
        "deployment": deployment, "active_on": deployment, "state": RUNNING, "began_by": began_by,
        "who": who, "created_s": now_s, "updated_s": now_s, "settings": _dump(settings),
        "message": "",
    }  # fmt: skip
    with database.begin() as connection:
        try:
            with connection.begin_nested():
                statement = insert(improve_runs).values(sanitize_values(improve_runs, values))
                result = connection.execute(statement)
        except IntegrityError:
            raise ControlError(
                f"a run of {deployment!r} is under way; there is one at a time"
            ) from None
        assert result.inserted_primary_key is not None
        run_id = int(result.inserted_primary_key[0])
        record_act(connection, "improve.start", who, deployment=deployment, run=run_id)
    return read_run(database, run_id)


def read_run(database: Database, run_id: int) -> ImproveRun:
    """One run. Raises `ControlError` where there is none."""
    found = _read(database, improve_runs.c.id == run_id, 1)
    if not found:
        raise ControlError(f"there is no run {run_id} of the loop; see 'thrifty improve status'")
    return found[0]


def find_active_run(database: Database, deployment: str) -> ImproveRun | None:
    """The run of a deployment that has not ended. Raises `DatabaseError`."""
    found = _read(database, improve_runs.c.active_on == deployment, 1)
    return found[0] if found else None


def read_runs(
    database: Database, deployment: str | None = None, limit: int = 50
) -> list[ImproveRun]:
    """The newest runs, the newest first. Raises `DatabaseError`."""
    return _read(database, None if deployment is None else improve_runs.c.deployment == deployment, limit)  # fmt: skip


def set_run_state(
    database: Database, run: ImproveRun, state: str, message: str = "", *, who: str = ""
) -> None:
    """Write the state of a run; a state outside of `ACTIVE` ends it. Raises `DatabaseError`."""
    values = {
        "state": state, "message": message, "updated_s": time.time(),
        "active_on": run.deployment if state in ACTIVE else None,
    }  # fmt: skip
    statement = update(improve_runs).where(improve_runs.c.id == run.id)
    with database.begin() as connection:
        connection.execute(statement.values(sanitize_values(improve_runs, values)))
        if state not in ACTIVE:
            record_act(
                connection, "improve.end", who or run.who, deployment=run.deployment, run=run.id,
                state=state,
            )  # fmt: skip


def begin_step(database: Database, run: ImproveRun, step: str, inputs: Mapping[str, Any]) -> None:
    """Note that a step begins, or begins again, which its inputs then say. Raises `DatabaseError`."""
    values = {
        "state": RUNNING, "began_s": time.time(), "ended_s": None, "inputs": _dump(inputs),
        "outputs": "{}", "error": "",
    }  # fmt: skip
    with database.begin() as connection:
        where = (improve_steps.c.run_id == run.id) & (improve_steps.c.step == step)
        tries = case((improve_steps.c.state == FAILED, 1), else_=improve_steps.c.tries + 1)
        repeated = {**values, "inputs": _dump({**inputs, "again": True}), "tries": tries}
        again = update(improve_steps).where(where).values(repeated)
        if connection.execute(again).rowcount == 0:
            connection.execute(
                insert(improve_steps).values(run_id=run.id, step=step, tries=1, **values)
            )
        _touch(connection, run, RUNNING)


def forget_try(database: Database, run: ImproveRun, step: str) -> None:
    """Do not count the try of a step that was stopped in an orderly way. Raises `DatabaseError`."""
    where = (improve_steps.c.run_id == run.id) & (improve_steps.c.step == step)
    with database.begin() as connection:
        fewer = update(improve_steps).where(where).values(tries=improve_steps.c.tries - 1)
        connection.execute(fewer)


def note_outputs(
    database: Database, run: ImproveRun, step: str, outputs: Mapping[str, Any]
) -> None:
    """Note what a running step has come to so far. Raises `DatabaseError`."""
    _write_step(database, run, step, {"outputs": _dump(outputs)})


def note_progress(
    database: Database, run: ImproveRun, step: str, progress: Mapping[str, Any]
) -> None:
    """Note under `progress` how far a running step is, beside what it has come to so far. Raises
    `DatabaseError`.
    """
    where = (improve_steps.c.run_id == run.id) & (improve_steps.c.step == step)
    where &= improve_steps.c.state == RUNNING
    with database.begin() as connection:
        found = connection.execute(select(improve_steps.c.outputs).where(where)).scalar()
        if found is not None:
            outputs = _dump({**msgspec.json.decode(found), "progress": progress})
            connection.execute(update(improve_steps).where(where).values(outputs=outputs))
            _touch(connection, run)


def end_step(database: Database, run: ImproveRun, step: str, outputs: Mapping[str, Any]) -> None:
    """Note that a step is done. Raises `DatabaseError`."""
    values = {"state": DONE, "ended_s": time.time(), "outputs": _dump(outputs)}
    _write_step(database, run, step, values)


def fail_step(database: Database, run: ImproveRun, step: str, error: str) -> None:
    """Note that a step failed. Raises `DatabaseError`."""
    values = {"state": FAILED, "ended_s": time.time(), "error": error}
    _write_step(database, run, step, values)


def approve_run(database: Database, deployment: str, *, approve: bool, who: str) -> ImproveRun:
    """Let the version of a waiting run be released, or end the run. Raises `ControlError`."""
    run = find_active_run(database, deployment)
    if run is None or run.state != WAITING:
        what = "has no run" if run is None else f"has run {run.id}, which is {run.state}"
        raise ControlError(
            f"{deployment!r} {what}; only one that waits for approval can be approved: thrifty "
            f"improve status {deployment}"
        )
    if not approve:
        set_run_state(database, run, DECLINED, f"declined by {who}", who=who)
        return read_run(database, run.id)
    begin_step(database, run, APPROVE, {})
    end_step(database, run, APPROVE, {"who": who})
    return read_run(database, run.id)


def count_new_feedback(database: Database, deployment: str, since_s: float, most: int) -> int:
    """How many thumbs, ratings and corrections a deployment's answers got since then, at most
    `most`. Raises `DatabaseError`.
    """
    found = (
        select(feedback.c.id)
        .join(requests, requests.c.id == feedback.c.response)
        .where(requests.c.deployment == deployment, feedback.c.updated_s > since_s)
        .where(feedback.c.kind.in_(("thumbs", "rating", "correction")))
        .limit(most)
        .subquery()
    )
    with database.begin() as connection:
        return int(connection.execute(select(func.count()).select_from(found)).scalar_one())


def describe_run(run: ImproveRun) -> dict[str, Any]:
    """A run as JSON shows it."""
    return {
        "id": run.id, "deployment": run.deployment, "state": run.state, "began_by": run.began_by,
        "who": run.who, "created_s": run.created_s, "updated_s": run.updated_s,
        "message": run.message, "settings": run.settings,
        "steps": [
            {
                "step": one.step, "state": one.state, "tries": one.tries, "began_s": one.began_s,
                "ended_s": one.ended_s, "inputs": one.inputs, "outputs": one.outputs,
                "error": one.error,
            }
            for one in run.steps.values()
        ],
    }  # fmt: skip


def _write_step(database: Database, run: ImproveRun, step: str, values: Mapping[str, Any]) -> None:
    where = (improve_steps.c.run_id == run.id) & (improve_steps.c.step == step)
    with database.begin() as connection:
        statement = update(improve_steps).where(where)
        connection.execute(statement.values(sanitize_values(improve_steps, dict(values))))
        _touch(connection, run)


def _touch(connection: Connection, run: ImproveRun, state: str | None = None) -> None:
    values: dict[str, Any] = {"updated_s": time.time()}
    if state is not None:
        values |= {"state": state, "message": ""}
    connection.execute(update(improve_runs).where(improve_runs.c.id == run.id).values(values))


def _read(database: Database, where: Any, limit: int) -> list[ImproveRun]:
    query = select(improve_runs).order_by(improve_runs.c.id.desc()).limit(limit)
    if where is not None:
        query = query.where(where)
    with database.begin() as connection:
        rows = connection.execute(query).mappings().all()
        wanted = improve_steps.c.run_id.in_([row["id"] for row in rows])
        steps = connection.execute(
            select(improve_steps).where(wanted).order_by(improve_steps.c.began_s)
        ).mappings().all()  # fmt: skip
    by_run: dict[int, dict[str, ImproveStep]] = {}
    for one in steps:
        values = {key: value for key, value in one.items() if key != "run_id"}
        values |= {key: msgspec.json.decode(one[key]) for key in ("inputs", "outputs")}
        by_run.setdefault(one["run_id"], {})[one["step"]] = ImproveStep(**values)
    return [
        ImproveRun(
            row["id"],
            row["deployment"],
            row["state"],
            row["began_by"],
            row["who"],
            row["created_s"],
            row["updated_s"],
            msgspec.json.decode(row["settings"]),
            row["message"],
            by_run.get(row["id"], {}),
        )
        for row in rows
    ]


def _dump(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(dict(value)).decode()
