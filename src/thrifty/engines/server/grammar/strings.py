"""Strings of JSON, as rules: any text, texts of some lengths, and the texts of an automaton.

A place where any character may come is what a grammar costs: an engine tries its whole vocabulary
there. A bound on a length needs such a place for each number of characters that may still come, if
it is written straight. Here it needs seventeen, whatever the bound: characters with at least as many
more to come are all alike, so they are one rule, counted by rules that cost nothing; only the last
sixteen are told apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from thrifty.engines.server.grammar.automata import (
    Automaton,
    complement,
    explore,
    intersect,
    limit_length,
    merge,
    only,
    subtract,
)
from thrifty.engines.server.grammar.patterns import is_repeated_class
from thrifty.engines.server.grammar.rules import EMPTY, Alternative, Chars, Ranges, Ref, Rules

QUOTE = '"'
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF))
"""What stands for itself in a string."""
_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 0x22: '"', 0x5C: "\\"}
"""What else an automaton's texts may hold, and how it is written behind a backslash."""
_HEX = Chars(((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)))
_SPACE = Chars(((0x09, 0x0A), (0x20, 0x20)))
_TAIL = 16
"""Characters before the bound that are told apart: few tokens are longer, and those are left out."""
_MAX_NAME_STATES = 24


@dataclass(frozen=True)
class Texts:
    """Which strings are meant: those that satisfy all of it."""

    low: int = 0
    high: int | None = None
    automata: tuple[Automaton, ...] = ()
    excluded: frozenset[str] = field(default_factory=frozenset)


def between_values(rules: Rules) -> Ref:
    """White space between parts of an answer: two characters at most, so that it ends."""
    second = rules.keyed("second space", lambda: [EMPTY, (_SPACE,)])
    return rules.keyed("space", lambda: [EMPTY, (_SPACE, second)])


def after_value(rules: Rules) -> Ref:
    """What may follow a string or a number inside a larger value."""
    ends = Chars(((0x2C, 0x2C), (0x3A, 0x3A), (0x5D, 0x5D), (0x7D, 0x7D)))
    last = rules.keyed("after two", lambda: [(ends,)])
    second = rules.keyed("after one", lambda: [(ends,), (_SPACE, last)])
    return rules.keyed("after", lambda: [(ends,), (_SPACE, second)])


def _escaped(rules: Rules) -> Ref:
    """What stands behind a backslash. Surrogates come in pairs."""

    def make() -> list[Alternative]:
        letters = Chars(merge((ord(c), ord(c)) for c in '"\\/bfnrt'))
        high = Chars(((0x38, 0x39), (0x41, 0x42), (0x61, 0x62)))
        low = Chars(((0x43, 0x46), (0x63, 0x66)))
        d, below_8 = Chars(((0x44, 0x44), (0x64, 0x64))), Chars(((0x30, 0x37),))
        others = Chars(((0x30, 0x39), (0x41, 0x43), (0x45, 0x46), (0x61, 0x63), (0x65, 0x66)))
        return [
            (letters,),
            ("u", others, _HEX, _HEX, _HEX),
            ("u", d, below_8, _HEX, _HEX),
            ("u", d, high, _HEX, _HEX, "\\u", d, low, _HEX, _HEX),
        ]

    return rules.keyed("escaped", make)


def any_string(rules: Rules) -> Ref:
    """Every string."""
    return rules.keyed("string", lambda: [(QUOTE, any_rest(rules))])


def any_rest(rules: Rules) -> Ref:
    """Any characters and the closing quote."""

    def make() -> list[Alternative]:
        rest = rules.keyed("rest", list)
        return [(QUOTE,), (Chars(_PLAIN), rest), ("\\", _escaped(rules), rest)]

    return rules.keyed("rest", make, after_value(rules))


def write_texts(rules: Rules, texts: Texts) -> Ref:
    """The rule of these strings, quotes included."""
    if not texts.automata and not texts.excluded:
        if texts.low == 0 and texts.high is None:
            return any_string(rules)
        if texts.high is not None and texts.high < texts.low:
            return rules.add()
        return rules.keyed(
            ("length", texts.low, texts.high),
            lambda: [(QUOTE, *_counted(rules, None, texts.low, texts.high))],
        )
    low, high = texts.low, texts.high
    automaton: Automaton | None = None
    for other in texts.automata:
        automaton = other if automaton is None else intersect(automaton, other)
    if automaton is not None and not texts.excluded:
        found = is_repeated_class(automaton)
        if found is not None:
            ranges, least, most = found
            low = max(low, least)
            high = most if high is None else high if most is None else min(high, most)
            return rules.add((QUOTE, *_counted(rules, ranges, low, high)))
    if texts.excluded:
        others = complement(only(texts.excluded))
        automaton = others if automaton is None else intersect(automaton, others)
    assert automaton is not None
    return rules.add((QUOTE, write_automaton(rules, limit_length(automaton, low, high))))


