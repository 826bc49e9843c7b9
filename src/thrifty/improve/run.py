"""A turn of the loop: its steps in a row, kept in the database, gone on with wherever it was left.

One process at a time works on a deployment. It holds a lease that ends by itself, or at once where
its owner is a process of this machine that has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import psutil

from thrifty.artifacts import Store
from thrifty.db import Database
from thrifty.db.desired import read_desired
from thrifty.db.improve import (
    ABORTED,
    APPROVE,
    FAILED,
    GIVEN_UP,
    RELEASING,
    WAITING,
    ImproveRun,
    begin_step,
    create_run,
    end_step,
    fail_step,
    find_active_run,
    forget_try,
    lease_name,
    note_outputs,
    note_progress,
    read_run,
    set_run_state,
)
from thrifty.db.leases import read_owner, release_lease, take_lease
from thrifty.db.releases import ENDED, ReleaseRow, read_release
from thrifty.errors import ControlError, DatabaseError, ThriftyError
from thrifty.fleet.process import ProcessId
from thrifty.home import Home, make_private_folder
from thrifty.improve import steps
from thrifty.improve.collect import collect
from thrifty.improve.turn import ImproveError, Turn, TurnEnds, find_deployment, read_settings
from thrifty.types import OnProgress, Progress

LEASE_S = 60.0
RENEW_S = 15.0
PROGRESS_S = 5.0
"""How often a step's progress is noted, for those who did not begin the run."""
RELEASE = "release"
STEPS: dict[str, Callable[[Turn], dict[str, Any]]] = {
    "collect": collect, "train": steps.train, "compress": steps.compress, "gate": steps.gate,
}  # fmt: skip
"""The steps that one process does by itself, in their order; `approve` and `release` follow."""
ORDER = (*STEPS, APPROVE, RELEASE)


def run_turn(turn: Turn, *, began_by: str = "command", restart: bool = False, wait: bool = True) -> ImproveRun:  # fmt: skip
    """Go on with the run of a deployment that has not ended, or begin one. Blocks; with `wait`
    until its release has ended. `restart` gives up the run that there is.

    Returns the run as it is then. Raises `ControlError` where another process works on it, and
    `ImproveError` where a step failed, with the next command; the run then stays as it is.
    """
    with hold_lease(turn.database, turn.home, turn.deployment):
        steps.check_ready(turn)
        run = find_active_run(turn.database, turn.deployment)
        if run is not None and restart:
            _give_up(turn, run)
            run = None
        if run is None:
            run = create_run(
                turn.database, turn.deployment,
                turn.settings.model_dump(mode="json", exclude_unset=True), began_by=began_by,
                who=turn.who,
            )  # fmt: skip
        else:
            turn.on_note(f"Going on with run {run.id}, which began {_ago(run)}.")
        settings = read_settings(replace(turn.read(), improve=run.settings))
        turn = replace(turn, run=run, settings=settings)
        return _go_on(turn, wait=wait)


def _go_on(turn: Turn, *, wait: bool) -> ImproveRun:
    assert turn.run is not None
    database, run_id = turn.database, turn.run.id
    for name, work in STEPS.items():
        turn = replace(turn, run=read_run(database, run_id))
        assert turn.run is not None
        if turn.run.find_outputs(name) is None:
            _do_step(turn, name, work)
            if not read_run(database, run_id).is_active:
                return read_run(database, run_id)
    run = read_run(database, run_id)
    turn = replace(turn, run=run)
    if turn.settings.approve and run.find_outputs(APPROVE) is None:
        label = turn.require("compress")["label"]
        set_run_state(
            database, run, WAITING,
            f"{label} passed the gate and waits for approval: thrifty improve approve "
            f"{turn.deployment}",
        )  # fmt: skip
        return read_run(database, run_id)
    return _release(turn, wait=wait)


def _do_step(turn: Turn, name: str, work: Callable[[Turn], dict[str, Any]]) -> None:
    """One step, with its row. Raises `ImproveError`."""
    assert turn.run is not None
    before = {one: turn.run.find_outputs(one) for one in ORDER}
    inputs = {
        "settings": turn.run.settings, "steps": [one for one in before if before[one] is not None]
    }  # fmt: skip
    begin_step(turn.database, turn.run, name, inputs)
    turn.on_note(f"{name}: begins")
    try:
        outputs = work(replace(turn, on_progress=_note_progress(turn, name)))
    except TurnEnds as error:
        fail_step(turn.database, turn.run, name, str(error))
        _end(turn, error.state, str(error))
        turn.on_note(f"{name}: {error}")
    except (ThriftyError, OSError) as error:
        raise _fail(turn, name, error) from error
    except Exception as error:
        # A fault of ours; the run says so as well as the traceback.
        _fail(turn, name, error)
        raise
    except KeyboardInterrupt:
        with contextlib.suppress(DatabaseError):
            forget_try(turn.database, turn.run, name)
        raise
    else:
        end_step(turn.database, turn.run, name, outputs)
        turn.on_note(f"{name}: done")


def _note_progress(turn: Turn, name: str) -> OnProgress:
    """What shows the progress of a step, and notes it in the step's row now and then."""
    assert turn.run is not None
    run, next_s = turn.run, 0.0

    def show(progress: Progress) -> None:
        nonlocal next_s
        turn.on_progress(progress)
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + PROGRESS_S
            with contextlib.suppress(DatabaseError):
                note_progress(turn.database, run, name, asdict(progress))

    return show


