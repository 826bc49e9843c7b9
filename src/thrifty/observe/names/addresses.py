"""Finds postal addresses by their form.

An address is found by an anchor: a house number with a street, a post office box, a military
address, or a town with its state and ZIP code. What follows belongs to it: the flat, the postal
code with its town, and places that a model found. A place alone is no address.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

Span = tuple[int, int]
"""Where a passage begins and ends, in characters."""

MAX_PLACES = 4
"""Places, and postal codes with a town, behind a street."""

_CAPITAL = "A-ZÀ-ÖØ-ÞĄĆĘŁŃŚŹŻČŘŠŽ"
_WORD = rf"[{_CAPITAL}][\w'\u2019.\-]{{0,30}}"
_ORDINAL = r"[0-9]{1,3}(?:st|nd|rd|th)"
_PARTICLE = r"(?:am|an|der|de|del|della|di|do|da|dos|du|des|in|la|le|les|of|sur|upon|van|von)"
_TOWN = rf"{_WORD}(?:[ \-](?:{_WORD}|{_PARTICLE}\b)){{0,4}}"
_NUMBER = r"[0-9]{1,6}(?:[-/][0-9]{1,5})?[A-Za-z]?"
_COMMA = r"(?:\s*,\s*|\s+)(?:[>|][>|\s]*)?"
"""Between the parts of an address; a mark of quotation may begin a line."""
_STREETS = (
    r"(?:Street|Avenue|Boulevard|Road|Lane|Drive|Court|Place|Square|Terrace|Parkway|Highway|Circle|"
    r"Crescent|Alley|Close|Mews|Way)\b|(?:St|Ave|Av|Blvd|Rd|Ln|Dr|Ct|Pl|Sq|Ter|Pkwy|Hwy|Cir|Cres)\b\.?"
)
"""Words that make a street of what stands before them, without a town behind it."""
_STATES = (
    "A[AEKLPRZ]|C[AOT]|D[CE]|FL|GA|GU|HI|I[ADLN]|K[SY]|LA|M[ADEINOSTP]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|"
    "S[CD]|T[NX]|UT|V[AIT]|W[AIVY]"
)
_ZIP = r"[0-9]{5}(?:-[0-9]{4})?"
_UNITED_STATES = rf"{_TOWN}{_COMMA}(?:{_STATES})\.?{_COMMA}{_ZIP}"
_MILITARY = rf"(?:APO|FPO|DPO){_COMMA}A[AEP]{_COMMA}{_ZIP}"
_CANADA = rf"{_TOWN}{_COMMA}[A-Z]{{2}}{_COMMA}[A-Z][0-9][A-Z] ?[0-9][A-Z][0-9]"
_AUSTRALIA = rf"{_TOWN}{_COMMA}(?:ACT|NSW|NT|QLD|SA|TAS|VIC|WA){_COMMA}[0-9]{{4}}"
_BRITAIN = rf"(?:{_TOWN}{_COMMA})?[A-Z]{{1,2}}[0-9][A-Z0-9]? ?[0-9][A-Z]{{2}}"
_CODE = r"(?:[A-Z]{1,2}-)?(?:[0-9]{2}-[0-9]{3}|[0-9]{4,5}-[0-9]{3}|[0-9]{4,5})(?: ?[A-Z]{2}\b)?(?![\w-])"
_STRICT_TAIL = rf"(?:{_UNITED_STATES}|{_MILITARY}|{_CANADA}|{_AUSTRALIA}|{_BRITAIN})\b"
"""Postal codes with a town that are told from other numbers."""
_TAIL = rf"(?:{_STRICT_TAIL}|{_CODE}{_COMMA}{_TOWN}(?: \([A-Z]{{2}}\))?|{_TOWN}{_COMMA}{_CODE})"
_UNIT = (
    r"(?:Apartment|Apt|Suite|Ste|Unit|Flat|Studio|Floor|Fl|Room|Rm|Building|Bldg|Piso|Puerta|Piano|Interno|"
    r"#)\.?[ ]?(?:#?[0-9]{1,5}[A-Za-z]?|[A-Z])\b"
)
_HOUSE = r"[0-9]{1,4}(?:[/-][0-9]{1,4})?(?: ?[a-z]\b)?(?!\w)"
_KINDS = "Stra(?:ß|ss)e|Str\\.|Weg|Platz|Allee|Gasse|Ring|Damm|Ufer"
_GLUED = (
    rf"[{_CAPITAL}][\w.\-]{{1,40}}(?:stra(?:ß|ss)e|str\.|weg|platz|allee|gasse|ufer|chaussee|straat|laan|"
    rf"plein|gracht|kade|singel|-(?:{_KINDS}))"
)
_APART = rf"{_WORD} (?:{_KINDS})"
_NUMBER_FIRST = (
    rf"{_NUMBER}(?: ?bis| ?ter)?,? (?:rue|avenue|av\.|boulevard|bd|place|chemin|impasse|allée|quai) "
    rf"(?:(?:de|du|des|la|le|les) |[ld]['\u2019]){{0,2}}{_TOWN}"
)
_NUMBER_LAST = (
    r"(?:Via|Viale|Piazza|Corso|Vicolo|Borgo|Calle|Avenida|Avda\.|Plaza|Paseo|Camino|Ronda|Rua|Travessa|"
    rf"Praça|Largo|[Uu]l\.|[Uu]lica|[Aa]l\.|[Aa]leja|[Pp]lac) (?:{_PARTICLE} )?{_TOWN},? "
    rf"(?:n[.º°]{{0,2}} ?)?{_HOUSE}"
)
_WORDS = rf"(?:{_WORD}|{_ORDINAL})(?: (?:{_WORD}|{_ORDINAL})){{0,5}}"
_ANCHOR = re.compile(
    r"(?<![\w.,/:#-])(?:"
    rf"(?:(?:{_UNIT}{_COMMA})?{_NUMBER} |{_UNIT}{_COMMA}){_WORDS}(?:{_COMMA}{_UNIT})?"
    rf"{_COMMA}{_STRICT_TAIL}"
    rf"|(?:{_UNIT}{_COMMA})?{_NUMBER} (?:(?:{_WORD}|{_ORDINAL}) ){{1,5}}(?:{_STREETS})"
    r"(?: (?:[NS][EW]?|[EW])\b)?"
    r"|[Pp]\.? ?[Oo]\.? ?[Bb]ox [0-9]{1,6}|Postfach [0-9]{1,3}(?: ?[0-9]{1,3})*"
    rf"|(?:PSC|CMR|Unit) [0-9]{{1,6}},? Box [0-9]{{1,6}}{_COMMA}{_MILITARY}"
    rf"|US(?:NS|NV|S|CGC) {_WORD}{_COMMA}{_MILITARY}"
    rf"|(?:{_GLUED}|{_APART}) {_HOUSE}"
    rf"|{_NUMBER_FIRST}|{_NUMBER_LAST}"
    rf"|{_WORDS},? {_HOUSE}(?:,? {_UNIT})?\s*\n[>|\s]*{_CODE}{_COMMA}{_TOWN}"
    rf"|{_UNITED_STATES}"
    r")"
)
_MORE_UNIT = re.compile(rf"{_COMMA}{_UNIT}")
_MORE_TAIL = re.compile(rf"{_COMMA}{_TAIL}")
_GAP = re.compile(r"\s*,?\s*")


def find_addresses(text: str, places: Sequence[Span]) -> list[Span]:
    """The addresses in a text, in order. `places` are places that a model found, in theirs."""
    if not any(map(str.isdigit, text)):
        return []
    found = []
    position = 0
    for match in _ANCHOR.finditer(text):
        if match.start() >= position:
            position = _extend(text, match.end(), places)
            # The dot behind a town ends a sentence, that behind "St." does not.
            end = position - (_SENTENCE_END.search(text, match.start(), position) is not None)
            found.append((match.start(), end))
    return found


_SENTENCE_END = re.compile(r"\w{5}\.\Z")


def _extend(text: str, end: int, places: Sequence[Span]) -> int:
    """The end of the address whose anchor ends at `end`."""
    unit = _MORE_UNIT.match(text, end)
    end = unit.end() if unit is not None else end
    for _ in range(MAX_PLACES):
        tail = _MORE_TAIL.match(text, end)
        if tail is not None:
            end = tail.end()
            continue
        gap = _GAP.match(text, end)
        begin = gap.end() if gap is not None else end
        number = bisect_left(places, (begin, 0))
        if begin == end or number == len(places) or places[number][0] != begin:
            break
        end = places[number][1]
    return end
