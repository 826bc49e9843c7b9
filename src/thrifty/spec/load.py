"""From a file, the environment and flags to a `Spec`, with every fault reported together.

Flags win over the environment, the environment over the file, the file over the defaults. Each
value's origin is kept, so that `thrifty spec --explain` can show it.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from thrifty.errors import Problem, SpecError
from thrifty.spec.models import MASK, DeploymentSpec, Spec, is_secret
from thrifty.spec.section import SHORTHANDS, expand_shorthand

MAX_SPEC_BYTES = 1_000_000
"""No honest spec is larger; a larger file is a mistake (a model, say)."""
MAX_KEYS = 10_000
MAX_DEPTH = 50
"""Anchors can make a small file mean a huge tree; lines are noted for so much of it."""

ENVIRONMENT = {
    "THRIFTY_NAME": "name",
    "THRIFTY_MODEL": "model",
    "THRIFTY_ENGINE": "engine.kind",
    "THRIFTY_REPLICAS": "replicas.count",
    "THRIFTY_ROUTING": "routing",
    "THRIFTY_HOST": "gateway.host",
    "THRIFTY_PORT": "gateway.port",
    "THRIFTY_DATABASE": "database",
    "THRIFTY_REDIS": "redis",
    "THRIFTY_PRICE_PER_HOUR": "price_per_hour",
}
"""Which variable sets which key."""


class ValueOrigin(StrEnum):
    """Where a value came from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


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
                p if p.line else _locate(p.path, p.message, self.lines, self.origins)
                for p in problems
            ]
            raise SpecError(_sort(located), self.source)

    def each(self) -> list[LoadedSpec]:
        """One spec for each deployment: what stands beside the list of deployments holds for each
        that does not say otherwise. Raises `SpecError`.
        """
        if not self.spec.deployments:
            return [self]
        common = self.spec.model_dump(exclude_unset=True, exclude={"deployments", "name", "model"})
        made = []
        for index, entry in enumerate(self.spec.deployments):
            prefix = f"deployments.{index}."
            own = entry.model_dump(exclude_unset=True)
            if "kind" in own.get("engine", {}):
                # Another engine has options of its own.
                common_now = {key: value for key, value in common.items() if key != "engine"}
            else:
                common_now = common
            spec = Spec.model_validate(_merge(common_now, own))
            made.append(
                LoadedSpec(
                    spec, self.source, _lift(self.lines, prefix), _lift(self.origins, prefix)
                )
            )
        return made

    def explain(self) -> list[tuple[str, Any, str]]:
        """Rows of key path, value and origin, in the spec's order, secrets masked."""
        if not self.spec.deployments:
            return [row for row in self._rows() if row[0] != "deployments"]
        own = tuple(DeploymentSpec.model_fields)
        rows = [
            row for row in self._rows() if row[0].partition(".")[0] not in (*own, "deployments")
        ]
        for index, one in enumerate(self.each()):
            rows += [
                (f"deployments.{index}.{path}", value, origin)
                for path, value, origin in one._rows()
                if path.partition(".")[0] in own
            ]
        return rows

    def _rows(self) -> list[tuple[str, Any, str]]:
        rows = []
        for path, value in _walk(self.spec):
            origin = self.origins.get(path, ValueOrigin.DEFAULT.value)
            shown = MASK if is_secret(path) and value is not None else value
            rows.append((path, shown, origin))
        return rows


