"""Numbers within bounds, as automata over their digits.

Numbers are written plainly: no leading zeros, no minus before a zero, no exponent. Where no bound
asks for more, an integer has up to 18 digits, and a number up to 15 in all, so that no two of them
are one and the same in a client's binary floating point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

from thrifty.engines.server.grammar.automata import Automaton, explore, only
from thrifty.engines.server.grammar.rules import GrammarTooLarge

INTEGER_DIGITS = 18
NUMBER_DIGITS = 15
MAX_DIGITS = 400
MAX_MULTIPLE = 1_000
MAX_LISTED = 1_000
_MAX_COUNTED = 25

_State = tuple[Any, ...]
_Steps = tuple[bool, list[tuple[int, int, _State]]]
"""Whether a text may end in a state, and where characters lead."""

_ZERO, _POINT, _MINUS = ord("0"), ord("."), ord("-")


Bound = tuple[Decimal, bool]
"""A limit, and whether it is itself out of bounds."""


@dataclass(frozen=True)
class Bounds:
    """Which numbers are meant."""

    integer: bool
    low: Bound | None = None
    high: Bound | None = None
    multiple: Fraction | None = None
    """All are multiples of it; above 0."""


def write_numbers(bounds: Bounds) -> Automaton:
    """The texts of the numbers within `bounds`. Raises `GrammarTooLarge`."""
    bounds = replace(bounds, low=_drop_sign(bounds.low), high=_drop_sign(bounds.high))
    for bound in (bounds.low, bounds.high):
        if bound is not None and bound[0] and abs(bound[0].adjusted()) > MAX_DIGITS:
            raise GrammarTooLarge(f"a bound has more than {MAX_DIGITS} digits")
    if bounds.integer:
        bounds = _to_integers(bounds)
    few = _list_multiples(bounds)
    if few is not None:
        return only(few)
    low, high = bounds.low, bounds.high
    positive = negative = None
    if high is None or high[0] > 0 or high == (Decimal(0), False):
        start = low if low is not None and low[0] >= 0 else (Decimal(0), False)
        positive = _Magnitudes(bounds, start, high)
    if low is None or low[0] < 0:
        # There is no minus before a zero.
        start = _negate(high) if high is not None and high[0] < 0 else (Decimal(0), True)
        negative = _Magnitudes(bounds, start, None if low is None else _negate(low))

    def step(state: _State) -> _Steps:
        if state == ("begin",):
            outgoing: list[tuple[int, int, _State]] = []
            if negative is not None:
                outgoing.append((_MINUS, _MINUS, ("-", *negative.start)))
            if positive is not None:
                outgoing += [(a, b, ("+", *s)) for a, b, s in positive.step(positive.start)[1]]
            return False, outgoing
        side = positive if state[0] == "+" else negative
        assert side is not None
        accepts, digits = side.step(state[1:])
        return accepts, [(a, b, (state[0], *s)) for a, b, s in digits]

    begin: _State = ("begin",)
    return explore(begin, step)


def _drop_sign(bound: Bound | None) -> Bound | None:
    """The bound without the sign of a zero, which JSON may write as -0.0."""
    return bound if bound is None or bound[0] else (Decimal(0), bound[1])


def _negate(bound: Bound) -> Bound:
    return bound[0].copy_negate(), bound[1]


def _to_integers(bounds: Bounds) -> Bounds:
    """The same integers, with closed bounds that are integers, and an integer multiple."""
    low = high = None
    if bounds.low is not None:
        value, is_open = bounds.low
        low = Decimal(math.floor(value) + 1 if is_open else math.ceil(value)), False
    if bounds.high is not None:
        value, is_open = bounds.high
        high = Decimal(math.ceil(value) - 1 if is_open else math.floor(value)), False
    # An integer is a multiple of a/b, in lowest terms, if it is one of a.
    multiple = None if bounds.multiple is None else Fraction(bounds.multiple.numerator)
    return Bounds(True, low, high, multiple)


def _list_multiples(bounds: Bounds) -> list[str] | None:
    """The multiples between two bounds, where they are few."""
    multiple = bounds.multiple
    if multiple is None or bounds.low is None or bounds.high is None:
        return None
    low, high = Fraction(bounds.low[0]) / multiple, Fraction(bounds.high[0]) / multiple
    first = math.floor(low) + 1 if bounds.low[1] else math.ceil(low)
    last = math.ceil(high) - 1 if bounds.high[1] else math.floor(high)
    if last - first >= MAX_LISTED:
        return None
    return [_write_fraction(multiple * count) for count in range(first, last + 1)]


def _write_fraction(value: Fraction) -> str:
    """A decimal number as it is written. Its denominator divides a power of ten."""
    places = 0
    while value.denominator != 1 and places <= MAX_DIGITS:
        value *= 10
        places += 1
    if value.denominator != 1:
        raise GrammarTooLarge("'multipleOf' is no decimal number")
    sign, digits = "-" if value < 0 else "", str(abs(int(value))).rjust(places + 1, "0")
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


class _Magnitudes:
    """The texts of numbers from `low` to `high`, both at least 0, without a sign.

    A state of the whole part: how many digits, how they compare to as many of each bound's, and the
    remainder. A state of the fraction: the same, behind the point.
    """

    def __init__(self, bounds: Bounds, low: Bound, high: Bound | None) -> None:
        self._low, self._low_rest = _split(low[0])
        self._low_open = low[1]
        self._high: str | None = None
        self._high_rest, self._high_open = "", False
        if high is not None:
            self._high, self._high_rest = _split(high[0])
            self._high_open = high[1]
        self._integer = bounds.integer
        self._modulus, self._places = _scale(bounds.multiple)
        self._has_multiple = bounds.multiple is not None
        digits = INTEGER_DIGITS if bounds.integer else max(1, NUMBER_DIGITS - self._places)
        self._digits = max(digits, len(self._low) + 3) if high is None else len(self._high or "")
        self._counts_all = self._modulus <= _MAX_COUNTED
        """Whether the number of digits is bounded. Beside a large multiple, only their remainder counts."""
        self._rest_digits = max(
            0 if self._low_open else len(self._low_rest),
            0 if self._high_open else len(self._high_rest),
        )

    @property
    def start(self) -> _State:
        """The state before the first digit. All are above a closed bound of zero."""
        above = int(self._low == "0" and not self._low_rest and not self._low_open)
        return ("whole", 0, above, 0, 0)

    def step(self, state: _State) -> _Steps:
        """Whether a number may end here, and where digits and the point lead."""
        if state[0] == "whole":
            return self._step_whole(*state[1:])
        return self._step_rest(*state[1:])

    def _step_whole(self, count: int, low: int, high: int, remainder: int) -> _Steps:
        outgoing: list[tuple[int, int, _State]] = []
        is_zero = count < 0
        length = 1 if is_zero else count
        if not is_zero and (count < self._digits or (self._high is None and not self._counts_all)):
            for digit in range(10):
                following = -1 if count == 0 and digit == 0 else self._cap(count + 1)
                state = (
                    "whole",
                    following,
                    low or _compare(digit, self._low, count),
                    high or (0 if self._high is None else _compare(digit, self._high, count)),
                    (remainder * 10 + digit) % self._modulus,
                )
                outgoing.append((_ZERO + digit, _ZERO + digit, state))
        if count == 0:
            return False, outgoing
        from_low = _order(length, len(self._low), low)
        to_high = -1 if self._high is None else _order(length, len(self._high), high)
        if from_low < 0 or to_high > 0:
            return False, outgoing
        free = max(NUMBER_DIGITS - length, self._rest_digits)
        places = self._places if self._has_multiple else free
        if not self._integer and places > 0:
            rest = ("rest", 0, places, from_low, to_high, remainder)
            outgoing.append((_POINT, _POINT, rest))
        return self._may_end(0, from_low, to_high, remainder), outgoing

    def _cap(self, count: int) -> int:
        """With a multiple and no upper bound, digits beyond both bounds' are not counted."""
        if self._high is None and not self._counts_all:
            return min(count, len(self._low) + 1)
        return count

    def _step_rest(self, count: int, places: int, low: int, high: int, remainder: int) -> _Steps:
        outgoing: list[tuple[int, int, _State]] = []
        if count < places:
            for digit in range(10):
                to_low = low or _compare_rest(digit, self._low_rest, count)
                to_high = high or _compare_rest(digit, self._high_rest, count)
                if to_low < 0 or to_high > 0:
                    continue
                state = (
                    "rest", count + 1, places, to_low, to_high,
                    (remainder * 10 + digit) % self._modulus,
                )  # fmt: skip
                outgoing.append((_ZERO + digit, _ZERO + digit, state))
        return count > 0 and self._may_end(count, low, high, remainder), outgoing

    def _may_end(self, count: int, low: int, high: int, remainder: int) -> bool:
        if low == 0 and (any(d != "0" for d in self._low_rest[count:]) or self._low_open):
            return False
        if high == 0 and self._high_open and not self._high_rest[count:].strip("0"):
            return False
        return bool(remainder * 10 ** max(0, self._places - count) % self._modulus == 0)


