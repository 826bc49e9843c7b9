"""Rules of quality as data: tables of measures with bounds, read from YAML.

A table is one of those in `rules/`, or a file of the same form. A measure is a function here; a
rule names one and the least and the most that a text may have. `lines` takes lines out before the
rules are asked. What differs from the papers: words are separated by white space in shares, and
sequences of words are those of `sketch`, without marks.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.curate.sketch import I64, U64, Words, find_sequences, find_words
from thrifty.data.built import digest_file
from thrifty.errors import DataError, Problem, SpecError
from thrifty.spec.yaml_file import read_spec_file, read_spec_text

TABLES = ("gopher", "c4", "fineweb")
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
SHORT_LINE_CHARS = 30
_BULLETS = ("•", "-", "*", "·", "‣", "◦", "●", "▪")
_ELLIPSES = ("...", "…")
_QUOTES = "\"'\u201d\u2019"
_ENDS = ".!?\u2026\u3002\uff01\uff1f"
"""The marks that end a sentence, those of Chinese and Japanese among them."""
_MARKS = (*_ENDS, *_QUOTES, ":", ";")
_SENTENCE = re.compile(rf"[{_ENDS}]+[{_QUOTES})\]]*(?=\s|$|[^\x00-\x7f])")
_ALPHABETIC = re.compile(r"[^\W\d_]")
_PARAGRAPHS = re.compile(r"\n{2,}")


@dataclass(frozen=True)
class Rule:
    """A measure and its bounds."""

    name: str
    measure: str
    least: float | None = None
    most: float | None = None
    of: str = ""
    """What the measure looks for, if it looks for a text."""


@dataclass(frozen=True)
class LineRules:
    """Which lines are taken out."""

    ends_with: tuple[str, ...] = ()
    least_words: int = 0
    longest_word: int | None = None
    without: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A named table of rules."""

    title: str
    rules: tuple[Rule, ...]
    lines: LineRules | None = None


@dataclass
class Text:
    """A text whose parts are found when a measure asks for them."""

    text: str
    kept: dict[str, float] = field(default_factory=dict)
    """Measures that were taken."""

    @functools.cached_property
    def words(self) -> list[str]:
        """Parts between white space."""
        return self.text.split()

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        """Parts between blank lines."""
        return [one for one in _PARAGRAPHS.split(self.text.strip()) if one]

    @functools.cached_property
    def hashes(self) -> Words:
        """Words as numbers."""
        return find_words([self.text])

    def measure(self, rule: Rule) -> float:
        """A measure, taken once."""
        key = f"{rule.measure} {rule.of}"
        if key not in self.kept:
            self.kept[key] = MEASURES[rule.measure](self, rule)
        return self.kept[key]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _count_repeated(parts: list[str]) -> tuple[float, float]:
    """The share of parts that stood before, and the share of characters in them."""
    seen: set[str] = set()
    count = chars = 0
    for part in parts:
        if part in seen:
            count += 1
            chars += len(part)
        seen.add(part)
    return _share(count, len(parts)), _share(chars, sum(map(len, parts)))


def _ends(lines: list[str], marks: tuple[str, ...]) -> float:
    return _share(sum(line.rstrip().endswith(marks) for line in lines), len(lines))


def _find_runs(text: Text, size: int) -> tuple[U64, I64]:
    """The sequences of `size` words, and the number of characters of each."""
    sequences, _ = find_sequences(text.hashes, size, short=False)
    total = np.concatenate([[0], np.cumsum(text.hashes.lengths)])
    return sequences, total[size:] - total[:-size] if len(sequences) else np.zeros(0, np.int64)


def _measure_commonest(text: Text, size: int) -> float:
    """The share of characters in the commonest sequence of words, if it stands twice or more."""
    sequences, chars = _find_runs(text, size)
    if not len(sequences):
        return 0.0
    _, first, counts = np.unique(sequences, return_index=True, return_counts=True)
    counts = np.where(counts > 1, counts, 0)
    best = int((counts * chars[first])[counts == counts.max()].max())
    return _share(best, int(text.hashes.lengths.sum()))


def _measure_repeated(text: Text, size: int) -> float:
    """The share of characters in sequences of words that stood before, each character once."""
    if size > 5 and not _measure_repeated_kept(text, size - 1):
        return 0.0  # a longer sequence repeats only where a shorter one does
    sequences, _ = _find_runs(text, size)
    order = np.argsort(sequences, kind="stable")
    again = np.zeros(len(sequences) + size, np.int64)
    if len(order):
        ordered = sequences[order]
        later = order[1:][ordered[1:] == ordered[:-1]]
        np.add.at(again, later, 1)
        np.add.at(again, later + size, -1)
    covered = np.cumsum(again)[: len(text.hashes.lengths)] > 0
    lengths = text.hashes.lengths
    return _share(int(lengths[: len(covered)][covered].sum()), int(lengths.sum()))


def _measure_repeated_kept(text: Text, size: int) -> float:
    return text.measure(Rule("", f"repeated_{size}"))


Measure = Callable[[Text, Rule], float]


def _of_size(measure: Callable[[Text, int], float], size: int) -> Measure:
    return lambda text, rule: measure(text, size)


