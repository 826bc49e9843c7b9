"""`thrifty improve` and `thrifty show`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import typer

from thrifty.artifacts import Store
from thrifty.cli.show import (
    describe_progress,
    print_json,
    print_line,
    print_table,
    show_progress,
    tell,
)
from thrifty.control.service_api import Actor
from thrifty.db.database import look_at_database
from thrifty.db.desired import read_desired
from thrifty.db.improve import (
    PROMOTED,
    RELEASING,
    RUNNING,
    WAITING,
    ImproveRun,
    ImproveStep,
    approve_run,
    count_new_feedback,
    describe_run,
    read_runs,
)
from thrifty.engines.machine import detect_machine
from thrifty.fleet.controller_note import find_database_url, open_home
from thrifty.home import Home, find_home
from thrifty.improve.estimate import describe_turn
from thrifty.improve.run import open_turn, run_turn, settle_run
from thrifty.improve.story import tell_story
from thrifty.improve.turn import Turn, find_deployment
from thrifty.types import OnProgress, Progress
from thrifty.untrusted_text import sanitize_line

MOST_COUNTED = 1_000_000
WELL = (PROMOTED, WAITING, RELEASING)
"""States in which `improve run` ends well."""


@contextmanager
def _open(deployment: str, on_progress: OnProgress | None = None) -> Iterator[Turn]:
    home = find_home()
    values: dict[str, Any] = {} if on_progress is None else {"on_progress": on_progress}
    with open_home(home) as database:
        yield open_turn(
            Turn, database, deployment, home=home, store=Store(home.models),
            machine=detect_machine(), who=Actor.from_user("thrifty improve").who, on_note=tell,
            **values,
        )  # fmt: skip


def run_improve(deployment: str, *, restart: bool, wait: bool, as_json: bool) -> None:
    """A turn; exits with 1 if it ends without a version that serves or may come to."""
    with show_progress() as on_progress, _open(deployment, on_progress) as turn:
        run = run_turn(turn, restart=restart, wait=wait)
    _tell_end(run, as_json=as_json)


def run_approve(deployment: str, *, decline: bool, wait: bool, as_json: bool) -> None:
    """Approve, and go on."""
    with show_progress() as on_progress, _open(deployment, on_progress) as turn:
        run = approve_run(turn.database, deployment, approve=not decline, who=turn.who)
        if not decline:
            run = run_turn(turn, wait=wait)
    if decline:
        if as_json:
            print_json(describe_run(run))
        else:
            print_line(f"Run {run.id} of {deployment}: declined.")
        return
    _tell_end(run, as_json=as_json)


def _tell_end(run: ImproveRun, *, as_json: bool) -> None:
    if as_json:
        print_json(describe_run(run))
    else:
        print_line(f"Run {run.id} of {run.deployment}: {run.state.replace('_', ' ')}.")
        if run.message:
            tell(run.message)
        made = run.find_outputs("train")
        if made is not None:
            tell(f"All of it: thrifty show {made['model']}")
    if run.state not in WELL:
        raise typer.Exit(1)


def run_dry(deployment: str, *, as_json: bool) -> None:
    """What a turn would do."""
    with _open(deployment) as turn:
        found = describe_turn(turn)
    if as_json:
        print_json(found)
        return
    if found["goes_on_with"] is not None:
        done = ", ".join(found["done"]) or "nothing"
        print_line(f"It would go on with run {found['goes_on_with']}, of which is done: {done}.")
    if found["problem"] is not None:
        print_line(f"Nothing would be learned: {found['problem']}.")
        return
    counts = found["counts"]
    print_line(
        f"{found['judged']} judged answers of {found['users']} users: {counts['pairs']} pairs, "
        f"{counts['corrections']} corrections, {counts['liked']} liked, {counts['disliked']} disliked"
    )
    for name, number in found["left_out"].items():
        print_line(f"  left out by guards.{name}: {number} judgements")
    if found["share"]:
        print_line(f"  left out by guards.users: {found['share']} rows beyond one user's share")
    print_line(
        f"{found['parent']} would learn {found['rows']} rows ({found['tokens']:,} tokens) by "
        f"{found['method']} and become {found['makes']}, judged beside {found['serving']}"
    )
    if found["teacher_requests"]:
        print_line(f"the teacher would be asked for {found['teacher_requests']} more answers")
    print_line(f"release: {' -> '.join(found['release'])}{', after approval' if found['approve'] else ''}")  # fmt: skip
    print_table(
        ("step", "minutes, about"),
        [(name, f"{value:.1f}") for name, value in found["minutes"].items()],
    )
    print_line(
        f"about {found['total_minutes']:.1f} minutes before the release, "
        f"{found['cost']:.4f} at {found['price_per_hour']:g} an hour"
    )


def run_status(deployment: str | None, *, limit: int, as_json: bool) -> None:
    """Runs with their steps."""
    home = find_home()
    store = Store(home.models)
    with open_home(home) as database:
        desired = read_desired(database)
        if deployment is not None:
            find_deployment(desired, deployment)
        runs = [settle_run(database, store, one) for one in read_runs(database, deployment, limit)]
        named = [deployment] if deployment is not None else list(desired.deployments)
        schedules = {}
        for name in named:
            newest = next((one for one in runs if one.deployment == name), None)
            since_s = 0.0 if newest is None else newest.created_s
            settings = desired.deployments[name].improve or {}
            schedules[name] = {
                "every_s": settings.get("every"), "feedback": settings.get("feedback"),
                "drift": bool(settings.get("drift")), "teacher": settings.get("teacher"),
                "new_feedback": count_new_feedback(database, name, since_s, MOST_COUNTED),
            }  # fmt: skip
    if as_json:
        print_json({"runs": [describe_run(one) for one in runs], "schedules": schedules})
        return
    if not runs:
        print_line(f"No run yet: thrifty improve run {deployment or 'DEPLOYMENT'}")
    for run in runs:
        print_line(
            f"run {run.id} of {run.deployment}, begun {_when(run.created_s)} by {run.began_by}: "
            f"{run.state.replace('_', ' ')}"
        )
        rows = [
            (f"  {one.step}", one.state, _took(one),
             sanitize_line(one.error or _sum_up(one.outputs), 200))
            for one in run.steps.values()
        ]  # fmt: skip
        print_table(("  step", "state", "took", ""), rows)
        if run.message:
            tell(f"  {run.message}")
    for name, one in schedules.items():
        print_line(f"{name}: {one['new_feedback']} judgements since the last run began")


def _sum_up(outputs: dict[str, Any]) -> str:
    if "progress" in outputs:
        return describe_progress(Progress(**outputs["progress"]))
    shown = ("data", "method", "learned", "model", "served", "verdict", "release", "state", "who")
    return ", ".join(f"{name} {outputs[name]}" for name in shown if outputs.get(name) is not None)


def run_story(name: str, *, as_json: bool) -> None:
    """A model's story."""
    home = find_home()
    with look_at_database(find_database_url(home), in_use=True) as database:
        story = tell_story(Store(home.models), home, database, name)
    if as_json:
        print_json(story)
        return
    for line in _write_story(story, home):
        print_line(line)


