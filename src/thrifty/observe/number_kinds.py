"""Whether a number is a payment card, an IBAN or a phone number: structure, checksum, and shape.
Numbers are written in ASCII.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_CARD_BRANDS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"
    r"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d|9\d)\d{11}"
    r"|(?:6011|65\d{2}|64[4-9]\d)\d{12,15}|35\d{14}|(?:2131|1800)\d{11}"
    r"|(?:5[06-8]|6)\d{10,17}"
)
"""Brands by first digits and length (ISO/IEC 7812); the last one is Maestro."""
_CARD_SEPARATORS = frozenset("0123456789 -")
_CARD_GROUPS = re.compile(r"\d{4}([./])\d{4}\1\d{4}\1\d{1,7}|\d{4}([./])\d{6}\2\d{4,5}")
"""With points or slashes, digits stand in groups as on a card: others are decimals and dates."""

_NANP = re.compile(
    r"(?:(?:\+|00)?1[ .-]?)?(?:\([2-9]\d{2}\) ?[.-]?|[2-9]\d{2}[ .-]?)\d{3}[ .-]?\d{4}"
    r"(?: ?(?:x|ext\.?) ?\d{1,6})?"
)
"""North American numbers, with or without a country code, separators and an extension."""
_INTERNATIONAL = re.compile(r"(?:\+|00[ -]?)[1-9][\d ()./-]{6,24}(?: ?(?:x|ext\.?) ?\d{1,6})?")
_TRUNK = re.compile(r"\(?0\d{1,5}\)?[ /.-]{0,3}\d[\d ./-]{4,14}\d")
"""Numbers with the trunk prefix 0 of most countries."""
_DATE = re.compile(r"\d{4}[-/. ]\d{1,2}[-/. ]\d{1,2}|\d{1,2}[-/. ]\d{1,2}[-/. ]\d{4}")
_CALLING = re.compile(
    r"(?:phone|tel|call|mobile|cell|fax|whatsapp|sms|number|dial|contact)\W", re.I
)
_GROUPED = re.compile(r"\d{1,4}(?:[ .-]\d{2,5}){1,5}")

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28,
    "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23,
    "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26,
    "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20,
    "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30,
    "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22,
    "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23,
    "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
"""SWIFT's registry of IBAN formats."""


def make_plain(written: str) -> str:
    """A number in ASCII: digits of all scripts, blanks and dashes; without what has no width."""
    if written.isascii():
        return written
    return "".join(map(_make_plain_character, written))


@functools.cache
def _make_plain_character(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    match unicodedata.category(character):
        case "Cf":
            return ""
        case "Zs":
            return " "
        case "Pd":
            return "-"
    return "-" if character == "\u2212" else unicodedata.normalize("NFKC", character)


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is right by ISO/IEC 7812-1, annex B."""
    total = sum(map(int, digits[-1::-2]))
    for digit in digits[-2::-2]:
        double = 2 * int(digit)
        total += double - 9 if double > 9 else double
    return total % 10 == 0


def is_card(digits: str, written: str) -> bool:
    """Whether `digits`, written as `written`, are the number of a payment card."""
    if not 12 <= len(digits) <= 19:
        return False
    if not _CARD_SEPARATORS.issuperset(written) and not _CARD_GROUPS.fullmatch(written):
        return False
    return _CARD_BRANDS.fullmatch(digits) is not None and passes_luhn(digits)


def is_iban(text: str) -> bool:
    """Whether a text without blanks is an IBAN (ISO 13616): length by country, and mod 97."""
    length = IBAN_LENGTHS.get(text[:2])
    if length is None or len(text) != length:
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def is_phone(digits: str, written: str, before: str) -> bool:
    """Whether a number has the form of a phone number; `before` is the text in front of it."""
    if not 7 <= len(digits) <= 21 or _DATE.fullmatch(written):
        return False
    if _NANP.fullmatch(written):
        return True
    main = digits[: len(digits) if "x" not in written else 15]
    if len(main) <= 15 and _INTERNATIONAL.fullmatch(written):
        return True
    if 9 <= len(digits) <= 12 and _TRUNK.fullmatch(written):
        return True
    # Other groups of digits are phone numbers where the text says so.
    if len(digits) <= 12 and (_GROUPED.fullmatch(written) or written.isdigit()):
        return _CALLING.search(before) is not None
    return False
