"""A context-free grammar while it is built, and its text in the notation that engines read.

Symbols are literal text, classes of characters and references to rules. Rules that no finite text
can satisfy are removed at the end, with the alternatives that need them; what is left can always
be completed. The text is EBNF as XGrammar reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from thrifty.engines.server.backend import Grammar

MAX_RULES = 30_000
MAX_TEXT_BYTES = 256 * 1024
MAX_EFFORT = 30_000_000
"""Tokens to be tried, over all places: about five seconds of one core."""

Ranges = tuple[tuple[int, int], ...]
"""Code points, both ends included, in order and apart from each other."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to a rule."""

    number: int


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of a class."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class FreeText:
    """Any text in which each `trigger` is followed by `rule`; after the first one nothing more comes
    unless it `repeats`. It is a rule's only alternative and stands alone in it.
    """

    trigger: str
    rule: Ref
    repeats: bool


Symbol = str | Chars | Ref | FreeText
Alternative = tuple[Symbol, ...]

EMPTY: Alternative = ()


class GrammarTooLarge(Exception):
    """The grammar would be larger than an engine should be asked to compile."""


class Rules:
    """The rules of one grammar."""

    def __init__(self) -> None:
        self._bodies: list[tuple[Alternative, ...]] = []
        self._ahead: dict[int, Ref] = {}
        self._known: dict[Hashable, Ref] = {}

    def add(self, *alternatives: Alternative, ahead: Ref | None = None) -> Ref:
        """A new rule. `ahead` promises what may follow it, so that an engine can tell early which
        tokens cross its end.
        """
        ref = self._reserve()
        self._bodies[ref.number] = alternatives
        if ahead is not None:
            self._ahead[ref.number] = ahead
        return ref

    def keyed(
        self,
        key: Hashable,
        make: Callable[[], Iterable[Alternative]],
        ahead: Ref | None = None,
    ) -> Ref:
        """The rule for `key`, made by `make` if it is new. `make` may ask for the same key."""
        known = self._known.get(key)
        if known is not None:
            return known
        ref = self._known[key] = self._reserve()
        self._bodies[ref.number] = tuple(make())
        if ahead is not None:
            self._ahead[ref.number] = ahead
        return ref

    def is_written(self, ref: Ref) -> bool:
        """Whether a rule has alternatives already."""
        return bool(self._bodies[ref.number])

    def fill(self, ref: Ref, alternatives: Iterable[Alternative], ahead: Ref | None = None) -> None:
        """Write a rule that was reserved."""
        self._bodies[ref.number] = tuple(alternatives)
        if ahead is not None:
            self._ahead[ref.number] = ahead

    def _reserve(self) -> Ref:
        if len(self._bodies) >= MAX_RULES:
            raise GrammarTooLarge(f"it needs more than {MAX_RULES} rules")
        self._bodies.append(())
        return Ref(len(self._bodies) - 1)

    def repeat(self, unit: Ref, low: int, high: int | None) -> Alternative:
        """`low` to `high` times `unit`, as a part of an alternative.

        Counts are put together from powers of two, so that many are as cheap as few.
        """
        if high is None:
            loop = self.keyed(("loop", unit), lambda: [EMPTY, (unit, self._loop(unit))])
            return (*self.exactly(unit, low), loop)
        return (*self.exactly(unit, low), *self._at_most(unit, high - low))

    def _loop(self, unit: Ref) -> Ref:
        return self._known["loop", unit]

    def exactly(self, unit: Ref, count: int) -> Alternative:
        """`count` times `unit`."""
        parts = []
        power = unit
        while count:
            if count & 1:
                parts.append(power)
            count >>= 1
            if count:
                doubled = power
                power = self.keyed(("twice", doubled), lambda d=doubled: [(d, d)])  # type: ignore[misc]
        return tuple(reversed(parts))

    def _at_most(self, unit: Ref, count: int) -> Alternative:
        """Each number of repetitions has one derivation: fewer than a power of two, or that many and
        then the rest.
        """
        if count == 0:
            return EMPTY
        power = 1 << ((count + 1).bit_length() - 1)
        if power == count + 1:
            half = power // 2
            return (
                self.keyed(
                    ("below", unit, power),
                    lambda: [
                        self._at_most(unit, half - 1),
                        (*self.exactly(unit, half), *self._at_most(unit, half - 1)),
                    ],
                ),
            )
        return (
            self.keyed(
                ("at most", unit, count),
                lambda: [
                    self._at_most(unit, power - 1),
                    (*self.exactly(unit, power), *self._at_most(unit, count - power)),
                ],
            ),
        )

    def can_end(self, *refs: Ref) -> bool:
        """Whether each of these rules can be completed. Only for rules that are whole."""
        productive = self._find_productive()
        return all(ref.number in productive for ref in refs)

    def _find_productive(self) -> set[int]:
        """Rules that some finite text satisfies."""
        users: dict[int, list[tuple[int, int]]] = {}
        missing: list[list[int]] = []
        ready: list[int] = []
        for number, body in enumerate(self._bodies):
            counts = []
            for index, alternative in enumerate(body):
                needs = {s.number for s in alternative if isinstance(s, Ref)}
                counts.append(len(needs))
                for need in needs:
                    users.setdefault(need, []).append((number, index))
                if not needs:
                    ready.append(number)
            missing.append(counts)
        productive: set[int] = set()
        while ready:
            number = ready.pop()
            if number in productive:
                continue
            productive.add(number)
            for user, index in users.get(number, ()):
                missing[user][index] -= 1
                if not missing[user][index]:
                    ready.append(user)
        return productive

    def write(self, root: Ref, vocabulary_size: int) -> Grammar | None:
        """The grammar whose sentences are those of `root`, for a model with so many tokens; None if
        there are none. Raises `GrammarTooLarge`. Nothing can be added afterwards.
        """
        productive = self._find_productive()
        if root.number not in productive:
            return None
        empty = self.keyed("empty", lambda: [EMPTY])
        productive.add(empty.number)
        lines = [f"root ::= {_name(root.number)}"]
        size = 0
        places = 0.0
        seen = {root.number}
        stack = [root.number]
        while stack:
            number = stack.pop()
            body = [a for a in self._bodies[number] if productive.issuperset(_list_needs(a))]
            ahead = self._ahead.get(number)
            if ahead is not None and ahead.number not in productive:
                ahead = None
            written = []
            for alternative in self._factor(body, ahead, productive):
                # XGrammar writes out rules without references where they are used: see `_factor`.
                whole = alternative if _list_needs(alternative) else (*alternative, empty)
                places += sum(map(_weigh, alternative))
                written.append(" ".join(map(_write_symbol, whole if alternative else ())) or '""')
                needs = _list_needs(whole)
                stack += sorted(needs - seen)
                seen |= needs
            line = f"{_name(number)} ::= {' | '.join(written)}"
            if ahead is not None:
                line += f" (={_name(ahead.number)})"
                if ahead.number not in seen:
                    seen.add(ahead.number)
                    stack.append(ahead.number)
            size += len(line)
            if size > MAX_TEXT_BYTES:
                raise GrammarTooLarge(f"its rules take more than {MAX_TEXT_BYTES} bytes")
            lines.append(line)
        effort = round(places * vocabulary_size)
        if effort > MAX_EFFORT:
            raise GrammarTooLarge(
                f"its places that nearly any token may take, {places:.0f}, times the model's "
                f"{vocabulary_size} tokens are more than {MAX_EFFORT}"
            )
        return Grammar("\n".join(lines), effort)

    def _factor(
        self, alternatives: Iterable[Alternative], ahead: Ref | None, productive: set[int]
    ) -> list[Alternative]:
        """The same alternatives, of which no two begin alike: what follows a common beginning becomes
        a rule of its own.

        XGrammar makes an automaton of each rule, and joins its states: those that one state leads to
        by the same symbol, and those that lead to one state by the same symbol. It does both at once,
        and may so join three that are not alike. With different beginnings there are none of the
        first kind.
        """
        groups: dict[Hashable, list[Alternative]] = {}
        for alternative in dict.fromkeys(alternatives):
            first = alternative[0] if alternative else None
            groups.setdefault(first[0] if isinstance(first, str) else first, []).append(alternative)
        factored = []
        for group in groups.values():
            if len(group) == 1:
                factored.append(group[0])
                continue
            first = group[0][0]
            if isinstance(first, str):
                first = _find_common([str(alternative[0]) for alternative in group])
            rests = []
            for begin, *rest in group:
                left = (
                    begin[len(first) :] if isinstance(begin, str) and isinstance(first, str) else ""
                )
                rests.append((left, *rest) if left else tuple(rest))
            others = self.add(*rests, ahead=ahead)
            productive.add(others.number)
            factored.append((first, others))
        return factored


