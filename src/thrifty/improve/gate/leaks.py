"""What versions are judged by must not be what they learned from: leaked questions are left out.

The data of every training in a version's lineage is looked up where it was. A question leaked if
one text of it holds more than half of its sequences of five words and nine of ten of its words:
another name in the same question is another question. One of fewer words leaked if it is there as a
whole. A domain leaked if the data holds more than a thousandth of its sequences of 13 words.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thrifty.artifacts import NamedVersion, Store
from thrifty.artifacts.lineage import walk_lineage
from thrifty.data.overlap import SHORTEST_WORDS, hash_sequences, list_sequences, list_words
from thrifty.errors import EvaluationError
from thrifty.evaluate.conversations import read_records
from thrifty.improve.gate.items import Item
from thrifty.train.rows import digest_rows

MOST_OVERLAP = 0.001
OVERLAP, COVERED = 0.5, 0.9
_FIELDS = (
    "messages", "prompt", "chosen", "rejected", "completion", "query", "anchor", "positive", "texts",
)  # fmt: skip
"""Of rows: what was learned of them."""


@dataclass
class LearnedData:
    """The files that a version and those before it were trained on."""

    files: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Data of the lineage that is not here any more, or has changed."""


def find_learned(store: Store, *versions: NamedVersion) -> LearnedData:
    """The training data of the versions and of those that they were made from."""
    found = LearnedData()
    seen: set[str] = set()
    for version in versions:
        for one in walk_lineage(store, version):
            recipe, figures = one.lineage.recipe, one.lineage.figures
            digest = recipe.get("data_sha256")
            if recipe.get("step") != "train" or digest in seen:
                continue
            seen.add(str(digest))
            paths = [Path(one) for one in figures.get("data_paths", ())]
            if paths and all(path.is_file() for path in paths) and digest_rows(paths) == digest:
                found.files += paths
            else:
                found.missing.append(f"{recipe.get('data')} of {one.label}")
    return found


def find_leaked(items: Sequence[Item], files: Iterable[Path]) -> set[int]:
    """The numbers of the items whose questions are in the files."""
    sizes: list[int] = []
    words_of: list[set[str]] = []
    owners: dict[bytes, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        words = list_words(item.question.messages[-1][1])
        sequences = set(hash_sequences(words, min(len(words), SHORTEST_WORDS))) if words else set()
        sizes.append(len(sequences))
        words_of.append(set(words))
        for sequence in sequences:
            owners[sequence].append(number)
    # Questions of fewer words are looked for as whole texts.
    short = {
        size
        for item in items
        if (size := len(list_words(item.question.messages[-1][1]))) < SHORTEST_WORDS
    }
    leaked: set[int] = set()
    for text in _list_texts(files):
        words = list_words(text)
        sequences = set(hash_sequences(words, SHORTEST_WORDS))
        if len(words) in short:
            sequences |= set(hash_sequences(words, len(words)))
        hits = Counter(number for one in sequences for number in owners.get(one, ()))
        said = set(words)
        leaked |= {
            number
            for number, count in hits.items()
            if count > OVERLAP * sizes[number]
            and len(words_of[number] & said) >= COVERED * len(words_of[number])
        }
    return leaked


def check_domain(path: Path, files: Sequence[Path]) -> None:
    """Raise `EvaluationError` if a domain's text was learned from."""
    if not files or path.suffix != ".jsonl":
        return
    judged = {one for record, _ in read_records(path) for one in list_sequences(record)}
    for file in files:
        found = {one for text in _list_texts([file]) for one in list_sequences({"text": text})}
        if judged and len(found & judged) > MOST_OVERLAP * len(judged):
            raise EvaluationError(
                f"{file}, which the model was trained on, holds {len(found & judged) / len(judged):.1%} "
                f"of {path}; judge it on other text (--data)"
            )


def _list_texts(files: Iterable[Path]) -> Iterator[str]:
    """What users and assistants say in the rows of files; lines that are no rows are passed over,
    as the training did.
    """
    for path in files:
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    for name in _FIELDS:
                        yield from _list_contents(record.get(name))


def _list_contents(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _list_contents(one)
    elif isinstance(value, dict) and value.get("role") in (None, "user", "assistant"):
        yield from _list_contents(str(value.get("content") or ""))
