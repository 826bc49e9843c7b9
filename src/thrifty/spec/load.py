"""From a file, the environment and flags to a `Spec`, with every fault reported together.

Flags win over the environment, the environment over the file, the file over the defaults. Each
value's origin is kept, so that `thrifty spec --explain` can show it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from thrifty.errors import Problem, SpecError
from thrifty.spec.checks import check_labels, check_names, check_versions
from thrifty.spec.faults import ValueOrigin, locate, sort_problems, to_problem
from thrifty.spec.faults import suggest as suggest
from thrifty.spec.models import MASK, DeploymentSpec, Spec, VersionSpec, is_secret
from thrifty.spec.scaling import BOUNDS
from thrifty.spec.section import SHORTHANDS, expand_shorthand
from thrifty.spec.yaml_file import read_spec_file, read_spec_text

ENVIRONMENT = {
    "THRIFTY_NAME": "name",
    "THRIFTY_MODEL": "model",
    "THRIFTY_ENGINE": "engine.kind",
    "THRIFTY_REPLICAS": "replicas.count",
    "THRIFTY_BENCHMARK": "benchmark",
    "THRIFTY_ROUTING": "routing",
    "THRIFTY_HOST": "gateway.host",
    "THRIFTY_PORT": "gateway.port",
    "THRIFTY_DATABASE": "database",
    "THRIFTY_REDIS": "redis",
    "THRIFTY_PRICE_PER_HOUR": "price_per_hour",
}
"""Which variable sets which key."""
ENVIRONMENT_SPEC = "env:"
"""What a spec in an environment variable begins with, in place of a path."""


@dataclass(frozen=True)
class LoadedSpec:
    """A spec, and where its values came from."""

    spec: Spec
    source: str
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line in the file, by key path."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """ValueOrigin of each key path that was set, such as `file, line 3` or `flag`."""

    def refuse(self, problems: list[Problem]) -> None:
        """Raise `SpecError` with lines filled in, if there are any `problems`."""
        if problems:
            located = [
                p if p.line else locate(p.path, p.message, self.lines, self.origins)
                for p in problems
            ]
            raise SpecError(sort_problems(located), self.source)

    def each(self) -> list[LoadedSpec]:
        """One spec for each deployment: what stands beside the list of deployments holds for each
        that does not say otherwise. Raises `SpecError`.
        """
        if not self.spec.deployments:
            return [self]
        common = self.spec.model_dump(exclude_unset=True, exclude={"deployments", "name", "model"})
        return [
            self._make_part(f"deployments.{index}.", common, entry.model_dump(exclude_unset=True))
            for index, entry in enumerate(self.spec.deployments)
        ]

    def versions(self) -> list[LoadedVersion]:
        """The versions of a spec of one deployment, as `each` gives them: what stands beside the
        list of versions holds for each that does not say otherwise. Raises `SpecError`.
        """
        if not self.spec.versions:
            return [LoadedVersion(self)]
        common = self.spec.model_dump(exclude_unset=True, exclude={"versions"})
        made = []
        for index, version in enumerate(self.spec.versions):
            own = version.model_dump(exclude_unset=True, exclude=_ONLY_IN_VERSIONS)
            part = self._make_part(f"versions.{index}.", common, own)
            made.append(
                LoadedVersion(part, version.label, version.weight, version.shadow, index=index)
            )
        return made

    def _make_part(
        self, prefix: str, common: Mapping[str, Any], own: Mapping[str, Any]
    ) -> LoadedSpec:
        """The spec of what stands below `prefix`, with `common` where it says nothing."""
        kind = own.get("engine", {}).get("kind")
        if kind is not None and kind != common.get("engine", {}).get("kind"):
            # Another engine has options of its own.
            common = {key: value for key, value in common.items() if key != "engine"}
        common = _drop_other_count(common, own)
        spec = Spec.model_validate(_merge(common, own))
        return LoadedSpec(spec, self.source, _lift(self.lines, prefix), _lift(self.origins, prefix))

    def explain(self) -> list[tuple[str, Any, str]]:
        """Rows of key path, value and origin, in the spec's order, secrets masked."""
        if not self.spec.deployments:
            return self._explain_one()
        own = tuple(DeploymentSpec.model_fields)
        rows = [
            row for row in self._rows() if row[0].partition(".")[0] not in (*own, "deployments")
        ]
        for index, one in enumerate(self.each()):
            rows += [
                (f"deployments.{index}.{path}", value, origin)
                for path, value, origin in one._explain_one()
                if path.partition(".")[0] in own
            ]
        return rows

    def _explain_one(self) -> list[tuple[str, Any, str]]:
        """As `explain`, of a spec of one deployment."""
        own = tuple(VersionSpec.model_fields) if self.spec.versions else ()
        rows = []
        for row in self._rows():
            key = row[0].partition(".")[0]
            if key == "versions":
                for version in self.versions() if self.spec.versions else ():
                    rows += version.explain()
            elif key != "deployments" and key not in own:
                rows.append(row)
        return rows

    def _rows(self) -> list[tuple[str, Any, str]]:
        rows = []
        for path, value in _walk(self.spec):
            origin = self.origins.get(path, ValueOrigin.DEFAULT.value)
            shown = MASK if is_secret(path) and value is not None else value
            rows.append((path, shown, origin))
        return rows