def write_name(rules: Rules, texts: Texts, taken: Iterable[str]) -> Ref:
    """The rule of names of properties that are none of those `taken`.

    Where telling them apart letter by letter would cost too much, names are left out that only begin
    like one of them.
    """
    names = frozenset(taken)
    if not names or texts.automata or texts.high is not None or texts.low:
        kept = Texts(texts.low, texts.high, texts.automata, texts.excluded | names)
        return write_texts(rules, kept)
    depth = 1 + max(map(len, names))
    while (
        depth > 1
        and len({n[:k] for n in names for k in range(min(depth, len(n) + 1))}) > _MAX_NAME_STATES
    ):
        depth -= 1

    def step(prefix: str | None) -> tuple[bool, list[tuple[int, int, str | None]]]:
        if prefix is None:
            return True, [(low, high, None) for low, high in _WRITABLE]
        place = len(prefix)
        following = sorted({n[place] for n in names if n.startswith(prefix) and len(n) > place})
        others = subtract(_WRITABLE, [(ord(c), ord(c)) for c in following])
        outgoing: list[tuple[int, int, str | None]] = [(low, high, None) for low, high in others]
        if place + 1 < depth:
            outgoing += [(ord(c), ord(c), prefix + c) for c in following]
        return prefix not in names, outgoing

    begin: str | None = ""
    return rules.add((QUOTE, write_automaton(rules, explore(begin, step))))


_WRITABLE: Ranges = merge([*_PLAIN, *((code, code) for code in _SHORT)])
"""All characters that an automaton's texts are written with."""


def write_automaton(rules: Rules, automaton: Automaton, end: Alternative = (QUOTE,)) -> Ref:
    """An automaton's texts with `end` behind them."""
    if automaton.empty:
        return rules.add()
    after = after_value(rules)
    start = rules.keyed(("automaton", automaton, end), list)
    if rules.is_written(start):
        return start
    states = [start, *(rules.add() for _ in automaton.edges[1:])]
    for state, outgoing in enumerate(automaton.edges):
        targets: dict[int, list[tuple[int, int]]] = {}
        for low, high, target in outgoing:
            targets.setdefault(target, []).append((low, high))
        body: list[Alternative] = [end] if automaton.accepting[state] else []
        for target, ranges in targets.items():
            body += [(*one, states[target]) for one in _write_class(merge(ranges))]
        rules.fill(states[state], body, after)
    return start


def _write_class(ranges: Ranges) -> list[Alternative]:
    """One character of a class, as it stands in a string."""
    plain = subtract(ranges, subtract(((0, 0x10FFFF),), _PLAIN))
    short = merge(
        (ord(letter), ord(letter))
        for code, letter in _SHORT.items()
        if any(low <= code <= high for low, high in ranges)
    )
    written: list[Alternative] = [(Chars(plain),)] if plain else []
    return [*written, ("\\", Chars(short))] if short else written


def _character(rules: Rules, ranges: Ranges | None) -> list[Alternative]:
    """One character: of a class, or any."""
    if ranges is not None:
        return _write_class(ranges)
    return [(Chars(_PLAIN),), ("\\", _escaped(rules))]


def _counted(rules: Rules, ranges: Ranges | None, low: int, high: int | None) -> Alternative:
    """`low` to `high` characters and the closing quote."""
    if high is not None and high < low:
        return (rules.add(),)
    if high is not None and high <= _TAIL:
        return (_tail(rules, ranges, low, high),)
    # One character that at least a tail's length of others may follow. It is used in one place, and
    # what is promised to follow it does: so an engine knows beforehand which tokens go past it.
    # Empty rules around it keep it from being written out where it is used.
    one = rules.keyed(
        ("one", ranges), lambda: _character(rules, ranges), _tail(rules, ranges, 0, _TAIL)
    )
    empty = rules.keyed("empty", lambda: [EMPTY])
    unit = rules.keyed(("unit", ranges), lambda: [(empty, one, empty)])
    if high is None:
        if ranges is None:
            rest = any_rest(rules)
        else:
            rest = rules.keyed(("rest", ranges), list)
            loop = [(*c, rest) for c in _write_class(ranges)]
            rules.fill(rest, [(QUOTE,), *loop], after_value(rules))
        return (*rules.exactly(unit, low), rest)
    alike = high - _TAIL
    if low > alike:
        return (*rules.exactly(unit, alike), _tail(rules, ranges, low - alike, _TAIL))
    ends = [(*rules.exactly(unit, alike - low), _tail(rules, ranges, 0, _TAIL))]
    if alike > low:
        ends.append((*rules.repeat(unit, 0, alike - 1 - low), QUOTE))
    return (*rules.exactly(unit, low), rules.add(*ends, ahead=after_value(rules)))


def _tail(rules: Rules, ranges: Ranges | None, low: int, high: int) -> Ref:
    """The last characters: at least `low`, at most `high`, and the closing quote."""

    def make() -> list[Alternative]:
        ends: list[Alternative] = [] if low else [(QUOTE,)]
        if high:
            rest = _tail(rules, ranges, max(0, low - 1), high - 1)
            ends += [(*c, rest) for c in _character(rules, ranges)]
        return ends

    return rules.keyed(("tail", ranges, low, high), make, after_value(rules))