MEASURES: dict[str, Measure] = {
    "words": lambda text, rule: len(text.words),
    "mean_word_chars": lambda text, rule: _share(sum(map(len, text.words)), len(text.words)),
    "hashes_per_word": lambda text, rule: _share(text.text.count("#"), len(text.words)),
    "ellipses_per_word": lambda text, rule: _share(
        sum(text.text.count(one) for one in _ELLIPSES), len(text.words)
    ),
    "bullet_lines": lambda text, rule: _share(
        sum(line.lstrip().startswith(_BULLETS) for line in text.lines), len(text.lines)
    ),
    "ellipsis_lines": lambda text, rule: _ends(text.lines, _ELLIPSES),
    "alphabetic_words": lambda text, rule: _share(
        sum(_ALPHABETIC.search(word) is not None for word in text.words), len(text.words)
    ),
    "stop_words": lambda text, rule: len(STOP_WORDS.intersection(text.text.lower().split())),
    "repeated_lines": lambda text, rule: _count_repeated(text.lines)[0],
    "repeated_line_chars": lambda text, rule: _count_repeated(text.lines)[1],
    "repeated_paragraphs": lambda text, rule: _count_repeated(text.paragraphs)[0],
    "repeated_paragraph_chars": lambda text, rule: _count_repeated(text.paragraphs)[1],
    "marked_lines": lambda text, rule: _ends(text.lines, _MARKS),
    "short_lines": lambda text, rule: _share(
        sum(len(line) <= SHORT_LINE_CHARS for line in text.lines), len(text.lines)
    ),
    "breaks_per_word": lambda text, rule: _share(text.text.count("\n"), len(text.words)),
    "sentences": lambda text, rule: len(_SENTENCE.findall(text.text)),
    "contains": lambda text, rule: text.text.lower().count(rule.of.lower()),
    **{f"commonest_{size}": _of_size(_measure_commonest, size) for size in (2, 3, 4)},
    **{f"repeated_{size}": _of_size(_measure_repeated, size) for size in range(5, 11)},
}


def load_table(name: str, folder: Path) -> Table:
    """One of `TABLES`, or the file of a name relative to `folder`. Raises `SpecError`."""
    path = _find_table(name, folder)
    if path is None:
        data, lines, problems = read_spec_text(_read_own(name), name)
        return _parse_table(data, name, lines, problems)
    data, lines, problems = read_spec_file(path)
    return _parse_table(data, str(path), lines, problems)


def digest_table(name: str, folder: Path) -> str:
    """The SHA-256 of a table's text, which tells of other rules. Raises `DataError`."""
    path = _find_table(name, folder)
    if path is not None:
        return digest_file(path)
    return hashlib.sha256(_read_own(name).encode()).hexdigest()


def _find_table(name: str, folder: Path) -> Path | None:
    """The file of a table that is none of `TABLES`. Raises `DataError`."""
    if name in TABLES:
        return None
    path = Path(name).expanduser()
    path = path if path.is_absolute() else folder / path
    if not path.is_file():
        raise DataError(
            f"{name!r} is neither a table of rules ({', '.join(TABLES)}) nor a file ({path})"
        )
    return path


def _read_own(name: str) -> str:
    return files("thrifty.curate").joinpath("rules", f"{name}.yaml").read_text("utf-8")


def _parse_table(
    data: dict[str, Any], source: str, lines: dict[str, int], problems: list[Problem]
) -> Table:
    def refuse(path: str, message: str) -> None:
        problems.append(Problem(path, message, lines.get(path)))

    for key in data:
        if key not in ("title", "lines", "rules"):
            refuse(key, "is not a known key; known here: lines, rules, title")
    rules = []
    for number, one in enumerate(data.get("rules") or ()):
        try:
            rule = Rule(**one)
        except TypeError:
            refuse(f"rules.{number}", f"has 'name', 'measure', 'least', 'most' and 'of', not {one}")
            continue
        if rule.measure not in MEASURES:
            refuse(f"rules.{number}", f"{rule.measure!r} is no measure: {', '.join(MEASURES)}")
        if rule.least is None and rule.most is None:
            refuse(f"rules.{number}", "has neither 'least' nor 'most'")
        rules.append(rule)
    given = data.get("lines")
    try:
        taken: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in (given or {}).items()
        }
        line_rules = LineRules(**taken) if given else None
    except (TypeError, AttributeError):
        refuse("lines", f"has {', '.join(LineRules.__dataclass_fields__)}")
    if problems:
        raise SpecError(problems, source)
    return Table(str(data.get("title") or source), tuple(rules), line_rules)


def judge_text(text: str, table: Table) -> tuple[str, str | None]:
    """A text without the lines that a table takes out, and the name of the first rule that it
    breaks; None if it breaks none.
    """
    if table.lines is not None:
        text = drop_lines(text, table.lines)
    held = Text(text)
    for rule in table.rules:
        value = held.measure(rule)
        if (rule.least is not None and value < rule.least) or (
            rule.most is not None and value > rule.most
        ):
            return text, rule.name
    return text, None


def drop_lines(text: str, rules: LineRules) -> str:
    """A text without the lines that the rules take out."""
    kept = []
    for line in text.split("\n"):
        bare = line.strip()
        if not bare:
            kept.append("")
            continue
        words = bare.split()
        lower = bare.lower()
        if (
            (rules.ends_with and not bare.endswith(rules.ends_with))
            or (rules.ends_with and bare.endswith("..."))
            or len(words) < rules.least_words
            or (rules.longest_word is not None and max(map(len, words)) > rules.longest_word)
            or any(one in lower for one in rules.without)
            or any(one in lower for one in rules.policies)
        ):
            continue
        kept.append(bare)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")


def count_rules(broken: Counter[str]) -> dict[str, int]:
    """Counts in the order of their size."""
    return dict(broken.most_common())
