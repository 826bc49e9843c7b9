"""From passages that a model takes for people to the words that are replaced.

A model's passage may hold more than a name: a title, an address of mail, the end of a sentence.
And it misses names that their place gives away: behind words that introduce one, above a postal
address, in a list of names, or before what somebody says in a transcript.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from thrifty.observe.names.addresses import Span

IsCommon = Callable[[str], bool]
"""Whether a word, in small letters, is one of a language's commonest."""

LEAST_PART = 3
"""Shorter parts of a name are not looked for by themselves."""
MAX_NAME = 100

_WORD = r"[^\W\d_]+(?:['\u2019\-][^\W\d_]+)*"
_RUN = re.compile(rf"{_WORD}\.?(?:[ \t]+{_WORD}\.?){{0,6}}")
_OF = re.compile(r"['\u2019][sS]?$")
_TITLES = frozenset(
    (
        "mr",
        "mrs",
        "ms",
        "miss",
        "mx",
        "dr",
        "prof",
        "professor",
        "sir",
        "madam",
        "dame",
        "lord",
        "lady",
        "herr",
        "frau",
        "madame",
        "monsieur",
        "mme",
        "mlle",
        "señor",
        "señora",
        "sr",
        "sra",
        "dott",
        "ing",
        "hi",
        "hello",
        "hey",
        "dear",
    )
)
_CAPITALIZED = r"(?:[^\W\d_a-z]\.|[^\W\d_a-z][^\W\d_]*(?:['\u2019\-][^\W\d_]+)*)"
_TITLED = re.compile(
    rf"\b(?:Mr|Mrs|Ms|Mx|Dr|Prof|MR|MRS|MS|DR|mr|mrs|ms)\.?[ \t]+({_CAPITALIZED}(?:[ \t]+{_CAPITALIZED}){{0,3}})"
)
_INTRODUCED = re.compile(
    rf"\b(?:[Nn]ame(?:['\u2019]s| is|:)|[Cc]all(?:s|ed)? me|[Dd]ear)[ \t]+({_WORD}(?:[ \t]+{_WORD}){{0,3}})"
)
_RECIPIENT = re.compile(rf"(?:^|.*:[ \t]*)\W*({_CAPITALIZED}(?:[ \t]+{_CAPITALIZED}){{1,3}})\W*$")
"""The first lines of an address, perhaps behind "Ship to:" or a mark of quotation."""
_FIRMS = re.compile(
    r"\b(?:and|&|AG|BV|Co|Company|Corp|Corporation|GmbH|Group|Inc|LLC|LLP|Ltd|Limited|PLC|SA|SARL|SpA)\b"
)
RECIPIENT_LINES = 2
_LIST = re.compile(
    rf"({_CAPITALIZED}(?:[ \t]{_CAPITALIZED})?(?:, {_CAPITALIZED}(?:[ \t]{_CAPITALIZED})?)*),? "
    rf"(?:and|or|und|et|y|e|en) ({_CAPITALIZED}(?:[ \t]{_CAPITALIZED})?)"
)
_SPEAKER = re.compile(rf"^\W*({_CAPITALIZED}(?:[ \t]{_CAPITALIZED})?):", re.MULTILINE)
_NOT_NAMES = frozenset(
    ("sir", "madam", "customer", "team", "user", "all", "everyone", "friend", "friends", "support")
)


def clean_name(passage: str, is_common: IsCommon) -> str | None:
    """The name in a passage that a model took for one, without titles; None where it is none."""
    for found in _RUN.finditer(passage[:MAX_NAME]):
        words = _OF.sub("", found[0]).split()
        while words and words[0].rstrip(".").lower() in _TITLES:
            del words[0]
        if words and not all(is_common(word.lower()) for word in words):
            return " ".join(words)
    return None


def find_introduced(text: str, is_common: IsCommon) -> Iterator[str]:
    """Names behind a title, or behind words that introduce one, such as "my name is"."""
    for match in _TITLED.finditer(text):
        yield _OF.sub("", match[1].rstrip("."))
    for match in _INTRODUCED.finditer(text):
        words: list[str] = []
        for word in _OF.sub("", match[1]).split():
            lower = word.lower()
            if lower in _TITLES and not words:
                continue
            # Behind a name in capitals, a word in small letters is none; and few names have more
            # than two words in small letters.
            small = word == lower
            if is_common(lower) or lower in _NOT_NAMES or (small and len(words) == 2):
                break
            if words and small and words[0] != words[0].lower():
                break
            words.append(word)
        if words:
            yield " ".join(words)


def find_recipients(text: str, addresses: Iterable[Span]) -> Iterator[str]:
    """Names in the lines above postal addresses."""
    for begin, _ in addresses:
        lines = text[max(0, begin - 200) : begin].rpartition("\n")[0].split("\n")
        for line in reversed(lines[-RECIPIENT_LINES:]):
            found = _RECIPIENT.match(line)
            if found is None or _FIRMS.search(found[1]):
                break
            yield found[1]


def find_siblings(text: str, people: Sequence[Span]) -> Iterator[str]:
    """What stands in one list, or before the lines of one transcript, with names found."""

    def is_known(span: Span) -> bool:
        return any(begin <= span[0] and span[1] <= end for begin, end in people)

    for match in _LIST.finditer(text):
        spans = [match.span(2)]
        begin = match.start(1)
        for item in match[1].split(", "):
            spans.append((begin, begin + len(item)))
            begin += len(item) + 2
        yield from _list_unknown(text, spans, is_known)
    yield from _list_unknown(text, [match.span(1) for match in _SPEAKER.finditer(text)], is_known)


def _list_unknown(
    text: str, spans: Sequence[Span], is_known: Callable[[Span], bool]
) -> Iterator[str]:
    known = [is_known(span) for span in spans]
    if 2 * sum(known) >= len(spans):
        for (begin, end), one in zip(spans, known, strict=True):
            if not one:
                yield text[begin:end]


def list_forms(names: Iterable[str], is_common: IsCommon) -> list[str]:
    """The names, and the parts by which people are called again; longer ones first."""
    forms = set()
    for name in names:
        forms.add(name)
        for part in name.split():
            word = part.rstrip(".")
            if len(word) >= LEAST_PART and word[0].isupper() and not is_common(word.lower()):
                forms.add(word)
    return sorted(forms, key=lambda form: (-len(form), form))
