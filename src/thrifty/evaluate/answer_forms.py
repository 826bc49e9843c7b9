"""The form of an answer: whether it is JSON, and fits a schema. No model is needed."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
MAX_CHECKS = 20_000
"""Steps that a value may take to be compared with a schema; a schema is the client's."""


def is_json(answer: str) -> bool:
    """Whether an answer is an object or an array of JSON, alone or as the only block of code."""
    text = answer.strip()
    fenced = _FENCE.match(text)
    try:
        return isinstance(json.loads(fenced[1] if fenced else text), dict | list)
    except (ValueError, RecursionError):
        return False


class _TooMuchError(Exception):
    """The comparison takes too many steps."""


def fits_schema(value: Any, schema: Any) -> bool | None:
    """Whether a value of JSON fits a JSON schema; None where that cannot be told in `MAX_CHECKS`
    steps.

    These keywords are compared: `type`, `enum`, `const`, `properties`, `required`,
    `additionalProperties`, `items`, `prefixItems`, `anyOf`, `oneOf`, `allOf`, `$ref` within the
    schema, and the bounds of numbers, lengths and counts. Others are not looked at: a `pattern` of
    a client could take for ever, and a `$ref` elsewhere is not fetched.
    """
    try:
        return _Comparison(schema).fits(value, schema)
    except (_TooMuchError, RecursionError):
        return None


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float),
    "integer": (int,), "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": operator.ge, "maximum": operator.le, "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}  # fmt: skip
_SIZES: dict[str, tuple[type, int]] = {
    "minLength": (str, 1), "maxLength": (str, -1), "minItems": (list, 1), "maxItems": (list, -1),
    "minProperties": (dict, 1), "maxProperties": (dict, -1),
}  # fmt: skip


class _Comparison:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = MAX_CHECKS

    def fits(self, value: Any, schema: Any) -> bool:
        self._left -= 1
        if self._left < 0:
            raise _TooMuchError
        if not isinstance(schema, dict):
            return schema is not False
        return (
            self._fits_kind(value, schema)
            and self._fits_bounds(value, schema)
            and self._fits_parts(value, schema)
            and self._fits_others(value, schema)
        )

    def _fits_kind(self, value: Any, schema: Mapping[str, Any]) -> bool:
        kinds = schema.get("type", ())
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        if kinds and not any(_is_of(value, kind) for kind in kinds):
            return False
        if isinstance(schema.get("enum"), list) and not any(
            _is_equal(value, one) for one in schema["enum"]
        ):
            return False
        return "const" not in schema or _is_equal(value, schema["const"])

    def _fits_bounds(self, value: Any, schema: Mapping[str, Any]) -> bool:
        if isinstance(value, int | float) and not isinstance(value, bool):
            for name, holds in _BOUNDS.items():
                bound = schema.get(name)
                if _is_of(bound, "number") and not holds(value, bound):
                    return False
        for name, (kind, sign) in _SIZES.items():
            bound = schema.get(name)
            if (
                isinstance(value, kind)
                and isinstance(bound, int)
                and sign * (len(value) - bound) < 0  # type: ignore[arg-type]
            ):
                return False
        return True

    def _fits_parts(self, value: Any, schema: Mapping[str, Any]) -> bool:
        if isinstance(value, dict):
            known = schema.get("properties")
            known = known if isinstance(known, dict) else {}
            required = schema.get("required")
            if isinstance(required, list) and not all(name in value for name in required):
                return False
            # A name may match a pattern that is not looked at.
            rest = (
                True if "patternProperties" in schema else schema.get("additionalProperties", True)
            )
            return all(self.fits(part, known.get(name, rest)) for name, part in value.items())
        if isinstance(value, list):
            first = schema.get("prefixItems")
            first = first if isinstance(first, list) else []
            rest = schema.get("items", True)
            return all(
                self.fits(part, first[place] if place < len(first) else rest)
                for place, part in enumerate(value)
            )
        return True

    def _fits_others(self, value: Any, schema: Mapping[str, Any]) -> bool:
        every, some, one = (schema.get(name) for name in ("allOf", "anyOf", "oneOf"))
        if isinstance(every, list) and not all(self.fits(value, part) for part in every):
            return False
        if isinstance(some, list) and not any(self.fits(value, part) for part in some):
            return False
        if isinstance(one, list) and sum(self.fits(value, part) for part in one) != 1:
            return False
        target = schema.get("$ref")
        if isinstance(target, str) and target.startswith("#"):
            found = self._find(target)
            return found is None or self.fits(value, found)
        return True

    def _find(self, target: str) -> Any:
        found = self._root
        for part in target.lstrip("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                return None
            found = found[name]
        return found


def _is_of(value: Any, kind: Any) -> bool:
    if not isinstance(kind, str) or kind not in _TYPES:
        return True
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def _is_equal(value: Any, other: Any) -> bool:
    """As JSON has it: 1 equals 1.0 and not `true`."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
