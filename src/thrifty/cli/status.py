"""`thrifty status` and `thrifty down`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from thrifty.cli.show import err, print_json, print_line, print_table
from thrifty.control.service_status import read_status
from thrifty.db import open_database
from thrifty.db.fleet import read_fleet, read_gateways, remove_gateway, remove_replicas
from thrifty.errors import DatabaseError, FleetError, ThriftyError
from thrifty.fleet.controller_note import (
    find_database_url,
    is_in_use,
    open_home,
    read_controller_note,
    stop_home,
)
from thrifty.fleet.process import find_ours
from thrifty.home import Home, find_home
from thrifty.http.client import HttpClient, TransportError
from thrifty.units import format_bytes

ASK_TIMEOUT_S = 2.0
RESTART_TIMEOUT_S = 60.0
"""For each worker."""


def run_status(*, as_json: bool) -> None:
    """Print what runs."""
    home = find_home()
    report = make_report(home)
    if as_json:
        print_json(report)
        return
    if not report["deployments"]:
        kept = [one["name"] for one in _read_deployments(home)]
        if kept:
            print_line(
                f"Nothing runs. Deployed last: {', '.join(kept)}. To start a spec: thrifty up SPEC"
            )
        else:
            print_line("Nothing is deployed. Start something: thrifty up")
        return
    if report["controller"]["pid"] is None:
        err.print(
            "The controller does not run: nothing is restarted. 'thrifty up' takes over, "
            "'thrifty down' stops what is left."
        )
    for deployment in report["deployments"]:
        _show_deployment(deployment)
    url = report["gateway"]["url"]
    print_line(f"gateway  {f'{url} (running)' if url else 'not running'}")
    for worker, fault in report["gateway"]["request_log"].items():
        err.print(
            f"The request log of {worker} is {fault['state']}: {fault['reason']}; "
            f"{fault['waiting_rows']} rows wait."
        )


def _show_deployment(deployment: dict[str, Any]) -> None:
    print_line(deployment["name"])
    print_table(
        ("version", "share", "shadow", "state", "ready", "model", "engine", ""),
        [
            (
                one["label"], f"{one['share']:.1%}", f"{one['shadow']:g}", one["state"],
                _show_count(one), one["model"], one["engine"],
                _first_line(one["message"]) or _describe_zero(one),
            )
            for one in deployment["versions"]
        ],
    )  # fmt: skip
    for one in deployment["versions"]:
        if one["scaling"] is not None:
            print_line(f"{one['label']}: {describe_scaling(one['scaling'])}")
    print_table(
        ("replica", "version", "state", "url", "pid", "memory", "restarts", ""),
        [
            (
                one["id"], one["version"], one["state"], one["url"], one["pid"] or "",
                format_bytes(one["memory_bytes"] or 0), one["restarts"],
                _first_line(one["message"]),
            )
            for one in deployment["replicas"]
        ],
    )  # fmt: skip
    print_line()


def _describe_zero(version: dict[str, Any]) -> str:
    """On which rung a version that may be at zero stands."""
    zero, scaling = version["zero"], version["scaling"] or {}
    if zero is None:
        return ""
    parts: list[str] = [zero["rung"]]
    if zero["cached_share"] is not None and zero["rung"] != "cached":
        parts.append(f"{zero['cached_share']:.0%} of its model is in the page cache")
    if zero["held"]:
        parts.append(f"{zero['held']} requests held")
    if scaling.get("wakes"):
        parts.append(f"{scaling['wakes']} wakes")
    if scaling.get("start_s"):
        parts.append(f"starts in {scaling['start_s']:.2g} s")
    return ", ".join(parts)


def _show_count(version: dict[str, Any]) -> str:
    scaling = version["scaling"]
    bounds = f" ({scaling['min']}-{scaling['max']})" if scaling is not None else ""
    return f"{version['ready']} of {version['wanted']}{bounds}"


def describe_scaling(scaling: dict[str, Any]) -> str:
    """The autoscaler's decision in one line: its reason, and what it predicts."""
    parts: list[str] = [scaling["reason"]]
    if scaling.get("unreachable"):
        parts.append(scaling["unreachable"])
    if scaling.get("count") is None:
        return parts[0]
    parts.append(f"{scaling['arrivals_per_s']:.3g} requests/s")
    for name, key in (("TTFT", "ttft"), ("TPOT", "tpot")):
        predicted, objective = scaling[f"{key}_p95_s"], scaling[f"{key}_objective_s"]
        if predicted is not None:
            of = f" of {objective:.3g}" if objective is not None else ""
            parts.append(f"{name} p95 {predicted:.3g}{of} s predicted")
    return "; ".join(parts)


