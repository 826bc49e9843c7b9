"""Numbers that states give to persons, told by their form and, where they have one, their checksum.

A number of plain digits needs a checksum that few other numbers pass (two check digits, or one and
a date of birth). Those with one check digit alone (Canada, the Netherlands) count only as they are
written on paper, in groups.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import date

from thrifty.observe.number_kinds import passes_luhn

_SSN = re.compile(r"(?!000|666)(\d{3})[- ](?!00)(\d{2})[- ](?!0000)\d{4}")
_SIN = re.compile(r"[1-79]\d{2}([- ])\d{3}\1\d{3}")
_BSN = re.compile(r"\d{4}\.\d{2}\.\d{3}")
_CPF = re.compile(r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}")
_NINO = re.compile(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]")
_SWEDISH = re.compile(r"(?:\d{2})?(\d{6})[-+](\d{4})")
_FINNISH = re.compile(r"(\d{2})(\d{2})(\d{2})[-+A](\d{3})([0-9A-Y])")
_KOREAN = re.compile(r"\d{6}-[1-8]\d{6}")
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_FINNISH_LETTERS = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_ITALIAN_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3,
         6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)  # fmt: skip
_VERHOEFF_D = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_VERHOEFF_P = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901",
    "2793806415", "7046913258",
)  # fmt: skip


def is_national_id(value: str, written: str) -> bool:
    """Whether a number (`value` without separators, `written` as it stands) is one of them."""
    checks = _BY_LENGTH.get(len(value), ()) if value.isdigit() else _WITH_LETTERS
    return any(check(value, written) for check in checks)


def _is_us(value: str, written: str) -> bool:
    """US social security and tax numbers, in groups: they have no checksum."""
    match = _SSN.fullmatch(written)
    # Those from 900 are tax numbers, whose middle group is 50 to 99.
    return match is not None and (match[1] < "900" or match[2] >= "50")


def _is_canadian(value: str, written: str) -> bool:
    return _SIN.fullmatch(written) is not None and passes_luhn(value)


def _is_dutch(value: str, written: str) -> bool:
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    return _BSN.fullmatch(written) is not None and _weigh(value, weights) % 11 == 0


def _is_brazilian(value: str, written: str) -> bool:
    if _CPF.fullmatch(written) is None or len(set(value)) == 1:
        return False
    first = _weigh(value, range(10, 1, -1)) * 10 % 11 % 10
    second = _weigh(value, range(11, 1, -1)) * 10 % 11 % 10
    return value[9:] == f"{first}{second}"


def _is_polish(value: str, written: str) -> bool:
    month = int(value[2:4])
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[month // 20]
    if not written.isdigit() or not _is_date(century + int(value[:2]), month % 20, int(value[4:6])):
        return False
    return _weigh(value, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def _is_german(value: str, written: str) -> bool:
    """Tax ids: of the first ten digits one stands twice or thrice, the others once at most; ISO
    7064 mod 11, 10.
    """
    counts = sorted(Counter(value[:10]).values())
    if value[0] == "0" or counts[-1] not in (2, 3) or counts[-2] > 1:
        return False
    product = 10
    for digit in value[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(value[10])


def _is_belgian(value: str, written: str) -> bool:
    if not 1 <= int(value[4:6]) <= 31 or int(value[2:4]) > 12:
        return False
    return any(97 - int(start + value[:9]) % 97 == int(value[9:]) for start in ("", "2"))


def _is_swedish(value: str, written: str) -> bool:
    match = _SWEDISH.fullmatch(written)
    return match is not None and passes_luhn(match[1] + match[2])


def _is_indian(value: str, written: str) -> bool:
    """Aadhaar, in groups of four; Verhoeff's checksum."""
    if value[0] in "01" or written.isdigit():
        return False
    check = 0
    for place, digit in enumerate(reversed(value)):
        check = int(_VERHOEFF_D[check][int(_VERHOEFF_P[place % 8][int(digit)])])
    return check == 0


def _is_korean(value: str, written: str) -> bool:
    if _KOREAN.fullmatch(written) is None:
        return False
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    return (11 - _weigh(value, weights) % 11) % 10 == int(value[12])


def _is_french(value: str, written: str) -> bool:
    if value[0] not in "123478" or not 1 <= int(value[3:5]) <= 99:
        return False
    return 97 - int(value[:13]) % 97 == int(value[13:])


def _is_chinese(value: str, written: str) -> bool:
    born = value[6:14]
    if not born.isdigit() or not _is_date(int(born[:4]), int(born[4:6]), int(born[6:])):
        return False
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[_weigh(value, weights) % 11] == value[17]


def _is_spanish(value: str, written: str) -> bool:
    if len(value) != 9 or not value[1:8].isdigit() or not value[8].isalpha():
        return False
    number = {"X": "0", "Y": "1", "Z": "2"}.get(value[0], value[0]) + value[1:8]
    return number.isdigit() and _DNI_LETTERS[int(number) % 23] == value[8]


def _is_british(value: str, written: str) -> bool:
    return _NINO.fullmatch(value) is not None


def _is_italian(value: str, written: str) -> bool:
    if len(value) != 16:
        return False
    even = sum(int(c) if c.isdigit() else ord(c) - 65 for c in value[1:15:2])
    odd = sum(_ITALIAN_ODD[c] for c in value[0:15:2])
    return chr(65 + (odd + even) % 26) == value[15]


def _is_finnish(value: str, written: str) -> bool:
    match = _FINNISH.fullmatch(written)
    if match is None:
        return False
    return _FINNISH_LETTERS[int(match[1] + match[2] + match[3] + match[4]) % 31] == match[5]


def _is_chinese_with_x(value: str, written: str) -> bool:
    return len(value) == 18 and _is_chinese(value, written)


Check = Callable[[str, str], bool]
_BY_LENGTH: dict[int, tuple[Check, ...]] = {
    9: (_is_us, _is_canadian, _is_dutch),
    10: (_is_swedish,),
    11: (_is_brazilian, _is_polish, _is_german, _is_belgian),
    12: (_is_swedish, _is_indian),
    13: (_is_korean,),
    15: (_is_french,),
    18: (_is_chinese,),
}
_WITH_LETTERS: tuple[Check, ...] = (
    _is_spanish, _is_british, _is_italian, _is_finnish, _is_chinese_with_x,
)  # fmt: skip


def _weigh(value: str, weights: range | tuple[int, ...]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(value, weights, strict=False))


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        return date(year, month, day).year > 1800
    except ValueError:
        return False
