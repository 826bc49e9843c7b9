"""Whether a given value satisfies a schema: for `enum`, `const`, and names of properties.

Values that a schema lists are judged one by one, so next to them every keyword can be enforced.
"""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from thrifty.engines.server.grammar.formats import REFUSED, find_format
from thrifty.engines.server.grammar.patterns import find_texts
from thrifty.engines.server.grammar.schema import Document, Node, kind_of


def write_canonical(value: Any) -> str:
    """A text that equal values of JSON share: numbers by their value, objects whatever their order."""

    def plain(item: Any) -> Any:
        if isinstance(item, float) and item.is_integer():
            return int(item)
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        return {k: plain(v) for k, v in item.items()} if isinstance(item, dict) else item

    return json.dumps(plain(value), sort_keys=True)


def accepts(document: Document, node: Node, value: Any) -> bool:
    """Whether `value` satisfies the schema. Raises `SchemaRefused` where that cannot be decided."""
    document.count_step(node)
    document.refuse_circles(node)
    schema = node.schema
    kind = kind_of(value)
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if kind not in types and not (kind == "integer" and "number" in types):
            return False
    if not _is_listed(node, value):
        return False
    if "$ref" in schema and not accepts(document, document.resolve(node), value):
        return False
    if not all(accepts(document, n, value) for n in document.children(node, "allOf")):
        return False
    if "anyOf" in schema and not any(
        accepts(document, n, value) for n in document.children(node, "anyOf")
    ):
        return False
    if "oneOf" in schema:
        count = sum(accepts(document, n, value) for n in document.children(node, "oneOf"))
        if count != 1:
            return False
    if "not" in schema and accepts(document, document.inner(node, "not"), value):
        return False
    if "if" in schema:
        branch = "then" if accepts(document, document.inner(node, "if"), value) else "else"
        if branch in schema and not accepts(document, document.inner(node, branch), value):
            return False
    if kind in ("integer", "number"):
        return _accepts_number(schema, value)
    if kind == "string":
        return _accepts_text(node, value)
    if kind == "array":
        return _accepts_array(document, node, value)
    return kind != "object" or _accepts_object(document, node, value)


@lru_cache(maxsize=64)
def _find_listed(node: Node) -> frozenset[str] | None:
    """The values that a schema lists, in canonical form; None where it lists none."""
    schema = node.schema
    if "const" in schema:
        constant = {write_canonical(schema["const"])}
        return frozenset(
            constant & {write_canonical(v) for v in schema.get("enum", [schema["const"]])}
        )
    return frozenset(map(write_canonical, schema["enum"])) if "enum" in schema else None


def _is_listed(node: Node, value: Any) -> bool:
    listed = _find_listed(node)
    return listed is None or write_canonical(value) in listed


def to_decimal(value: float) -> Decimal:
    """A number of a schema as it was written."""
    return Decimal(value) if isinstance(value, int) else Decimal(repr(value))


def _accepts_number(schema: dict[str, Any], value: float) -> bool:
    number = to_decimal(value)
    return not (
        ("minimum" in schema and number < to_decimal(schema["minimum"]))
        or ("maximum" in schema and number > to_decimal(schema["maximum"]))
        or ("exclusiveMinimum" in schema and number <= to_decimal(schema["exclusiveMinimum"]))
        or ("exclusiveMaximum" in schema and number >= to_decimal(schema["exclusiveMaximum"]))
        or ("multipleOf" in schema
            and (Fraction(number) / Fraction(to_decimal(schema["multipleOf"]))).denominator != 1)
    )  # fmt: skip


def _accepts_text(node: Node, value: str) -> bool:
    schema = node.schema
    if len(value) < schema.get("minLength", 0) or len(value) > schema.get("maxLength", len(value)):
        return False
    if "pattern" in schema and not find_texts(schema["pattern"]).accepts(value):
        return False
    name = schema.get("format")
    if name in REFUSED:
        raise node.refuse("format", f"{name!r} cannot be enforced")
    texts = None if name is None else find_format(name)
    return texts is None or texts.accepts(value)


def _accepts_array(document: Document, node: Node, value: list[Any]) -> bool:
    schema = node.schema
    if len(value) < schema.get("minItems", 0) or len(value) > schema.get("maxItems", len(value)):
        return False
    first = document.children(node, "prefixItems")
    if not all(accepts(document, n, item) for n, item in zip(first, value, strict=False)):
        return False
    if "items" in schema:
        rest = document.inner(node, "items")
        if not all(accepts(document, rest, item) for item in value[len(first) :]):
            return False
    if schema.get("uniqueItems") and len(set(map(write_canonical, value))) < len(value):
        return False
    if "contains" in schema:
        wanted = document.inner(node, "contains")
        count = sum(accepts(document, wanted, item) for item in value)
        return bool(schema.get("minContains", 1) <= count <= schema.get("maxContains", count))
    return True


def _accepts_object(document: Document, node: Node, value: dict[str, Any]) -> bool:
    schema = node.schema
    if len(value) < schema.get("minProperties", 0):
        return False
    if len(value) > schema.get("maxProperties", len(value)):
        return False
    if not all(name in value for name in schema.get("required", ())):
        return False
    for name, needed in schema.get("dependentRequired", {}).items():
        if name in value and not all(other in value for other in needed):
            return False
    for name in schema.get("dependentSchemas", {}):
        inner = document.inner(node, "dependentSchemas", name)
        if name in value and not accepts(document, inner, value):
            return False
    for name, item in value.items():
        if "propertyNames" in schema and not accepts(
            document, document.inner(node, "propertyNames"), name
        ):
            return False
        if not all(accepts(document, n, item) for n in find_property(document, node, name)):
            return False
    return True


def find_property(document: Document, node: Node, name: str) -> list[Node]:
    """The schemas that a node has for the value of a property, by any reading of its patterns."""
    schema = node.schema
    found = []
    certain = name in schema.get("properties", {})
    if certain:
        found.append(document.inner(node, "properties", name))
    for pattern in schema.get("patternProperties", {}):
        if find_texts(pattern, wide=True).accepts(name):
            found.append(document.inner(node, "patternProperties", pattern))
            certain = certain or find_texts(pattern).accepts(name)
    if not certain and "additionalProperties" in schema:
        found.append(document.inner(node, "additionalProperties"))
    return found
