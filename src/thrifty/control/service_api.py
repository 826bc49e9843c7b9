"""What people and programs ask of a service: its status, traffic, plan, apply, rollback, history.

The command line, Python and the management API call these functions, and nothing else changes the
desired state on their behalf. They work on the database (and plans and applies on the home's store),
so that they need no running controller; who asks is told by `Actor`.
"""

from __future__ import annotations

import getpass
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from thrifty.artifacts import Store
from thrifty.artifacts.look_only import LookOnlyStore
from thrifty.control.applied import AppliedSpec, describe_fixed, read_applied
from thrifty.control.checks import ModelMaker, check_keys
from thrifty.control.gateway_settings import describe_gateway
from thrifty.control.merge import Held, Merged, find_fixed, keep_counts, merge
from thrifty.control.plan import Plan, World, make_plan
from thrifty.control.prepare import Prepared, prepare
from thrifty.control.replicas import Running
from thrifty.control.service_status import is_there
from thrifty.db import Database
from thrifty.db.database import look_at_database
from thrifty.db.desired import (
    AUTOSCALE,
    SERVICE,
    Desired,
    DesiredChange,
    PastChange,
    change_desired,
    find_deliberate,
    previous_change,
    read_desired,
    read_history,
)
from thrifty.db.desired_state import DesiredDeployment, DesiredService, DesiredVersion
from thrifty.db.fleet import read_fleet
from thrifty.engines.machine import Machine, detect_machine
from thrifty.errors import ControlError
from thrifty.fleet.controller_note import find_database_url, read_controller_note
from thrifty.fleet.ports import choose_port
from thrifty.fleet.process import GATEWAY_ROLE, find_ours
from thrifty.home import Home
from thrifty.release.manage import override_releases, refuse_while_active, restore_copies
from thrifty.spec import LoadedSpec
from thrifty.spec.faults import suggest
from thrifty.spec.models import MAX_WEIGHT
from thrifty.types import OnProgress, ignore_progress

HISTORY_LIMIT = 20
_LOOK_BACK = 100
"""How many changes are searched for who set a value."""


@dataclass(frozen=True)
class Actor:
    """Who changes something, and why."""

    who: str
    """The user and the command, or the name of the API key."""
    why: str = ""

    @classmethod
    def from_user(cls, command: str, why: str = "") -> Actor:
        """The operating system's user, with the command or function that was called."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = "unknown"
        return cls(f"{user} ({command})", why)


# Traffic


def read_traffic(database: Database, deployment: str) -> dict[str, Any]:
    """The versions of a deployment with their weights. Raises `ControlError`."""
    desired = read_desired(database)
    state = _find(desired, deployment)
    return {**_describe_traffic(state), "owner": _find_owner(database, desired, state)}


def set_traffic(
    database: Database,
    deployment: str,
    weights: Mapping[str, float],
    actor: Actor,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Set the weights of versions; those that are not named keep theirs. Gateways take them up within
    half a second. Weights that are so already are not recorded. A release that is under way owns the
    weights: `force` ends it. Returns what `read_traffic` does. Raises `ControlError`.
    """
    for label, weight in weights.items():
        if not (math.isfinite(weight) and 0 <= weight <= MAX_WEIGHT):
            raise ControlError(
                f"the weight of {label!r} is {weight:g}; weights are numbers of at least 0"
            )

    def decide(state: Desired) -> list[DesiredChange]:
        there = _find(state, deployment)
        labels = [version.label for version in there.versions]
        for label in weights:
            if label not in labels:
                raise ControlError(
                    f"{deployment!r} has no version {label!r}; {suggest(label, labels)}"
                )
        versions = tuple(
            replace(version, weight=float(weights.get(version.label, version.weight)))
            for version in there.versions
        )
        if not any(version.weight for version in versions):
            raise ControlError(
                f"all weights of {deployment!r} would be 0, so that no version would answer; give "
                f"one of them more (thrifty traffic {deployment} {labels[0]}=1)"
            )
        return [DesiredChange(deployment, replace(there, versions=versions))]

    if force:
        decide(read_desired(database))  # what cannot be ends no release
        why = "the weights were set by hand" + (f": {actor.why}" if actor.why else "")
        override_releases(database, deployment, who=actor.who, why=why)
    else:
        refuse_while_active(database, deployment, "set them all the same with --force (force)")
    change_desired(database, decide, kind="traffic", who=actor.who, why=actor.why)
    return read_traffic(database, deployment)


