"""What is learned from must not hold what models are judged by: found by sequences of words.

Two rules, because texts and prompts differ in length. A text or a conversation overlaps where it
holds a part of the judged sequences of 13 words (`data.overlap`). A prompt often has fewer words: it
overlaps where it holds more than half of the sequences of 5 words of one judged prompt, so that a
question in a slightly different form is found, and two questions that share a phrase ("what is the
capital of") are not. Prompts of fewer than 5 words recur by chance and are not compared.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.compress.mix import CONVERSATIONS, PROMPTS, Mix, Source, Text, as_mix, find_line
from thrifty.compress.mix import read_prompt as read_messages
from thrifty.data import LEARNED_FROM, SETS, fetch_set
from thrifty.data.overlap import (
    SEQUENCE_WORDS,
    SHORTEST_WORDS,
    hash_sequences,
    list_sequences,
    list_words,
)
from thrifty.errors import CompressionError, SourceError
from thrifty.evaluate.answers import DEFAULT_SETS
from thrifty.evaluate.questions import TWENTY, Question, read_questions
from thrifty.evaluate.windows import digest_file, read_texts
from thrifty.home import Home, make_private_folder
from thrifty.types import OnProgress, ignore_progress

MOST_OVERLAP = 0.001
"""The share of the judged sequences that may recur by chance, as set phrases do."""
PROMPT_WORDS = SHORTEST_WORDS
PROMPT_OVERLAP = 0.5
SHOWN_ROWS = 5

Prompts = list[tuple[str, str]]
"""What users say, and where it stands."""


def check_apart(
    learned: Mix,
    judged: Iterable[Path],
    home: Home,
    store: Store,
    on_note: Callable[[str], None],
    on_progress: OnProgress = ignore_progress,
    questions: Iterable[tuple[str, Question]] = (),
) -> Mix:
    """`check_no_overlap` with what is named, with every domain's judging set, and with the
    questions that models are asked by default. The judging sets are fetched if a set is learned
    from; else those that are here are read. `questions` are others that models are asked, each with
    where it stands.

    Returns the mix without the prompts of fetched sets that overlap: nobody can remove them there.
    `on_note` is told how many. In a file they are an error. Raises `CompressionError`.
    """
    fetch = any(home.data in source.path.parents for source in learned.sources)

    def find(names: Iterable[str]) -> list[Path]:
        if fetch:
            return [fetch_set(name, home.data, store, on_progress) for name in names]
        paths = (home.data / f"{name}{SETS[name].suffix}" for name in names)
        return [path for path in paths if path.exists()]

    paths = list(dict.fromkeys([*judged, *find(LEARNED_FROM)]))
    prompts = [one for path in paths for one in _read_prompts(as_mix(path).sources[0])]
    known = [*questions, *(("the questions", question) for question in TWENTY)]
    for path in _find_questions(home, store, on_progress):
        known += [(path.name, question) for question in read_questions(path)]
    asked = [*prompts, *_list_asked(known)]
    learned = Mix(tuple(_leave_out(one, asked, home, on_note) for one in learned.sources))
    _check_prompts(learned.sources, asked)
    for path in paths:
        mark = home.evaluations / "apart" / f"{learned.sha256[:20]}-{digest_file(path)[:20]}"
        if not mark.exists():
            _check_sequences(learned.sources, path)
            make_private_folder(mark.parent)
            mark.touch()
    return learned


def _find_questions(home: Home, store: Store, on_progress: OnProgress) -> Iterator[Path]:
    """The sets of questions that models are asked by default, where they are here or can be
    fetched: a model that is made now is asked them next.
    """
    for name in DEFAULT_SETS:
        with contextlib.suppress(SourceError):
            yield fetch_set(name, home.data, store, on_progress)


def check_no_overlap(learned: Text, *judged: Path) -> None:
    """Raise `CompressionError` if what is learned from contains parts of what models are judged by.

    Reads all of them. The error lists the rows.
    """
    sources = as_mix(learned).sources
    for path in judged:
        _check_prompts(sources, list(_read_prompts(as_mix(path).sources[0])))
        _check_sequences(sources, path)


def find_repeated_prompts(
    learned: Iterable[tuple[str, str]], judged: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The pairs of places where a learned prompt holds more than half of a judged one.

    Both are pairs of a prompt and the place where it stands.
    """
    places: list[tuple[str, int]] = []
    where_of: dict[bytes, list[int]] = defaultdict(list)
    for number, (prompt, where) in enumerate(judged):
        sequences = _list_prompt_sequences(prompt)
        places.append((where, len(sequences)))
        for sequence in sequences:
            where_of[sequence].append(number)
    found = []
    for prompt, where in learned:
        sequences = _list_prompt_sequences(prompt)
        hits = Counter(number for one in sequences for number in where_of.get(one, ()))
        for number, count in hits.items():
            if count > PROMPT_OVERLAP * places[number][1]:
                found.append((where, places[number][0]))
                break
    return found


