"""JSON schemas as they are read: their parts, references between them, and what is refused.

Draft 2020-12. A schema that several keywords or references apply to together is a set of `Node`s, all
of which a value must satisfy. Keywords that only describe are let through; one that would constrain
and is not enforced is refused by its name and place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from thrifty.engines.server.grammar.patterns import PatternRefused, check_pattern
from thrifty.engines.server.grammar.rules import GrammarTooLarge

MAX_STEPS = 200_000
MAX_SHOWN_PATH = 200
_INDEX = re.compile("[0-9]{1,9}", re.ASCII)
"""A place in an array, as a step of a `$ref`."""
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


class SchemaRefused(ValueError):
    """A schema that is not valid, or that cannot be enforced. `str` says where and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{reason} (at '{shorten_path(path)}')")


def shorten_path(path: str) -> str:
    """A path as messages show it: names of properties may be long."""
    return path if len(path) <= MAX_SHOWN_PATH else f"{path[:MAX_SHOWN_PATH]}..."


@dataclass(frozen=True, eq=False)
class Node:
    """One schema of a document, and where it stands. Equal only to itself."""

    schema: dict[str, Any]
    path: str

    def child(self, *steps: str | int) -> str:
        """The place of something inside it."""
        return "/".join([self.path, *(str(s).replace("~", "~0").replace("/", "~1") for s in steps)])

    def refuse(self, keyword: str, reason: str) -> SchemaRefused:
        """The refusal of one of its keywords."""
        return SchemaRefused(self.child(keyword), f"'{keyword}' {reason}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_map(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(item, str) for item in value)
        and len(set(value)) == len(value)
    )


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and _is_names(names) and set(names) <= set(TYPES)


def _is_dependent(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_names, value.values()))


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
         "minContains", "maxContains"),
        (_is_count, "a whole number from 0"),
    ),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (_is_number, "a number")
    ),
    **dict.fromkeys(
        ("additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else",
         "unevaluatedItems", "unevaluatedProperties"),
        (_is_schema, "a schema"),
    ),
    **dict.fromkeys(
        ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"),
        (_is_map, "an object of schemas"),
    ),
    **dict.fromkeys(
        ("allOf", "anyOf", "oneOf", "prefixItems"), (_is_list, "a non-empty array of schemas")
    ),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "type": (_is_type, f"one or more of {', '.join(TYPES)}"),
    "required": (_is_names, "an array of names, each once"),
    "dependentRequired": (_is_dependent, "an object of arrays of names, each once"),
    **dict.fromkeys(
        ("pattern", "format", "$ref", "$id", "$schema", "$anchor", "$comment", "title", "description",
         "contentEncoding", "contentMediaType"),
        (lambda value: isinstance(value, str), "a string"),
    ),
    **dict.fromkeys(
        ("uniqueItems", "deprecated", "readOnly", "writeOnly"),
        (lambda value: isinstance(value, bool), "true or false"),
    ),
    **dict.fromkeys(("enum", "examples"), (lambda value: isinstance(value, list), "an array")),
}  # fmt: skip
"""What the values of keywords must be."""

_PARTS: dict[str, Callable[[Any], list[tuple[tuple[str | int, ...], Any]]]] = {
    **dict.fromkeys(
        [word for word, (_, form) in _FORMS.items() if form == "a schema"],
        lambda value: [((), value)],
    ),
    **dict.fromkeys(
        [word for word, (_, form) in _FORMS.items() if form == "an object of schemas"],
        lambda value: [((name,), part) for name, part in value.items()],
    ),
    **dict.fromkeys(
        [word for word, (_, form) in _FORMS.items() if form == "a non-empty array of schemas"],
        lambda value: [((index,), part) for index, part in enumerate(value)],
    ),
}
"""Where the schemas in a keyword are."""

_NEVER = {
    "$dynamicRef": "is not known here",
    "$recursiveRef": "is not known here",
    "dependencies": "is not part of Draft 2020-12; use 'dependentRequired'",
    "additionalItems": "is not part of Draft 2020-12; use 'prefixItems' and 'items'",
}


