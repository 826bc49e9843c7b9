"""The three-way merge of `apply`: the previously applied spec, the new one, the current state.

Each field has one owner. The spec owns versions, options and bounds; `traffic` and releases own
weights once they have set them; the autoscaler owns counts where the spec sets bounds. So a field changes where the new spec differs from the previous
one, and stays where it does not, whatever its value is now. Where both the spec and somebody else
have changed a field, the spec wins, except for shares of the traffic: these stay with whoever set
them. What stays although the spec says otherwise is *held*; a reset takes it back.

Nothing here reads a clock, a file or a database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from thrifty.db.desired_state import (
    DesiredDeployment,
    DesiredReplicas,
    DesiredSlo,
    DesiredVersion,
    find_build,
)
from thrifty.db.fleet import VersionSettings
from thrifty.errors import ControlError, Problem

T = TypeVar("T")

SHARES = ("weight", "shadow")
_MERGED_SETTINGS = (
    "slots", "batch_slots", "wakes", "price_input", "price_cached", "price_output",
)  # fmt: skip
"""Settings of a version that come from the spec; the others come with its engine."""
_COUNT = "replicas.count"
_DEFAULTS = {name: getattr(VersionSettings(), name) for name in _MERGED_SETTINGS}
_MISSING: Any = object()


@dataclass(frozen=True)
class Held:
    """A value that stays although the spec says otherwise."""

    deployment: str
    field: str
    """Such as `weight`, `replicas.count`, or `version` and `deployment` for these themselves."""
    label: str | None
    """The version that it is of; None: the deployment."""
    current: Any
    """None: it is not there."""
    spec: Any

    @property
    def what(self) -> str:
        """Which value it is, for people."""
        of = f" of {self.label}" if self.label is not None and self.field != "version" else ""
        name = f"version {self.label}" if self.field == "version" else self.field
        return f"{self.deployment}: {name}{of}"

    @property
    def is_left_out(self) -> bool:
        """Whether a deployment is not served although the spec names it."""
        return self.field == "deployment" and self.current is None

    def find_value(self, state: DesiredDeployment | None) -> Any:
        """The field's value in another state of the deployment; None where it is not there."""
        if state is None or self.field == "deployment":
            return state
        if self.label is None:
            return asdict(state.settings).get(self.field)
        version = state.find_version(self.label)
        if version is None or self.field == "version":
            return None if version is None else True
        return list_fields(version)[self.field]


@dataclass(frozen=True)
class Merged:
    """What is to be."""

    deployments: dict[str, DesiredDeployment]
    held: tuple[Held, ...]
    """What stays although the spec says otherwise; after a reset, what it took back."""


def merge(
    base: Mapping[str, DesiredDeployment],
    new: Mapping[str, DesiredDeployment],
    current: Mapping[str, DesiredDeployment],
    *,
    reset: bool = False,
) -> Merged:
    """The desired state that follows, in the order of the new spec.

    Args:
        base: What the previously applied spec came to by itself; empty where there was none.
        new: What the new spec comes to by itself.
        current: The desired state now.
        reset: Take back whatever is held.

    Raises `ControlError` where no version of a deployment would have a weight.
    """
    held: list[Held] = []
    made: dict[str, DesiredDeployment] = {}
    for name, wanted in new.items():
        there, before = current.get(name), base.get(name)
        if there is None:
            if before is not None and _same(before, wanted):
                held.append(Held(name, "deployment", None, None, wanted))
            else:
                made[name] = wanted
            continue
        made[name] = _merge_deployment(before, wanted, there, held)
    for name, there in current.items():
        if name not in new and name not in base:
            held.append(Held(name, "deployment", None, there, None))
            made[name] = there
    if reset:
        made = {
            name: keep_counts(_keep_age(wanted, current.get(name)), current.get(name))
            for name, wanted in new.items()
        }
    for state in made.values():
        _check_weights(state, current.get(state.name))
    return Merged(made, tuple(held))


