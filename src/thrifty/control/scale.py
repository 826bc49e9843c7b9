"""Scaling by hand: the number of a version's replicas, or the autoscaler's bounds.

The numbers stay through the next `apply`, which reports them as held, until the spec changes them
or is applied with a reset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from thrifty.control.service_api import Actor, check_served
from thrifty.db import Database
from thrifty.db.desired import Desired, DesiredChange, change_desired
from thrifty.db.desired_state import DesiredReplicas, DesiredVersion
from thrifty.errors import ControlError
from thrifty.spec.scaling import MAX_REPLICAS

KIND = "scale"
"""The kind of these changes in the history."""


@dataclass(frozen=True)
class Scale:
    """How many replicas: a fixed number, or bounds for the autoscaler."""

    count: int | None = None
    min_count: int | None = None
    max_count: int | None = None

    def __str__(self) -> str:
        if self.count is not None:
            return str(self.count)
        return f"{self.min_count} to {self.max_count}"


def set_scale(
    database: Database, deployment: str, label: str, wanted: Scale, actor: Actor
) -> DesiredReplicas:
    """Change how many replicas a version has; returns what is desired now. A number fixes the count
    of a version that is not autoscaled; bounds are for one that is. Raises `ControlError`.
    """
    check_served(database, deployment, label)
    made = DesiredReplicas()

    def decide(state: Desired) -> list[DesiredChange]:
        nonlocal made
        there = state.deployments.get(deployment)
        version = there.find_version(label) if there is not None else None
        if there is None or version is None:
            raise ControlError(f"{deployment!r} has no version {label!r} any more")
        made = _scale(deployment, version, wanted)
        changed = replace(version, replicas=made)
        versions = tuple(changed if one.label == label else one for one in there.versions)
        return [DesiredChange(deployment, replace(there, versions=versions))]

    change_desired(database, decide, kind=KIND, who=actor.who, why=actor.why)
    return made


def _scale(deployment: str, version: DesiredVersion, wanted: Scale) -> DesiredReplicas:
    name, replicas = f"{deployment}/{version.label}", version.replicas
    if version.urls:
        raise ControlError(
            f"{name} is served by servers that others run, as many as its URLs; apply a spec with "
            "other URLs"
        )
    if replicas.is_autoscaled:
        if wanted.min_count is None or wanted.max_count is None:
            raise ControlError(
                f"{name} is autoscaled; give 'min' and 'max', or apply a spec with replicas.count"
            )
        if wanted.min_count == 0 and replicas.min_count != 0:
            raise ControlError(
                f"{name} always has a replica; to let it stop while nobody asks, apply a spec with "
                "replicas: {min: 0}"
            )
        if not 0 <= wanted.min_count <= wanted.max_count <= MAX_REPLICAS or wanted.max_count < 1:
            raise ControlError(
                f"the bounds of {name} cannot be {wanted}; they are from 0 to {MAX_REPLICAS}, 'min' "
                "not above 'max', and 'max' at least 1"
            )
        made = replace(replicas, min_count=wanted.min_count, max_count=wanted.max_count)
        return replace(made, count=made.clamp(made.count))
    if wanted.count is None:
        raise ControlError(
            f"the number of replicas of {name} is fixed; give 'count', or apply a spec with "
            "replicas.min and replicas.max"
        )
    if not 1 <= wanted.count <= MAX_REPLICAS:
        raise ControlError(
            f"{name} cannot have {wanted.count} replicas; the number is from 1 to {MAX_REPLICAS}"
        )
    return replace(replicas, count=wanted.count)
