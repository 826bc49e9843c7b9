"""The formats of strings that are enforced: patterns for (most of) what each of them allows.

A pattern may leave out rare members of its format (leap days, very long host names), and never lets
anything else in. Formats that are not here say nothing about a string.
"""

from __future__ import annotations

from functools import lru_cache

from thrifty.engines.server.grammar.automata import Automaton
from thrifty.engines.server.grammar.patterns import match_texts

_DATE = (
    r"([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-"
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
_TIME = rf"{_CLOCK}(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[A-Za-z0-9](-?[A-Za-z0-9]){0,19}"
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_GROUP = r"[0-9A-Fa-f]{1,4}"
_URI_CHARACTER = r"([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})"
_REST = rf"{_URI_CHARACTER}*(\?{_URI_CHARACTER}*)?(#{_URI_CHARACTER}*)?"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*://{_LABEL}(\.{_LABEL}){{0,2}}(:[1-9][0-9]{{0,3}})?(/{_REST})?"
_POINTER = r"(/([^~/]|~[01])*)*"
_COUNT = r"(0|[1-9][0-9]{0,5})"
_LEVELS = r"(0|[1-9][0-9]?)"

PATTERNS: dict[str, str] = {
    "date-time": rf"{_DATE}T{_TIME}",
    "date": _DATE,
    "time": _TIME,
    "duration": (
        rf"P({_COUNT}W|({_COUNT}Y({_COUNT}M({_COUNT}D)?)?|{_COUNT}M({_COUNT}D)?|{_COUNT}D)"
        rf"(T({_COUNT}H({_COUNT}M({_COUNT}S)?)?|{_COUNT}M({_COUNT}S)?|{_COUNT}S))?"
        rf"|T({_COUNT}H({_COUNT}M({_COUNT}S)?)?|{_COUNT}M({_COUNT}S)?|{_COUNT}S))"
    ),
    "email": rf"[A-Za-z0-9]([._+-]?[A-Za-z0-9]){{0,30}}@{_LABEL}(\.{_LABEL}){{1,2}}",
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,2}}",
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
    "ipv6": (
        rf"({_GROUP}:){{7}}{_GROUP}|::({_GROUP}(:{_GROUP}){{0,5}})?"
        rf"|{_GROUP}::({_GROUP}(:{_GROUP}){{0,4}})?|({_GROUP}:){{1}}{_GROUP}::({_GROUP}(:{_GROUP}){{0,3}})?"
        rf"|({_GROUP}:){{2}}{_GROUP}::({_GROUP}(:{_GROUP}){{0,2}})?"
        rf"|({_GROUP}:){{3}}{_GROUP}::({_GROUP}(:{_GROUP})?)?|({_GROUP}:){{4}}{_GROUP}::({_GROUP})?"
    ),
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": _URI,
    "uri-reference": rf"{_URI}|/{_REST}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"{_LEVELS}(#|{_POINTER})",
}
# What is valid by the plainer format is valid by its extension.
PATTERNS |= {
    "idn-email": PATTERNS["email"],
    "idn-hostname": PATTERNS["hostname"],
    "iri": PATTERNS["uri"],
    "iri-reference": PATTERNS["uri-reference"],
    "uri-template": PATTERNS["uri"],
}
REFUSED = frozenset({"regex"})
"""Formats that constrain and are not enforced."""


@lru_cache(maxsize=len(PATTERNS))
def find_format(name: str) -> Automaton | None:
    """The texts of a format; None for one that says nothing."""
    pattern = PATTERNS.get(name)
    return None if pattern is None else match_texts(pattern)