def find_fixed(
    before: Mapping[str, str],
    after: Mapping[str, str],
    new: Mapping[str, DesiredDeployment],
    current: Mapping[str, DesiredDeployment],
) -> list[Problem]:
    """What the new spec changes that cannot change while the service runs, each with the command
    that does it.
    """
    problems = []
    for path, value in after.items():
        was = before.get(path, value)
        if was != value:
            shown = f" ({was} now)" if path.startswith("gateway.") else ""
            problems.append(
                Problem(
                    path,
                    f"cannot change while the service runs{shown}; stop it and start it with the "
                    "new spec: thrifty down, then thrifty up SPEC",
                )
            )
    for name, state in new.items():
        there = current.get(name)
        if there is not None and there.family != state.family:
            problems.append(
                Problem(
                    "model",
                    f"the deployment {name!r} serves a model of the family {there.family}, and the "
                    f"new one is of the family {state.family}; give it another name, or stop the "
                    "service and start it with the new spec: thrifty down, then thrifty up SPEC",
                )
            )
    return problems


def _merge_deployment(
    before: DesiredDeployment | None,
    wanted: DesiredDeployment,
    there: DesiredDeployment,
    held: list[Held],
) -> DesiredDeployment:
    values: dict[str, Any] = {}
    old = asdict(before.settings) if before is not None else {}
    now, asked = asdict(there.settings), asdict(wanted.settings)
    for field in fields(wanted.settings):
        name = field.name
        if name == "created_s":
            values[name] = there.settings.created_s
            continue
        values[name], holds = _pick(old.get(name, _MISSING), asked[name], now[name])
        if holds:
            held.append(Held(wanted.name, name, None, now[name], asked[name]))
    return DesiredDeployment(
        wanted.name,
        wanted.family,
        replace(wanted.settings, **values),
        _merge_versions(before, wanted, there, held),
        wanted.quality,
        wanted.improve,
        wanted.checks,
        there.drains,
    )


def _merge_versions(
    before: DesiredDeployment | None,
    wanted: DesiredDeployment,
    there: DesiredDeployment,
    held: list[Held],
) -> tuple[DesiredVersion, ...]:
    versions = []
    for version in wanted.versions:
        old = before.find_version(version.label) if before is not None else None
        now = there.find_version(version.label)
        if now is not None:
            versions.append(_merge_version(wanted.name, old, version, now, held))
        elif old is not None and old == version:
            held.append(Held(wanted.name, "version", version.label, None, True))
        else:
            versions.append(version)
    for version in there.versions:
        known = before is not None and before.find_version(version.label) is not None
        if wanted.find_version(version.label) is None and not known:
            held.append(Held(wanted.name, "version", version.label, True, None))
            versions.append(version)
    if before is not None and _list_labels(before) == _list_labels(wanted):
        # The spec has not changed the order, so it stays as well.
        places = {label: place for place, label in enumerate(_list_labels(there))}
        versions.sort(key=lambda version: places.get(version.label, len(places)))
    return tuple(versions)


def _list_labels(state: DesiredDeployment) -> list[str]:
    return [version.label for version in state.versions]


def _merge_version(
    deployment: str,
    before: DesiredVersion | None,
    wanted: DesiredVersion,
    there: DesiredVersion,
    held: list[Held],
) -> DesiredVersion:
    old = list_fields(before) if before is not None else {}
    now, asked = list_fields(there), list_fields(wanted)
    values: dict[str, Any] = {}
    for name in asked:
        if name == _COUNT and (wanted.replicas.is_autoscaled or there.replicas.is_autoscaled):
            # Nobody's to hold: the autoscaler's as long as there are bounds, then the spec's.
            values[name] = asked[name]
            continue
        values[name], holds = _pick(
            old.get(name, _MISSING), asked[name], now[name], owner_wins=name in SHARES
        )
        if holds:
            shown = name != "build"
            held.append(
                Held(
                    deployment, name, wanted.label, now[name] if shown else there.model,
                    asked[name] if shown else wanted.model,
                )
            )  # fmt: skip
    return _keep_restart(_keep_count(_from_fields(wanted.label, values), there), there)