def _fail(turn: Turn, name: str, error: Exception) -> ImproveError:
    """Note why a step failed; the error that says so, with the next command."""
    assert turn.run is not None
    text = str(error) or type(error).__name__
    with contextlib.suppress(DatabaseError):
        fail_step(turn.database, turn.run, name, text)
        set_run_state(turn.database, turn.run, FAILED, f"{name}: {text}")
    return ImproveError(
        f"the step {name} of run {turn.run.id} failed: {text}\nOnce that is mended, go on with: "
        f"thrifty improve run {turn.deployment}"
    )


def _release(turn: Turn, *, wait: bool) -> ImproveRun:
    assert turn.run is not None
    database, run = turn.database, turn.run
    known = run.steps.get(RELEASE)
    if known is None or known.outputs.get("release") is None:
        begin_step(database, run, RELEASE, {"plan": turn.settings.release})
        try:
            row = steps.release(turn)
        except ThriftyError as error:
            raise _fail(turn, RELEASE, error) from error
        note_outputs(database, run, RELEASE, {"release": row.id, "label": row.candidate})
        set_run_state(database, run, RELEASING, f"release {row.id} of {row.candidate} decides")
    else:
        row = read_release(database, int(known.outputs["release"]))
    if wait and row.is_active:
        row = steps.wait_for_release(turn, row.id)
    return settle_run(database, turn.store, read_run(database, run.id), row)


def settle_run(
    database: Database, store: Store, run: ImproveRun, row: ReleaseRow | None = None
) -> ImproveRun:
    """A run whose release has ended ends as it did. Raises `DatabaseError`."""
    known = run.steps.get(RELEASE)
    number = known.outputs.get("release") if known is not None else None
    if run.state != RELEASING or number is None:
        return run
    row = row or read_release(database, int(number))
    if row.is_active:
        return run
    outputs = {
        "release": row.id, "label": row.candidate, "state": row.state,
        "verdict": row.record.verdict, "message": row.record.message,
    }  # fmt: skip
    end_step(database, run, RELEASE, outputs)
    state = ABORTED if row.state == ENDED else row.state
    set_run_state(database, run, state, row.record.message or f"release {row.id}: {row.state}")
    settled = read_run(database, run.id)
    steps.note_story(store, settled)
    return settled


def _end(turn: Turn, state: str, message: str) -> None:
    assert turn.run is not None
    set_run_state(turn.database, turn.run, state, message)
    steps.note_story(turn.store, read_run(turn.database, turn.run.id))


def _give_up(turn: Turn, run: ImproveRun) -> None:
    settled = settle_run(turn.database, turn.store, run)
    if settled.state == RELEASING:
        number = settled.steps[RELEASE].outputs["release"]
        raise ControlError(
            f"release {number} of run {run.id} is under way; end it first: thrifty release abort "
            f"{number}"
        )
    if settled.is_active:
        set_run_state(turn.database, run, GIVEN_UP, f"given up by {turn.who}", who=turn.who)


def open_turn(
    turn_of: Callable[..., Turn], database: Database, deployment: str, **values: Any
) -> Turn:
    """The turn of a deployment, with the settings of its spec. Raises `ControlError`."""
    there = find_deployment(read_desired(database), deployment)
    return turn_of(
        database=database, deployment=deployment, settings=read_settings(there), **values
    )


# One at a time


@contextlib.contextmanager
def hold_lease(database: Database, home: Home, deployment: str) -> Iterator[None]:
    """Be the only one who works on a deployment. Raises `ControlError`."""
    folder = make_private_folder(home.run)
    with (folder / f"improve-{quote(deployment, safe='')}.lock").open("w") as file:
        # The lease of a process of this machine that has ended is taken over by one process only.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refuse(database, deployment) from None
        with _hold_lease(database, deployment):
            yield


def _refuse(database: Database, deployment: str) -> ControlError:
    owner = read_owner(database, lease_name(deployment))
    return ControlError(
        f"another process works on the loop of {deployment!r} already ({owner}); wait for it: thrifty "
        f"improve status {deployment}"
    )


@contextlib.contextmanager
def _hold_lease(database: Database, deployment: str) -> Iterator[None]:
    name, owner = lease_name(deployment), describe_process()
    before = read_owner(database, name)
    dead = before is not None and is_dead(before)
    if not take_lease(database, name, owner, LEASE_S, force=dead):
        raise _refuse(database, deployment)
    stopping = threading.Event()

    def renew() -> None:
        while not stopping.wait(RENEW_S):
            with contextlib.suppress(DatabaseError):
                take_lease(database, name, owner, LEASE_S, force=False)

    thread = threading.Thread(target=renew, name="improve-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        with contextlib.suppress(DatabaseError):
            release_lease(database, name, owner)


def describe_process() -> str:
    """This process, as the owner of a lease."""
    created_s = psutil.Process().create_time()
    return f"{socket.gethostname()[:40]}/{os.getpid()}/{created_s:.2f}"


def is_dead(owner: str) -> bool:
    """Whether the owner of a lease was a process of this machine that has ended."""
    host, _, rest = owner.rpartition("/")[0].rpartition("/")
    created = owner.rpartition("/")[2]
    if host != socket.gethostname()[:40]:
        return False
    try:
        return ProcessId(int(rest), float(created)).find() is None
    except ValueError:
        return False


def _ago(run: ImproveRun) -> str:
    return datetime.fromtimestamp(run.created_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