def _first_line(message: str | None) -> str:
    return (message or "").partition("\n")[0][:80]


def make_report(home: Home) -> dict[str, Any]:
    """What `thrifty status --json` prints. What was stopped and left nothing running is not in it."""
    note = read_controller_note(home)
    alive = note is not None and note.alive
    # A killed controller leaves replicas and gateway workers, which go on serving.
    serving = alive or any(role == "gateway" for _, role, _ in find_ours(home.root))
    return {
        "deployments": _read_deployments(home) if is_in_use(home, note) else [],
        "gateway": {
            "url": note.url if note is not None and serving else None,
            "request_log": _read_log_faults(home) if serving else {},
        },
        "controller": {"pid": note.pid if note is not None and alive else None},
    }


def _read_log_faults(home: Home) -> dict[str, dict[str, Any]]:
    """What is wrong with the request log, by gateway worker; empty where nothing is."""
    found = {}
    try:
        with open_home(home) as database:
            workers = read_gateways(database)
    except ThriftyError:
        return {}
    answers = asyncio.run(_ask_workers([worker.url for worker in workers]))
    for worker, answer in zip(workers, answers, strict=True):
        with contextlib.suppress(msgspec.DecodeError, AttributeError):
            if fault := msgspec.json.decode(answer).get("request_log"):
                found[worker.id] = fault
    return found


async def _ask_workers(urls: list[str]) -> list[bytes]:
    """What each worker says of itself; nothing where it does not answer."""
    client = HttpClient()

    async def ask(url: str) -> bytes:
        try:
            return (await client.fetch(f"{url}/readyz", timeout_s=ASK_TIMEOUT_S))[1]
        except TransportError:
            return b""

    try:
        return await asyncio.gather(*map(ask, urls))
    finally:
        client.close()


def run_down() -> None:
    """Stop what runs."""
    home = find_home()
    database_url = find_database_url(home)
    with err.status("Draining..."):
        ran, ended = stop_home(home)
    if ended:
        _forget_processes(database_url)
    if not ran and not ended:
        err.print("Nothing runs here.")
    elif ended:
        err.print(
            f"Stopped; {ended} process{'es' if ended > 1 else ''} of a dead controller ended."
        )
    else:
        err.print("Stopped; nothing is left running.")


def _forget_processes(database_url: str) -> None:
    """Remove from the database what a dead controller could not remove itself."""
    try:
        database = open_database(database_url, migrate=False)
    except DatabaseError as error:
        err.print(f"The database cannot be read: {error}")
        return
    try:
        fleet = read_fleet(database)
        remove_replicas(database, [replica.id for replica in fleet.replicas])
        for worker in fleet.gateways:
            remove_gateway(database, worker.id)
    finally:
        database.close()


def run_restart(*, as_json: bool) -> None:
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
    if as_json:
        print_json({"workers_replaced": len(before)})


def _read_deployments(home: Home) -> list[dict[str, Any]]:
    try:
        database = open_database(find_database_url(home), migrate=False)
        try:
            return read_status(database, lambda artifact: _find_folder(home, artifact))
        finally:
            database.close()
    except DatabaseError as error:
        if home.database.exists():
            err.print(f"The database cannot be read: {error}")
        return []


def _find_folder(home: Home, artifact: str) -> Path:
    from thrifty.artifacts import Store  # seldom needed, and slow to load

    return Store(home.models).folder_of(artifact)