def _leave_out(
    source: Source, asked: Prompts, home: Home, on_note: Callable[[str], None]
) -> Source:
    """A fetched set without the prompts that models are judged by; another source as it is."""
    if home.data not in source.path.parents:
        return source
    found = find_repeated_prompts(_read_prompts(source), asked)
    if not found:
        return source
    lines = frozenset(find_line(where) for where, _ in found)
    on_note(
        f"{len(lines):,} rows of {source.name} are left out: models are judged by their prompts"
    )
    digest = hashlib.sha256(f"{source.sha256} {sorted(lines)}".encode()).hexdigest()
    return replace(source, left_out=lines, sha256=digest)


def _check_prompts(sources: Iterable[Source], asked: Prompts) -> None:
    for source in sources:
        found = find_repeated_prompts(_read_prompts(source), asked) if asked else []
        if found:
            rows = "; ".join(f"{where} as {judged}" for where, judged in found[:SHOWN_ROWS])
            more = f"; and {len(found) - SHOWN_ROWS} more" if len(found) > SHOWN_ROWS else ""
            raise CompressionError(
                f"{source.name} holds {len(found)} prompts that models are judged by: "
                f"{rows}{more}. Remove these rows, or learn from another set"
            )


def _read_prompts(source: Source) -> Iterator[tuple[str, str]]:
    """What users say in a source, and where; nothing for plain text."""
    if source.kind not in (CONVERSATIONS, PROMPTS):
        return
    for record, where in source.read():
        for message in read_messages(record) or ():
            if message.get("role") == "user" and isinstance(message.get("content"), str):
                yield message["content"], where


def _list_asked(questions: Iterable[tuple[str, Question]]) -> Iterator[tuple[str, str]]:
    for where, question in questions:
        yield from (
            (text, f"{where}: {text}") for role, text in question.messages if role == "user"
        )


def _list_prompt_sequences(prompt: str) -> set[bytes]:
    return set(hash_sequences(list_words(prompt), PROMPT_WORDS))


def _check_sequences(sources: Iterable[Source], judged: Path) -> None:
    held_out = dict(_list_sequences(as_mix(judged).sources[0]))
    for source in sources:
        found: dict[bytes, str] = {}
        for sequence, where in _list_sequences(source):
            if sequence in held_out:
                found.setdefault(sequence, where)
        if len(found) > MOST_OVERLAP * len(held_out):
            raise CompressionError(
                f"{source.path} contains {len(found) / len(held_out):.1%} of {judged} (sequences of "
                f"{SEQUENCE_WORDS} words{_describe_rows(found, held_out)}), so measurements on the "
                "latter would be too good; use other text to learn from"
            )


def _describe_rows(found: Mapping[bytes, str], known: Mapping[bytes, str]) -> str:
    pairs = dict.fromkeys(
        (there, known[one]) for one, there in found.items() if there and known[one]
    )
    shown = [f"line {there} has what line {here} of the latter has" for there, here in pairs]
    return f"; {'; '.join(shown[:SHOWN_ROWS])}" if shown else ""


def _list_sequences(source: Source) -> Iterator[tuple[bytes, str]]:
    """A checksum of each sequence of words, and the line where it stands in a `.jsonl` file."""
    if source.path.suffix == ".jsonl":
        for record, where in source.read():
            line = str(find_line(where))
            yield from ((sequence, line) for sequence in list_sequences(record))
        return
    words: list[str] = []
    for text in read_texts(source.path):
        words = words[-(SEQUENCE_WORDS - 1) :] + list_words(text)
        yield from ((sequence, "") for sequence in hash_sequences(words))