class Document:
    """A whole schema. Making it raises `SchemaRefused` where any part of it is not valid."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._root = schema
        self._nodes: dict[int, Node] = {}
        self._straight: set[Node] = set()
        self._steps = 0
        self._checked: set[int] = set()
        """The ids of schemas whose keywords have the right form."""
        self._check_forms(Node(schema, "#"))

    def root(self) -> Node:
        """The node of the whole schema."""
        return self.node(self._root, "#")

    def node(self, schema: dict[str, Any] | bool, path: str) -> Node:
        """The node of a part of the document. Raises `SchemaRefused` where it cannot be enforced."""
        if isinstance(schema, bool):
            schema = _EVERYTHING if schema else _NOTHING
        known = self._nodes.get(id(schema))
        if known is None:
            known = self._nodes[id(schema)] = Node(schema, path)
            self._check_known(known)
        return known

    def _check_known(self, node: Node) -> None:
        for keyword, reason in _NEVER.items():
            if keyword in node.schema:
                raise node.refuse(keyword, reason)
        if "$id" in node.schema and node.schema is not self._root:
            raise node.refuse("$id", "of a part of a schema is not known here")
        for keyword in ("unevaluatedItems", "unevaluatedProperties"):
            if node.schema.get(keyword, True) not in (True, {}):
                raise node.refuse(keyword, "cannot be enforced")

    def refuse_circles(self, node: Node, trail: frozenset[Node] = frozenset()) -> None:
        """Refuse a schema that applies itself to the same value again, without end."""
        if node in self._straight:
            return
        if node in trail:
            raise node.refuse("$ref" if "$ref" in node.schema else "allOf", "leads in a circle")
        following = [self.resolve(node)] if "$ref" in node.schema else []
        for keyword in ("allOf", "anyOf", "oneOf"):
            following += self.children(node, keyword)
        for keyword in ("not", "if", "then", "else"):
            if keyword in node.schema:
                following.append(self.inner(node, keyword))
        for name in node.schema.get("dependentSchemas", {}):
            following.append(self.inner(node, "dependentSchemas", name))
        for other in following:
            self.refuse_circles(other, trail | {node})
        self._straight.add(node)

    def count_step(self, node: Node) -> None:
        """Count a step of work, of which a document may cause so many. Raises `GrammarTooLarge`."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise GrammarTooLarge(f"judging it takes too long (at '{shorten_path(node.path)}')")

    def children(self, node: Node, keyword: str) -> list[Node]:
        """The schemas in a keyword that holds a list."""
        return [
            self.node(schema, node.child(keyword, index))
            for index, schema in enumerate(node.schema.get(keyword, ()))
        ]

    def inner(self, node: Node, keyword: str, *steps: str) -> Node:
        """The schema in a keyword, or below it."""
        value = node.schema[keyword]
        for step in steps:
            value = value[step]
        return self.node(value, node.child(keyword, *steps))

    def resolve(self, node: Node) -> Node:
        """The schema that a node's `$ref` points to."""
        reference = node.schema["$ref"]
        if not reference.startswith("#"):
            raise node.refuse("$ref", f"to {reference[:60]!r} leads out of the schema")
        value: Any = self._root
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            raise node.refuse("$ref", f"to {reference[:60]!r} is no path of the form '#/...'")
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and _INDEX.fullmatch(step) and int(step) < len(value):
                value = value[int(step)]
            else:
                raise node.refuse("$ref", f"to {reference[:60]!r} points to nothing")
        if not _is_schema(value):
            raise node.refuse("$ref", f"to {reference[:60]!r} does not point to a schema")
        target = self.node(value, f"#{pointer}")
        # It may stand where no keyword holds schemas.
        self._check_forms(target)
        return target

    def _check_forms(self, first: Node) -> None:
        waiting = [first]
        while waiting:
            node = waiting.pop()
            if id(node.schema) in self._checked:
                continue
            self._checked.add(id(node.schema))
            _check_keywords(node)
            for keyword, value in node.schema.items():
                for steps, part in _PARTS[keyword](value) if keyword in _PARTS else ():
                    if isinstance(part, dict):
                        waiting.append(Node(part, node.child(keyword, *steps)))


def _check_keywords(node: Node) -> None:
    for keyword, value in node.schema.items():
        form = _FORMS.get(keyword)
        if form is not None and not form[0](value):
            raise node.refuse(keyword, f"must be {form[1]}")
    for keyword in ("pattern", "patternProperties"):
        for pattern in _list_patterns(node.schema.get(keyword, ())):
            try:
                check_pattern(pattern)
            except PatternRefused as error:
                raise node.refuse(
                    keyword, f"{pattern[:60]!r} cannot be enforced: {error}"
                ) from None


def _list_patterns(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


_EVERYTHING: dict[str, Any] = {}
_NOTHING: dict[str, Any] = {"not": {}}


def is_nothing(node: Node) -> bool:
    """Whether a node is the schema `false`."""
    return node.schema is _NOTHING


def kind_of(value: Any) -> str:
    """The type of a value; whole numbers are integers, however they are written."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    return {float: "number", str: "string", list: "array", dict: "object"}[type(value)]
