"""The version that a release is about: one that the deployment has, or a stored model made into one.

A new version is like the one with most of the traffic, but for its model: the same engine with the
same options, the same compression, replicas and prices. It is no part of the spec; `apply` leaves it
where it is, and says so, until the spec names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.artifacts import Store
from thrifty.control.applied import read_applied
from thrifty.control.checks import ModelMaker
from thrifty.control.prepare import prepare
from thrifty.db import Database
from thrifty.db.desired import read_desired
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.engines.machine import Machine
from thrifty.errors import ControlError
from thrifty.home import Home
from thrifty.spec import parse_spec
from thrifty.spec.faults import suggest
from thrifty.types import OnProgress, ignore_progress

_OF_ONE_VERSION = ("label", "model", "weight", "shadow")


def find_candidate(database: Database, deployment: str, wanted: str) -> str | None:
    """The label of the deployment's version that is called `wanted`, or serves that model; None
    where there is none. Raises `ControlError`.
    """
    there = _find(database, deployment)
    if there.find_version(wanted) is not None:
        return wanted
    labels = [version.label for version in there.versions if version.model == wanted]
    if len(labels) > 1:
        raise ControlError(
            f"{deployment!r} serves {wanted} as {', '.join(labels)}; name one of these labels"
        )
    return labels[0] if labels else None


def prepare_candidate(
    database: Database,
    home: Home,
    machine: Machine,
    deployment: str,
    model: str,
    on_progress: OnProgress = ignore_progress,
    *,
    maker: ModelMaker,
) -> DesiredVersion:
    """Make a stored model a version for a deployment; nothing runs otherwise than before. Blocks.
    Raises `ThriftyError` kinds.
    """
    there = _find(database, deployment)
    main = max(there.versions, key=lambda version: version.weight)
    if main.artifact is None:
        raise ControlError(
            f"{deployment!r} has no version {model!r} (it has "
            f"{', '.join(version.label for version in there.versions)}), and its engine {main.engine} "
            "loads no stored model that could become one"
        )
    applied = read_applied(read_desired(database).service)
    if applied is None:
        raise ControlError(
            f"the spec of {deployment!r} is not known; add a version of {model} to the spec with "
            "weight 0, apply it, and release its label"
        )
    spec = write_spec(applied.written, list(applied.deployments), there, model)
    # The service's own settings cannot change by this, so that nothing of it is checked.
    running = read_desired(database).deployments
    prepared = prepare(
        parse_spec(spec), Store(home.models), machine, on_progress, maker=maker, running=running
    )
    version = prepared.deployments[deployment].versions[0]
    taken = there.find_version(version.label)
    if taken is not None:
        raise ControlError(
            f"{deployment!r} has a version {version.label!r} already, of {taken.model}; give the new "
            "one a label in the spec, with weight 0, and release that"
        )
    return version


def write_spec(
    written: Mapping[str, Any], names: list[str], there: DesiredDeployment, model: str
) -> dict[str, Any]:
    """The spec that was applied, reduced to one deployment with one version of the new model.
    `names` are the deployments of that spec, in order.
    """
    if there.name not in names:
        raise ControlError(
            f"{there.name!r} is not in the spec that was applied last; add a version of {model} to a "
            "spec with weight 0, apply it, and release its label"
        )
    spec = dict(written)
    section = spec
    if spec.get("deployments"):
        section = dict(spec["deployments"][names.index(there.name)])
        spec["deployments"] = [section]
    main = max(there.versions, key=lambda version: version.weight)
    entries = section.get("versions") or []
    own = next((one for one in entries if one.get("label") == main.label), None)
    if own is None and entries:
        own = next((one for one in entries if one.get("model") == main.model), entries[0])
    kept = {key: value for key, value in (own or {}).items() if key not in _OF_ONE_VERSION}
    section["versions"] = [{**kept, "model": model}]
    section["name"] = there.name
    return spec


def _find(database: Database, deployment: str) -> DesiredDeployment:
    known = read_desired(database).deployments
    if deployment not in known:
        raise ControlError(
            f"there is no deployment {deployment!r}; {suggest(deployment, list(known))}"
        )
    return known[deployment]
