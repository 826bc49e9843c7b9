"""Puts pseudonyms in the place of personal data, before texts are written.

Found: mail addresses, phone numbers, payment cards (Luhn), IBANs (mod 97), national ids
(`observe/national_ids`), IP addresses, keys and tokens. Names and postal addresses need a model
(`observe/names`), which says what of them is in texts; here they are replaced. A pseudonym such as
`<EMAIL_kqzmwxtb>` is a keyed hash of the value and the tenant: the same address is the same
pseudonym throughout a tenant's conversations, so that they still make sense, and nobody without
the key can test a guess. Each word of a name has a pseudonym of its own, so that a person who is
first called by the whole name and then by a part of it stays the same.

Speed decides the form: every pattern begins with a literal or a set of few characters, which `re`
scans for in C, and what must stand before a match is checked afterwards. Text that was replaced
holds no digit and no `@`, so later patterns pass over it. Texts are handled in pieces, because `re`
holds the interpreter lock for the length of a search. Numbers may have digits, blanks and dashes of
any script, and characters without width; they are compared in their plain form.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import string
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple, TypeVar

from thrifty.observe.national_ids import is_national_id
from thrifty.observe.number_kinds import IBAN_LENGTHS, is_card, is_iban, is_phone, make_plain
from thrifty.observe.pseudonyms import HASH_LETTERS, Kind, Looks, Replace

PIECE_CHARS = 65_536
"""Longer texts are cut between words. A megabyte takes 0.1 s, but for one of numbers."""
_PIECE_END = 2_048
"""A piece ends at a good place in so many of its last characters."""


class Found(NamedTuple):
    """Names and postal addresses, as they stand in texts."""

    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


Redact = Callable[[str], str]
Prepare = Callable[[Sequence[str]], Redact]
"""What redacts texts that belong together: what is found in one of them is replaced in all."""
FindNames = Callable[[Sequence[str]], Found]
"""Finds names and addresses in texts. Raises `RedactionError` where it cannot."""
T = TypeVar("T")

_PSEUDONYM = re.compile(rf"<(?:{'|'.join(Kind)})_[a-z]{{{HASH_LETTERS}}}>")
_PEM_BEGIN = "-----BEGIN "
_PEM = re.compile(
    r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
"""A private key; one that is cut off is one, too."""
_SECRET = re.compile(
    r"(?:sk|xai)-[\w-]{16,200}|[spr]k_(?:live|test)_\w{16,200}|(?:gsk|whsec|r8|nvapi)[_-][\w-]{20,200}"
    r"|do[opr]_v1_\w{40,80}|xapp-[\w-]{10,255}|hooks\.slack\.com/services/[\w/]{20,100}|gh[pousr]_\w{30,255}|github_pat_\w{22,255}"
    r"|glpat-[\w-]{20,64}|xox[abeoprs]-[\w-]{10,255}|A(?:KIA|SIA)[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|eyJ[\w-]{10,4000}\.[\w-]{10,8000}\.[\w-]{0,4000}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}"
    r"|pypi-[\w-]{50,255}|ya29\.[\w-]{20,500}|SG\.[\w-]{16,64}\.[\w-]{16,64}"
    r"|(?i:bearer) [\w.~+/-]{16,4000}=*|(?i:basic) (?=[A-Za-z+/]{0,200}[0-9=])[\w+/]{8,400}=*"
)
"""Keys that are known by how they begin."""
_ASSIGNED = re.compile(
    r"(?:passw(?:or)?d|passwd|pwd|secret|(?:api|access|account|private)[_-]?key|token)"
    r"\\{0,7}[\"']?\s{0,3}[:=\uff1a]\s{0,3}\\{0,7}[\"']?"
    r"((?:[^\s\"',;<>\\]|\\(?!\\{0,7}[\"'])){6,200})",
    re.IGNORECASE,
)
"""Values that are named. Quotes may be escaped, as in JSON within JSON."""
_ASSIGNED_WORDS = ("passw", "pwd", "secret", "key", "token")
_URL_PASSWORD = re.compile(r"://[^\s/:@]{0,128}:([^\s/@]{1,256})@")
_DOMAIN = re.compile(r"@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}")
_LOCAL = re.compile(r"[\w.+%'&*/=?^{|}~!#$-]{1,64}\Z")
_IBAN_CHECK = re.compile(r"(?<=[A-Za-z]{2})[0-9]{2}")
_IBAN_CHECK_WIDE = re.compile(r"(?<=[A-Za-z\uff21-\uff3a\uff41-\uff5a]{2})[0-9\uff10-\uff19]{2}")
_IPV4 = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_IPV6 = re.compile(r"[0-9A-Fa-f:]{2,39}(?:\.[0-9]{1,3}){0,3}")
_EXTENSION = r"(?: ?(?:x|ext\.?) ?[0-9]{1,6})?"
_NO_WIDTH = r"\u00ad\u200b-\u200f\u2060\ufeff"
_BLANKS = r"\u00a0\u2000-\u200a\u202f\u205f\u3000"
_DASHES = r"\u2010-\u2015\u2212\ufe63\uff0d"
_MARKS = r"\uff08\uff09\uff0b\uff0e\uff0f"
"""Brackets, plus, point and slash in full width."""
_NUMBER = re.compile(rf"[+(0-9](?:[ ().\-/]{{0,3}}[0-9]){{6,}}{_EXTENSION}")
_NUMBER_WIDE = re.compile(
    rf"[+\uff0b(\d](?:[ ().\-/{_NO_WIDTH}{_BLANKS}{_DASHES}{_MARKS}]{{0,4}}\d){{6,}}{_EXTENSION}"
)
_WRAPPED = re.compile(
    r"[+0-9](?:[ -]?[0-9]){1,20}-?[ \t]{0,3}\r?\n[ \t>]{0,8}[0-9](?:[ -]?[0-9]){1,20}"
)
"""A number that goes on in the next line."""
_LETTER_ID = re.compile(
    r"[A-Z]{6}[0-9]{2}[A-Z][0-9]{2}[A-Z][0-9]{3}[A-Z]|[XYZ0-9][0-9]{7}-?[A-Z]"
    r"|[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]|[0-9]{17}X|[0-9]{6}[-+A][0-9]{3}[0-9A-Y]"
)
"""National ids with letters; their checksums decide."""
_GROUP = re.compile(rf"\(?[+\uff0b]?\d[\d{_NO_WIDTH}]*\)?|(?:x|ext\.?) ?[0-9]{{1,6}}")
_MAX_GROUPS = 12
"""Of one number within a run of them."""
_MIN_DIGITS, _MAX_DIGITS = 7, 21
"""Of a number that may be of a person, with an extension."""
_MIN_CARD_DIGITS = 12
_ESCAPES = "nrt"
_ALNUM = frozenset(string.ascii_letters + string.digits)
_WORD = _ALNUM | {"_"}


class Redactor:
    """Redacts texts with a key (16 to 64 bytes) of the service. Any thread may use it."""

    def __init__(self, secret: bytes, find_names: FindNames | None = None) -> None:
        """Without `find_names`, names and postal addresses stay."""
        self._hash = blake2b(key=secret, digest_size=HASH_LETTERS, person=b"redaction")
        self._find_names = find_names

    def redact(self, text: str, tenant: str = "") -> str:
        """`text` with pseudonyms in the place of personal data. Raises `RedactionError` where names
        are to be replaced and cannot be found.
        """
        if self._find_names is None:
            return self._redact(tenant, None, Looks(), text)
        return self.prepare([text], tenant)(text)

    def prepare(self, texts: Sequence[str], tenant: str = "") -> Redact:
        """What redacts `texts`: a name that is found in one of them is replaced in all. Raises
        `RedactionError` as `redact` does.
        """
        passages = None
        if self._find_names is not None:
            found = self._find_names(texts)
            passages = _Passages(_compile(found.addresses), _compile(found.names))
        return functools.partial(self._redact, tenant, passages, Looks())

    def _redact(self, tenant: str, passages: _Passages | None, looks: Looks, text: str) -> str:
        if passages is None and not _may_hold_any(text):
            return text
        state = self._hash.copy()
        state.update(tenant.encode("utf-8", "surrogatepass") + b"\0")
        replace = Replace(state, looks)
        # Numbers in an address could be taken for a phone number's, and names stand in addresses of
        # mail.
        if passages is not None and passages.addresses is not None:
            text = passages.addresses.sub(lambda match: _replace_address(match, replace), text)
        if _PEM_BEGIN in text:
            text = _PEM.sub(lambda match: replace(Kind.SECRET, match[0]), text)
        if len(text) <= PIECE_CHARS:
            text = _redact_piece(text, replace)
        else:
            text = "".join(_redact_piece(piece, replace) for piece in _split(text))
        if passages is not None and passages.names is not None:
            text = passages.names.sub(lambda match: _replace_name(match, replace), text)
        return text


def redact_together(apply: Callable[[Redact], T], prepare: Prepare) -> T:
    """What `apply` makes of a redaction of all texts that it redacts. It is called twice: first to
    see them. Raises `RedactionError`.
    """
    seen: list[str] = []

    def note(text: str) -> str:
        seen.append(text)
        return text

    apply(note)
    return apply(prepare(seen))


def find_pseudonym(text: str) -> str | None:
    """The first pseudonym in a text; None if there is none."""
    found = _PSEUDONYM.search(text)
    return None if found is None else found[0]


class _Passages(NamedTuple):
    """What matches names and addresses that were found; None where none was."""

    addresses: re.Pattern[str] | None
    names: re.Pattern[str] | None


_NAME_WORD = re.compile(r"[^\W\d_]+(?:['\u2019\-][^\W\d_]+)*")


def _compile(passages: Sequence[str]) -> re.Pattern[str] | None:
    """What matches pseudonyms, which stay, and passages that stand alone, the longest first."""
    words = (r"\s+".join(map(re.escape, passage.split())) for passage in passages)
    written = "|".join(filter(None, words))
    return re.compile(rf"{_PSEUDONYM.pattern}|(?<!\w)(?:{written})(?!\w)") if written else None


def _replace_address(match: re.Match[str], replace: Replace) -> str:
    if _PSEUDONYM.fullmatch(match[0]):
        return match[0]
    return replace(Kind.ADDRESS, " ".join(re.findall(r"\w+", match[0].casefold())))


def _replace_name(match: re.Match[str], replace: Replace) -> str:
    if _PSEUDONYM.fullmatch(match[0]):
        return match[0]
    return _NAME_WORD.sub(lambda word: replace(Kind.NAME, word[0].casefold()), match[0])


_TRIGGER = re.compile(r"[\d@=]|-----BEGIN|[:\uff1a]\s{0,3}\S{6}|[-_]\w{16}|(?i:bearer) |hooks\.")


def _may_hold_any(text: str) -> bool:
    return _TRIGGER.search(text) is not None


def _redact_piece(text: str, replace: Replace) -> str:
    lower = text.lower()
    if any(word in lower for word in _ASSIGNED_WORDS) and any(mark in text for mark in "=:\uff1a"):
        text = _ASSIGNED.sub(lambda match: _replace_assigned(match, replace), text)
    if "@" in text:
        if "://" in text:
            text = _URL_PASSWORD.sub(lambda match: _replace_group(match, replace), text)
        text = _replace_emails(text, replace)
    text = _SECRET.sub(lambda match: _replace_secret(match, replace), text)
    if _DIGIT.search(text) is None:
        return text
    plain = text.isascii()
    text = _replace_ibans(text, _IBAN_CHECK if plain else _IBAN_CHECK_WIDE, replace)
    if text.count(":") > 1:
        text = _IPV6.sub(lambda match: _replace_ip(match, replace), text)
    if "." in text:
        text = _IPV4.sub(lambda match: _replace_ip(match, replace), text)
    text = _LETTER_ID.sub(lambda match: _replace_letter_id(match, replace), text)
    number = _NUMBER if plain else _NUMBER_WIDE
    text = number.sub(lambda match: _replace_number(match, replace), text)
    if "\n" in text:
        text = _WRAPPED.sub(lambda match: _replace_wrapped(match, replace), text)
    return text


_DIGIT = re.compile(r"\d")


def _is_within_word(text: str, start: int) -> bool:
    r"""Whether a letter, digit or underscore stands before `start`. The `n` of an end of line that
    is written as `\n`, as in JSON within JSON, is none.
    """
    if not start or text[start - 1] not in _WORD:
        return False
    return not (text[start - 1] in _ESCAPES and text[start - 2 : start - 1] == "\\")


def _replace_assigned(match: re.Match[str], replace: Replace) -> str:
    value = match[1]
    # A word of letters alone is rather a description, such as `token: required`.
    if value.isalpha() or value.startswith(("$", "{", "(")):
        return match[0]
    return _replace_group(match, replace)


def _replace_group(match: re.Match[str], replace: Replace) -> str:
    start = match.start(1) - match.start()
    end = match.end(1) - match.start()
    return f"{match[0][:start]}{replace(Kind.SECRET, match[1])}{match[0][end:]}"


def _replace_secret(match: re.Match[str], replace: Replace) -> str:
    start = match.start()
    if _is_within_word(match.string, start):
        return match[0]
    scheme, space, value = match[0].rpartition(" ")
    return f"{scheme}{space}{replace(Kind.SECRET, value)}"


def _replace_emails(text: str, replace: Replace) -> str:
    parts, position = [], 0
    for match in _DOMAIN.finditer(text):
        at = match.start()
        local = _LOCAL.search(text, max(position, at - 64), at)
        if local is None:
            continue
        start = local.start()
        while start < at and text[start] in "'./*=?{|}":  # quotes and marks before an address
            start += 1
        if text[start] in _ESCAPES and text[start - 1 : start] == "\\":
            start += 1
        if start == at:
            continue
        value = text[start : match.end()].lower()
        parts += [text[position:start], replace(Kind.EMAIL, value)]
        position = match.end()
    return "".join([*parts, text[position:]]) if parts else text


def _replace_ibans(text: str, check: re.Pattern[str], replace: Replace) -> str:
    parts, position = [], 0
    for found in check.finditer(text):
        start = found.start() - 2  # of the country
        length = IBAN_LENGTHS.get(make_plain(text[start : start + 2]).upper())
        within = text[start - 1 : start] != "_" and _is_within_word(text, start)
        if start < position or length is None or within:
            continue
        whole = _compile_iban(length).match(text, start)
        if whole is None or (whole.end() < len(text) and text[whole.end()] in _ALNUM):
            continue
        value = "".join(filter(str.isalnum, make_plain(whole[0]))).upper()
        if value.isascii() and is_iban(value):
            parts += [text[position:start], replace(Kind.IBAN, value)]
            position = whole.end()
    return "".join([*parts, text[position:]]) if parts else text


@functools.cache
def _compile_iban(length: int) -> re.Pattern[str]:
    between = rf"[\s.\-/{_NO_WIDTH}{_DASHES}]{{0,3}}"
    return re.compile(rf"[^\W_](?:{between}[^\W_]){{{length - 1}}}")


def _replace_ip(match: re.Match[str], replace: Replace) -> str:
    text, end = match.string, match.end()
    after = text[end : end + 1]
    if _find_free_ends(match) != (True, True):
        return match[0]
    if after == "." and text[end + 1 : end + 2].isdigit():
        return match[0]  # a version with more parts
    value, tail = match[0], ""
    if value.endswith(":") and not value.endswith("::"):
        value, tail = value[:-1], ":"
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return match[0]
    if address.is_unspecified or address.is_loopback or len(value) < 4:
        return match[0]
    return replace(Kind.IP, address.compressed) + tail


def _replace_letter_id(match: re.Match[str], replace: Replace) -> str:
    value = match[0].replace(" ", "").replace("-", "")
    if _find_free_ends(match) != (True, True) or not is_national_id(value, match[0]):
        return match[0]
    return replace(Kind.ID, value)


def _replace_number(match: re.Match[str], replace: Replace) -> str:
    """A run of digits and separators: a card, an id, a phone number, or several numbers."""
    text, whole, start = match[0], match.string, match.start()
    if text[0] == "(" and text.count("(") > text.count(")"):  # the number stands in brackets itself
        inner = match.re.match(whole, start + 1, match.end())
        return "(" + _replace_number(inner, replace) if inner is not None else text
    if not replace.may_look():
        return replace.replace_unseen(text)
    groups = list(_GROUP.finditer(text))
    free_before, free_after = _find_free_ends(match)
    if free_before and free_after:
        found = _classify(text, whole, start)
        if found is not None:
            return replace(*found)
    # Of a run such as `v2 4111 ...`, only the group at the letter belongs to it.
    inner_groups = groups[0 if free_before else 1 : len(groups) - (not free_after)]
    return _replace_groups(text, inner_groups, match, replace)


def _find_free_ends(match: re.Match[str]) -> tuple[bool, bool]:
    """Whether no letter or digit touches the match at its start, and at its end; nor a decimal
    point its start.
    """
    text, start, end = match.string, match.start(), match.end()
    before = text[max(0, start - 2) : start]
    within = before[-1:] != "_" and _is_within_word(text, start)
    decimal = before[-1:] == "." and before[:1].isdecimal()
    return not (within or decimal), not (end < len(text) and text[end] in _ALNUM)


def _replace_groups(
    text: str, groups: Sequence[re.Match[str]], match: re.Match[str], replace: Replace
) -> str:
    """Find numbers among those of a run, such as a card behind a year; longer ones first."""
    parts, position, first = list[str](), 0, 0
    counts = _count_digits(groups)
    while first < len(groups):
        start = groups[first].start()
        if not start or _is_between(text[start - 1]) or _is_of_card(groups[first]):
            for last in range(min(len(groups), first + _MAX_GROUPS) - 1, first - 1, -1):
                end = groups[last].end()
                if not _MIN_DIGITS <= counts[last + 1] - counts[first] <= _MAX_DIGITS:
                    continue
                if not replace.may_look():
                    return "".join(
                        [*parts, text[position:start], replace.replace_unseen(text[start:])]
                    )
                found = _classify(text[start:end], match.string, match.start() + start)
                if found is not None and _stands_apart(found[0], text, start, end):
                    parts += [text[position:start], replace(*found)]
                    position, first = end, last
                    break
        first += 1
    return "".join([*parts, text[position:]]) if parts else text


def _count_digits(groups: Sequence[re.Match[str]]) -> list[int]:
    """The number of digits before each group, and of all of them."""
    return [0, *accumulate(sum(map(str.isdigit, group[0])) for group in groups)]


def _is_of_card(group: re.Match[str]) -> bool:
    return group.end() - group.start() == 4


def _stands_apart(kind: Kind, text: str, start: int, end: int) -> bool:
    marks = ""
    if kind is Kind.CARD:  # its checksum tells it; one that is written in groups is no decimal, too
        marks = "-" if text[start:end].isdecimal() else "-."
    return (not start or _is_between(text[start - 1], marks)) and (
        end == len(text) or text[end] in "xe" or _is_between(text[end], marks)
    )


def _is_between(character: str, marks: str = "-") -> bool:
    """Whether a character may stand between two numbers; so may `marks`."""
    plain = make_plain(character)
    return not plain or plain in " /()" or plain in marks


def _replace_wrapped(match: re.Match[str], replace: Replace) -> str:
    """A number of several groups, of which some stand in the next line."""
    text, groups = match[0], list(_GROUP.finditer(match[0]))
    middle, (free_before, free_after) = text.index("\n"), _find_free_ends(match)
    counts = _count_digits(groups)
    firsts = [
        (one.start(), count)
        for one, count in zip(groups, counts, strict=False)
        if one.start() < middle
    ][not free_before :]
    ends = [
        (one.end(), count)
        for one, count in zip(groups, counts[1:], strict=True)
        if one.end() > middle
    ][: None if free_after else -1]
    for start, before in firsts:
        for end, count in reversed(ends):
            if not _may_be_wrapped(text[start:end], count - before):
                continue
            if not replace.may_look():
                return replace.replace_unseen(text)
            written = _LINE_END.sub(" ", text[start:end]).replace("- ", "-")
            kind, value = _classify(written, match.string, match.start() + start) or (None, "")
            sure = kind is Kind.CARD or written[0] == "+" or (kind is Kind.ID and "-" in written)
            if kind is not None and sure:
                return text[:start] + replace(kind, value) + text[end:]
    return text


def _may_be_wrapped(text: str, digits: int) -> bool:
    """Whether a number over two lines may be one that is told for sure: a card, one with a country
    code, or an id with a dash. Two numbers of a column are none.
    """
    if not _MIN_DIGITS <= digits <= _MAX_DIGITS:
        return False
    may_be_card = digits >= _MIN_CARD_DIGITS and text[0] not in "0789"
    if not (may_be_card or text[0] == "+" or "-" in text):
        return False
    return re.search("[ -]", _LINE_END.sub("", text)) is not None


_LINE_END = re.compile(r"[ \t]*\r?\n[ \t>]*")


def _classify(written: str, text: str, start: int) -> tuple[Kind, str] | None:
    """The kind of a number and its plain form; None if it is no personal data."""
    written = make_plain(written)
    digits = "".join(filter(str.isdigit, written))
    if len(digits) < _MIN_DIGITS:
        return None
    if is_card(digits, written):
        return Kind.CARD, digits
    if is_national_id(digits, written):
        return Kind.ID, digits
    # Behind these, plain digits number an issue or are a part of a name.
    if text[start - 1 : start] in ("#", "_") and written.isdigit():
        return None
    if is_phone(digits, written, text[max(0, start - 16) : start]):
        return Kind.PHONE, digits
    return None


def _split(text: str) -> Iterator[str]:
    """Pieces of at most `PIECE_CHARS`, cut at the end of a line, else between two words."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = start + PIECE_CHARS
        cut = text.rfind("\n", end - _PIECE_END, end) + 1
        if not cut:
            places = [found.end() for found in _BETWEEN.finditer(text, end - _PIECE_END, end)]
            cut = places[-1] - 1 if places else end
        yield text[start:cut]
        start = cut
    yield text[start:]


_BETWEEN = re.compile(r"[^\W\d_][ \t]+[^\W\d_]")
