"""The answers of chat models beside those of a reference: what is still right, and what is broken.

Both are asked the same questions, greedily, through the engine that serves them. A divergence says
little about whether a model still answers; a person who reads the answers knows at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement, find_measurement
from thrifty.artifacts.sources import fetch_model
from thrifty.errors import EvaluationError, FleetError
from thrifty.evaluate.answer_faults import EMPTY, IGNORED, LOOP, find_faults, find_same
from thrifty.evaluate.asking import Serve, collect_answers, serve_url
from thrifty.evaluate.open_model import has_chat_template, is_url
from thrifty.evaluate.questions import TWENTY, Question, digest_questions, read_questions
from thrifty.evaluate.statistics import Proportion, proportion
from thrifty.evaluate.suite import describe_arithmetic, find_data
from thrifty.evaluate.tasks import normalize_answer
from thrifty.types import Family, OnProgress, ignore_progress

ANSWERS = "answers"
"""The kind of the measurement."""
VERSION = 1
"""Increase it when the same answers come to be counted in another way."""
SAMPLES = 20
DEFAULT_SETS = ("countries", "elements")
DEFAULT_SHORT = 300
"""Questions with known answers that are asked unless another number is given."""
RIGHT = "right"
"""The mark of a sample's answer that is one of the accepted ones."""


@dataclass(frozen=True)
class Sample:
    """One question, and what the two models answered."""

    question: str
    reference: str
    candidate: str
    reference_flags: list[str]
    flags: list[str]
    """The candidate's: `empty`, `loop`, `ignored`, `right`."""


@dataclass(frozen=True)
class FaultCounts:
    """How many answers show each fault."""

    empty: int
    loops: int
    ignored: int


@dataclass(frozen=True)
class AnswersReport:
    """A candidate's answers beside its reference's."""

    asked: int
    reference_right: int
    """Of the questions with a known answer, those that the reference answers with it."""
    still_right: int
    """Of these, those that the candidate answers with it."""
    still_right_share: Proportion
    empty: int
    loops: int
    ignored: int
    reference_faults: FaultCounts
    samples: list[Sample] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The output of `thrifty evaluate --json`. The share is null if the reference has none."""
        found = asdict(self)
        share = self.still_right_share
        found["still_right_share"] = (
            {"share": share.share, "low": share.low, "high": share.high} if share.count else None
        )
        return found


def compare_given(
    questions: Sequence[Question], reference: Sequence[str], candidate: Sequence[str]
) -> AnswersReport:
    """Compare the answers of two models to the same questions, in the same order."""
    if not len(questions) == len(reference) == len(candidate):
        raise ValueError(
            f"{len(questions)} questions, {len(reference)} and {len(candidate)} answers"
        )
    # Only the candidate is held to another model's words: a translation has none of its question's.
    old = _find_all_faults(questions, reference, reference)
    new = _find_all_faults(questions, candidate, reference)
    known_right = [is_right(one, text) for one, text in zip(questions, reference, strict=True)]
    right = [is_right(one, text) for one, text in zip(questions, candidate, strict=True)]
    both = sum(a and b for a, b in zip(known_right, right, strict=True))
    counts = _count(new)
    shown = sorted(range(len(questions)), key=lambda at: bool(questions[at].answers))[:SAMPLES]
    return AnswersReport(
        asked=len(questions),
        reference_right=sum(known_right),
        still_right=both,
        still_right_share=proportion(both, sum(known_right)),
        empty=counts.empty,
        loops=counts.loops,
        ignored=counts.ignored,
        reference_faults=_count(old),
        samples=[
            Sample(
                questions[at].text, reference[at], candidate[at],
                [*old[at], *([RIGHT] if known_right[at] else [])],
                [*new[at], *([RIGHT] if right[at] else [])],
            )
            for at in shown
        ],
    )  # fmt: skip


def is_right(question: Question, answer: str) -> bool:
    """Whether the first line or sentence is one of the accepted answers, as SQuAD compares them.

    It may also be a sentence that says nothing else, as in `The capital of Peru is Lima`: words of
    the question and words that join an answer to it are left out of both.
    """
    line = next((line for line in answer.splitlines() if line.strip()), "")
    given = [_normalize(one) for one in (line, _SENTENCE_END.split(line.strip())[0])]
    asked = {*_normalize(question.messages[-1][1]).split(), *_JOINING}
    for accepted in map(_normalize, question.answers):
        if accepted in given:
            return True
        bare = _without(accepted, asked)
        if bare and any(_without(one, asked) == bare for one in given):
            return True
    return False


_SENTENCE_END = re.compile(r"(?<=[.!?])\s")
_JOINING_WORDS = "is are was were be known as called named it its they this that has have with in by of and to for"
_JOINING = frozenset(_JOINING_WORDS.split())


def _without(text: str, words: Set[str]) -> list[str]:
    return [word for word in text.split() if word not in words]


def _normalize(text: str) -> str:
    """As SQuAD does, and without accents."""
    parts = unicodedata.normalize("NFKD", text)
    return normalize_answer("".join(one for one in parts if not unicodedata.combining(one)))


def _find_all_faults(
    questions: Sequence[Question], answers: Sequence[str], others: Sequence[str]
) -> list[list[str]]:
    faults = [
        find_faults(
            answer, asked=[text for _, text in one.messages], accepted=one.answers, other=other
        )
        for one, answer, other in zip(questions, answers, others, strict=True)
    ]
    for at in find_same(answers):
        if IGNORED not in faults[at]:
            faults[at].append(IGNORED)
    return faults


def _count(faults: Sequence[Sequence[str]]) -> FaultCounts:
    return FaultCounts(*(sum(kind in one for one in faults) for kind in (EMPTY, LOOP, IGNORED)))


# Stored models


ServeModel = Callable[[NamedVersion, Artifact, OnProgress], Serve]
"""How a stored model is served here while it is asked; a higher layer provides it."""


@dataclass(frozen=True)
class AnswersRequest:
    """What models are asked, beside which reference, and how."""

    reference: NamedVersion
    questions: Sequence[Question]
    serve: ServeModel
    arithmetic: dict[str, Any] = field(default_factory=describe_arithmetic)
    """How models compute here."""

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions of the measurement."""
        return {
            "reference": self.reference.artifact, "version": VERSION,
            "questions_sha256": digest_questions(self.questions), **self.arithmetic,
        }  # fmt: skip