def _find_common(texts: list[str]) -> str:
    """The longest beginning of all texts."""
    first, last = min(texts), max(texts)
    length = 0
    while length < len(first) and first[length] == last[length]:
        length += 1
    return first[:length]


def _list_needs(alternative: Alternative) -> set[int]:
    """The rules in an alternative."""
    needs = {s.number for s in alternative if isinstance(s, Ref)}
    return needs | {s.rule.number for s in alternative if isinstance(s, FreeText)}


def _name(number: int) -> str:
    return f"r{number}"


_SHARES = ((0x20, 0x20, 0.5), (0x41, 0x5A, 0.1), (0x61, 0x7A, 0.4))
"""The share of a vocabulary that begins with a space, with a capital, with another letter."""
_NARROW_EFFORT = 1 / 400
_CARET = ord("^")


def _weigh(symbol: Symbol) -> float:
    """What it costs to find the tokens that may stand here, in vocabularies that are walked through
    (measured: a place that takes any character costs 400 times as much as one that takes a given
    one).
    """
    if isinstance(symbol, str):
        return len(symbol.encode()) * _NARROW_EFFORT
    if isinstance(symbol, Chars):
        return _NARROW_EFFORT + sum(
            max(0, min(high, end) - max(low, begin) + 1) / (end - begin + 1) * share
            for low, high in symbol.ranges
            for begin, end, share in _SHARES
        )
    return 1.0 if isinstance(symbol, FreeText) else 0.0


