"""`thrifty alerts`: what is wrong, who is told, and what is silenced."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from thrifty.cli.show import print_json, print_line, print_table, tell
from thrifty.control.alerting import read_settings
from thrifty.control.service_api import Actor
from thrifty.db.alerts import (
    AlertRow,
    Silence,
    add_silence,
    read_alerts,
    read_silences,
    remove_silence,
)
from thrifty.db.desired import read_desired
from thrifty.errors import ThriftyError
from thrifty.fleet.controller_note import open_home, read_controller_note
from thrifty.home import find_home
from thrifty.observe.alerts.book import FIRING, RESOLVED
from thrifty.observe.alerts.findings import ERRORS, KINDS, RUNBOOKS
from thrifty.observe.alerts.targets import (
    TEST,
    TargetError,
    describe_alert,
    send_notice,
    write_time,
)
from thrifty.units import format_duration, parse_duration_s
from thrifty.untrusted_text import sanitize_line


def run_list(*, over: bool, as_json: bool) -> None:
    """Show alerts; with `over`, also those that are over."""
    home = find_home()
    note = read_controller_note(home)
    with open_home(home) as database:
        rows = [row for row in read_alerts(database) if over or row.resolved_s is None]
        silences = read_silences(database)
    shown = [_describe(row, silences) for row in rows]
    if as_json:
        print_json({"alerts": shown, "silences": [asdict(one) for one in silences]})
        return
    if note is None or not note.alive:
        tell("The controller does not run: nobody looks. What it found last:")
    if not shown:
        print_line("No alert is open.")
    else:
        print_table(
            ("severity", "alert", "where", "since", "", "what to do"),
            [
                (
                    one["severity"] if one["status"] == FIRING else "over", one["kind"],
                    " ".join(filter(None, (one["deployment"], one["version"]))), one["since"],
                    sanitize_line(one["summary"], 120)
                    + (f" (silenced until {one['silenced_until']})" if one["silenced_until"] else ""),
                    one["runbook"],
                )
                for one in shown
            ],
        )  # fmt: skip
    for silence in silences:
        print_line(f"silence {silence.id}: {_name(silence)} until {write_time(silence.until_s)}")


def run_silence(
    kind: str | None, deployment: str | None, version: str | None, period: str, why: str
) -> None:
    """Tell nobody of some alerts for a while."""
    if kind is not None and kind not in KINDS:
        raise ThriftyError(f"{kind!r} is no kind of alert; there are {', '.join(KINDS)}")
    try:
        until_s = time.time() + parse_duration_s(period)
    except ValueError as error:
        raise ThriftyError(f"--for {error}") from None
    silence = Silence(kind, deployment, version, until_s, why)
    with open_home(find_home()) as database:
        number = add_silence(database, silence, Actor.from_user("thrifty alerts silence").who)
    print_line(
        f"silence {number}: {_name(silence)} for {format_duration(until_s - time.time())}; to end "
        f"it: thrifty alerts unsilence {number}"
    )


def run_unsilence(number: int) -> None:
    """End a silence."""
    with open_home(find_home()) as database:
        found = remove_silence(database, number, Actor.from_user("thrifty alerts unsilence").who)
    if not found:
        raise ThriftyError(f"there is no silence {number}; see: thrifty alerts list")
    print_line(f"silence {number} has ended")


def run_test(*, as_json: bool) -> None:
    """Send a test to every target of the service; exits with 1 where one cannot be told."""
    with open_home(find_home()) as database:
        service = read_desired(database).service
    if service is None:
        raise ThriftyError("nothing is deployed, so nobody is told of alerts: thrifty up SPEC")
    now_s = time.time()
    row = AlertRow(
        "test", ERRORS, "ticket", "", "", "this is a test of the alerts of Thrifty", RUNBOOKS,
        now_s, now_s,
    )  # fmt: skip
    results: list[dict[str, Any]] = []
    for target in read_settings(service).targets:
        fault = None
        try:
            send_notice(target, row, TEST)
        except TargetError as error:
            fault = str(error)
        results.append({"target": target.name, "told": fault is None, "fault": fault})
    if as_json:
        print_json(results)
    for one in () if as_json else results:
        print_line(f"{one['target']}: {'told' if one['told'] else one['fault']}")
    if not results:
        tell("The spec names no target (alerts.to), so nobody is told.")
    if not all(one["told"] for one in results):
        raise SystemExit(1)


def _describe(row: AlertRow, silences: list[Silence]) -> dict[str, Any]:
    now_s = time.time()
    ends = [
        one.until_s for one in silences if one.covers(row.kind, row.deployment, row.version, now_s)
    ]
    found = describe_alert(row, FIRING if row.resolved_s is None else RESOLVED)
    return {**found, "silenced_until": write_time(max(ends)) if ends else None}


def _name(silence: Silence) -> str:
    parts = [silence.kind or "all alerts", silence.deployment, silence.version]
    name = " ".join(part for part in parts if part)
    return f"{name} ({sanitize_line(silence.why, 120)})" if silence.why else name
