"""Random JSON schemas: of all keywords, of those that are enforced, and of OpenAI's strict subset."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

Schema = dict[str, Any]

WORDS = ("name", "age", "city", "tags", "a", "b", "ab", "abc", "x-y", "größe", "to be", 'q"uote',
         "back\\slash", "名前", "items", "", "$ref", "a/b", "~t")  # fmt: skip
PATTERNS = ("^[A-Z]{2,5}$", "^[a-z]+$", "[0-9]", "^a|b$", "^(ab|cd){1,3}$", "^[a-z0-9_-]{3,16}$",
            r"^\d{3}-\d{4}$", r"^\w+( \w+)?$", "^.{2,8}$", "x", "^[^a-z]{1,4}$", r"^\S+@\S+$",
            '^["\\\\]+$', "^$", "^é+$", r"^[\^a]{2}$", r"^[\^-_\]]+$", "^[^ -z]$")  # fmt: skip
REFUSED_PATTERNS = (r"^(?=a)b", r"(a)\1", r"\bword\b", "[", "(", "a{3,1}", r"\p{L}+")
FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
           "json-pointer", "int32", "password")  # fmt: skip
STRICT_FORMATS = FORMATS[:9]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 1.5, -0.25, 5.0, 10**12, "", "a", "abc", "é", 'q"', "line\nbreak",
    "😀 \u2028f", "^a", "ax", "ay", "cx",
    [], [1], [1, 1], ["a", None], {}, {"a": 1}, {"b": [True]}, {"a": {"b": "c"}},
)  # fmt: skip


class Maker:
    """Makes schemas from a seed."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self.r.random() < probability

    def names(self, low: int, high: int) -> list[str]:
        return self.r.sample(WORDS, self.r.randint(low, high))

    # all keywords, in any combination

    def any_schema(self, depth: int = 0) -> Any:
        """A schema of any keywords. It may be contradictory, or not even valid."""
        if depth > 3 or self.chance(0.05):
            return self.r.choice([True, False, {}, {"type": "string"}, {"type": "integer"}])
        schema: Schema = {}
        if self.chance(0.7):
            kinds = ["null", "boolean", "integer", "number", "string", "array", "object"]
            schema["type"] = (
                self.r.choice(kinds)
                if self.chance(0.8)
                else self.r.sample(kinds, self.r.randint(1, 3))
            )
        for _ in range(self.r.choice([0, 1, 1, 2, 2, 3, 5])):
            keyword = self.r.choice(sorted(ANY_KEYWORDS))
            schema[keyword] = ANY_KEYWORDS[keyword](self, depth + 1)
        if depth == 0:
            schema["$defs"] = {"one": self.any_schema(2), "two": self.any_schema(3)}
        return schema

    def children(self, depth: int, low: int = 1, high: int = 3) -> list[Any]:
        return [self.any_schema(depth) for _ in range(self.r.randint(low, high))]

    def child_map(self, depth: int, names: Any = None) -> Schema:
        return {name: self.any_schema(depth) for name in names or self.names(0, 3)}

    def bound(self) -> Any:
        return self.r.choice([-10, -1.5, -1, 0, 0.1, 0.5, 1, 2, 3.75, 10, 100, 1e6, 10**15, 1e20])

    def reference(self) -> str:
        return self.r.choice(
            ["#", "#/$defs/one", "#/$defs/two", "#/$defs/one", "#/$defs/none", "#/properties/a",
             "https://example.com/schema.json", "#name"]
        )  # fmt: skip

    # what is enforced, and can be satisfied

    def enforced(self, depth: int = 0, allow_null: bool = True) -> Schema:
        """A schema of keywords that are enforced, which some values satisfy."""
        makers: list[Callable[[int], Schema]] = [self.text, self.text, self.number, self.listed]
        if depth < 3:
            makers += [self.object, self.object, self.array, self.union, self.joined]
        schema = self.r.choice(makers)(depth)
        if self.chance(0.2):
            schema |= {"title": "T", "description": "what it is", "examples": [1]}
        return schema

    def text(self, depth: int) -> Schema:
        schema: Schema = {"type": "string"}
        form = self.r.randint(0, 6)
        if form == 0:
            schema["pattern"] = self.r.choice(PATTERNS)
        elif form == 1:
            schema["format"] = self.r.choice(FORMATS)
        elif form in (2, 3):
            low, high = sorted(
                (self.r.randint(0, 40), self.r.choice([1, 5, 16, 17, 33, 200, 5000]))
            )
            schema |= self.r.choice(
                [{"minLength": low}, {"maxLength": high}, {"minLength": low, "maxLength": high}]
            )
        elif form == 4:
            schema |= {
                "pattern": "^[a-z ]*$",
                "minLength": 3,
                "maxLength": self.r.choice([3, 10, 300]),
            }
        elif form == 5:
            schema["not"] = self.r.choice([{"const": "a"}, {"enum": ["", "é", "abc"]}])
        return schema

    def number(self, depth: int) -> Schema:
        kind = self.r.choice(["integer", "number"])
        schema: Schema = {"type": kind}
        low = self.r.choice(
            [-1000, -3, 0, 1, 5, 99, 12345] + ([0.5, -2.25, 1e-3] if kind == "number" else [])
        )
        if self.chance(0.5):
            schema[self.r.choice(["minimum", "exclusiveMinimum"])] = low
        if self.chance(0.5):
            schema[self.r.choice(["maximum", "exclusiveMaximum"])] = low + self.r.choice(
                [20, 1000, 10**9]
            )
        if self.chance(0.3):
            schema["multipleOf"] = self.r.choice(
                [1, 2, 3, 7, 10] + ([0.5, 0.25] if kind == "number" else [])
            )
        return schema

    def listed(self, depth: int) -> Schema:
        if self.chance(0.3):
            return {"type": "boolean"} if self.chance(0.5) else {"type": "null"}
        if self.chance(0.5):
            return {"const": self.r.choice(VALUES)}
        values = self.r.sample(VALUES, self.r.randint(1, 6))
        return (
            {"enum": values}
            if self.chance(0.5)
            else {"type": ["string", "integer"], "enum": [*values, "z"]}
        )

    def object(self, depth: int) -> Schema:
        names = self.names(1, 5)
        schema: Schema = {
            "type": "object",
            "properties": {name: self.enforced(depth + 1) for name in names},
        }
        required = [name for name in names if self.chance(0.6)]
        if required or self.chance(0.5):
            schema["required"] = required + (["extra"] if self.chance(0.1) else [])
        form = self.r.randint(0, 7)
        if form == 0 and "extra" not in schema.get("required", []):
            schema["additionalProperties"] = False
        elif form == 1:
            schema["additionalProperties"] = {"type": self.r.choice(["integer", "boolean"])}
        elif form == 2:
            schema["patternProperties"] = {"^x_": {"type": "null"}}
        elif form == 3:
            schema |= {"minProperties": self.r.randint(0, len(names))}
        elif form == 4:
            schema["maxProperties"] = len(schema.get("required", [])) + self.r.randint(0, 2)
        elif form == 5:
            schema["dependentRequired"] = {names[0]: [names[-1]]}
        elif form == 6:
            return {
                "type": "object", "propertyNames": {"pattern": "^[a-z]{1,4}$"},
                "additionalProperties": {"type": "integer"}, "maxProperties": self.r.randint(0, 4),
            }  # fmt: skip
        return schema

    def array(self, depth: int) -> Schema:
        schema: Schema = {"type": "array"}
        low, high = sorted((self.r.randint(0, 4), self.r.choice([1, 2, 5, 30])))
        schema |= self.r.choice(
            [{}, {"minItems": low}, {"maxItems": high}, {"minItems": low, "maxItems": high}]
        )
        if self.chance(0.3):
            schema["prefixItems"] = [self.enforced(depth + 1) for _ in range(self.r.randint(1, 3))]
        if self.chance(0.8):
            schema["items"] = self.enforced(depth + 1)
        elif "prefixItems" in schema and not {"minItems", "maxItems"} & schema.keys():
            schema["items"] = False
        return schema

    def union(self, depth: int) -> Schema:
        if self.chance(0.4):
            kinds = self.r.sample(["text", "number", "object", "array"], self.r.randint(1, 3))
            return {
                "oneOf": [{"type": "null"}, *(getattr(self, kind)(depth + 1) for kind in kinds)]
            }
        if self.chance(0.3):
            return {
                "oneOf": [
                    {"type": "object", "properties": {"kind": {"const": kind}, "value": self.enforced(depth + 1)},
                     "required": ["kind"]}
                    for kind in ("one", "two")
                ]
            }  # fmt: skip
        return {"anyOf": [self.enforced(depth + 1) for _ in range(self.r.randint(1, 3))]}

    def joined(self, depth: int) -> Schema:
        if self.chance(0.3):
            # Recursion, with a way out.
            return {
                "$ref": "#/$defs/tree",
                "$defs": {"tree": {"type": "object", "properties": {
                    "label": {"type": "string", "maxLength": 12},
                    "child": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
                    "required": ["label", "child"], "additionalProperties": False}},
            } if depth == 0 else {"type": "string"}  # fmt: skip
        if self.chance(0.5):
            return {"allOf": [self.object_part("left", depth), self.object_part("right", depth)]}
        return {
            "type": "string", "allOf": [{"minLength": 2}, {"maxLength": self.r.choice([4, 40])}],
            "not": {"type": "null"},
        }  # fmt: skip

    def object_part(self, name: str, depth: int) -> Schema:
        return {
            "type": "object",
            "properties": {name: self.enforced(depth + 1)},
            "required": [name],
        }

    # OpenAI's strict subset

    def strict(self) -> Schema:
        """An object as OpenAI's strict mode takes it: all required, nothing else."""
        definitions: Schema = {}
        if self.chance(0.3):
            definitions["node"] = {
                "type": "object",
                "properties": {"value": self.strict_value(2, {}),
                               "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["value", "next"], "additionalProperties": False,
            }  # fmt: skip
        if self.chance(0.3):
            definitions["choice"] = {"type": "string", "enum": ["one", "two", "three"]}
        schema = self.strict_object(0, definitions)
        if definitions:
            schema["$defs"] = definitions
        return schema

    def strict_object(self, depth: int, definitions: Schema) -> Schema:
        names = self.names(1, 5)
        return {
            "type": "object",
            "properties": {name: self.strict_value(depth + 1, definitions) for name in names},
            "required": names,
            "additionalProperties": False,
        }

    def strict_value(self, depth: int, definitions: Schema) -> Schema:
        form = self.r.randint(0, 9 if depth < 4 else 4)
        schema: Schema
        if form == 0:
            schema = {"type": "string"}
            if self.chance(0.5):
                schema |= self.r.choice(
                    [
                        {"pattern": self.r.choice(PATTERNS)},
                        {"format": self.r.choice(STRICT_FORMATS)},
                    ]
                )
        elif form in (1, 2):
            schema = self.number(depth)
        elif form == 3:
            schema = {"type": "boolean"}
        elif form == 4:
            schema = {"type": "string", "enum": self.r.sample(string.ascii_lowercase, 3)}
        elif form == 5:
            schema = self.strict_object(depth, definitions)
        elif form == 6:
            low, high = sorted((self.r.randint(0, 3), self.r.randint(1, 6)))
            schema = {"type": "array", "items": self.strict_value(depth + 1, definitions)}
            schema |= self.r.choice(
                [{}, {"minItems": low}, {"maxItems": high}, {"minItems": low, "maxItems": high}]
            )
        elif form == 7:
            schema = {"anyOf": [self.strict_value(depth + 1, definitions) for _ in range(2)]}
        elif form == 8 and definitions:
            return {"$ref": f"#/$defs/{self.r.choice(sorted(definitions))}"}
        else:
            schema = {"const": self.r.choice(["fixed", 3, True, None])}
        kind = schema.get("type")
        if isinstance(kind, str) and "enum" not in schema and self.chance(0.2):
            schema["type"] = [kind, "null"]
        if self.chance(0.3):
            schema["description"] = "what it is"
        return schema


def _number_or(maker: Maker, *others: Any) -> Any:
    return maker.r.choice([maker.bound(), maker.bound(), *others])


ANY_KEYWORDS: dict[str, Callable[[Maker, int], Any]] = {
    "minLength": lambda m, d: m.r.choice([0, 1, 3, 20, 40, -1]),
    "maxLength": lambda m, d: m.r.choice([0, 1, 3, 20, 300, 100_000]),
    "pattern": lambda m, d: m.r.choice([*PATTERNS, *REFUSED_PATTERNS]),
    "format": lambda m, d: m.r.choice([*FORMATS, "regex", "unknown"]),
    "minimum": lambda m, d: m.bound(),
    "maximum": lambda m, d: m.bound(),
    "exclusiveMinimum": lambda m, d: _number_or(m, True),
    "exclusiveMaximum": lambda m, d: m.bound(),
    "multipleOf": lambda m, d: m.r.choice([1, 2, 3, 7, 10, 0.5, 0.25, 1000, 12345, 0, -1]),
    "enum": lambda m, d: m.r.sample(VALUES, m.r.randint(0, 6)),
    "const": lambda m, d: m.r.choice(VALUES),
    "items": lambda m, d: m.any_schema(d) if m.chance(0.95) else m.children(d),
    "prefixItems": lambda m, d: m.children(d),
    "minItems": lambda m, d: m.r.randint(0, 4),
    "maxItems": lambda m, d: m.r.randint(0, 8),
    "uniqueItems": lambda m, d: m.chance(0.7),
    "contains": lambda m, d: m.any_schema(d),
    "minContains": lambda m, d: m.r.randint(0, 2),
    "maxContains": lambda m, d: m.r.randint(0, 2),
    "properties": lambda m, d: m.child_map(d),
    "patternProperties": lambda m, d: m.child_map(d, m.r.sample(PATTERNS, m.r.randint(1, 2))),
    "additionalProperties": lambda m, d: m.any_schema(d),
    "propertyNames": lambda m, d: m.any_schema(d),
    "required": lambda m, d: m.names(0, 3),
    "minProperties": lambda m, d: m.r.randint(0, 3),
    "maxProperties": lambda m, d: m.r.randint(0, 4),
    "dependentRequired": lambda m, d: {n: m.names(0, 2) for n in m.names(0, 2)},
    "dependentSchemas": lambda m, d: m.child_map(d, m.names(1, 1)),
    "allOf": lambda m, d: m.children(d),
    "anyOf": lambda m, d: m.children(d),
    "oneOf": lambda m, d: m.children(d),
    "not": lambda m, d: m.any_schema(d),
    "if": lambda m, d: m.any_schema(d),
    "then": lambda m, d: m.any_schema(d),
    "else": lambda m, d: m.any_schema(d),
    "$ref": lambda m, d: m.reference(),
    "unevaluatedProperties": lambda m, d: m.any_schema(d),
    "unevaluatedItems": lambda m, d: m.any_schema(d),
    "title": lambda m, d: "a title",
    "default": lambda m, d: m.r.choice(VALUES),
    "$comment": lambda m, d: "for readers",
    "x-unknown": lambda m, d: {"minLength": 3},
}


def judge(schema: Schema, status: int, answer: dict[str, Any]) -> str:
    """What came of a schema: `valid`, `refused`, `cut` by the limit of tokens, or what is wrong."""
    if status == 400:
        code = answer["error"]["code"]
        return "refused" if code == "invalid_schema" else f"a 400 with the code {code}"
    if status != 200:
        return f"status {status}: {answer}"
    (choice,) = answer["choices"]
    if choice["finish_reason"] == "length":
        return "cut"
    text = choice["message"]["content"]
    try:
        # As decimals, because binary fractions are no multiples of others.
        value = json.loads(text, parse_float=Decimal)
    except ValueError:
        return f"no JSON: {text!r}"
    if re.search(r"\s{3}", re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)):
        return f"more than two characters of white space: {text!r}"
    try:
        exact = json.loads(json.dumps(schema), parse_float=Decimal)
        Draft202012Validator.check_schema(schema)
        error = next(Draft202012Validator(exact, format_checker=CHECKER).iter_errors(value), None)
    except (SchemaError, RecursionError) as fault:
        return f"an invalid schema was taken: {type(fault).__name__}"
    return (
        "valid"
        if error is None
        else f"{text!r} violates {list(error.schema_path)}: {error.message}"
    )


CHECKER = Draft202012Validator.FORMAT_CHECKER
