"""What a spec must hold beyond the form of each value: names, labels and weights that fit together.

Each check returns faults as pairs of a key path and a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.spec.faults import suggest
from thrifty.spec.models import Spec

Fault = tuple[str, str]


def check_names(spec: Spec) -> list[Fault]:
    """Faults (key path, message) in the names that deployments give themselves and one another."""
    faults = []
    listed = spec.deployments or (spec,)
    prefixes = [f"deployments.{index}." for index in range(len(spec.deployments))] or [""]
    if spec.deployments and spec.name is not None:
        faults.append(("name", "belongs into each of 'deployments'"))
    for key in ("model", "versions"):
        if spec.deployments and key in spec.model_fields_set:
            faults.append((key, "belongs into each of 'deployments'"))
    for prefix, entry in zip(prefixes, listed, strict=True):
        if len(listed) > 1 and entry.name is None:
            faults.append((f"{prefix}name", "is needed where there are several deployments"))
    taken: dict[str, str] = {}
    for prefix, entry in zip(prefixes, listed, strict=True):
        for key, names in (
            ("name", [entry.name] if entry.name else []),
            ("aliases", entry.aliases),
        ):
            for name in names:
                if name in taken:
                    faults.append((f"{prefix}{key}", f"{name!r} is taken by {taken[name]}"))
                taken.setdefault(name, f"{prefix}{key}")
    known = {entry.name for entry in listed if entry.name}
    for prefix, entry in zip(prefixes, listed, strict=True):
        for name in entry.fallback:
            if name not in known:
                hint = suggest(name, sorted(known)) if known else "there is no other"
                faults.append((f"{prefix}fallback", f"{name!r} is not a deployment; {hint}"))
            elif name == entry.name:
                faults.append((f"{prefix}fallback", "a deployment cannot stand in for itself"))
    return faults


def check_versions(spec: Spec) -> list[Fault]:
    """Faults in the weights of the versions of each deployment."""
    faults = []
    prefixes = [f"deployments.{index}." for index in range(len(spec.deployments))] or [""]
    for prefix, entry in zip(prefixes, spec.deployments or (spec,), strict=True):
        if entry.versions and not any(version.weight for version in entry.versions):
            faults.append(
                (f"{prefix}versions", "every weight is 0; one at least must be greater than 0")
            )
    return faults


def check_labels(data: Mapping[str, Any]) -> list[Fault]:
    """Versions of one deployment with the same label, in a spec whose values may be at fault."""
    entries = data.get("deployments")
    if not isinstance(entries, list):
        return _check_labels(data, "")
    return [
        fault
        for index, entry in enumerate(entries)
        for fault in _check_labels(entry, f"deployments.{index}.")
    ]


def _check_labels(entry: Any, prefix: str) -> list[Fault]:
    versions = entry.get("versions") if isinstance(entry, Mapping) else None
    faults = []
    taken: dict[str, int] = {}
    for index, version in enumerate(versions if isinstance(versions, list) else ()):
        label = version.get("label") if isinstance(version, Mapping) else None
        if isinstance(label, str) and taken.setdefault(label, index) != index:
            message = f"{label!r} is taken by versions.{taken[label]}"
            faults.append((f"{prefix}versions.{index}.label", message))
    return faults
