"""Which replicas and gateway workers would be started and stopped: the desired state beside what runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from thrifty.db.desired_state import DesiredDeployment, DesiredService, DesiredVersion
from thrifty.db.fleet import ReplicaRow

Place = tuple[str, str, str]
"""Deployment, label and revision: what makes replicas equal."""


@dataclass(frozen=True)
class Running:
    """What runs in a home."""

    alive: bool = False
    """Whether a controller does."""
    replicas: tuple[ReplicaRow, ...] = ()
    """Those whose process is there, or that others run."""
    gateways: int = 0
    """How many gateway workers."""


@dataclass(frozen=True)
class Move:
    """Equal things that start, or stop where `count` is less than 0."""

    what: str
    count: int
    why: str
    version: DesiredVersion | None = None
    """Whose replicas they are; None for gateway workers and for what is not wanted any more."""


def list_moves(
    service: DesiredService, deployments: Mapping[str, DesiredDeployment], running: Running
) -> list[Move]:
    """What starts and stops until what runs is what is wanted."""
    left = Counter((row.deployment, row.version, row.revision) for row in running.replicas)
    moves = []
    for name, state in deployments.items():
        for version in state.versions:
            wanted = len(version.urls) or version.replicas.count
            have = left.pop((name, version.label, version.revision), 0)
            others = any(place[:2] == (name, version.label) for place in left)
            if wanted > have:
                why = _say_why(have, others) + _say_bounds(version)
                what = f"{name}/{version.label}: {_count(wanted - have, version)}"
                moves.append(Move(what, wanted - have, why, version))
            elif wanted < have:
                what = f"{name}/{version.label}: {_count(have - wanted, version)}"
                why = "fewer are wanted" + _say_bounds(version)
                moves.append(Move(what, wanted - have, why, version))
    moves += [_leave(place, count, deployments) for place, count in left.items()]
    return [*moves, *_move_gateways(service, running)]


def _leave(place: Place, count: int, deployments: Mapping[str, DesiredDeployment]) -> Move:
    name, label, _ = place
    state = deployments.get(name)
    if state is None:
        why = "the deployment is not wanted any more"
    elif state.find_version(label) is None:
        why = "the version is not wanted any more"
    else:
        why = "replicas with the new model, engine or options take their place"
    return Move(f"{name}/{label}: {count} replica{'s' if count > 1 else ''}", -count, why)


def _move_gateways(service: DesiredService, running: Running) -> list[Move]:
    wanted = int(service.gateway.get("workers", 1))
    have = running.gateways if running.alive else 0
    if wanted == have:
        return []
    count = abs(wanted - have)
    what = f"gateway: {count} worker{'s' if count > 1 else ''}"
    if wanted < have:
        return [Move(what, wanted - have, "fewer are wanted; each drains first")]
    why = "more are wanted" if have else "no gateway runs"
    where = f" at {service.gateway.get('host')}:{service.gateway.get('port')}" if not have else ""
    return [Move(f"{what}{where}", count, why)]


def _say_why(have: int, others: bool) -> str:
    if have:
        return "more are wanted"
    return "the model, the engine or its options change" if others else "none of it runs"


def _say_bounds(version: DesiredVersion) -> str:
    """Between which bounds the number follows the load from there on."""
    if not version.replicas.is_autoscaled:
        return ""
    fewest, most = version.replicas.bounds
    objectives = [
        f"{name} p95 {seconds:g} s"
        for name, seconds in (("TTFT", version.slo.ttft_p95_s), ("TPOT", version.slo.tpot_p95_s))
        if seconds is not None
    ]
    goal = f", to hold {' and '.join(objectives)}" if objectives else ""
    return f"; the number follows the load from {fewest} to {most}{goal}"


def _count(count: int, version: DesiredVersion) -> str:
    many = "s" if count > 1 else ""
    if version.urls:
        return f"{count} server{many} of others ({', '.join(version.urls)})"
    return f"{count} replica{many} of {version.model} ({version.engine})"