def _write_symbol(symbol: Symbol) -> str:
    if isinstance(symbol, str):
        # XGrammar writes grammars anew with escapes of any length, and takes the letters behind one
        # for its digits: so a literal ends behind each.
        pieces = re.findall(r"[ -~]*[^ -~]|[ -~]+", symbol)
        return " ".join('"' + "".join(map(_escape, piece)) + '"' for piece in pieces)
    if isinstance(symbol, Ref):
        return _name(symbol.number)
    if isinstance(symbol, Chars):
        return _write_class(symbol.ranges)
    repeats = "true" if symbol.repeats else "false"
    trigger = _write_symbol(symbol.trigger)
    return f"TagDispatch(({trigger}, {_name(symbol.rule.number)}), loop_after_dispatch={repeats})"


def _write_class(ranges: Ranges) -> str:
    """A class. XGrammar writes a `^` at its beginning anew as a negation, so it comes last."""
    (low, high), *others = ranges
    if low == _CARET:
        if high > low:
            others = [(low + 1, high), *others]
        if not others:
            return '"^"'
        return "[" + "".join(map(_write_range, others)) + "\\^]"
    return "[" + "".join(map(_write_range, ranges)) + "]"


def _write_range(ends: tuple[int, int]) -> str:
    low, high = ends
    first = _escape(chr(low), in_class=True)
    return first if low == high else f"{first}-{_escape(chr(high), in_class=True)}"


def _escape(character: str, *, in_class: bool = False) -> str:
    code = ord(character)
    if character in '"\\' or (in_class and character in "]-^["):
        return f"\\{character}"
    if 0x20 <= code < 0x7F:
        return character
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