def _describe_traffic(state: DesiredDeployment) -> dict[str, Any]:
    total = sum(version.weight for version in state.versions)
    return {
        "deployment": state.name,
        "versions": [
            {
                "label": version.label,
                "weight": version.weight,
                "share": version.weight / total,
                "shadow": version.shadow,
            }
            for version in state.versions
        ],
        "weights": _list_weights(state),
    }


def _find_owner(database: Database, desired: Desired, state: DesiredDeployment) -> str:
    """Who holds the weights: the spec, or else the kind of change that set them last."""
    applied = read_applied(desired.service)
    wanted = applied.deployments.get(state.name) if applied is not None else None
    if wanted is not None and _list_weights(wanted) == _list_weights(state):
        return "spec"
    for change in read_history(database, state.name, _LOOK_BACK):
        if change.kind not in ("apply", AUTOSCALE):
            return change.kind
    return "spec"


def _list_weights(state: DesiredDeployment) -> dict[str, float]:
    return {version.label: version.weight for version in state.versions}


def check_served(database: Database, deployment: str | None, version: str | None) -> None:
    """Raise `ControlError` unless a deployment and a version of these names are served, or are kept
    by a version that is on its way out; None is any.
    """
    if deployment is None and version is None:
        return
    desired, fleet = read_desired(database), read_fleet(database)
    labels: dict[str, list[str]] = {
        row.name: [v.label for v in row.versions] for row in fleet.deployments
    }
    for name, state in desired.deployments.items():
        labels.setdefault(name, []).extend(one.label for one in state.versions)
    if deployment is not None and deployment not in labels:
        _find(desired, deployment)
    known = (
        labels[deployment] if deployment is not None else [v for s in labels.values() for v in s]
    )
    if version is not None and version not in known:
        owner = f"{deployment!r} has no" if deployment is not None else "no deployment has a"
        raise ControlError(f"{owner} version {version!r}; {suggest(version, sorted(set(known)))}")


# Plan and apply


def plan_spec(
    loaded: LoadedSpec,
    home: Home,
    on_progress: OnProgress = ignore_progress,
    *,
    maker: ModelMaker | None = None,
    reset: bool = False,
) -> Plan:
    """What applying the spec would do; writes nothing. Blocks. Raises `ThriftyError` kinds."""
    world, store = _look_at_world(loaded, home), LookOnlyStore(home.models)
    _check_gateway(loaded, world)
    return make_plan(
        loaded, world, store, detect_machine(), on_progress,
        maker=maker, reset=reset,
    )  # fmt: skip


@dataclass(frozen=True)
class Applied:
    """What an application of a spec came to."""

    change_id: int
    changed: tuple[str, ...]
    """The deployments whose desired state changed."""
    held: tuple[Held, ...]
    """What stays although the spec says otherwise; after a reset, what it took back."""
    holders: tuple[str, ...]
    """Of each of them, who set it, when, and why."""

    def to_builtins(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "change_id": self.change_id,
            "changed": list(self.changed),
            "held": [
                {
                    "deployment": one.deployment, "version": one.label, "field": one.field,
                    "current": _show(one.current), "spec": _show(one.spec), "by": holder,
                }
                for one, holder in zip(self.held, self.holders, strict=True)
            ],
        }  # fmt: skip


def prepare_spec(
    loaded: LoadedSpec,
    home: Home,
    machine: Machine,
    on_progress: OnProgress = ignore_progress,
    *,
    maker: ModelMaker,
) -> Prepared:
    """Fetch, compress and prepare what the spec asks for. Nothing runs otherwise than before. Blocks.
    Raises `ThriftyError` kinds.
    """
    world = _look_at_world(loaded, home)
    _refuse_fixed(loaded, world)
    _check_gateway(loaded, world)
    running = world.deployments if world.running.alive else {}
    store = Store(home.models)
    return prepare(loaded, store, machine, on_progress, maker=maker, running=running)