def _write_story(story: dict[str, Any], home: Home) -> Iterator[str]:
    for one in story["lineage"]:
        how = one["source"] or one["recipe"].get("step", "")
        yield f"{one['name']}: {how}, {one['created']}"
    for one in story["data"]:
        yield f"data {one['name']}: {one['rows']} rows" + (
            "" if one["here"] else " (not here any more)"
        )
    training = story["training"]
    if training is not None:
        yield (
            f"trained by {training['method']}: {training['unit']} {training['before']:.4f} -> "
            f"{training['after']:.4f} in {training['seconds']:.0f} s"
        )
    gate = story["gate"]
    if gate is not None:
        yield f"gate: {gate['message']}"
        if gate.get("record"):
            yield f"gate record: {gate['record']}"
    for run in story["runs"]:
        yield f"run {run['id']} of {run['deployment']}: {run['state'].replace('_', ' ')} {run['message']}"
    for one in story["releases"]:
        verdict = f" ({one['verdict']})" if one["verdict"] else ""
        yield f"release {one['id']} to {one['deployment']}: {one['state'].replace('_', ' ')}{verdict}"
    for one in story["feedback"]:
        yield (
            f"users of {one['deployment']} {one['version']}: {one['up']} thumbs up, {one['down']} "
            f"down, of {one['requests']} requests"
        )
    for one in story["children"]:
        yield f"made of it: {one}"
    if not story["database"]:
        yield f"runs, releases and feedback are not known: no database in {home.root}"


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _took(step: ImproveStep) -> str:
    """How long a step took, or takes so far."""
    if step.ended_s is None and step.state != RUNNING:
        return ""
    return f"{(step.ended_s or time.time()) - step.began_s:.1f} s"
