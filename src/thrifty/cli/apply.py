"""`thrifty plan`, `apply`, `rollback` and `history`: what a service serves, changed while it runs."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from thrifty.artifacts import Store
from thrifty.cli.show import err, print_json, print_line, print_table, show_progress, tell
from thrifty.control.differences import show_value
from thrifty.control.merge import Held
from thrifty.control.plan import Plan, PlanItem
from thrifty.control.service_api import (
    Actor,
    Applied,
    Rollback,
    describe_history,
    look_at_rollback,
    plan_spec,
    roll_back,
)
from thrifty.engines.machine import detect_machine
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.model_maker import Compressor
from thrifty.service import apply_spec, is_running, require_running, resolve_target, wait_for
from thrifty.spec.models import DEFAULT_MODEL
from thrifty.units import format_bytes, format_duration

SECTIONS = ("fetch", "choose", "prepare", "start", "stop", "change")
"""What would be done; what `auto` takes is no change by itself."""


def run_plan(target: str | None, *, reset: bool, as_json: bool) -> None:
    """Say what applying a spec would do."""
    home = find_home()
    loaded = resolve_target(target)
    with err.status("Looking up models...") as status:
        maker = Compressor(home, Store(home.models), detect_machine())
        plan = plan_spec(
            loaded, home, lambda step: status.update("Looking up models..."), maker=maker,
            reset=reset,
        )  # fmt: skip
    if as_json:
        print_json(plan.to_builtins())
        return
    show_plan(plan)
    if not any(getattr(plan, section) for section in SECTIONS if section != "choose"):
        print_line("Nothing would change.")
    else:
        print_line(f"To do it: {find_command(plan, target, reset=reset, running=is_running(home))}")


def find_command(plan: Plan, target: str | None, *, reset: bool, running: bool) -> str:
    """The command that carries a plan out."""
    in_place = running and not plan.fixed
    if target is None and in_place:
        target = DEFAULT_MODEL  # `up` has a default, `apply` has none
    words = ["thrifty", "apply" if in_place else "up"]
    words += [shlex.quote(target)] if target is not None else []
    words += ["--reset"] if reset else []
    return f"{'thrifty down, then ' if running and plan.fixed else ''}{' '.join(words)}"


def show_plan(plan: Plan) -> None:
    """Print what would be done, a table for each kind of work."""
    for section in SECTIONS:
        items: tuple[PlanItem, ...] = getattr(plan, section)
        if items:
            print_table((section, "size", "time", "why"), [_row(item) for item in items])
            print_line()
    for held in plan.held:
        print_line(
            f"held  {held.what}: stays {show_held_value(held, held.current)}, "
            f"the spec says {show_held_value(held, held.spec)}"
        )
    if plan.held:
        print_line("Somebody set these since the spec was applied; --reset takes them back.")


def _row(item: PlanItem) -> tuple[str, str, str, str]:
    size = "" if item.size_bytes is None else format_bytes(item.size_bytes)
    time = "" if item.seconds is None else format_duration(item.seconds)
    return item.what, size, time, item.why


def run_apply(target: str, *, reset: bool, wait: bool, why: str | None, as_json: bool) -> None:
    """Have the running service serve what a spec says."""
    home = find_home()
    require_running(home)
    loaded = resolve_target(target)
    actor = Actor.from_user("thrifty apply", why or "")
    with show_progress() as on_progress:
        applied = apply_spec(loaded, home, actor, on_progress, reset=reset, on_stage=tell)
    for name in applied.changed:
        tell(f"{name}: changed")
    show_held(applied, reset=reset)
    if wait:
        try:
            with show_progress() as on_progress:
                wait_for(home, on_progress)
        except KeyboardInterrupt:
            err.print("Not waiting any more; the change goes on: thrifty status")
            sys.exit(130)
    missing = [] if reset else [one.deployment for one in applied.held if one.is_left_out]
    if as_json:
        print_json(applied.to_builtins())
    elif missing:
        print_line(f"Not everything runs that the spec says: {', '.join(missing)} is not served.")
    elif wait and applied.held and not reset:
        print_line("Everything runs, but for what is held.")
    elif wait:
        print_line("Everything runs as the spec says.")
    else:
        print_line("Applied. How far it is: thrifty status")
    if missing:
        tell(f"To serve it again: thrifty apply {target} --reset")
        sys.exit(1)


def show_held(applied: Applied, *, reset: bool) -> None:
    """Say what stays although the spec says otherwise, and who set it."""
    for held, holder in zip(applied.held, applied.holders, strict=True):
        if held.is_left_out and not reset:
            text = f"{held.deployment} stays out, although the spec names it (removed by {holder})"
        elif reset:
            text = f"{held.what}: {show_held_value(held, held.current)} is taken back ({holder})"
        else:
            text = (
                f"{held.what}: stays {show_held_value(held, held.current)}, "
                f"the spec says {show_held_value(held, held.spec)} (set by {holder})"
            )
        tell(text)
    if applied.held and not reset:
        tell("To take these back: thrifty apply SPEC --reset")


def run_rollback(
    deployment: str, *, remove: bool, dry_run: bool, why: str | None, as_json: bool
) -> None:
    """Say what going back takes back, and restore a deployment's previous state."""
    home = find_home()
    with open_home(home) as database:
        rollback = look_at_rollback(database, deployment)
        _tell_rollback(deployment, rollback)
        if dry_run:
            if as_json:
                print_json({"deployment": deployment, **rollback.to_builtins()})
            return
        actor = Actor.from_user("thrifty rollback", why or "")
        change = roll_back(database, deployment, actor, store=Store(home.models), remove=remove)
    if as_json:
        print_json(change)
    elif change["versions"] is None:
        print_line(f"{deployment} is not served any more. To take that back, do it again.")
    else:
        versions = ", ".join(_describe_version(one) for one in change["versions"])
        print_line(f"{deployment} goes back to {versions}. To take that back, do it again.")
    if not is_running(home):
        err.print("No service runs here; 'thrifty up' starts it so.")


