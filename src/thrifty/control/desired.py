"""The desired state of a service, as plain data: what should run, whoever asked for it.

A spec is turned into it by `plan`; `traffic`, releases and the autoscaler change parts of it. Each
field has one owner: the spec owns versions, options and bounds; `traffic` and releases own weights
once they have set them; the autoscaler owns counts. The database keeps it as JSON, with a row for each
change. Nothing in it names a local path: a model is an artifact in the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from thrifty.db.fleet import DeploymentRow, DeploymentSettings, VersionRow, VersionSettings
from thrifty.engines.base import Served


@dataclass(frozen=True)
class DesiredReplicas:
    """How many copies of a version run, and what each may use."""

    count: int = 1
    cpus: int | None = None
    """Cores for each copy; None: the machine's cores, shared evenly."""
    memory_limit_bytes: int | None = None
    start_timeout_s: float = 600.0


@dataclass(frozen=True)
class DesiredVersion:
    """One version: a model with an engine and its options, and its share of the traffic."""

    label: str
    model: str
    """The stored model's `name@vN`, or what an engine without stored models calls it."""
    engine: str
    revision: str
    artifact: str | None
    options: Mapping[str, Any]
    """The engine's options, resolved, as `Served.options`."""
    weight: float = 1.0
    shadow: float = 0.0
    settings: VersionSettings = field(default_factory=VersionSettings)
    replicas: DesiredReplicas = field(default_factory=DesiredReplicas)


@dataclass(frozen=True)
class DesiredDeployment:
    """What is to be served under one name."""

    name: str
    family: str
    settings: DeploymentSettings
    versions: tuple[DesiredVersion, ...]

    @property
    def row(self) -> DeploymentRow:
        """The deployment as gateways read it."""
        versions = tuple(
            VersionRow(
                label=version.label, model=version.model, engine=version.engine,
                revision=version.revision, artifact=version.artifact, weight=version.weight,
                shadow=version.shadow, settings=version.settings,
            )
            for version in self.versions
        )  # fmt: skip
        return DeploymentRow(self.name, self.family, self.settings, versions)


@dataclass(frozen=True)
class DesiredService:
    """What all deployments share."""

    gateway: Mapping[str, Any] = field(default_factory=dict)
    """The gateway workers' settings, and how many workers there are, as plain data."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The spec that was applied last, as written: the next `apply` changes what differs from it."""


def encode_desired(state: DesiredDeployment | DesiredService) -> str:
    """The state as JSON."""
    return msgspec.json.encode(state).decode()


def decode_deployment(text: str) -> DesiredDeployment:
    """The deployment that `encode_desired` made."""
    return msgspec.json.decode(text, type=DesiredDeployment)


def decode_service(text: str) -> DesiredService:
    """The service that `encode_desired` made."""
    return msgspec.json.decode(text, type=DesiredService)


def make_served(deployment: DesiredDeployment, version: DesiredVersion) -> Served:
    """What a replica of that version serves."""
    return Served(
        name=deployment.name, engine=version.engine, version=version.label,
        revision=version.revision, family=deployment.family, artifact=version.artifact,
        options=version.options,
    )  # fmt: skip
