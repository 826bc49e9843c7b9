"""What is learned from must not hold what models are judged by: found by sequences of words.

Two rules, because texts and prompts differ in length. A text overlaps where it holds a part of the
judged text's sequences of 13 words, as is usual in the field. A prompt often has fewer words: it
overlaps where it holds more than half of the sequences of 5 words of one judged prompt, so that a
question in a slightly different form is found, and two questions that share a phrase ("what is the
capital of") are not. Prompts of fewer than 5 words overlap if they are equal.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.compress.mix import CONVERSATIONS, PROMPTS, Mix, Source, Text, as_mix, find_line
from thrifty.compress.mix import read_prompt as read_messages
from thrifty.data import LEARNED_FROM, SETS, fetch_set
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import digest_file, read_texts
from thrifty.home import Home, make_private_folder
from thrifty.types import OnProgress, ignore_progress

SHINGLE_WORDS = 13
MOST_OVERLAP = 0.001
"""The share of the evaluation text's shingles that may recur by chance, as set phrases do."""
PROMPT_WORDS = 5
PROMPT_OVERLAP = 0.5
SHOWN_ROWS = 5
_WORD = re.compile(r"\w+")


def check_apart(
    learned: Mix,
    judged: Iterable[Path],
    home: Home,
    store: Store,
    on_progress: OnProgress = ignore_progress,
) -> Mix:
    """`check_no_overlap` with what is named and with every domain's judging set. These are fetched
    if a set is learned from; else those that are here are read.

    Returns the mix without the prompts of fetched sets that overlap: nobody can remove them there.
    In a file they are an error. Raises `CompressionError`.
    """
    learns_sets = any(home.data in source.path.parents for source in learned.sources)
    paths = list(judged)
    for name in LEARNED_FROM:
        here = home.data / f"{name}{SETS[name].suffix}"
        if learns_sets:
            here = fetch_set(name, home.data, store, on_progress)
        if here.exists():
            paths.append(here)
    judged_by = list(dict.fromkeys(paths))
    asked = [one for path in judged_by for one in _read_prompts(as_mix(path).sources[0])]
    learned = Mix(tuple(_leave_out(one, asked, home) for one in learned.sources))
    for path in judged_by:
        mark = home.evaluations / "apart" / f"{learned.sha256[:20]}-{digest_file(path)[:20]}"
        if not mark.exists():
            check_no_overlap(learned, path)
            make_private_folder(mark.parent)
            mark.touch()
    return learned


def _leave_out(source: Source, asked: list[tuple[str, str]], home: Home) -> Source:
    """A fetched set without the prompts that models are judged by; another source as it is."""
    if home.data not in source.path.parents:
        return source
    found = find_repeated_prompts(_read_prompts(source), asked)
    if not found:
        return source
    lines = frozenset(find_line(where) for where, _ in found)
    digest = hashlib.sha256(f"{source.sha256} {sorted(lines)}".encode()).hexdigest()
    return replace(source, left_out=lines, sha256=digest)


def check_no_overlap(learned: Text, judged: Path) -> None:
    """Raise `CompressionError` if what is learned from contains parts of what models are judged by.

    Reads both. The error lists the rows.
    """
    sources = as_mix(learned).sources
    evaluated = as_mix(judged).sources[0]
    asked = list(_read_prompts(evaluated))
    if asked:
        _check_prompts(sources, evaluated, asked)
    held_out = set(_shingles(evaluated))
    if not held_out:
        return
    for source in sources:
        seen = {shingle for shingle in _shingles(source) if shingle in held_out}
        if len(seen) > MOST_OVERLAP * len(held_out):
            raise CompressionError(
                f"{source.path} contains {len(seen) / len(held_out):.1%} of {judged} (sequences of "
                f"{SHINGLE_WORDS} words), so measurements on the latter would be too good; use "
                "other text to learn from"
            )


def find_repeated_prompts(
    learned: Iterable[tuple[str, str]], judged: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The pairs of places where a learned prompt holds more than half of a judged one.

    Both are pairs of a prompt and the place where it stands.
    """
    places: list[tuple[str, int]] = []
    where_of: dict[bytes, list[int]] = defaultdict(list)
    for number, (prompt, where) in enumerate(judged):
        shingles = _prompt_shingles(prompt)
        places.append((where, len(shingles)))
        for shingle in shingles:
            where_of[shingle].append(number)
    found = []
    for prompt, where in learned:
        hits = Counter(n for shingle in _prompt_shingles(prompt) for n in where_of.get(shingle, ()))
        for number, count in hits.items():
            if count > PROMPT_OVERLAP * places[number][1]:
                found.append((where, places[number][0]))
                break
    return found


def _check_prompts(
    sources: Iterable[Source], evaluated: Source, asked: list[tuple[str, str]]
) -> None:
    for source in sources:
        found = find_repeated_prompts(_read_prompts(source), asked)
        if found:
            rows = "; ".join(f"{where} as {judged}" for where, judged in found[:SHOWN_ROWS])
            more = f"; and {len(found) - SHOWN_ROWS} more" if len(found) > SHOWN_ROWS else ""
            raise CompressionError(
                f"{source.name} holds {len(found)} prompts that models are judged by "
                f"({evaluated.name}): {rows}{more}. Remove these rows, or learn from another set"
            )


def _read_prompts(source: Source) -> Iterator[tuple[str, str]]:
    """What users say in a source, and where; nothing for plain text."""
    if source.kind not in (CONVERSATIONS, PROMPTS):
        return
    for record, where in source.read():
        for message in read_messages(record) or ():
            if message.get("role") == "user" and isinstance(message.get("content"), str):
                yield message["content"], where


def _prompt_shingles(prompt: str) -> set[bytes]:
    words = _WORD.findall(prompt.lower())
    if not words:
        return set()
    size = min(PROMPT_WORDS, len(words))
    # A short prompt is one shingle, which no part of a longer prompt equals.
    end = b"." if len(words) < PROMPT_WORDS else b""
    return {_digest(words[at : at + size]) + end for at in range(len(words) - size + 1)}


def _shingles(source: Source) -> Iterator[bytes]:
    words: list[str] = []
    for text in _read_all_text(source):
        words = words[-(SHINGLE_WORDS - 1) :] + text.lower().split()
        for start in range(len(words) - SHINGLE_WORDS + 1):
            yield _digest(words[start : start + SHINGLE_WORDS])


def _read_all_text(source: Source) -> Iterator[str]:
    """The text of a source. Of conversations nothing: set phrases of prompts and tools recur in
    them, and their prompts are compared by the other rule.
    """
    if source.kind not in (CONVERSATIONS, PROMPTS):
        yield from read_texts(source.path)


def _digest(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