def load_spec(
    path: str | Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> LoadedSpec:
    """Read the spec at `path` (none: all defaults), then apply the environment and `flags`.

    `flags` maps key paths such as `gateway.port` to values; `None` means not given. Raises
    `SpecError` with every fault.
    """
    environment = os.environ if environment is None else environment
    source = str(path) if path is not None else "the spec"
    data: dict[str, Any] = {}
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    if path is not None:
        data, lines, problems = _read_file(Path(path))
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
    _expand(data, origins)
    try:
        spec = Spec.model_validate(data)
        problems += [_locate(p, message, lines, origins) for p, message in _check_names(spec)]
    except ValidationError as error:
        problems += [_to_problem(dict(fault), lines, origins) for fault in error.errors()]
    if problems:
        raise SpecError(_sort(problems), source)
    return LoadedSpec(spec, source, lines, origins)


class _Loader(yaml.SafeLoader):
    """YAML without dates: a name such as `2024-01-31` is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


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


def _lift(places: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What is noted below `prefix`, over what is noted for all."""
    own = {path.removeprefix(prefix): at for path, at in places.items() if path.startswith(prefix)}
    return {**places, **own}


def _check_names(spec: Spec) -> list[tuple[str, str]]:
    """Faults (key path, message) in the names that deployments give themselves and one another."""
    faults = []
    listed = spec.deployments or (spec,)
    prefixes = [f"deployments.{index}." for index in range(len(spec.deployments))] or [""]
    if spec.deployments and spec.name is not None:
        faults.append(("name", "belongs into each of 'deployments'"))
    if len(listed) > 1 and "model" in spec.model_fields_set:
        faults.append(("model", "belongs into each of 'deployments'"))
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


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, int], list[Problem]]:
    """What the file says, the line of each key, and the keys that are there twice."""

    def refuse(message: str, line: int | None = None) -> SpecError:
        return SpecError([Problem("", message, line)], str(path))

    try:
        size = path.stat().st_size
        if size > MAX_SPEC_BYTES:
            raise refuse(
                f"{path} has {size} bytes; a spec has at most {MAX_SPEC_BYTES}. Is it a model? "
                f"Then: thrifty up ./{path.name}"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8 text (byte {error.start})") from None
    lines: dict[str, int] = {}
    duplicates: list[Problem] = []
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        _collect_lines(root, "", lines, duplicates)
        data = loader.construct_document(root) if root is not None else None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise refuse(f"is not valid YAML: it holds the character {character}", line) from None
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        what = error.problem or error.context
        raise refuse(f"is not valid YAML: {what}", where.line + 1 if where else None) from None
    except ValueError as error:
        # Python's own words for a number of thousands of digits, say.
        raise refuse(f"is not valid YAML: {error}") from None
    except RecursionError:
        raise refuse("is not valid YAML: it is nested too deeply") from None
    if data is None:
        return {}, {}, []
    if not isinstance(data, dict):
        kind = "list" if isinstance(data, list) else "single value"
        raise refuse(f"must be a mapping of keys to values, not a {kind}", 1)
    return data, lines, duplicates


def _collect_lines(
    node: yaml.Node | None,
    prefix: str,
    lines: dict[str, int],
    duplicates: list[Problem],
    depth: int = 0,
    *,
    merged: bool = False,
) -> None:
    """Note the line of every key below `node`; note keys that appear twice.

    `merged` is for what `<<` brings in: it gives way to what is written out.
    """
    if depth > MAX_DEPTH:
        return
    if isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            if len(lines) >= MAX_KEYS:
                return
            lines[f"{prefix}{index}"] = value.start_mark.line + 1
            _collect_lines(value, f"{prefix}{index}.", lines, duplicates, depth + 1, merged=merged)
    if not isinstance(node, yaml.MappingNode):
        return
    brought_in: list[yaml.Node] = []
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            brought_in += value.value if isinstance(value, yaml.SequenceNode) else [value]
            continue
        if len(lines) >= MAX_KEYS:
            return
        path = f"{prefix}{key.value}"
        line = key.start_mark.line + 1
        if path in lines:
            if not merged:
                duplicates.append(
                    Problem(path, f"is set twice, first in line {lines[path]}; keep one", line)
                )
            continue
        lines[path] = line
        _collect_lines(value, f"{path}.", lines, duplicates, depth + 1, merged=merged)
    for other in brought_in:
        _collect_lines(other, prefix, lines, duplicates, depth + 1, merged=True)


def _expand(data: dict[str, Any], origins: dict[str, str], prefix: str = "") -> None:
    """Write shorthands such as `engine: echo` out, so that a part of them can be set."""
    entries = data.get("deployments")
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict):
            _expand(entry, origins, f"deployments.{index}.")
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


