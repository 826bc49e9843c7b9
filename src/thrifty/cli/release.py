"""`thrifty release` and `thrifty releases`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from thrifty.artifacts import Store
from thrifty.cli.show import err, print_json, print_line, print_table, show_progress, tell
from thrifty.control.candidate import find_candidate, prepare_candidate
from thrifty.control.service_api import Actor
from thrifty.db import Database
from thrifty.db.desired import read_desired
from thrifty.db.releases import (
    ReleaseRow,
    describe_release,
    read_events,
    read_release,
    read_releases,
)
from thrifty.engines.machine import detect_machine
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.model_maker import Compressor
from thrifty.release.manage import RELEASE_ACTS, start_release
from thrifty.release.plan import (
    GUARDS,
    JUDGED,
    RATED,
    TPOT,
    TTFT,
    ReleasePlan,
    load_plan,
    parse_plan,
)
from thrifty.service import is_running


def run_release(
    wanted: str, deployment: str, path: Path | None, *, yes: bool, why: str | None, as_json: bool
) -> None:
    """Register a plan and begin."""
    plan, home = load_plan(path), find_home()
    with open_home(home) as database:
        label = find_candidate(database, deployment, wanted)
        plan = plan.suit(read_desired(database).deployments[deployment].family)
        _show_plan(plan, label or wanted, deployment)
        if not yes and not typer.confirm("Release it?", err=True):
            raise typer.Abort
        version = None
        if label is None:
            store, machine = Store(home.models), detect_machine()
            maker = Compressor(home, store, machine)
            with show_progress() as on_progress:
                version = prepare_candidate(
                    database, home, machine, deployment, wanted, on_progress, maker=maker
                )
            label = version.label
        actor = Actor.from_user("thrifty release", why or "")
        made = start_release(
            database, deployment, label, plan, who=actor.who, why=actor.why, new_version=version
        )
        if as_json:
            print_json(_describe(database, made))
        else:
            print_line(f"Release {made.id} of {label} to {deployment} has begun.")
            tell(f"How it goes: thrifty releases {made.id}")
    if not is_running(home):
        err.print("No service runs here; 'thrifty up' goes on with it.")


def run_act(act: str, release_id: int, *, why: str | None, as_json: bool) -> None:
    """Pause, resume, promote or abort."""
    actor = Actor.from_user(f"thrifty release {act}", why or "")
    with open_home(find_home()) as database:
        row = RELEASE_ACTS[act](database, release_id, who=actor.who, why=actor.why)
        if as_json:
            print_json(_describe(database, row))
        else:
            print_line(f"Release {row.id} of {row.candidate}: {row.state.replace('_', ' ')}.")


def run_releases(
    release_id: int | None, deployment: str | None, *, limit: int, as_json: bool
) -> None:
    """List releases, or show one."""
    with open_home(find_home()) as database:
        if release_id is not None:
            row = read_release(database, release_id)
            if as_json:
                print_json(_describe(database, row))
            else:
                _show_one(database, row)
            return
        rows = read_releases(database, deployment, limit)
        if as_json:
            print_json({"releases": [describe_release(row, _stages(row)) for row in rows]})
        elif not rows:
            print_line("No release yet: thrifty release NAME@vN --to DEPLOYMENT")
        else:
            _show_all(rows)


def _describe(database: Database, row: ReleaseRow) -> dict[str, Any]:
    events = [
        {"at_s": one.at_s, "kind": one.kind, "who": one.who, "why": one.why, "figures": one.figures}
        for one in read_events(database, row.id)
    ]
    return {**describe_release(row, _stages(row)), "events": events}


def _stages(row: ReleaseRow) -> list[str]:
    return parse_plan(row.record.plan).stages


def _show_plan(plan: ReleasePlan, candidate: str, deployment: str) -> None:
    budget = f"error budget {plan.alpha:.1%}"
    tell(f"{candidate} to {deployment}: {' -> '.join(plan.stages[1:])}")
    if plan.primary == GUARDS:
        names = ", ".join(plan.metrics)
        tell(
            f"Promoted after all steps, once times, cost and scores rule out a loss beyond what is "
            f"tolerated and {plan.margin:.1%}; rolled back when one of {names} is worse ({budget})."
        )
        tell("That nothing broke is all that is tested, not what its answers are worth.")
    else:
        guards = ", ".join(name for name in plan.metrics if name != plan.primary_metric)
        tell(
            f"Promoted when {plan.primary_metric} is not worse by {plan.margin:.1%}; rolled back "
            f"when {plan.primary_metric} or one of {guards} is worse ({budget})."
        )
    if plan.bandit is not None:
        half = plan.bandit.control / 2
        tell(
            f"The share follows what users accept, from {half:.1%} to {1 - half:.1%}; the verdict rests "
            f"on a control slice of {plan.bandit.control:.1%} that is not moved."
        )
    if plan.shadow.judge is None:
        tell("The paired shadow is skipped: the plan names no judge (shadow.judge).")


def _show_all(rows: list[ReleaseRow]) -> None:
    table = []
    for row in rows:
        share = row.record.steps[-1].share if row.record.steps and row.is_active else None
        table.append(
            (row.id, row.deployment, row.candidate, row.state.replace("_", " "),
             _stages(row)[row.record.stage], "" if share is None else f"{share:.0%}",
             row.record.verdict or "", _when(row.created_s), row.record.message)
        )  # fmt: skip
    columns = (
        "id", "deployment", "version", "state", "stage", "share", "verdict", "begun", "message",
    )  # fmt: skip
    print_table(columns, table)


def _show_one(database: Database, row: ReleaseRow) -> None:
    _show_all([row])
    metrics = row.figures.get("metrics", {})
    if metrics:
        print_line()
        table = [_metric_row(one) for one in metrics.values()]
        columns = ("metric", "candidate", "others", "difference", "interval", "of", "verdict")
        print_table(columns, table)
    if row.figures.get("silent_pairs"):
        print_line()
        print_line(
            f"The judge said nothing usable of {row.figures['silent_pairs']} of {row.figures['pairs']} "
            "pairs; they do not count."
        )
    print_line()
    events = [
        (_when(one.at_s), one.kind, one.who, one.why) for one in read_events(database, row.id)
    ]
    print_table(("when", "decision", "who", "why"), events)


def _metric_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    shares = one["metric"] in ("acceptance", "errors", JUDGED, RATED)

    def show(value: float | None) -> str:
        if value is None:
            return ""
        if shares:
            return f"{value:.2%}"
        return f"{value:.4g} ms" if one["metric"] in (TTFT, TPOT) else f"{value:.4g}"

    ends = [one["low"], one["high"]]
    interval = " to ".join("..." if end is None else f"{end:+.1%}" for end in ends)
    return (
        one["metric"], show(one["candidate"]), show(one["others"]),
        "" if one["difference"] is None else f"{one['difference']:+.2%}",
        "" if ends == [None, None] else interval,
        f"{one['candidate_count']} and {one['others_count']}", one["verdict"],
    )  # fmt: skip


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