def apply_prepared(
    database: Database, prepared: Prepared, actor: Actor, *, reset: bool = False, running: bool
) -> Applied:
    """Make what was prepared the desired state, as far as nobody else holds it. `running` says that a
    service runs on it, so that not everything can change. Raises `ControlError` and `SpecError`.
    """
    merged = Merged({}, ())
    before: dict[str, DesiredDeployment] = {}
    read_id = 0

    def decide(state: Desired) -> list[DesiredChange]:
        nonlocal merged, before, read_id
        before, read_id = state.deployments, state.change_id
        applied = read_applied(state.service)
        merged = merge(
            applied.deployments if applied is not None else {},
            prepared.deployments, state.deployments, reset=reset,
        )  # fmt: skip
        if running:
            _refuse(prepared, applied, merged, state)
        gone = [name for name in state.deployments if name not in merged.deployments]
        return [
            DesiredChange(SERVICE, prepared.service),
            *(DesiredChange(name, one) for name, one in merged.deployments.items()),
            *(DesiredChange(name, None) for name in gone),
        ]

    for name in prepared.deployments if reset else ():
        refuse_while_active(database, name, "a reset would set them")
    change_id = change_desired(database, decide, kind="apply", who=actor.who, why=actor.why)
    names = dict.fromkeys([*merged.deployments, *before])
    changed = tuple(name for name in names if before.get(name) != merged.deployments.get(name))
    holders = tuple(
        describe_holder(database, one, before.get(one.deployment), read_id) for one in merged.held
    )
    return Applied(change_id, changed, merged.held, holders)


def _refuse(
    prepared: Prepared, applied: AppliedSpec | None, merged: Merged, state: Desired
) -> None:
    prepared.loaded.refuse(
        find_fixed(
            applied.fixed if applied is not None else {}, prepared.applied.fixed,
            merged.deployments, state.deployments,
        )
    )  # fmt: skip


def _refuse_fixed(loaded: LoadedSpec, world: World) -> None:
    """As `apply_prepared` will, before anything is fetched for it."""
    if world.running.alive and world.applied is not None:
        loaded.refuse(find_fixed(world.applied.fixed, describe_fixed(loaded.spec), {}, {}))


def _check_gateway(loaded: LoadedSpec, world: World) -> None:
    """Refuse what the gateway could not start with, before models are looked for. Raises
    `FleetError`.
    """
    gateway = describe_gateway(loaded.spec)
    if world.has_keys is not None:
        check_keys(gateway, has_keys=world.has_keys)
    if not world.running.alive:
        choose_port(gateway["host"], gateway["port"], world.gateway_pids)


def describe_holder(
    database: Database, held: Held, now: DesiredDeployment | None, change_id: int
) -> str:
    """Who set a value that is held, when, and why. `now` is the deployment's state before, and
    `change_id` the newest change then.
    """
    last: PastChange | None = None
    for change in read_history(database, held.deployment, _LOOK_BACK):
        if change.id > change_id:
            continue
        state = change.state if isinstance(change.state, DesiredDeployment) else None
        if held.find_value(state) != held.find_value(now):
            break
        last = change
    return "somebody else" if last is None else _describe_author(last)