_ONLY_IN_VERSIONS = {"label", "weight", "shadow"}


@dataclass(frozen=True)
class LoadedVersion:
    """One version of a deployment."""

    loaded: LoadedSpec
    """The spec that it would be if it were alone."""
    label: str | None = None
    """None: the default."""
    weight: float = 1.0
    shadow: float = 0.0
    index: int | None = None
    """Its place in the list of versions; None where the spec has no such list."""

    def explain(self) -> list[tuple[str, Any, str]]:
        """Its rows of key path, value and origin."""
        prefix = f"versions.{self.index}."
        origins = self.loaded.origins
        rows = []
        for name in VersionSpec.model_fields:
            if name in _ONLY_IN_VERSIONS:
                origin = origins.get(name, ValueOrigin.DEFAULT.value)
                rows.append((f"{prefix}{name}", getattr(self, name), origin))
                continue
            rows += [
                (f"{prefix}{path}", value, origin)
                for path, value, origin in self.loaded._rows()
                if path.partition(".")[0] == name
            ]
        return rows


def load_spec(
    path: str | Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> LoadedSpec:
    """Read the spec at `path` (none: all defaults), then apply the environment and `flags`. The path
    `env:NAME` is the environment variable that holds a spec's text.

    `flags` maps key paths such as `gateway.port` to values; `None` means not given. Raises
    `SpecError` with every fault.
    """
    environment = os.environ if environment is None else environment
    source = str(path) if path is not None else "the spec"
    data: dict[str, Any] = {}
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    if path is not None and source.startswith(ENVIRONMENT_SPEC):
        text = environment.get(source.removeprefix(ENVIRONMENT_SPEC))
        if text is None:
            raise SpecError([Problem("", "the environment variable is not set")], source)
        data, lines, problems = read_spec_text(text, source)
    elif path is not None:
        data, lines, problems = read_spec_file(Path(path))
    origins = {p: f"{ValueOrigin.FILE.value}, line {n}" for p, n in lines.items()}
    _expand(data, origins)
    for variable, key in ENVIRONMENT.items():
        if environment.get(variable):
            _set(
                data,
                key,
                environment[variable],
                f"{ValueOrigin.ENVIRONMENT.value}, {variable}",
                origins,
            )
    for key, value in (flags or {}).items():
        if value is not None:
            _set(data, key, value, ValueOrigin.FLAG.value, origins)
    return _validate(data, source, lines, origins, problems)


def parse_spec(data: Mapping[str, Any], source: str = "the spec") -> LoadedSpec:
    """The spec that a mapping holds, such as a request's. Nothing of the environment goes into it.
    Raises `SpecError` with every fault.
    """
    copied = copy.deepcopy(dict(data))
    return _validate(copied, source, {}, _note_origins(copied), [])


def _note_origins(data: Any, prefix: str = "") -> dict[str, str]:
    """The origin of every key of a mapping that was given."""
    origins: dict[str, str] = {}
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in pairs:
        origins[f"{prefix}{key}"] = ValueOrigin.FILE.value
        if isinstance(value, dict | list):
            origins |= _note_origins(value, f"{prefix}{key}.")
    return origins


def _validate(
    data: dict[str, Any],
    source: str,
    lines: dict[str, int],
    origins: dict[str, str],
    problems: list[Problem],
) -> LoadedSpec:
    """The spec of `data`, whose reading has found `problems`. Raises `SpecError`."""
    _expand(data, origins)
    problems += [locate(p, message, lines, origins) for p, message in check_labels(data)]
    try:
        spec = Spec.model_validate(data)
        faults = [*check_names(spec), *check_versions(spec)]
        problems += [locate(p, message, lines, origins) for p, message in faults]
    except ValidationError as error:
        problems += [to_problem(dict(fault), lines, origins) for fault in error.errors()]
    if problems:
        raise SpecError(sort_problems(problems), source)
    return LoadedSpec(spec, source, lines, origins)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `under`, mapping by mapping."""
    merged = dict(under)
    for key, value in over.items():
        known = merged.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            merged[key] = _merge(known, value)
        else:
            merged[key] = value
    return merged


def _drop_other_count(common: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """`common` without the number of replicas where `own` has one of the other kind: a fixed count
    in place of bounds, or the reverse.
    """
    below, above = common.get("replicas") or {}, own.get("replicas") or {}
    other: set[str] = set()
    if "count" in above:
        other |= set(BOUNDS)
    if not other and any(key in above for key in BOUNDS):
        other = {"count"}
    kept = {key: value for key, value in below.items() if key not in other}
    return {**common, "replicas": kept} if kept != below else common


def _lift(places: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What is noted below `prefix`, over what is noted for all."""
    own = {path.removeprefix(prefix): at for path, at in places.items() if path.startswith(prefix)}
    return {**places, **own}


def _expand(data: dict[str, Any], origins: dict[str, str], prefix: str = "") -> None:
    """Write shorthands such as `engine: echo` out, so that a part of them can be set."""
    for key in ("deployments", "versions"):
        entries = data.get(key)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict):
                _expand(entry, origins, f"{prefix}{key}.{index}.")
    for path in SHORTHANDS:
        *parents, key = path.split(".")
        section: Any = data
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or key not in section:
            continue
        value = section[key]
        full = expand_shorthand(path, value)
        if full is not value:
            section[key] = full
            for name in full:
                origins[f"{prefix}{path}.{name}"] = origins[f"{prefix}{path}"]


def _set(data: dict[str, Any], path: str, value: Any, origin: str, origins: dict[str, str]) -> None:
    full = expand_shorthand(path, value)
    if full is not value:
        for name, part in full.items():
            _set(data, f"{path}.{name}", part, origin, origins)
        return
    *parents, last = path.split(".")
    section: Any = data
    for key in parents:
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            return  # a fault of the file, which is reported as such
    if isinstance(value, Mapping):
        # A whole section takes the place of the one before.
        value = dict(value)
        for known in [p for p in origins if p.startswith(f"{path}.")]:
            del origins[known]
        origins.update({f"{path}.{name}": origin for name in value})
    section[last] = value
    origins[path] = origin


def _walk(section: BaseModel, prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name in [*type(section).model_fields, *(section.model_extra or {})]:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            rows += _walk(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
