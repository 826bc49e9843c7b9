"""Files of YAML beside the spec, such as a recipe or the plan of a release: typed sections, closed to
keys that they do not know, with every fault in the spec's words and with its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from thrifty.errors import Problem, SpecError
from thrifty.spec.faults import sort_problems, suggest
from thrifty.spec.yaml_file import read_spec_file

Root = TypeVar("Root", bound=BaseModel)


def load_file(root: type[Root], path: Path, what: str) -> Root:
    """What the file at `path` says; `what` is what people call it, such as `the recipe`. Raises
    `SpecError` with every fault and its line.
    """
    try:
        data, lines, problems = read_spec_file(path)
        return _validate(root, data, lines, problems)
    except SpecError as error:
        raise SpecError(_name_whole(error, what), str(path)) from None


def parse_data(root: type[Root], data: Any, what: str) -> Root:
    """What `data` says, as `load_file`."""
    try:
        return _validate(root, data, {}, [])
    except SpecError as error:
        raise SpecError(_name_whole(error, what), what) from None


def _name_whole(error: SpecError, what: str) -> list[Problem]:
    """Faults of the whole are those of `what`."""
    return [replace(one, path=one.path or what) for one in error.problems]


def _validate(
    root: type[Root], data: Any, lines: Mapping[str, int], problems: list[Problem]
) -> Root:
    try:
        made = root.model_validate(data)
    except ValidationError as error:
        problems = [*problems, *(_to_problem(root, dict(one), lines) for one in error.errors())]
    if problems:
        raise SpecError(sort_problems(problems))
    return made


def _to_problem(root: type[BaseModel], fault: dict[str, Any], lines: Mapping[str, int]) -> Problem:
    parts = [str(part) for part in fault["loc"] if not str(part).startswith("function-")]
    path = ".".join(parts)
    near = path
    while near and near not in lines:
        near = near.rpartition(".")[0]
    return Problem(path, _describe(root, fault, parts), lines.get(near))


def _describe(root: type[BaseModel], fault: dict[str, Any], parts: list[str]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"is not a known key; {suggest(parts[-1], _known_keys(root, parts[:-1]))}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = [one.strip(" '") for one in context["expected"].replace(" or ", ", ").split(",")]
        return f"{fault['input']!r} is not a choice; {suggest(str(fault['input']), choices)}"
    message = str(fault["msg"])
    return f"{message[0].lower()}{message[1:]}, not {str(fault['input'])[:60]!r}"


def _known_keys(root: type[BaseModel], path: list[str]) -> list[str]:
    section = root
    for part in path:
        if part.isdigit():
            continue
        field = section.model_fields.get(part)
        found = find_sections(field.annotation) if field is not None else []
        if not found:
            return []
        section = found[0]
    return list(section.model_fields)


def find_sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for inner in get_args(annotation) for one in find_sections(inner)]
