"""What models are judged by in this home, and what a build keeps its rows apart from.

domains and questions     the sets of `thrifty data fetch` that models are judged by
questions of reports      those that every comparison asks
measurements              the files by which stored models were measured
built sets                those with `evaluation: true` in their recipe
against                   what the recipe names

An item is a question, a message of a user or an assistant, or a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.curate.leaks import Item, read_items
from thrifty.curate.recipe import Recipe
from thrifty.data import LEARNED_FROM, SETS, fetch_set
from thrifty.data.built import digest_file, list_sets
from thrifty.errors import DataError
from thrifty.evaluate.answers import DEFAULT_SETS
from thrifty.evaluate.questions import TWENTY, digest_questions
from thrifty.evaluate.suite import ENCODER_DOMAINS
from thrifty.home import Home
from thrifty.types import OnProgress, ignore_progress

REPORT_QUESTIONS = "questions of reports"


@dataclass(frozen=True)
class EvaluationSet:
    """One set that models are judged by. `path` is None for the questions of reports."""

    name: str
    path: Path | None
    sha256: str

    def read(self) -> Iterator[Item]:
        """Its items. Raises `EvaluationError`."""
        if self.path is not None:
            yield from read_items(self.name, self.path)
            return
        for number, question in enumerate(TWENTY, 1):
            for role, text in question.messages:
                if role == "user":
                    yield Item(self.name, f"question {number}", text)


def find_evaluation_sets(
    home: Home,
    store: Store,
    recipe: Recipe,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
) -> list[EvaluationSet]:
    """All registered evaluation sets, those whose leaks are accepted last. Those of Thrifty are
    fetched if the recipe learns from a fetched set; else those that are here count. Raises
    `ThriftyError`.
    """
    wanted = recipe.decontaminate
    if wanted is None:
        return []
    found = [EvaluationSet(REPORT_QUESTIONS, None, digest_questions(TWENTY))]
    paths: dict[Path, str] = {}
    if any(one.set is not None for one in recipe.sources):
        for name in (*LEARNED_FROM, *DEFAULT_SETS):
            paths[fetch_set(name, home.data, store, on_progress)] = name
    questions = [name for name, one in SETS.items() if one.kind == "questions"]
    for name in dict.fromkeys([*LEARNED_FROM, *ENCODER_DOMAINS, *questions]):
        path = home.data / f"{name}{SETS[name].suffix}"
        if path.exists():
            paths.setdefault(path, name)
    for path in _list_measured(store):
        if home.evaluations not in path.parents and path.parent != home.data:
            paths.setdefault(path, path.name)
    for built in list_sets(home.datasets):
        if built.manifest.get("evaluation"):
            for one in built.files:
                paths.setdefault(built.folder / one.path, built.label)
    for named in wanted.against:
        given = Path(named).expanduser()
        path = given if given.is_absolute() else folder / given
        if not path.is_file():
            raise DataError(f"decontaminate.against names {named!r}, and {path} is no file")
        paths.setdefault(path, path.name)
    found += [EvaluationSet(name, path, digest_file(path)) for path, name in paths.items()]
    _check_accepted(recipe, found)
    # What two sets hold counts as the first one's, and may stay only if both are accepted.
    return sorted(found, key=lambda one: one.name in wanted.accept)


def _check_accepted(recipe: Recipe, found: list[EvaluationSet]) -> None:
    names = {one.name for one in found}
    assert recipe.decontaminate is not None
    unknown = [name for name in recipe.decontaminate.accept if name not in names]
    if unknown:
        raise DataError(
            f"decontaminate.accept names {', '.join(unknown)}, which is no evaluation set here; "
            f"there are: {', '.join(sorted(names))}"
        )


def _list_measured(store: Store) -> Iterator[Path]:
    """The files by which stored models were measured, as far as they are there."""
    for version in store.versions():
        for one in store.read_measurements(version.artifact):
            named = one.values.get("path")
            if isinstance(named, str) and Path(named).is_file():
                yield Path(named)


def digest_sets(sets: list[EvaluationSet]) -> str:
    """A checksum of all sets."""
    facts = "\n".join(sorted(f"{one.name} {one.sha256}" for one in sets))
    return hashlib.sha256(facts.encode()).hexdigest()
