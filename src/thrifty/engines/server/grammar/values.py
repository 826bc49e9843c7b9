"""Values of any schema, as rules."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from thrifty.engines.server.grammar.alternatives import Way, find_ways
from thrifty.engines.server.grammar.automata import complement, intersect, only
from thrifty.engines.server.grammar.constants import to_decimal
from thrifty.engines.server.grammar.containers import write_array, write_object
from thrifty.engines.server.grammar.numbers import Bounds, write_numbers
from thrifty.engines.server.grammar.rules import EMPTY, Alternative, Ref, Rules
from thrifty.engines.server.grammar.schema import Document, Node, kind_of
from thrifty.engines.server.grammar.strings import write_automaton, write_texts
from thrifty.engines.server.grammar.texts import find_texts_of


def write_schema(rules: Rules, schema: dict[str, Any], *more: dict[str, Any]) -> Ref:
    """The rule of the values that satisfy a schema, and `more` schemas without references. Raises
    `SchemaRefused` and `GrammarTooLarge`.
    """
    document = Document(schema)
    others = [document.node(other, "#") for other in more]
    return _Writer(rules, document).write([document.root(), *others])


class _Writer:
    """Writes the values of one document."""

    def __init__(self, rules: Rules, document: Document) -> None:
        self._rules = rules
        self._document = document

    def write(self, nodes: Iterable[Node]) -> Ref:
        """The rule of the values that satisfy all of `nodes`."""
        chosen = tuple(dict.fromkeys(nodes))
        return self._rules.keyed(
            ("value", chosen),
            lambda: [a for way in find_ways(self._document, chosen) for a in self._write_way(way)],
        )

    def _write_way(self, way: Way) -> list[Alternative]:
        if way.listed is not None:
            return [(json.dumps(value, ensure_ascii=False),) for value in way.listed]
        for node in way.nodes:
            if "if" in node.schema and ("then" in node.schema or "else" in node.schema):
                raise node.refuse("if", "cannot be enforced")
        self._check_excluded(way)
        written: list[Alternative] = []
        excluded = [v for _, values in way.find_excluded() for v in values]
        for kind in sorted(way.types, key=_ORDER.index):
            if kind == "null":
                written += [("null",)] if None not in excluded else []
            elif kind == "boolean":
                written += [
                    (json.dumps(v),) for v in (True, False) if not any(v is x for x in excluded)
                ]
            elif kind in ("integer", "number"):
                written.append((self._write_number(way, kind == "integer"),))
            elif kind == "string":
                written.append((write_texts(self._rules, find_texts_of(way)),))
            elif kind == "array":
                written += write_array(self._rules, way, self.write)
            else:
                written += write_object(self._rules, way, self.write)
        return written

    def _check_excluded(self, way: Way) -> None:
        """Refuse to exclude values that cannot be told apart by how they are written."""
        for node, values in way.find_excluded():
            for value in values:
                kind = kind_of(value)
                wide = {"integer": "number"}.get(kind, kind)
                if wide in way.types and wide in ("number", "array", "object"):
                    raise node.refuse("not", f"of a value of the type {kind} cannot be enforced")

    def _write_number(self, way: Way, integer: bool) -> Ref:
        low, high = way.find_bounds()
        multiple: Fraction | None = None
        for _, value in way.all("multipleOf"):
            multiple = _join(multiple, Fraction(to_decimal(value)))
        bounds = Bounds(integer, low, high, multiple)
        excluded = frozenset(
            str(int(v))
            for _, values in way.find_excluded()
            for v in values
            if integer and kind_of(v) == "integer"
        )
        return self._rules.keyed(
            ("number", bounds, excluded), lambda: [(self._write_digits(bounds, excluded),)]
        )

    def _write_digits(self, bounds: Bounds, excluded: frozenset[str]) -> Ref:
        automaton = write_numbers(bounds)
        if excluded:
            automaton = intersect(automaton, complement(only(excluded)))
        return write_automaton(self._rules, automaton, EMPTY)


_ORDER = ("object", "array", "string", "integer", "number", "boolean", "null")


def _join(multiple: Fraction | None, other: Fraction) -> Fraction:
    """What is a multiple of both is one of this."""
    if multiple is None:
        return other
    return Fraction(
        math.lcm(multiple.numerator, other.numerator),
        math.gcd(multiple.denominator, other.denominator),
    )
