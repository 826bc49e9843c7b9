"""What a gate judges on: models, questions, and text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.data.built import TEST, open_set
from thrifty.errors import DataError, EvaluationError
from thrifty.evaluate.answers import DEFAULT_SETS, is_chat_model
from thrifty.evaluate.questions import TWENTY, digest_questions
from thrifty.evaluate.suite import DOMAINS, DataFile, describe_missing, find_data, find_root
from thrifty.evaluate.windows import digest_file
from thrifty.home import Home
from thrifty.improve.gate.items import SET, Item, read_items
from thrifty.improve.gate.leaks import check_domain, find_leaked, find_learned
from thrifty.improve.gate.request import GateRequest
from thrifty.improve.gate.retrieval import Search, read_search
from thrifty.types import Family, OnProgress

PAIRS = "pairs"
"""What encoders are judged on if nothing is named."""

OnNote = Callable[[str], None]


@dataclass(frozen=True)
class Models:
    """A candidate, the version that serves, and the model that both were made from."""

    candidate: tuple[NamedVersion, Artifact]
    against: tuple[NamedVersion, Artifact]
    base: tuple[NamedVersion, Artifact] | None
    """None where it is the version that serves, or not stored here any more."""

    @property
    def are_encoders(self) -> bool:
        """Whether they embed texts, and answer no questions."""
        return self.against[1].description.family is Family.ENCODER

    def each(self) -> list[tuple[NamedVersion, Artifact]]:
        """Those that there are."""
        return [one for one in (self.candidate, self.against, self.base) if one is not None]


def find_models(store: Store, request: GateRequest) -> Models:
    """The models of a request. Raises `EvaluationError` where they cannot be compared."""
    candidate, against = store.find(request.candidate), store.find(request.against)
    if candidate[1].id == against[1].id:
        raise EvaluationError(
            f"{candidate[0].label} and {against[0].label} are the same model; nothing is to be judged"
        )
    root = find_root(store, candidate[0])
    known = {candidate[1].id, against[1].id}
    base = None if root.artifact in known else (root, store.load(root.artifact))
    families = [artifact.description.family for _, artifact in (candidate, against)]
    if families[0] is not families[1]:
        raise EvaluationError(
            f"{candidate[0].label} is of the family {families[0]}, and {against[0].label} of the "
            f"family {families[1]}; they answer other requests, so there is nothing to compare"
        )
    if families[0] not in (Family.DECODER, Family.ENCODER):
        raise EvaluationError(
            f"{candidate[0].label} is {families[0].with_article}; the gate judges decoders and encoders"
        )
    return Models(candidate, against, base)


@dataclass(frozen=True)
class Material:
    """What models are judged on, without what they learned."""

    items: list[Item]
    """What is asked."""
    searches: list[Search]
    """What encoders search, whole: candidates for an answer may have been learned."""
    domains: list[DataFile]
    """Text that is read."""
    sets: list[dict[str, Any]]
    """All of it, as the record names it."""
    leaked: set[int]
    """Positions of the items that are left out, because the models learned them."""


def find_material(
    store: Store,
    home: Home,
    request: GateRequest,
    models: Models,
    on_progress: OnProgress,
    on_note: OnNote,
) -> Material:
    """The sets and files of a request. Raises `EvaluationError` for text that a model learned."""
    learned = find_learned(store, *(one for one, _ in models.each()))
    for data in learned.missing:
        on_note(f"{data} could not be searched for leaks: it is not here")
    searches: list[Search] = []
    domains: list[DataFile] = []
    if models.are_encoders:
        searches, sets = _find_searches(store, home, request, on_progress)
        items = [item for one in searches for item in one.items]
    else:
        items, domains, sets = _find_data(store, home, request, models, on_progress)
    leaked = find_leaked(items, learned.files)
    if leaked:
        on_note(f"{len(leaked)} questions are left out: the model was trained on them")
        items = [item for number, item in enumerate(items) if number not in leaked]
    for domain in domains:
        check_domain(domain.path, learned.files)
    return Material(items, searches, domains, sets, leaked)


def _find_searches(
    store: Store, home: Home, request: GateRequest, on_progress: OnProgress
) -> tuple[list[Search], list[dict[str, Any]]]:
    """What encoders are judged on, and as the record names it."""
    if request.judge is not None:
        raise EvaluationError("a judge compares answers, which encoders do not give; leave it out")
    searches, sets = [], []
    for one in request.data or (PAIRS,):
        found = _find_file(store, home, one, on_progress, kinds=("contrastive",))
        searches.append(read_search(found.path, found.name, request.items))
        sets.append(
            {"name": found.name, "path": str(found.path), "sha256": found.sha256,
             "kind": "pairs", "items": len(searches[-1].items)}
        )  # fmt: skip
    return searches, sets


def _find_data(
    store: Store, home: Home, request: GateRequest, models: Models, on_progress: OnProgress
) -> tuple[list[Item], list[DataFile], list[dict[str, Any]]]:
    """What is asked, what is read, and both as the record names them."""
    chat = all(is_chat_model(store, one) for _, one in (models.candidate, models.against))
    named = request.data or ((*DEFAULT_SETS, *DOMAINS) if chat else ())
    items: list[Item] = []
    domains: list[DataFile] = []
    sets: list[dict[str, Any]] = []
    if not request.data and chat:
        items += [Item(question, {SET: "twenty"}) for question in TWENTY]
        sets.append({"name": "twenty", "sha256": digest_questions(TWENTY), "kind": "questions"})
    room = request.items
    for one in named:
        found = _find_file(store, home, one, on_progress)
        asks = holds_questions(found.path)
        if asks and not chat:
            raise EvaluationError(
                f"{one} holds questions, and a model without a chat template cannot be asked"
            )
        if asks:
            own = read_items(found.path, found.name)
            # By their checksums, so that a bound takes some of every kind.
            own = sorted(own, key=lambda item: digest_questions([item.question]))
            own = own[: room if request.data else room // len(DEFAULT_SETS)]
            items += own
        else:
            domains.append(found)
        sets.append(
            {"name": found.name, "path": str(found.path), "sha256": digest_file(found.path),
             "kind": "questions" if asks else "text", "items": len(own) if asks else None}
        )  # fmt: skip
    return items, domains, sets


def _find_file(
    store: Store,
    home: Home,
    named: str,
    on_progress: OnProgress,
    kinds: Sequence[str] = ("sft", "text"),
) -> DataFile:
    """A set, a file, or what a built set of one of the kinds holds out (else its first rows)."""
    problem = describe_missing(named)
    if problem is None:
        return find_data(named, home.data, store, on_progress)
    try:
        built = open_set(home.datasets, named)
    except DataError:
        raise EvaluationError(f"{named!r} {problem}; nor was a set of that name built") from None
    if built.kind not in kinds:
        raise EvaluationError(
            f"{built.label} has {built.kind} rows; the gate reads those of the kinds "
            f"{' and '.join(kinds)} for such a model"
        )
    file = next((one for one in built.files if one.split == TEST), built.files[0])
    path = built.folder / file.path
    return DataFile(built.label, path, digest_file(path))


def holds_questions(path: Path) -> bool:
    """Whether a file is to be asked: its first record ends with what a user says."""
    if path.suffix != ".jsonl":
        return False
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        return _is_question(json.loads(first))
    except (ValueError, RecursionError):
        return False


def _is_question(record: Any) -> bool:
    if not isinstance(record, dict) or "text" in record:
        return False
    messages = record.get("messages")
    if messages is None:
        return "question" in record or "prompt" in record
    last = messages[-1] if isinstance(messages, list) and messages else {}
    return isinstance(last, dict) and last.get("role") == "user"
