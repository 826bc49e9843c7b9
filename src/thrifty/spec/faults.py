"""What is wrong with a spec, in words: pydantic's faults as problems with a key path and a line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, get_args

from pydantic import BaseModel

from thrifty.errors import Problem
from thrifty.spec.models import MASK, DeploymentSpec, Spec, VersionSpec, is_secret
from thrifty.spec.section import LABEL_PATTERN, SHORTHANDS

MOST_PLACES = 3
"""Where more sections have a key of a name, none of them is suggested."""


class ValueOrigin(StrEnum):
    """Where a value came from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


def _nearest(known: Mapping[str, Any], path: str) -> str | None:
    """`path` where it is in `known`, or the nearest key above it that is."""
    while path and path not in known:
        path = path.rpartition(".")[0]
    return path or None


def locate(
    path: str, message: str, lines: Mapping[str, int], origins: Mapping[str, str]
) -> Problem:
    """A problem with the value at `path`, at its line or with the flag or variable to blame."""
    nearest = _nearest(origins, path)
    origin = origins[nearest] if nearest else ""
    if nearest == path and origin and not origin.startswith(ValueOrigin.FILE.value):
        return Problem(path, f"{message} ({origin})")
    near_line = _nearest(lines, path)
    return Problem(path, message, lines[near_line] if near_line else None)


def sort_problems(problems: list[Problem]) -> list[Problem]:
    """In the order of the file; what is not in it comes last."""
    return sorted(problems, key=lambda p: (p.line is None, p.line or 0))


def suggest(word: str, known: list[str]) -> str:
    """A sentence that names the nearest of `known`, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"


def to_problem(
    fault: dict[str, Any], lines: Mapping[str, int], origins: Mapping[str, str]
) -> Problem:
    """A fault that pydantic found, in our words."""
    path = ".".join(str(part) for part in fault["loc"])
    return locate(path, _describe(fault, path), lines, origins)


def _describe(fault: dict[str, Any], path: str) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key"):
        *parents, key = (str(part) for part in fault["loc"])
        places = _find_elsewhere(key)
        if 1 <= len(places) <= MOST_PLACES:
            return f"is not a known key here; did you mean {' or '.join(map(repr, places))}?"
        return f"is not a known key; {suggest(key, _known_keys(parents))}"
    shown = MASK if is_secret(path) else _show(fault["input"])
    if kind == "value_error":
        return str(context["error"]) if not is_secret(path) else f"cannot be {shown}"
    if kind == "literal_error":
        choices = [c.strip(" '") for c in context["expected"].replace(" or ", ", ").split(",")]
        return f"{shown} is not a choice; {suggest(str(fault['input']), choices)}"
    if kind == "string_pattern_mismatch" and context["pattern"] == LABEL_PATTERN:
        return (
            f"{shown} is not a label; take up to 63 letters, digits, '.', '_', '@' and '-', of "
            "which the first is a letter or digit"
        )
    if kind in ("string_pattern_mismatch", "string_too_long"):
        return (
            f"{shown} is not a name; take up to 64 letters, digits, '.', '_', ':', '-' and '/', "
            "of which the first, and the first after each '/', is a letter or digit"
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
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "string_too_short": "text of at least {min_length} character",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "greater than or equal to {ge:g}",
    "less_than_equal": "less than or equal to {le:g}",
}
"""What a value must be, by pydantic's name for the fault."""


def _known_keys(parents: list[str]) -> list[str]:
    section = _find_section(parents)
    return list(section.model_fields) if section is not None else []


def _find_elsewhere(key: str, section: type[BaseModel] = Spec, prefix: str = "") -> list[str]:
    """The paths of the sections' keys that are called `key`, those of list items left out."""
    found = []
    for name, field in section.model_fields.items():
        for part in (field.annotation, *get_args(field.annotation)):
            if name not in _LISTS and isinstance(part, type) and issubclass(part, BaseModel):
                if key in part.model_fields:
                    found.append(f"{prefix}{name}.{key}")
                found += _find_elsewhere(key, part, f"{prefix}{name}.")
    return found


def _without_index(path: list[str]) -> list[str]:
    """A key path within a deployment or a version as one of that section."""
    for name in _LISTS:
        if len(path) > 1 and path[0] == name and path[1].isdigit():
            path = path[2:]
    return path


def _find_section(path: list[str]) -> type[BaseModel] | None:
    """The section at a key path; None where there is none."""
    section: type[BaseModel] = Spec
    for name, below in _LISTS.items():
        if len(path) > 1 and path[0] == name and path[1].isdigit():
            section, path = below, path[2:]
    for name in path:
        field = section.model_fields.get(name)
        annotation = field.annotation if field is not None else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    return section


_LISTS: dict[str, type[BaseModel]] = {"deployments": DeploymentSpec, "versions": VersionSpec}
"""The keys that hold lists of sections, the outer one first."""


def _say_section(path: str) -> str:
    """What may stand at the key of a section, in words."""
    *parents, key = path.split(".")
    section = _find_section(parents)
    path = ".".join([*_without_index(parents), key])
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
