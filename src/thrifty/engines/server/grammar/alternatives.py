"""A schema taken apart: the ways in which it can be satisfied, and what each way asks of a value.

`$ref` and `allOf` add to what must hold; `anyOf`, `oneOf` and what depends on a property's presence
split it. A `Way` is one outcome of all splits: schemas whose own keywords must hold together, and
names of properties that must or must not be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from thrifty.engines.server.grammar.constants import (
    accepts,
    find_property,
    to_decimal,
    write_canonical,
)
from thrifty.engines.server.grammar.rules import GrammarTooLarge
from thrifty.engines.server.grammar.schema import TYPES, Document, Node, is_nothing

MAX_WAYS = 2_000

_OF_TYPE = {
    "object": ("properties", "patternProperties", "additionalProperties", "propertyNames", "required",
               "minProperties", "maxProperties", "dependentRequired", "dependentSchemas"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
"""Keywords that say what a value is meant to be where no `type` does."""
_DESCRIBING = frozenset(
    {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly",
     "$schema", "$id"}
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way to satisfy a schema."""

    document: Document
    nodes: tuple[Node, ...]
    """In order, each once."""
    required: tuple[str, ...] = ()
    """Properties that must be there beside those that the nodes require."""
    absent: frozenset[str] = frozenset()
    """Properties that must not be there."""

    @cached_property
    def listed(self) -> list[Any] | None:
        """The values that it may take, where the schemas list them."""
        for node in self.nodes:
            if "const" in node.schema or "enum" in node.schema:
                break
        else:
            return None
        values = [node.schema["const"]] if "const" in node.schema else node.schema["enum"]
        unique: dict[str, Any] = {}
        for value in values:
            unique.setdefault(write_canonical(value), value)
        return [value for value in unique.values() if self.accepts(value)]

    def accepts(self, value: Any) -> bool:
        """Whether a value satisfies it. Raises `SchemaRefused`."""
        if isinstance(value, dict) and not (
            self.absent.isdisjoint(value) and all(name in value for name in self.required)
        ):
            return False
        return all(accepts(self.document, node, value) for node in self.nodes)

    @cached_property
    def types(self) -> frozenset[str]:
        """The types that its values may have. Raises `SchemaRefused`."""
        allowed = set(TYPES) - {"integer"}
        named = False
        for node in self.nodes:
            if "type" not in node.schema:
                continue
            named = True
            given = (
                node.schema["type"]
                if isinstance(node.schema["type"], list)
                else [node.schema["type"]]
            )
            if "integer" in given and "number" in allowed and "number" not in given:
                allowed = (allowed - {"number"}) | {"integer"}
            keeps_integer = "integer" in allowed and ("number" in given or "integer" in given)
            allowed &= set(given) | ({"integer"} if keeps_integer else set())
        if not named:
            meant = {
                kind
                for kind, words in _OF_TYPE.items()
                if any(w in n.schema for n in self.nodes for w in words)
            }
            allowed = meant or allowed
        return frozenset(allowed - self._forbidden_types())

    def _forbidden_types(self) -> set[str]:
        forbidden: set[str] = set()
        for node in self.nodes:
            other = node.schema.get("not")
            if isinstance(other, dict) and set(other) - _DESCRIBING == {"type"}:
                given = other["type"] if isinstance(other["type"], list) else [other["type"]]
                forbidden |= set(given) | ({"integer"} if "number" in given else set())
        return forbidden

    def find_excluded(self) -> list[tuple[Node, list[Any]]]:
        """The values that its schemas exclude. Raises `SchemaRefused` where one excludes what cannot
        be told apart.
        """
        found = []
        for node in self.nodes:
            if "not" not in node.schema:
                continue
            other = node.schema["not"]
            words = set(other) - _DESCRIBING if isinstance(other, dict) else set()
            if other is False or (words == {"type"} and not self._splits_numbers(other)):
                continue
            if words not in ({"const"}, {"enum"}):
                raise node.refuse(
                    "not", "can be enforced with 'type', 'enum' or 'const' alone in it"
                )
            found.append((node, other["enum"] if "enum" in words else [other["const"]]))
        return found

    def _splits_numbers(self, other: dict[str, Any]) -> bool:
        """Whether it takes the integers away and leaves other numbers."""
        given = other["type"] if isinstance(other["type"], list) else [other["type"]]
        return "integer" in given and "number" not in given and "number" in self.types

    def all(self, keyword: str) -> list[tuple[Node, Any]]:
        """The values of a keyword, with the schemas that have it."""
        return [(node, node.schema[keyword]) for node in self.nodes if keyword in node.schema]

    def strictest(self, least: str, most: str) -> tuple[int, int | None]:
        """The largest lower and the smallest upper bound."""
        upper = [value for _, value in self.all(most)]
        return max((v for _, v in self.all(least)), default=0), min(upper, default=None)

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The properties that must be there."""
        names = [name for _, given in self.all("required") for name in given]
        return tuple(dict.fromkeys([*names, *self.required]))

    def find_declared(self) -> list[str]:
        """The properties that are written if they may be: those of `properties`, in order, and those
        that must be there.
        """
        names = [name for _, given in self.all("properties") for name in given]
        return [n for n in dict.fromkeys([*names, *self.needed]) if n not in self.absent]

    @cached_property
    def is_open(self) -> bool:
        """Whether objects get other properties than those that are declared: if there are none, or if
        a schema speaks of others.
        """
        if any(value is False for _, value in self.all("additionalProperties")):
            return any(value for _, value in self.all("patternProperties"))
        spoken = self.all("additionalProperties") or self.all("patternProperties")
        return bool(spoken) or not (self.all("properties") or self.needed)

    def find_child(self, name: str) -> list[Node]:
        """The schemas that the value of a property must satisfy. Raises `SchemaRefused`."""
        return [c for node in self.nodes for c in find_property(self.document, node, name)]

    def find_bounds(self) -> tuple[tuple[Any, bool] | None, tuple[Any, bool] | None]:
        """The bounds of a number, each with whether it is itself left out."""
        low = [(to_decimal(v), False) for _, v in self.all("minimum")]
        low += [(to_decimal(v), True) for _, v in self.all("exclusiveMinimum")]
        high = [(to_decimal(v), False) for _, v in self.all("maximum")]
        high += [(to_decimal(v), True) for _, v in self.all("exclusiveMaximum")]
        return (
            max(low, default=None),
            min(high, key=lambda bound: (bound[0], not bound[1]), default=None),
        )


def find_ways(document: Document, nodes: Iterable[Node]) -> list[Way]:
    """The ways to satisfy all of `nodes`. Raises `SchemaRefused` and `GrammarTooLarge`."""
    base: dict[Node, None] = {}
    splits: list[Split] = []
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        if is_nothing(node) or _excludes_all(node):
            return []
        if node in base:
            continue
        document.count_step(node)
        document.refuse_circles(node)
        base[node] = None
        more = document.children(node, "allOf")
        if "$ref" in node.schema:
            more = [document.resolve(node), *more]
        waiting += reversed(more)
        splits += _find_splits(document, node)
    ways = [Way(document, tuple(base))]
    for split in splits:
        found = []
        for branch in split.branches:
            inner = find_ways(document, branch.nodes) if branch.nodes else None
            found.append(
                [branch.extend(way) for way in inner]
                if inner is not None
                else [branch.extend(None)]
            )
        if split.exclusive is not None:
            _require_apart(split.exclusive, ways, found)
        ways = [_join(way, other) for way in ways for others in found for other in others]
        if len(ways) > MAX_WAYS:
            raise GrammarTooLarge(f"its alternatives make more than {MAX_WAYS} combinations")
    return ways


def _excludes_all(node: Node) -> bool:
    other = node.schema.get("not")
    return other is True or (isinstance(other, dict) and set(other) <= _DESCRIBING)


@dataclass(frozen=True)
class Branch:
    """One side of a split."""

    nodes: tuple[Node, ...]
    required: tuple[str, ...] = ()
    absent: frozenset[str] = frozenset()

    def extend(self, way: Way | None) -> tuple[tuple[Node, ...], tuple[str, ...], frozenset[str]]:
        """What it adds to a way, with one of the ways of its own schemas."""
        if way is None:
            return (), self.required, self.absent
        return way.nodes, self.required + way.required, self.absent | way.absent


@dataclass(frozen=True)
class Split:
    """Sides of which one must hold. `exclusive` is the schema that says that only one may."""

    branches: tuple[Branch, ...]
    exclusive: Node | None = None


def _find_splits(document: Document, node: Node) -> list[Split]:
    splits = []
    for keyword in ("anyOf", "oneOf"):
        if keyword in node.schema:
            branches = tuple(Branch((child,)) for child in document.children(node, keyword))
            splits.append(Split(branches, node if keyword == "oneOf" else None))
    for name, needed in node.schema.get("dependentRequired", {}).items():
        present = Branch((), (name, *needed))
        splits.append(Split((Branch((), (), frozenset({name})), present)))
    for name in node.schema.get("dependentSchemas", {}):
        inner = document.inner(node, "dependentSchemas", name)
        present = Branch((inner,), (name,))
        splits.append(Split((Branch((), (), frozenset({name})), present)))
    return splits


_Added = tuple[tuple[Node, ...], tuple[str, ...], frozenset[str]]


def _join(way: Way, added: _Added) -> Way:
    nodes, required, absent = added
    return Way(
        way.document,
        tuple(dict.fromkeys((*way.nodes, *nodes))),
        way.required + required,
        way.absent | absent,
    )


def _require_apart(node: Node, ways: Sequence[Way], found: Sequence[Sequence[_Added]]) -> None:
    """Refuse a `oneOf` unless what is written for each alternative is known to violate the others."""
    for way in ways:
        sides = [[_join(way, added) for added in side] for side in found]
        for i, side in enumerate(sides):
            for other in sides[:i] + sides[i + 1 :]:
                if not all(violates(one, two) for one in side for two in other):
                    raise node.refuse(
                        "oneOf", "has alternatives that may hold together; use 'anyOf', or tell them "
                        "apart by their types or by a required property with a 'const'",
                    )  # fmt: skip


def violates(first: Way, second: Way, depth: int = 3) -> bool:
    """Whether it is certain that no value that is written for `first` satisfies `second`."""
    if first.listed is not None:
        return not any(second.accepts(value) for value in first.listed)
    if second.listed is not None:
        return not any(first.accepts(value) for value in second.listed)
    shared = first.types & second.types
    if "number" in first.types and "integer" in second.types:
        shared |= {"integer"}
    if "integer" in first.types and "number" in second.types:
        shared |= {"integer"}
    return all(
        (kind == "object" and _objects_differ(first, second, depth))
        or (kind in ("integer", "number") and _numbers_differ(first, second))
        for kind in shared
    )


def _numbers_differ(first: Way, second: Way) -> bool:
    def is_below(high: tuple[Any, bool] | None, low: tuple[Any, bool] | None) -> bool:
        return (
            high is not None
            and low is not None
            and (high[0] < low[0] or (high[0] == low[0] and (high[1] or low[1])))
        )

    (low, high), (other_low, other_high) = first.find_bounds(), second.find_bounds()
    return is_below(high, other_low) or is_below(other_high, low)


def _objects_differ(first: Way, second: Way, depth: int) -> bool:
    if not first.absent.isdisjoint(second.needed) or not second.absent.isdisjoint(first.needed):
        return True
    declared = first.find_declared()
    if not first.is_open and any(name not in declared for name in second.needed):
        return True
    if depth == 0:
        return False
    for name in first.needed:
        theirs = second.find_child(name)
        if any(map(is_nothing, theirs)):
            return True
        if name in second.needed:
            ways = find_ways(first.document, first.find_child(name))
            others = find_ways(first.document, theirs)
            if all(violates(a, b, depth - 1) for a in ways for b in others):
                return True
    return False