def _split(value: Decimal) -> tuple[str, str]:
    """The digits before and behind the point."""
    whole, _, rest = f"{value:f}".partition(".")
    return whole, rest.rstrip("0")


def _scale(multiple: Fraction | None) -> tuple[int, int]:
    """The multiple as a whole number of units, and the places behind the point of a unit. Raises
    `GrammarTooLarge`.
    """
    if multiple is None:
        return 1, 0
    places = 0
    while multiple.denominator != 1 and places <= MAX_DIGITS:
        multiple *= 10
        places += 1
    if multiple.denominator != 1 or multiple > MAX_MULTIPLE:
        raise GrammarTooLarge(
            f"'multipleOf' may have a value of up to {MAX_MULTIPLE} units of its last digit"
        )
    return int(multiple), places


def _compare(digit: int, digits: str, place: int) -> int:
    """How a digit compares to a bound's at the same place, -1 to 1; 0 behind its end."""
    if place >= len(digits):
        return 0
    other = int(digits[place])
    return (digit > other) - (digit < other)


def _compare_rest(digit: int, digits: str, place: int) -> int:
    """The same behind the point, where a bound goes on with zeros."""
    other = int(digits[place]) if place < len(digits) else 0
    return (digit > other) - (digit < other)


def _order(length: int, other: int, tie: int) -> int:
    """How a whole number compares to another one, by their lengths or else by their digits."""
    return (length > other) - (length < other) or tie
