"""What a spec deploys, as targets need it: deployments with versions, each with the engine it runs on.

Nothing is fetched and nothing of this machine is used, so that rendering gives the same everywhere.
What only makes sense on this machine (paths, pipelines) is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.artifacts.remotes import is_reference, parse_reference
from thrifty.engines.base import Engine, check_options
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.errors import Problem, RemoteError
from thrifty.spec import LoadedSpec, LoadedVersion, Spec
from thrifty.spec.faults import suggest

REMOTE_SOURCES = ("pypi:", "hf:")
"""Models that a machine elsewhere can fetch, besides those in remotes."""
CREDENTIALS = {
    "hf": ("HF_TOKEN",),
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"),
    "az": ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT"),
}
"""What fetching from hubs and remotes may need, where the platform gives no identity."""
BESIDE_IDENTITY = frozenset({"AZURE_STORAGE_ACCOUNT"})
"""Those that are of no use where the platform gives no identity."""
SECRETS = frozenset({"database", "redis"})
"""Keys of the spec that hold passwords: they go into no file and no checksum."""
DEFAULT_PORT = 8080


@dataclass(frozen=True)
class DeployedVersion:
    """One version, and what runs it."""

    deployment: str
    label: str
    spec: Spec
    """The spec that it would be if it were alone."""
    engine: Engine
    weight: float = 1.0
    shadow: float = 0.0

    @property
    def external(self) -> bool:
        """Whether others run its servers."""
        return self.engine.traits.external

    def credential_variables(self) -> tuple[str, ...]:
        """The environment variables that fetching its model may need."""
        return _find_credentials(self.spec.model) if self.engine.traits.loads_model else ()

    def replica_spec(self) -> dict[str, Any]:
        """The spec of one replica of it, without a gateway."""
        given = dump_spec(self.spec)
        names = ["model", "engine", "compress", "share"]
        kept = {key: given[key] for key in names if key in given}
        if self.spec.engine.image is not None:  # the pod's business, which is there by then
            kept["engine"] = {k: v for k, v in kept["engine"].items() if k != "image"}
        return {"name": self.deployment, **kept}


@dataclass(frozen=True)
class Deployed:
    """One deployment."""

    name: str
    loaded: LoadedSpec
    versions: tuple[DeployedVersion, ...]


@dataclass(frozen=True)
class DeployedService:
    """A whole spec."""

    loaded: LoadedSpec
    deployments: tuple[Deployed, ...]

    @property
    def versions(self) -> tuple[DeployedVersion, ...]:
        """Those of all deployments."""
        return tuple(version for one in self.deployments for version in one.versions)

    @property
    def own_versions(self) -> tuple[DeployedVersion, ...]:
        """Those whose replicas we run."""
        return tuple(version for version in self.versions if not version.external)

    @property
    def port(self) -> int:
        """Where the gateway listens; a port of 0 means any, so the default is taken."""
        return self.loaded.spec.gateway.port or DEFAULT_PORT

    def fetch_variables(self) -> list[str]:
        """The environment variables that fetching the models of all versions may need."""
        names = {name for one in self.own_versions for name in one.credential_variables()}
        return sorted(names | {*_find_credentials(self.loaded.spec.fleet.models or "")})

    def credential_variables(self, *more: str) -> list[str]:
        """`fetch_variables`, and `more` before them, for a container that has `key_variables`, too:
        without those, which must be there in any case.
        """
        keys = self.key_variables()
        return [
            name for name in dict.fromkeys([*more, *self.fetch_variables()]) if name not in keys
        ]

    def key_variables(self) -> list[str]:
        """The environment variables with secrets that a spec names: keys of servers that others
        run, headers for a collector, and what tells targets of alerts.
        """
        spec = self.loaded.spec
        names = {str(v.spec.engine.options.get("key_env") or "") for v in self.versions}
        names.add(spec.observe.otlp.headers_env or "")
        names |= {spec.record.encrypt.keys_env or "", spec.gateway.oidc.client_secret_env or ""}
        for target in spec.alerts.targets:
            names |= {target.url_env or "", target.user_env or "", target.password_env or ""}
        return sorted(names - {""})

    def whole_spec(self) -> dict[str, Any]:
        """The spec as one container serves it: everything in one place, behind one port."""
        return {**dump_spec(self.loaded.spec), "gateway": self.gateway_section()}

    def gateway_section(self) -> dict[str, Any]:
        """What the spec says of the gateway, listening on all addresses of its container."""
        given = dump_spec(self.loaded.spec).get("gateway", {})
        return {**given, "host": "0.0.0.0", "port": self.port}  # noqa: S104


def _find_credentials(source: str) -> tuple[str, ...]:
    scheme, colon, _ = source.partition(":")
    return CREDENTIALS.get(scheme, ()) if colon else ()


def dump_spec(spec: Spec) -> dict[str, Any]:
    """What was written in a spec, without secrets."""
    dumped: dict[str, Any] = spec.model_dump(mode="json", exclude_unset=True, exclude=set(SECRETS))
    return dumped


def make_checksum(service: DeployedService, options: Mapping[str, Any]) -> str:
    """Over the spec without its secrets, and the options of the target."""
    whole = {"spec": dump_spec(service.loaded.spec), "options": options}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def make_service(loaded: LoadedSpec) -> DeployedService:
    """What `loaded` deploys. Raises `SpecError` with every fault."""
    problems = _find_gateway_problems(loaded)
    deployments = []
    for index, one in enumerate(loaded.each()):
        prefix = f"deployments.{index}." if loaded.spec.deployments else ""
        versions = one.versions()
        name = one.spec.name or ""
        if not name:
            message = "is needed: a model's own name is only known once it was fetched"
            problems.append(Problem(f"{prefix}name", message))
        made = []
        for version in versions:
            at = prefix if version.index is None else f"{prefix}versions.{version.index}."
            problems += _find_version_problems(version, at, alone=len(versions) == 1)
            engine = _find_engine(version.loaded.spec)
            if engine is not None:
                label = version.label or make_default_label(version.loaded.spec)
                made.append(
                    DeployedVersion(
                        name, label, version.loaded.spec, engine, version.weight, version.shadow
                    )
                )
        deployments.append(Deployed(name, one, tuple(made)))
    loaded.refuse(problems)
    return DeployedService(loaded, tuple(deployments))


def make_default_label(spec: Spec) -> str:
    """What the only version of a deployment is called where the spec does not say."""
    kind = spec.engine.kind
    loads = kind == "auto" or find_engine(kind).traits.loads_model
    if not loads:
        return kind[:63]
    if is_reference(spec.model) and not _find_source_faults(spec.model):
        reference = parse_reference(spec.model)
        return (reference.name or reference.path.rpartition("/")[2] or reference.host)[:63]
    return spec.model.rpartition(":")[2].rpartition("/")[2].partition("@")[0][:63]


def _find_engine(spec: Spec) -> Engine | None:
    """The engine that runs it; `auto` is the first that runs models of its own accord."""
    kind = spec.engine.kind
    if kind in engine_kinds():
        return find_engine(kind)
    ranked = [engine for engine in map(find_engine, engine_kinds()) if engine.traits.auto_rank]
    if kind == "auto" and ranked:
        return min(ranked, key=lambda engine: engine.traits.auto_rank or 0)
    return None


def _find_gateway_problems(loaded: LoadedSpec) -> list[Problem]:
    gateway = loaded.spec.gateway
    problems = []
    if gateway.tls.cert is not None:
        message = (
            "names files of this machine; end TLS at the platform's own front door (docs/deploy says "
            "how for each target) and leave it out of the spec"
        )
        problems.append(Problem("gateway.tls", message))
    if loaded.spec.record.encrypt.keys_file is not None:
        message = "names a file of this machine; name an environment variable: keys_env"
        problems.append(Problem("record.encrypt.keys_file", message))
    if gateway.allow_no_keys:
        message = "cannot be deployed: beyond this machine there are always API keys; leave it out"
        problems.append(Problem("gateway.allow_no_keys", message))
    return problems


def _find_version_problems(version: LoadedVersion, at: str, *, alone: bool) -> list[Problem]:
    spec = version.loaded.spec
    engine = _find_engine(spec)
    if engine is None:
        hint = suggest(spec.engine.kind, ["auto", *engine_kinds()])
        return [Problem(f"{at}engine.kind", f"{spec.engine.kind!r} is not an engine; {hint}")]
    problems = [
        Problem(f"{at}{fault.path}", fault.message) for fault in check_options(engine, spec)
    ]
    for name in sorted(engine.traits.local_options & spec.engine.options.keys()):
        if spec.engine.options[name] is not None:
            message = (
                "names what is on this machine alone; leave it out (an adapter: merge it into its base, "
                "push the result to a remote, and name its URL as the model)"
            )
            problems.append(Problem(f"{at}engine.{name}", message))
    if engine.traits.external and spec.engine.image is not None:
        message = f"names an image, and the engine {engine.kind!r} starts no copies; leave it out"
        problems.append(Problem(f"{at}engine.image", message))
    if version.label is None and not alone:
        problems.append(Problem(f"{at}label", "is needed where there are several versions"))
    if engine.traits.loads_model:
        problems += [Problem(f"{at}model", fault) for fault in _find_source_faults(spec.model)]
    if spec.compress.is_pipeline:
        message = (
            "pruning and distilling take hours, which every replica would spend anew; run `thrifty "
            "compress` here, publish the result, and name it as the model"
        )
        problems.append(Problem(f"{at}compress", message))
    return problems


def _find_source_faults(model: str) -> list[str]:
    """Why a machine elsewhere could not fetch a model; empty if it could."""
    if model.startswith(REMOTE_SOURCES):
        return []
    if not is_reference(model) or model.startswith("file:"):
        return [
            f"{model!r} is on this machine alone; name a source that other machines can fetch from "
            "(pypi:PACKAGE, hf:ORG/NAME, or push it to a remote and name its URL: docs/remotes.md)"
        ]
    try:
        parse_reference(model)
    except RemoteError as error:
        return [str(error)]
    return []
