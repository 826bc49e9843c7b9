"""From a file, the environment and flags to a `Spec`, with every fault reported together.

Flags win over the environment, the environment over the file, the file over the defaults. Each
value's origin is kept, so that `thrifty spec --explain` can show it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from thrifty.errors import Problem, SpecError
from thrifty.spec.models import Spec

MAX_SPEC_BYTES = 1_000_000
"""No honest spec is larger; a larger file is a mistake (a model, say)."""

ENVIRONMENT = {
    "THRIFTY_NAME": "name",
    "THRIFTY_MODEL": "model",
    "THRIFTY_ENGINE": "engine.kind",
    "THRIFTY_REPLICAS": "replicas.count",
    "THRIFTY_ROUTING": "routing",
    "THRIFTY_HOST": "gateway.host",
    "THRIFTY_PORT": "gateway.port",
    "THRIFTY_DATABASE": "database",
    "THRIFTY_PRICE_PER_HOUR": "price_per_hour",
}
"""Which variable sets which key."""

SECRET_PATHS = frozenset({"database"})


class Origin(StrEnum):
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
    """Origin of each key path that was set, such as `file, line 3` or `flag`."""

    def refuse(self, problems: list[Problem]) -> None:
        """Raise `SpecError` with lines filled in, if there are any `problems`."""
        if problems:
            located = [
                Problem(p.path, p.message, p.line or _find_line(self.lines, p.path))
                for p in problems
            ]
            raise SpecError(located, self.source)

    def explain(self) -> list[tuple[str, Any, str]]:
        """Rows of key path, value and origin, in the spec's order, secrets masked."""
        rows = []
        for path, value in _walk(self.spec):
            origin = self.origins.get(path, Origin.DEFAULT.value)
            shown = "***" if path in SECRET_PATHS and value is not None else value
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
    if path is not None:
        data, lines = _read_file(Path(path))
    origins = {p: f"file, line {n}" for p, n in lines.items()}
    for variable, key in ENVIRONMENT.items():
        if environment.get(variable):
            _set(data, key, environment[variable])
            origins[key] = f"{Origin.ENVIRONMENT.value}, {variable}"
    for key, value in (flags or {}).items():
        if value is not None:
            _set(data, key, value)
            origins[key] = Origin.FLAG.value
    for shorthand, full in (
        ("engine", "engine.kind"),
        ("compress", "compress.quantize"),
        ("replicas", "replicas.count"),
    ):
        if shorthand in origins and not any(k.startswith(f"{shorthand}.") for k in origins):
            origins[full] = origins[shorthand]
    try:
        spec = Spec.model_validate(data)
    except ValidationError as error:
        problems = [_to_problem(dict(fault), lines) for fault in error.errors()]
        raise SpecError(problems, source) from None
    return LoadedSpec(spec, source, lines, origins)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise SpecError(
                [
                    Problem(
                        "",
                        f"{path} has {path.stat().st_size} bytes; a spec has at most "
                        f"{MAX_SPEC_BYTES}. Is it a model? Then: thrifty up ./{path.name}",
                    )
                ],
                str(path),
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError([Problem("", f"cannot be read: {error.strerror}")], str(path)) from None
    except UnicodeDecodeError as error:
        raise SpecError(
            [Problem("", f"is not UTF-8 text (byte {error.start})")], str(path)
        ) from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "is not YAML"
        line = mark.line + 1 if mark else None
        raise SpecError([Problem("", f"is not valid YAML: {what}", line)], str(path)) from None
    if data is None:
        return {}, {}
    if not isinstance(data, dict):
        raise SpecError(
            [Problem("", f"must be a mapping of keys to values, not a {type(data).__name__}", 1)],
            str(path),
        )
    lines: dict[str, int] = {}
    duplicates: list[Problem] = []
    _collect_lines(root, "", lines, duplicates)
    if duplicates:
        raise SpecError(duplicates, str(path))
    return data, lines


def _collect_lines(
    node: yaml.Node | None, prefix: str, lines: dict[str, int], duplicates: list[Problem]
) -> None:
    """Note the line of every key below `node`; note keys that appear twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            line = key.start_mark.line + 1
            if path in lines:
                duplicates.append(
                    Problem(path, f"is set twice, first in line {lines[path]}; keep one", line)
                )
            lines[path] = line
            _collect_lines(value, f"{path}.", lines, duplicates)


def _set(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        below = data.get(key)
        if not isinstance(below, dict):
            # A shorthand such as `engine: openvino` gives way to the mapping that is being set.
            below = {} if below is None or last in ("kind", "count") else {"kind": below}
            data[key] = below
        data = below
    data[last] = value


def _walk(section: BaseModel, prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name in [*type(section).model_fields, *(section.model_extra or {})]:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            rows += _walk(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def _find_line(lines: Mapping[str, int], path: str) -> int | None:
    """The line of `path`, or of the nearest key above it."""
    while path:
        if path in lines:
            return lines[path]
        path = path.rpartition(".")[0]
    return None


def suggest(word: str, known: list[str]) -> str:
    """A sentence that names the nearest of `known`, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"


def _to_problem(fault: dict[str, Any], lines: Mapping[str, int]) -> Problem:
    path = ".".join(str(part) for part in fault["loc"])
    kind, context = fault["type"], fault.get("ctx", {})
    message = _MESSAGES.get(kind, _plain_message)(fault, context)
    return Problem(path, message, _find_line(lines, path))


def _unknown_key(fault: dict[str, Any], _: dict[str, Any]) -> str:
    *parents, key = (str(part) for part in fault["loc"])
    return f"is not a known key; {suggest(key, _known_keys(parents))}"


def _known_keys(parents: list[str]) -> list[str]:
    section: type[BaseModel] = Spec
    for name in parents:
        annotation = section.model_fields[name].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)


def _not_a_choice(fault: dict[str, Any], context: dict[str, Any]) -> str:
    choices = [c.strip(" '") for c in context["expected"].replace(" or ", ", ").split(",")]
    return f"{fault['input']!r} is not a choice; {suggest(str(fault['input']), choices)}"


def _bad_value(fault: dict[str, Any], context: dict[str, Any]) -> str:
    return str(context.get("error", fault["msg"]))


def _plain_message(fault: dict[str, Any], _: dict[str, Any]) -> str:
    message = str(fault["msg"])
    return f"{message[0].lower()}{message[1:]}, not {fault['input']!r}"


_MESSAGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], str]] = {
    "extra_forbidden": _unknown_key,
    "literal_error": _not_a_choice,
    "value_error": _bad_value,
}