def is_chat_model(store: Store, artifact: Artifact) -> bool:
    """Whether it is a decoder with a chat template. Raises `IntegrityError`."""
    return artifact.description.family is Family.DECODER and has_chat_template(store, artifact)


def find_questions(
    name: str | None,
    data: Path,
    store: Store,
    limit: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> list[Question]:
    """The questions of a file or of a set, which is fetched to `data` if it is not there. Default:
    the twenty that everyone reads, and some of the sets with short answers.

    `limit` bounds those with a known answer; without one, 300 of the default sets are asked. Raises
    `EvaluationError` and `SourceError`.
    """
    sets = (name,) if name is not None else DEFAULT_SETS
    if name is None and limit is None:
        limit = DEFAULT_SHORT
    found: list[Question] = [] if name is not None else list(TWENTY)
    for one in sets:
        found += read_questions(find_data(one, data, store, on_progress).path)
    # By their checksums, so that a bound takes some of every kind.
    short = sorted((one for one in found if one.answers), key=lambda one: digest_questions([one]))
    return [*(one for one in found if not one.answers), *short[:limit]]


def find_answers(store: Store, artifact: Artifact, request: AnswersRequest) -> Measurement | None:
    """The recorded answers of a model, if it was asked under these conditions."""
    return find_measurement(store.read_measurements(artifact.id), ANSWERS, request.conditions)


def measure_answers(
    store: Store,
    folder: Path,
    version: NamedVersion,
    artifact: Artifact,
    request: AnswersRequest,
    on_progress: OnProgress = ignore_progress,
) -> Measurement:
    """A stored model's answers beside the reference's; asks for those that are missing and records
    the comparison with the model. `folder` keeps single answers. Blocks.

    Raises `EvaluationError`, and `FleetError` or `SpecError` where a model cannot be served.
    """
    known = find_answers(store, artifact, request)
    if known is not None:
        return known
    reference = request.reference
    given = [
        ask_model(store, folder, one, stored, request, on_progress)
        for one, stored in (
            (reference, store.load(reference.artifact)), (version, artifact),
        )
    ]  # fmt: skip
    report = compare_given(request.questions, *given)
    values = {"beside": reference.label, **report.as_dict()}
    return store.record_measurement(artifact.id, ANSWERS, request.conditions, values)


def evaluate_answers(
    model: str,
    request: AnswersRequest,
    *,
    store: Store,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """The values of `measure_answers` for anything that a user names, also the URL of a server.
    Answers of a server are kept only until all are there. Blocks. Raises `ThriftyError`.
    """
    if not is_url(model):
        found = fetch_model(store, model, on_progress=on_progress)
        return measure_answers(store, folder, *found, request, on_progress).values
    reference = request.reference
    stored = store.load(reference.artifact)
    known = ask_model(store, folder, reference, stored, request, on_progress)
    path = path_of(folder, model)
    given = collect_answers(request.questions, path, serve_url(model), on_progress)
    path.unlink()
    report = compare_given(request.questions, known, given)
    return {"beside": reference.label, **report.as_dict()}


def ask_model(
    store: Store,
    folder: Path,
    version: NamedVersion,
    artifact: Artifact,
    request: AnswersRequest,
    on_progress: OnProgress = ignore_progress,
) -> list[str]:
    """The answers of a stored model, in the order of the questions. Raises as `measure_answers`."""
    if not is_chat_model(store, artifact):
        raise EvaluationError(
            f"{version.label} has no chat template, so it cannot be asked questions"
        )
    identity = json.dumps([artifact.id, request.arithmetic], sort_keys=True)
    try:
        return collect_answers(
            request.questions, path_of(folder, identity),
            request.serve(version, artifact, on_progress), on_progress,
        )  # fmt: skip
    except (EvaluationError, FleetError) as error:
        raise EvaluationError(
            f"{version.label} did not answer all questions: {error}; those that it answered are "
            "kept, and the same command asks the others"
        ) from error


def path_of(folder: Path, identity: str) -> Path:
    """Where the answers of the model with this identity are kept."""
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return folder / "answers" / f"chat-{name}.jsonl"