def _nearest(known: Mapping[str, Any], path: str) -> str | None:
    """`path` where it is in `known`, or the nearest key above it that is."""
    while path and path not in known:
        path = path.rpartition(".")[0]
    return path or None


def _locate(
    path: str, message: str, lines: Mapping[str, int], origins: Mapping[str, str]
) -> Problem:
    """A problem with the value at `path`, at its line or with the flag or variable to blame."""
    nearest = _nearest(origins, path)
    origin = origins[nearest] if nearest else ""
    if nearest == path and origin and not origin.startswith(ValueOrigin.FILE.value):
        return Problem(path, f"{message} ({origin})")
    near_line = _nearest(lines, path)
    return Problem(path, message, lines[near_line] if near_line else None)


def _sort(problems: list[Problem]) -> list[Problem]:
    """In the order of the file; what is not in it comes last."""
    return sorted(problems, key=lambda p: (p.line is None, p.line or 0))


def suggest(word: str, known: list[str]) -> str:
    """A sentence that names the nearest of `known`, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"


def _to_problem(
    fault: dict[str, Any], lines: Mapping[str, int], origins: Mapping[str, str]
) -> Problem:
    path = ".".join(str(part) for part in fault["loc"])
    return _locate(path, _describe(fault, path), lines, origins)


def _describe(fault: dict[str, Any], path: str) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key"):
        *parents, key = (str(part) for part in fault["loc"])
        return f"is not a known key; {suggest(key, _known_keys(parents))}"
    shown = MASK if is_secret(path) else _show(fault["input"])
    if kind == "value_error":
        return str(context["error"]) if not is_secret(path) else f"cannot be {shown}"
    if kind == "literal_error":
        choices = [c.strip(" '") for c in context["expected"].replace(" or ", ", ").split(",")]
        return f"{shown} is not a choice; {suggest(str(fault['input']), choices)}"
    if kind == "string_pattern_mismatch":
        return (
            f"{shown} is not a name; take up to 64 letters, digits, '.', '_' and '-', of which "
            "the first is a letter or digit"
        )
    if kind == "model_type":
        return f"must be {_say_section(path)}, not {shown}"
    rule = _RULES.get(kind)
    if rule is not None:
        return f"must be {rule.format(**context)}, not {shown}"
    message = str(fault["msg"])
    return f"{message[0].lower()}{message[1:]}, not {shown}"


_RULES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (in quotes, if it looks like something else)",
    "string_too_short": "text of at least {min_length} character",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "greater than or equal to {ge:g}",
    "less_than_equal": "less than or equal to {le:g}",
}
"""What a value must be, by pydantic's name for the fault."""


def _known_keys(parents: list[str]) -> list[str]:
    section = _find_section(parents)
    return list(section.model_fields) if section is not None else []


def _without_index(path: list[str]) -> list[str]:
    """A key path within one of the deployments as one of the whole spec."""
    return path[2:] if len(path) > 1 and path[0] == "deployments" else path


def _find_section(path: list[str]) -> type[BaseModel] | None:
    section: type[BaseModel] = Spec
    for name in _without_index(path):
        field = section.model_fields.get(name)
        annotation = field.annotation if field is not None else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    return section


def _say_section(path: str) -> str:
    """What may stand at the key of a section, in words."""
    *parents, key = _without_index(path.split("."))
    path = ".".join([*parents, key])
    section = _find_section(parents)
    if path in SHORTHANDS and section is not None:
        words = (section.model_fields[key].description or "").rpartition(":")[2].strip(" .")
        return words[0].lower() + words[1:]
    return "a mapping of keys to values"


def _show(value: Any) -> str:
    """`value`, short whatever it is: anchors can make a small file mean a huge tree."""
    return _shortener.repr(value)[:80]


_shortener = reprlib.Repr()
_shortener.maxlevel = 2
_shortener.maxstring = _shortener.maxother = 60