def _tell_rollback(deployment: str, rollback: Rollback) -> None:
    """Say beforehand which change is taken back, and what comes and goes."""
    tell(f"This takes back {rollback.takes_back}.")
    before = {version.label: version for version in rollback.before}
    after = {version.label: version for version in rollback.after}
    if not after:
        tell(f"{deployment}: is removed")
        return
    for label in dict.fromkeys([*before, *after]):
        was, then = before.get(label), after.get(label)
        if then is None:
            tell(f"{deployment}: version {label} goes")
        elif was is None:
            tell(f"{deployment}: version {label} comes, weight {then.weight:g}")
        elif was.weight != then.weight:
            tell(f"{deployment}: weight of {label} {was.weight:g} -> {then.weight:g}")
        elif was != then:
            tell(f"{deployment}: version {label} as it was before")


def run_history(deployment: str | None, *, limit: int, as_json: bool) -> None:
    """List changes of the desired state."""
    with open_home(find_home()) as database:
        changes = describe_history(database, deployment, limit)
    if as_json:
        print_json({"changes": changes})
        return
    rows = [
        (
            change["id"], change["at"], change["deployment"] or "(service)", change["kind"],
            change["who"], _describe_state(change), change["why"],
        )
        for change in changes
    ]  # fmt: skip
    print_table(("change", "at", "deployment", "kind", "who", "state", "why"), rows)


def _describe_state(change: dict[str, Any]) -> str:
    if change["deployment"] is None:
        return "gateway and spec"
    if change["versions"] is None:
        return "removed"
    return ", ".join(_describe_version(one) for one in change["versions"])


def _describe_version(version: dict[str, Any]) -> str:
    replicas = version["replicas"]
    return f"{version['label']}={version['weight']:g} ({replicas} replica{'s'[: replicas != 1]})"


def show_held_value(held: Held, value: Any) -> str:
    """A held value; of a whole deployment or version only whether it is served."""
    if held.field in ("deployment", "version"):
        return "out" if value is None else "in"
    return show_value(value)