def _describe_author(change: PastChange) -> str:
    """Who made a change, when, and why."""
    when = datetime.fromtimestamp(change.at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{change.who}, {when}{f': {change.why}' if change.why else ''}"


def _look_at_world(loaded: LoadedSpec, home: Home) -> World:
    """What there is in a home, without changing a byte of it."""
    note = read_controller_note(home)
    alive = note is not None and note.alive
    url = note.database if note is not None and alive else loaded.spec.database or home.database_url
    ours = find_ours(home.root)
    gateways = frozenset(ident.pid for ident, role, _ in ours if role == GATEWAY_ROLE)
    with look_at_database(url, in_use=alive or bool(ours)) as database:
        if database is None:
            new = url == home.database_url and not home.database.exists()
            has_keys = False if new else None
            return World(running=Running(alive), has_keys=has_keys, gateway_pids=gateways)
        desired, fleet = read_desired(database), read_fleet(database)
    rows = tuple(row for row in fleet.replicas if alive or is_there(row))
    return World(
        desired.deployments, desired.service, read_applied(desired.service),
        Running(alive, rows, len(gateways)), bool(fleet.keys), gateways,
    )  # fmt: skip


def look_at_service(home: Home) -> DesiredService | None:
    """The service's desired state, without changing a byte of the home; None where there is none."""
    note = read_controller_note(home)
    alive = note is not None and note.alive
    in_use = alive or bool(find_ours(home.root))
    with look_at_database(find_database_url(home), in_use=in_use) as database:
        return None if database is None else read_desired(database).service


# Rollback and history


@dataclass(frozen=True)
class Rollback:
    """What a rollback would do."""

    takes_back: str
    """The newest change: its number, kind, author, time and reason."""
    before: tuple[DesiredVersion, ...]
    """The versions now; none where the deployment is not served."""
    after: tuple[DesiredVersion, ...]
    """The versions then; none where the deployment would not be served any more."""

    def to_builtins(self) -> dict[str, Any]:
        """As JSON, with versions as in the history."""
        return {
            "takes_back": self.takes_back,
            "before": [_describe_version(one) for one in self.before],
            "after": [_describe_version(one) for one in self.after],
        }


def look_at_rollback(database: Database, deployment: str) -> Rollback:
    """What `roll_back` would do; writes nothing. Raises `ControlError`."""
    previous = _find_previous(database, deployment)
    history = read_history(database, deployment, _LOOK_BACK)
    newest, now = history[find_deliberate(history) or 0], history[0].state
    assert not isinstance(now, DesiredService)
    return Rollback(
        f"change {newest.id} ({newest.kind}, {_describe_author(newest)})",
        () if now is None else now.versions,
        () if previous is None else previous.versions,
    )


def roll_back(
    database: Database,
    deployment: str,
    actor: Actor,
    *,
    store: Store | None = None,
    remove: bool = False,
) -> dict[str, Any]:
    """Restore the state that a deployment had before its newest change; called again, it restores the
    newer one. `store` is where its models have to be. Where the deployment was not served before,
    `remove` confirms that it goes. Returns what `describe_history` says of the new change. Raises
    `ControlError`.
    """

    def decide(state: Desired) -> list[DesiredChange]:
        previous = _find_previous(database, deployment)
        if previous is None and not remove:
            takes_back = look_at_rollback(database, deployment).takes_back
            raise ControlError(
                f"{deployment!r} was not served before its newest change, {takes_back}: going back "
                "would remove it; confirm that with --remove (thrifty rollback "
                f"{deployment} --remove; in Python and the management API: remove)"
            )
        for version in previous.versions if previous is not None else ():
            if (
                version.artifact is not None
                and store is not None
                and not store.has(version.artifact)
            ):
                raise ControlError(
                    f"the version {version.label!r} cannot come back: its model {version.model} is "
                    "not in the store any more; apply a spec that names it, which makes it again"
                )
        if previous is not None:
            previous = keep_counts(previous, state.deployments.get(deployment))
        return [DesiredChange(deployment, previous)]

    _find_previous(database, deployment)
    refuse_while_active(database, deployment, "aborting it restores the weights before")
    change_desired(database, decide, kind="rollback", who=actor.who, why=actor.why)
    return describe_history(database, deployment, 1)[0]


def _find_previous(database: Database, deployment: str) -> DesiredDeployment | None:
    """The state before the newest change, with no copies that nobody would end. Raises `ControlError`,
    also for an unknown name.
    """
    if not read_history(database, deployment, 1):
        _find(read_desired(database), deployment)
    return restore_copies(database, previous_change(database, deployment))


def describe_history(
    database: Database, deployment: str | None = None, limit: int = HISTORY_LIMIT
) -> list[dict[str, Any]]:
    """The newest changes of a deployment, or of all, the newest first. Raises `ControlError`."""
    found = read_history(database, deployment, limit)
    if not found:
        _find(read_desired(database), deployment or "")
    return [_describe_change(change) for change in found]


def _describe_change(change: PastChange) -> dict[str, Any]:
    state = change.state if isinstance(change.state, DesiredDeployment) else None
    return {
        "id": change.id,
        "at": datetime.fromtimestamp(change.at_s, UTC).isoformat(timespec="seconds"),
        "deployment": change.name or None,
        "kind": change.kind,
        "who": change.who,
        "why": change.why,
        "versions": None if state is None else [_describe_version(v) for v in state.versions],
    }


def _describe_version(version: DesiredVersion) -> dict[str, Any]:
    return {
        "label": version.label, "weight": version.weight, "replicas": version.replicas.count,
        "model": version.model,
    }  # fmt: skip


def _find(state: Desired, deployment: str) -> DesiredDeployment:
    """A deployment by its name. Raises `ControlError`."""
    there = state.deployments.get(deployment)
    if there is not None:
        return there
    if not state.deployments:
        raise ControlError("nothing is deployed here; start something: thrifty up SPEC")
    for known in state.deployments.values():
        if deployment in known.settings.aliases:
            raise ControlError(f"{deployment!r} is an alias of {known.name!r}; write that name")
    raise ControlError(
        f"there is no deployment {deployment!r}; {suggest(deployment, list(state.deployments))}"
    )


def _show(value: Any) -> Any:
    """A value as JSON has it; of a whole deployment only that it is there."""
    return True if isinstance(value, DesiredDeployment) else value
