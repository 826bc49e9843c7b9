"""In words, what two desired states differ in, beside what starts and stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from thrifty.control.merge import SHARES, list_fields
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion

Difference = tuple[str, str]
"""What changes, and how."""

_AT_ONCE = "gateways take it up by themselves"
_ELSEWHERE = ("build", "replicas.count")
"""Fields whose changes start and stop replicas."""
_SCALING = (
    "replicas.min_count", "replicas.max_count", "replicas.idle_after_s", "slo.ttft_p95_s",
    "slo.tpot_p95_s",
)  # fmt: skip
_FIXED = ("host", "port", "workers")
_SECRET = ("redis_url",)


def list_differences(
    before: Mapping[str, DesiredDeployment], after: Mapping[str, DesiredDeployment]
) -> list[Difference]:
    """Changes of deployments and versions that are in both states."""
    found: list[Difference] = []
    for name, state in after.items():
        there = before.get(name)
        if there is None:
            continue
        old, new = asdict(there.settings), asdict(state.settings)
        for key, value in new.items():
            if key != "created_s" and old[key] != value:
                found.append((_say(f"{name}: {key}", old[key], value), _AT_ONCE))
        for version in state.versions:
            known = there.find_version(version.label)
            if known is None:
                continue
            values = list_fields(version)
            if (known.engine, known.revision) == (version.engine, version.revision):
                found += _list_settings(name, known, version)
            for key, was in list_fields(known).items():
                if key in _ELSEWHERE or was == values[key]:
                    continue
                how = "conversations move to or from it alone" if key in SHARES else _AT_ONCE
                if key in _SCALING:
                    how = "the autoscaler takes it up"
                elif key == "image":
                    how = "pods with the new image take the place of the others"
                elif key.startswith("replicas."):
                    how = "replicas that start from now on take it up"
                found.append((_say(f"{name}: {key} of {version.label}", was, values[key]), how))
    return found


def _list_settings(name: str, known: DesiredVersion, version: DesiredVersion) -> list[Difference]:
    """Changes of the part of `build` for which no replica starts or stops."""
    was, merged = asdict(known.settings), list_fields(version)
    return [
        (_say(f"{name}: {key} of {version.label}", was[key], value), _AT_ONCE)
        for key, value in asdict(version.settings).items()
        if key not in merged and was[key] != value
    ]


def list_gateway_differences(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[Difference]:
    """Changes of the gateway's settings that have its workers replaced."""
    how = "workers are replaced one after the other"
    found = []
    for key, value in after.items():
        if key in _FIXED or before.get(key) == value:
            continue
        what = f"gateway: {key}"
        found.append((what if key in _SECRET else _say(what, before.get(key), value), how))
    return found


def _say(what: str, before: Any, after: Any) -> str:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        # Only what differs: these are groups of settings.
        keys = [key for key in after if before.get(key) != after[key]]
        return "; ".join(_say(f"{what}.{key}", before.get(key), after[key]) for key in keys)
    return f"{what} {show_value(before)} -> {show_value(after)}"


def show_value(value: Any) -> str:
    """A value of the spec or of the desired state, as people write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show_value(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(show_value, value)) or "none"
    return "none" if value is None else str(value)