def _keep_restart(version: DesiredVersion, there: DesiredVersion) -> DesiredVersion:
    """The version with the revision that runs, if it is of the same build: a restart is nothing that
    a spec could take back.
    """
    same = find_build(there.revision) == version.revision
    return replace(version, revision=there.revision) if same else version


def keep_counts(state: DesiredDeployment, there: DesiredDeployment | None) -> DesiredDeployment:
    """`state` with the counts that the autoscaler has chosen, within the bounds of `state`, and
    with what restarts and drains have left.
    """
    if there is None:
        return state
    known = {version.label: version for version in there.versions}
    versions = tuple(
        _keep_restart(_keep_count(version, known[version.label]), known[version.label])
        if version.label in known else version
        for version in state.versions
    )  # fmt: skip
    return replace(state, versions=versions, drains=there.drains)


def _keep_count(version: DesiredVersion, there: DesiredVersion) -> DesiredVersion:
    if not version.replicas.is_autoscaled:
        return version
    count = version.replicas.clamp(there.replicas.count)
    return replace(version, replicas=replace(version.replicas, count=count))


def list_fields(version: DesiredVersion) -> dict[str, Any]:
    """The fields that are merged one by one. What answers depend on is one of them, `build`: parts
    of two builds make no third one.
    """
    settings = {name: getattr(version.settings, name) for name in _MERGED_SETTINGS}
    rest = replace(version.settings, **_DEFAULTS)
    return {
        "build": (
            version.model, version.engine, find_build(version.revision), version.artifact,
            dict(version.options), version.urls, rest,
        ),
        **settings,
        **{f"replicas.{name}": value for name, value in asdict(version.replicas).items()},
        **{f"slo.{name}": value for name, value in asdict(version.slo).items()},
        **{name: getattr(version, name) for name in SHARES},
        "image": version.image,
    }  # fmt: skip


def _from_fields(label: str, values: Mapping[str, Any]) -> DesiredVersion:
    """The version that `list_fields` takes apart."""
    model, engine, revision, artifact, options, urls, settings = values["build"]
    replicas, slo = _select(values, "replicas."), _select(values, "slo.")
    return DesiredVersion(
        label, model, engine, revision, artifact, options, urls,
        settings=replace(settings, **{name: values[name] for name in _MERGED_SETTINGS}),
        replicas=DesiredReplicas(**replicas),
        slo=DesiredSlo(**slo),
        image=values["image"],
        **{name: values[name] for name in SHARES},
    )  # fmt: skip


def _select(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values below a prefix, by their names without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def _pick(before: T, wanted: T, there: T, *, owner_wins: bool = False) -> tuple[T, bool]:
    """The value that follows, and whether it is held against the spec."""
    if there == wanted:
        return there, False
    if before is not _MISSING and before == there:
        return wanted, False
    if before is not _MISSING and before == wanted:
        return there, True
    return (there, True) if owner_wins else (wanted, False)


def _same(one: DesiredDeployment, other: DesiredDeployment) -> bool:
    """Whether two states are the same but for their age."""
    return _keep_age(one, other) == other


def _keep_age(state: DesiredDeployment, older: DesiredDeployment | None) -> DesiredDeployment:
    if older is None:
        return state
    return replace(state, settings=replace(state.settings, created_s=older.settings.created_s))


def _check_weights(state: DesiredDeployment, there: DesiredDeployment | None) -> None:
    if any(version.weight > 0 for version in state.versions):
        return
    kept = {version.label for version in state.versions}
    dropped = [
        version.label
        for version in (there.versions if there is not None else ())
        if version.weight > 0 and version.label not in kept
    ]
    label = state.versions[0].label if state.versions else "LABEL"
    why = (
        f"the spec drops {', '.join(map(repr, dropped))}, which has all the traffic of "
        f"{state.name!r}"
        if dropped
        else f"all weights of {state.name!r} would be 0"
    )
    raise ControlError(
        f"{why}; move the traffic first (thrifty traffic {state.name} {label}=1), or take the "
        "weights of the spec (apply or up SPEC with --reset)"
    )
