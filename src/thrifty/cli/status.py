"""`thrifty status` and `thrifty down`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from thrifty.cli.show import err, print_json, print_line, print_table
from thrifty.db import open_database
from thrifty.db.fleet import FleetState, read_fleet
from thrifty.errors import DatabaseError, FleetError
from thrifty.fleet.controller_note import (
    ControllerNote,
    find_database_url,
    read_controller_note,
    stop_home,
)
from thrifty.fleet.process import ProcessId, find_ours
from thrifty.home import Home, find_home
from thrifty.units import format_bytes

RESTART_TIMEOUT_S = 60.0
"""For each worker."""


def run_status(*, as_json: bool) -> None:
    """Print what runs."""
    home = find_home()
    note = read_controller_note(home)
    state = _read_state(home)
    report = _make_report(state, note)
    if as_json:
        print_json(report)
        return
    if not report["deployments"]:
        print_line("Nothing is deployed. Start something: thrifty up")
        return
    if note is None or not note.alive:
        err.print(
            "The controller does not run: nothing is restarted. 'thrifty up' takes over, "
            "'thrifty down' stops what is left."
        )
    for deployment in report["deployments"]:
        print_line(f"{deployment['name']}  {deployment['version']}  engine {deployment['engine']}")
        rows = [
            (
                replica["id"], replica["state"], replica["url"], replica["pid"] or "",
                format_bytes(replica["memory_bytes"] or 0), replica["restarts"],
                (replica["message"] or "").partition("\n")[0][:80],
            )
            for replica in deployment["replicas"]
        ]  # fmt: skip
        print_table(("replica", "state", "url", "pid", "memory", "restarts", ""), rows)
    print_line(f"gateway  {report['gateway']['url'] or 'not running'}")


def run_down() -> None:
    """Stop what runs."""
    with err.status("Draining..."):
        ran, ended = stop_home(find_home())
    if not ran and not ended:
        err.print("Nothing runs here.")
    elif ended:
        err.print(
            f"Stopped; {ended} process{'es' if ended > 1 else ''} of a dead controller ended."
        )
    else:
        err.print("Stopped; nothing is left running.")


def run_restart() -> None:
    """Replace the gateway's workers."""
    home = find_home()
    note = read_controller_note(home)
    if note is None or not note.alive:
        raise FleetError("the controller does not run here; start it: thrifty up")
    before = {ident.pid: ident for ident, role, _ in find_ours(home.root) if role == "gateway"}
    deadline_s = time.monotonic() + RESTART_TIMEOUT_S * max(1, len(before))
    os.kill(note.pid, signal.SIGUSR1)
    with err.status("Replacing the gateway's workers...") as status:
        while left := [ident for ident in before.values() if ident.find() is not None]:
            status.update(f"Replacing the gateway's workers: {len(left)} of {len(before)} to go...")
            if time.monotonic() > deadline_s:
                raise FleetError(
                    f"{len(left)} of {len(before)} workers were not replaced in time; they may drain "
                    f"long requests, or {home.logs / 'controller.log'} says why"
                )
            time.sleep(0.1)
    err.print(f"{len(before)} gateway worker{'s' if len(before) > 1 else ''} replaced.")


def _read_state(home: Home) -> FleetState | None:
    try:
        database = open_database(find_database_url(home), migrate=False)
        try:
            return read_fleet(database)
        finally:
            database.close()
    except DatabaseError as error:
        if home.database.exists():
            err.print(f"The database cannot be read: {error}")
        return None


def _make_report(state: FleetState | None, note: ControllerNote | None) -> dict[str, Any]:
    alive = note is not None and note.alive
    deployments = []
    for row in state.deployments if state is not None else []:
        replicas = [
            replica
            for replica in (state.replicas if state else [])
            if replica.deployment == row.name
        ]
        if not replicas and not alive:
            continue
        main = max(row.versions, key=lambda version: version.weight)
        deployments.append(
            {
                "name": row.name,
                "version": main.label,
                "engine": main.engine,
                "versions": [
                    {
                        "label": version.label,
                        "model": version.model,
                        "engine": version.engine,
                        "revision": version.revision,
                        "weight": version.weight,
                        "shadow": version.shadow,
                    }
                    for version in row.versions
                ],
                "replicas": [
                    {
                        "id": replica.id,
                        "url": replica.url,
                        "state": _true_state(replica.state, replica.pid, replica.process_created_s),
                        "version": replica.version,
                        "pid": replica.pid,
                        "memory_bytes": replica.memory_bytes,
                        "restarts": replica.restarts,
                        "message": replica.message,
                    }
                    for replica in replicas
                ],
            }
        )
    return {
        "deployments": deployments,
        "gateway": {"url": note.url if note is not None and alive else None},
        "controller": {"pid": note.pid if note is not None and alive else None},
    }


def _true_state(state: str, pid: int | None, created_s: float | None) -> str:
    """The state, unless the process is plainly gone (its controller may be, too)."""
    if pid is not None and created_s is not None and ProcessId(pid, created_s).find() is None:
        return "gone"
    return state
