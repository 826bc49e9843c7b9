"""What the last applied spec came to, as the service's desired state keeps it.

It is the base of the three-way merge: the next `apply` changes what differs from it, and whatever
the current state has beyond it was set by an operator, a release or the autoscaler. It holds no
secrets: of URLs with passwords only a checksum is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from thrifty.db.desired_state import DesiredDeployment, DesiredService
from thrifty.spec import Spec

_SECRET = frozenset({"database", "redis"})


@dataclass(frozen=True)
class AppliedSpec:
    """A spec, and the desired state that it came to by itself."""

    written: Mapping[str, Any] = field(default_factory=dict)
    """The keys that were set, without those that hold passwords."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """By key path, what cannot change while the service runs."""
    deployments: Mapping[str, DesiredDeployment] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    """For each version (`deployment/label`) a checksum over what it was made from: the model as
    it was stored and what was asked of the pipeline.
    """

    def to_builtins(self) -> dict[str, Any]:
        """As values of JSON, for `DesiredService.spec`."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


def read_applied(service: DesiredService | None) -> AppliedSpec | None:
    """What was applied last; None where nothing was, or where another release wrote it."""
    if service is None or not service.spec:
        return None
    try:
        return msgspec.convert(service.spec, AppliedSpec)
    except msgspec.ValidationError:
        return None


def describe_written(spec: Spec) -> dict[str, Any]:
    """The keys that `spec` sets, as values of JSON, without secrets."""
    made: dict[str, Any] = spec.model_dump(mode="json", exclude_unset=True, exclude=set(_SECRET))
    return made


def describe_fixed(spec: Spec) -> dict[str, str]:
    """What cannot change while the service runs, by key path."""
    return {
        "gateway.host": spec.gateway.host,
        "gateway.port": str(spec.gateway.port),
        "gateway.tls": "off" if spec.gateway.tls.cert is None else "on",
        "database": _checksum(spec.database),
        "fleet": _describe_fleet(spec),
    }


def _describe_fleet(spec: Spec) -> str:
    """The fleet in short."""
    fleet = spec.fleet
    if fleet.kind == "local":
        return fleet.kind
    text = json.dumps(fleet.describe(), sort_keys=True)
    return f"{fleet.kind} {hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _checksum(url: str | None) -> str:
    """Few digits of a checksum: enough to notice a change, too few to find a password by."""
    return "" if url is None else hashlib.sha256(url.encode()).hexdigest()[:6]
