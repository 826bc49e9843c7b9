r"""Regular expressions as automata: the part of ECMA 262 that describes sets of texts.

What looks around (`(?=`, `\b`), refers back (`\1`) or depends on Unicode's tables (`\p`) is refused.
Validators read some parts differently: `\d` and kin beyond ASCII, `.` and `$` at the ends of lines. An
automaton accepts what all of them do or, if it is `wide`, what any of them may.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from thrifty.engines.server.grammar.automata import (
    ANY,
    Automaton,
    Edge,
    explore,
    merge,
    subtract,
)
from thrifty.engines.server.grammar.rules import GrammarTooLarge, Ranges

MAX_PATTERN = 4_000
_MAX_PARTS = 20_000
_MAX_WORK = 3_000_000

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
# All that Python or ECMA take for a space.
_SPACES: Ranges = merge(
    [*_SPACE, (0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
     (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
)  # fmt: skip
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_BEYOND: Ranges = subtract(ANY, ((0, 0x7F),))
_NARROW: dict[str, Ranges] = {
    "d": _DIGIT,
    "w": _WORD,
    "s": _SPACE,
    # Beyond ASCII, these leave out all blocks that hold what Python counts as digits or letters.
    "D": merge([*subtract(((0, 0x7F),), _DIGIT), (0x80, 0x65F), (0x2E80, 0xA61F)]),
    "W": subtract(((0, 0x7F),), _WORD),
    "S": subtract(ANY, _SPACES),
    ".": subtract(ANY, _LINE_ENDS),
}
_WIDE: dict[str, Ranges] = {
    "d": merge([*_DIGIT, *_BEYOND]),
    "w": merge([*_WORD, *_BEYOND]),
    "s": _SPACES,
    "D": subtract(ANY, _DIGIT),
    "W": subtract(ANY, _WORD),
    "S": subtract(ANY, _SPACE),
    ".": subtract(ANY, ((0x0A, 0x0A),)),
}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}


class PatternRefused(ValueError):
    """A pattern that is not valid, or that no automaton can decide."""


@dataclass
class _Parts:
    """An automaton with several ways for a character, and steps that take none."""

    free: list[list[int]] = field(default_factory=list)
    at_begin: list[list[int]] = field(default_factory=list)
    at_end: list[list[int]] = field(default_factory=list)
    by_character: list[list[tuple[Ranges, int]]] = field(default_factory=list)
    work: int = 0

    def add(self) -> int:
        if len(self.free) >= _MAX_PARTS:
            raise GrammarTooLarge("a pattern is too large")
        for steps in (self.free, self.at_begin, self.at_end):
            steps.append([])
        self.by_character.append([])
        return len(self.free) - 1

    def count_work(self, steps: int) -> None:
        """Raise `GrammarTooLarge` once all steps together are too many."""
        self.work += steps
        if self.work > _MAX_WORK:
            raise GrammarTooLarge("a pattern has too many ways to be found")


# A parsed pattern: nested tuples that begin with what they are.
_Node = tuple[object, ...]


class _Reader:
    """Parses a pattern."""

    def __init__(self, text: str, *, wide: bool) -> None:
        self._text = text
        self._classes = _WIDE if wide else _NARROW
        self._inverse = _NARROW if wide else _WIDE
        self._at = 0
        self._depth = 0

    def read(self) -> _Node:
        node = self._alternatives()
        if self._at < len(self._text):
            raise PatternRefused("it has a ')' too many")
        return node

    def _peek(self, length: int = 1) -> str:
        return self._text[self._at : self._at + length]

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise PatternRefused("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _alternatives(self) -> _Node:
        self._depth += 1
        if self._depth > 50:
            raise PatternRefused("it is nested too deeply")
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence())
        self._depth -= 1
        return options[0] if len(options) == 1 else ("or", *options)

    def _sequence(self) -> _Node:
        items: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._repeated(self._atom()))
        return items[0] if len(items) == 1 else ("all", *items)

    def _repeated(self, node: _Node) -> _Node:
        sign = self._peek()
        if sign in ("*", "+", "?"):
            self._at += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        else:
            counts = self._counts()
            if counts is None:
                return node
            low, high = counts
        if node[0] in ("^", "$"):
            raise PatternRefused(f"nothing can be repeated at {self._text[: self._at]!r}")
        if self._peek() == "?":  # lazy: the same texts
            self._at += 1
        if self._peek() in ("*", "+", "?"):
            raise PatternRefused(f"nothing can be repeated at {self._text[: self._at]!r}")
        return ("repeat", node, low, high)

    def _counts(self) -> tuple[int, int | None] | None:
        """`{2}`, `{2,}` or `{2,5}`; other braces stand for themselves."""
        if self._peek() != "{":
            return None
        end = self._text.find("}", self._at)
        low, comma, high = (
            self._text[self._at + 1 : end].partition(",") if end > 0 else ("", "", "")
        )
        if comma and not low and high.isascii() and high.isdigit():
            raise PatternRefused(f"write '{{0,{high}}}' for '{{,{high}}}', which some take as text")
        if not (
            low.isascii() and low.isdigit() and (not high or (high.isascii() and high.isdigit()))
        ):
            return None
        self._at = end + 1
        if len(low) > 6 or len(high) > 6:
            raise PatternRefused("it repeats something too often")
        most = int(low) if not comma else int(high) if high else None
        if most is not None and most < int(low):
            raise PatternRefused(f"the counts {{{low},{high}}} are out of order")
        return int(low), most

    def _atom(self) -> _Node:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return ("chars", self._class())
        if character == ".":
            return ("chars", self._classes["."])
        if character in "^$":
            return (character,)
        if character == "\\":
            return ("chars", self._escape(self._classes, in_class=False))
        if character in "*+?":
            raise PatternRefused(f"nothing can be repeated at {self._text[: self._at]!r}")
        return ("chars", ((ord(character), ord(character)),))

    def _group(self) -> _Node:
        if self._peek() == "?":
            if self._peek(2) == "?:":
                self._at += 2
            elif self._peek(2) == "?<" and self._peek(3) not in ("?<=", "?<!"):
                end = self._text.find(">", self._at)
                if end < 0:
                    raise PatternRefused("the name of a group does not end")
                self._at = end + 1
            elif self._peek(3) in ("?=", "?!", "?<=", "?<!") or self._peek(2) in ("?=", "?!"):
                raise PatternRefused(f"it looks around with '({self._peek(3)}'")
            else:
                raise PatternRefused(f"the group '({self._peek(3)}' is not known")
        node = self._alternatives()
        if self._peek() != ")":
            raise PatternRefused("a group does not end")
        self._at += 1
        return node

    def _escape(self, classes: dict[str, Ranges], *, in_class: bool) -> Ranges:
        character = self._take()
        if character in "dwsDWS":
            return classes[character]
        if character in "bB" and not in_class:
            raise PatternRefused(f"it looks for borders of words with '\\{character}'")
        if character == "b":
            return ((8, 8),)
        if character in "123456789k":
            raise PatternRefused(f"it refers back with '\\{character}'")
        if character in "pP":
            raise PatternRefused(f"Unicode's classes ('\\{character}') are not known")
        if character == "x":
            return self._code(2)
        if character == "u":
            if self._peek() == "{":
                end = self._text.find("}", self._at)
                digits, self._at = self._text[self._at + 1 : max(end, 0)], end + 1
                return _one(digits)
            return self._unit()
        if character == "c":
            letter = self._take()
            if not (letter.isascii() and letter.isalpha()):
                raise PatternRefused(f"'\\c{letter}' is no character")
            return ((ord(letter) % 32, ord(letter) % 32),)
        if character in _CONTROLS:
            if character == "0" and self._peek().isdigit():
                raise PatternRefused("octal escapes are not known")
            return ((_CONTROLS[character], _CONTROLS[character]),)
        if character.isalnum():
            raise PatternRefused(f"the escape '\\{character}' is not known")
        return ((ord(character), ord(character)),)

    def _code(self, length: int) -> Ranges:
        digits = self._peek(length)
        self._at += length
        return _one(digits if len(digits) == length else "")

    def _unit(self) -> Ranges:
        r"""`\uXXXX`, or two of them that make one character together."""
        digits = self._peek(4)
        if digits[:2].lower() in ("d8", "d9", "da", "db") and self._text.startswith(
            "\\u", self._at + 4
        ):
            low = self._text[self._at + 6 : self._at + 10]
            self._at += 10
            try:
                pair = int(digits, 16).to_bytes(2, "big") + int(low, 16).to_bytes(2, "big")
                code = ord(pair.decode("utf-16-be"))
            except (ValueError, TypeError):
                raise PatternRefused(f"'\\u{digits}\\u{low}' is no character") from None
            return ((code, code),)
        return self._code(4)

    def _class(self) -> Ranges:
        negated = self._peek() == "^"
        if negated:
            self._at += 1
        # What is left out of a set may be more than what is in it for sure.
        classes = self._inverse if negated else self._classes
        found: list[tuple[int, int]] = []
        while True:
            character = self._take()
            if character == "]":
                break
            low = (
                self._escape(classes, in_class=True)
                if character == "\\"
                else ((ord(character),) * 2,)
            )
            if self._peek() == "-" and self._peek(2) not in ("-", "-]"):
                self._at += 1
                character = self._take()
                high = (
                    self._escape(classes, in_class=True)
                    if character == "\\"
                    else ((ord(character),) * 2,)
                )
                if not (_is_single(low) and _is_single(high)) or low[0][0] > high[0][0]:
                    raise PatternRefused("the ends of a range of characters are out of order")
                found += subtract(((low[0][0], high[0][0]),), ((0xD800, 0xDFFF),))
            else:
                found += low
        return subtract(ANY, merge(found)) if negated else merge(found)


def _is_single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _one(digits: str) -> Ranges:
    try:
        code = int(digits, 16)
        chr(code).encode()
    except (ValueError, OverflowError):
        raise PatternRefused(f"'{digits}' is no character's code") from None
    return ((code, code),)


def _build(parts: _Parts, node: _Node, begin: int, wide: bool) -> int:
    """Add what `node` takes behind `begin`; returns where it ends."""
    kind = node[0]
    if kind == "chars":
        end = parts.add()
        parts.by_character[begin].append((node[1], end))  # type: ignore[arg-type]
        return end
    if kind in ("^", "$"):
        end = parts.add()
        (parts.at_begin if kind == "^" else parts.at_end)[begin].append(end)
        if kind == "$" and wide:  # Python also finds an end before a last line's end
            line_end = parts.add()
            parts.by_character[begin].append((((0x0A, 0x0A),), line_end))
            parts.at_end[line_end].append(end)
        return end
    if kind == "all":
        for item in node[1:]:
            begin = _build(parts, item, begin, wide)  # type: ignore[arg-type]
        return begin
    if kind == "or":
        end = parts.add()
        for item in node[1:]:
            start = parts.add()
            parts.free[begin].append(start)
            parts.free[_build(parts, item, start, wide)].append(end)  # type: ignore[arg-type]
        return end
    _, item, low, high = node
    for _ in range(low):  # type: ignore[call-overload]
        begin = _build(parts, item, begin, wide)  # type: ignore[arg-type]
    if high is None:
        start = parts.add()
        parts.free[begin].append(start)
        parts.free[_build(parts, item, start, wide)].append(start)  # type: ignore[arg-type]
        return start
    end = parts.add()
    parts.free[begin].append(end)
    for _ in range(high - low):  # type: ignore[operator]
        start = parts.add()
        parts.free[begin].append(start)
        begin = _build(parts, item, start, wide)  # type: ignore[arg-type]
        parts.free[begin].append(end)
    return end


def _close(
    parts: _Parts, states: Iterable[int], *, begin: bool = False, end: bool = False
) -> frozenset[int]:
    found = set(states)
    stack = list(found)
    while stack:
        state = stack.pop()
        following = list(parts.free[state])
        if begin:
            following += parts.at_begin[state]
        if end:
            following += parts.at_end[state]
        for target in following:
            if target not in found:
                found.add(target)
                stack.append(target)
    parts.count_work(len(found))
    return frozenset(found)


def _determine(parts: _Parts, start: int, final: int) -> Automaton:
    """The automaton whose states are sets of parts; whether a text has begun is part of a state."""

    def step(
        state: tuple[frozenset[int], bool],
    ) -> tuple[bool, list[tuple[int, int, tuple[frozenset[int], bool]]]]:
        members, begins = state
        accepts = final in _close(parts, members, begin=begins, end=True)
        borders: dict[int, list[tuple[int, int]]] = {}
        ways = [way for member in members for way in parts.by_character[member]]
        for ranges, target in ways:
            for low, high in ranges:
                borders.setdefault(low, []).append((1, target))
                borders.setdefault(high + 1, []).append((-1, target))
        active: dict[int, int] = {}
        outgoing = []
        points = sorted(borders)
        for index, point in enumerate(points):
            for change, target in borders[point]:
                active[target] = active.get(target, 0) + change
            targets = [target for target, count in active.items() if count]
            if targets:
                following = (_close(parts, targets), False)
                outgoing.append((point, points[index + 1] - 1, following))
        return accepts, outgoing

    return explore((_close(parts, [start], begin=True), True), step)


def check_pattern(pattern: str) -> None:
    """Raise `PatternRefused` unless automata can decide `pattern`."""
    if len(pattern) > MAX_PATTERN:
        raise PatternRefused(f"it is longer than {MAX_PATTERN} characters")
    _Reader(pattern, wide=False).read()


@lru_cache(maxsize=256)
def find_texts(pattern: str, *, wide: bool = False) -> Automaton:
    """The texts in which a pattern is found, as JSON schemas mean it. `check_pattern` has passed it.
    Raises `GrammarTooLarge`.
    """
    return _find(pattern, wide=wide, anchored=False)


@lru_cache(maxsize=256)
def match_texts(pattern: str) -> Automaton:
    """The texts that a pattern matches from its beginning to its end. As `find_texts`."""
    return _find(pattern, wide=False, anchored=True)


def _find(pattern: str, *, wide: bool, anchored: bool) -> Automaton:
    node = _Reader(pattern, wide=wide).read()
    parts = _Parts()
    start = parts.add()
    if not anchored:
        parts.by_character[start].append((ANY, start))
    begin = parts.add()
    parts.free[start].append(begin)
    final = _build(parts, node, begin, wide)
    if not anchored:
        parts.by_character[final].append((ANY, final))
    return _determine(parts, start, final)


def is_repeated_class(automaton: Automaton) -> tuple[Ranges, int, int | None] | None:
    """The class and the counts where an automaton accepts any texts of some lengths over one class
    of characters; None if it is another.
    """
    if automaton.empty or not automaton.edges[0]:
        return None
    ranges = _ranges_of(automaton.edges[0])
    for state, outgoing in enumerate(automaton.edges):
        if outgoing and (
            len({target for _, _, target in outgoing}) > 1 or _ranges_of(outgoing) != ranges
        ):
            return None
        if not outgoing and not automaton.accepting[state]:
            return None
    low, high = automaton.find_lengths()
    # Each length between them must do, and all from `low` on lead along one chain.
    state, length = 0, 0
    seen = set()
    while state not in seen:
        seen.add(state)
        if automaton.accepting[state] != (length >= low):
            return None
        if not automaton.edges[state]:
            break
        state, length = automaton.edges[state][0][2], length + 1
    return ranges, low, high


def _ranges_of(edges: Iterable[Edge]) -> Ranges:
    return merge((low, high) for low, high, _ in edges)
