"""Run the gate: measure a candidate beside the version that serves and the untouched base, judge
it, and keep the verdict with the model.

Answers come from the engine that serves the models, greedily; predictions and answers that were
measured before are used again, so that a gate that was killed goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.verdicts import GATE
from thrifty.data.built import TEST, open_set
from thrifty.db import Database
from thrifty.engines.machine import Machine, detect_machine
from thrifty.errors import DataError, EvaluationError
from thrifty.evaluate.answers import (
    DEFAULT_SETS,
    AnswersRequest,
    ask_model,
    is_chat_model,
)
from thrifty.evaluate.gate_record import write_record
from thrifty.evaluate.judges import open_judge
from thrifty.evaluate.questions import TWENTY, digest_questions
from thrifty.evaluate.suite import (
    DOMAINS,
    DataFile,
    EvaluationSuite,
    describe_arithmetic,
    describe_missing,
    find_data,
    find_root,
    measure_quality,
)
from thrifty.evaluate.windows import digest_file
from thrifty.home import Home
from thrifty.improve.gate.items import PREFERRED, SET, Item, grade, read_items
from thrifty.improve.gate.judge import ALPHA, Slice, compare_items, compare_text, decide
from thrifty.improve.gate.leaks import check_domain, find_leaked, find_learned
from thrifty.improve.gate.preferred import grade_preferred, name_judge, prefer_answers
from thrifty.improve.gate.retrieval import FOUND, Search, find_nearest, read_search
from thrifty.improve.gate.trusted import LEAST, judge_trusted
from thrifty.own_replica import make_server
from thrifty.spec.judges import RemoteJudge
from thrifty.speed_benchmark import measure_speed
from thrifty.types import Family, OnProgress, ignore_progress
from thrifty.version import __version__

MARGIN = 0.05
ITEMS = 600
"""With 300, one equal version in six would be refused for want of evidence, where a tenth of the
answers differs; with our 504 questions, one in thirty (`benchmarks/gate_decisions.py`)."""
PAIRS = "pairs"
"""What encoders are judged on if nothing is named."""
SPEED_MARGIN = 0.2
"""A version may be this much slower and larger: measurements on a shared machine spread."""
MOST_BUSY = 0.3
"""If more of the machine was busy with other things, speeds say nothing."""
TOKENS = 4096
"""Tokens of each domain."""

OnNote = Callable[[str], None]


@dataclass(frozen=True)
class GateRequest:
    """What is judged, beside what, on what."""

    candidate: str
    against: str
    data: Sequence[str] = ()
    """Sets, files and built sets: questions are asked, text and conversations are domains. Default:
    our own."""
    margin: float = MARGIN
    """How much worse is not worse: a share of answers, and of a token's probability."""
    items: int = ITEMS
    """At most so many questions of a set; our own share them."""
    tokens: int = TOKENS
    speed: bool = True
    """Whether speed and memory are measured."""
    trusted: str | None = None
    """A built set of answers that trusted users judged (`kto`), which was never learned."""
    judge: str | RemoteJudge | None = None
    """Who compares the answers: `module:function`, `deployment:NAME`, or a model elsewhere."""


@dataclass(frozen=True)
class GateResult:
    """The verdict, and what it rests on."""

    passed: bool
    message: str
    slices: list[Slice]
    record: Path
    speed: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The output of `thrifty gate --json`."""
        return {
            "verdict": "pass" if self.passed else "fail", "message": self.message,
            "slices": [{**asdict(one), "failed": one.failed} for one in self.slices],
            "speed": self.speed, "notes": list(self.notes), "record": str(self.record),
        }  # fmt: skip


@dataclass(frozen=True)
class _Models:
    candidate: tuple[NamedVersion, Artifact]
    against: tuple[NamedVersion, Artifact]
    base: tuple[NamedVersion, Artifact] | None
    """None where it is the version that serves, or not stored here any more."""

    @property
    def are_encoders(self) -> bool:
        return self.against[1].description.family is Family.ENCODER

    def each(self) -> list[tuple[NamedVersion, Artifact]]:
        return [one for one in (self.candidate, self.against, self.base) if one is not None]


def run_gate(
    store: Store,
    home: Home,
    request: GateRequest,
    on_progress: OnProgress = ignore_progress,
    on_note: OnNote = lambda text: None,
    machine: Machine | None = None,
    database: Database | None = None,
) -> GateResult:
    """Judge a candidate and record the verdict with it. Blocks. A judge that is a deployment is
    found in `database`. Raises `EvaluationError` and its like where something cannot be measured.
    """
    if not 0 < request.margin < 0.5:
        raise EvaluationError(f"--margin must be above 0 and below 0.5, not {request.margin:g}")
    machine = machine or detect_machine()
    models = _find_models(store, request)
    learned = find_learned(store, *(one for one, _ in models.each()))
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        on_note(text)

    for data in learned.missing:
        note(f"{data} could not be searched for leaks: it is not here")
    searches: list[Search] = []
    domains: list[DataFile] = []
    if models.are_encoders:
        searches, sets = _find_searches(store, home, request, on_progress)
        items = [item for one in searches for item in one.items]
    else:
        items, domains, sets = _find_data(store, home, request, models, on_progress)
    leaked = find_leaked(items, learned.files)
    if leaked:
        note(f"{len(leaked)} questions are left out: the model was trained on them")
        items = [item for number, item in enumerate(items) if number not in leaked]
    for domain in domains:
        check_domain(domain.path, learned.files)
    if models.are_encoders:
        slices = _judge_searches(store, home, models, searches, leaked, request, on_progress)
    else:
        slices = _judge_answers(
            store, home, machine, models, items, request, on_progress, note, database
        )
    slices += _judge_text(store, home, models, domains, request, on_progress)
    slices += _judge_trusted(store, home, models, request, on_progress, on_note)
    if not slices:
        which = " that the model was not trained on" if leaked else ""
        raise EvaluationError(
            f"there is nothing to judge on; name questions or text{which} with --data"
        )
    slices = decide(slices, request.margin)
    speed = _judge_speed(store, home, machine, models, on_progress) if request.speed else {}
    if any(one["busy"] for one in speed.values()):
        note("speeds are not judged: the machine was busy while they were measured")
    failed = [one for one in slices if one.failed]
    slow = [name for name, one in speed.items() if one["failed"]]
    message = describe(models.candidate[0], models.against[0], failed, slow, request.margin)
    record = {
        "version": 1, "verdict": "fail" if failed or slow else "pass", "message": message,
        "models": {
            role: None if one is None else {"name": one[0].label, "artifact": one[1].id}
            for role, one in (("candidate", models.candidate), ("against", models.against),
                              ("base", models.base))
        },
        "sets": sets, "trusted": request.trusted,
        "judge": None if request.judge is None else name_judge(request.judge), "questions_sha256": digest_questions([one.question for one in items]),
        "left_out": len(leaked), "margin": request.margin, "alpha": ALPHA,
        "tokens": request.tokens, "arithmetic": describe_arithmetic(), "notes": notes,
        "slices": [asdict(one) for one in slices], "speed": speed,
        "made": datetime.now(UTC).isoformat(timespec="seconds"), "made_by": f"thrifty {__version__}",
    }  # fmt: skip
    path = write_record(home, record)
    passed = not failed and not slow
    values = {
        "passed": passed, "message": message, "beside": models.against[0].label,
        "failed": [one.label for one in failed] + slow, "margin": request.margin,
        "record": str(path), "notes": notes,
    }  # fmt: skip
    conditions = {"against": models.against[1].id}
    store.record_measurement(models.candidate[1].id, GATE, conditions, values)
    return GateResult(passed, message, slices, path, speed, tuple(notes))


def describe(
    candidate: NamedVersion,
    against: NamedVersion,
    failed: Sequence[Slice],
    slow: Sequence[str],
    margin: float,
) -> str:
    """The verdict in a sentence."""
    beside = f"beside {against.label}, with a margin of {margin:.0%}"
    if not failed and not slow:
        return f"{candidate.label} passes the gate: it is not worse {beside}"
    parts = [f"{one.label} ({_describe_change(one)})" for one in failed] + list(slow)
    return f"{candidate.label} fails the gate {beside}: {', '.join(parts)}"


def _describe_change(one: Slice) -> str:
    if one.outcome == "worse":
        return f"{one.difference:+.1%}"
    needed = f"; about {one.needed:,} would tell" if one.needed and one.needed > one.count else ""
    unit = "tokens" if one.metric == "text" else "items"
    return f"{one.difference:+.1%}, not shown to be within it on {one.count:,} {unit}{needed}"


def _find_models(store: Store, request: GateRequest) -> _Models:
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
    return _Models(candidate, against, base)


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
    store: Store, home: Home, request: GateRequest, models: _Models, on_progress: OnProgress
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


def _judge_answers(
    store: Store,
    home: Home,
    machine: Machine,
    models: _Models,
    items: Sequence[Item],
    request: GateRequest,
    on_progress: OnProgress,
    on_note: OnNote,
    database: Database | None,
) -> list[Slice]:
    if not items and request.judge is not None:
        raise EvaluationError(
            "a judge compares answers, and nothing is asked; name questions (--data)"
        )
    if not items:
        return []
    asked = AnswersRequest(
        models.against[0], [item.question for item in items], make_server(store, home, machine)
    )

    def ask(model: tuple[NamedVersion, Artifact]) -> list[str]:
        return ask_model(store, home.evaluations, *model, asked, on_progress)

    against, candidate = ask(models.against), ask(models.candidate)
    base = None if models.base is None else grade(items, ask(models.base))
    new, old = grade(items, candidate), grade(items, against)
    judge = request.judge
    if judge is not None:
        outcomes = prefer_answers(
            lambda: open_judge(judge, database), judge, [item.question.text for item in items],
            candidate, against, home.evaluations, on_progress, on_note,
        )  # fmt: skip
        new[PREFERRED], old[PREFERRED] = grade_preferred(outcomes)
    return compare_items(items, (new, candidate), (old, against), base, request.margin)


def _judge_searches(
    store: Store,
    home: Home,
    models: _Models,
    searches: Sequence[Search],
    leaked: set[int],
    request: GateRequest,
    on_progress: OnProgress,
) -> list[Slice]:
    numbered = enumerate(item for one in searches for item in one.items)
    items = {number: item for number, item in numbered if number not in leaked}

    def search(model: tuple[NamedVersion, Artifact]) -> tuple[dict[str, list[bool]], list[str]]:
        nearest = find_nearest(store, home.evaluations, model[0], searches, on_progress)
        grades = [nearest[number] == item.question.answers[0] for number, item in items.items()]
        return {FOUND: grades}, [nearest[number] for number in items]

    if not items:
        return []
    base = None if models.base is None else search(models.base)[0]
    new, old = search(models.candidate), search(models.against)
    return compare_items(list(items.values()), new, old, base, request.margin)


def _judge_text(
    store: Store,
    home: Home,
    models: _Models,
    domains: Sequence[DataFile],
    request: GateRequest,
    on_progress: OnProgress,
) -> list[Slice]:
    suite = EvaluationSuite(models.against[0], tuple(domains), tokens=request.tokens)

    def measure(model: tuple[NamedVersion, Artifact]) -> dict[str, dict[str, Any]]:
        found: Sequence[Measurement] = measure_quality(
            store, home.evaluations, *model, suite, on_progress
        )
        # In their order: the same text may have been measured under another name before.
        return {one.name: values.values for one, values in zip(domains, found, strict=True)}

    if not domains:
        return []
    candidate = measure(models.candidate)
    base = {} if models.base is None else measure(models.base)
    return [
        compare_text(
            name, values, base[name]["perplexity"] if name in base else None, request.margin
        )
        for name, values in candidate.items()
    ]


def _judge_trusted(
    store: Store,
    home: Home,
    models: _Models,
    request: GateRequest,
    on_progress: OnProgress,
    on_note: OnNote,
) -> list[Slice]:
    if request.trusted is None:
        return []
    built = open_set(home.datasets, request.trusted)
    found = judge_trusted(
        store, built, models.candidate[0], models.against[0], request.margin, on_progress
    )
    if found is None:
        on_note(
            f"{built.label} has fewer than {LEAST} judgements of trusted users: it does not judge"
        )
        return []
    return [found]


def _judge_speed(
    store: Store, home: Home, machine: Machine, models: _Models, on_progress: OnProgress
) -> dict[str, Any]:
    """Speed, memory and size of both on the engine that serves them. Not a test: a bound."""
    new, old = (
        measure_speed(store, home, *model, machine, on_progress).values
        for model in (models.candidate, models.against)
    )
    busy = max(new.get("busy_before", 0.0), old.get("busy_before", 0.0)) > MOST_BUSY
    pairs = {
        f"{unit}/s at {streams} streams": (speed, old[f"{unit}_per_s"].get(streams), True)
        for unit in ("tokens", "texts")
        for streams, speed in new.get(f"{unit}_per_s", {}).items()
    }
    pairs["time to the first token"] = (new.get("ttft_s"), old.get("ttft_s"), False)
    pairs["bytes"] = (new["size_bytes"], old["size_bytes"], False)
    if new.get("memory_bytes") and old.get("memory_bytes"):
        pairs["bytes of memory"] = (new["memory_bytes"], old["memory_bytes"], False)
    found = {}
    for name, (candidate, against, more) in pairs.items():
        if not candidate or not against:
            continue
        change = candidate / against - 1
        failed = change < -SPEED_MARGIN if more else change > SPEED_MARGIN / (1 - SPEED_MARGIN)
        unsure = busy and not name.startswith("bytes")
        found[name] = {
            "candidate": candidate, "against": against, "change": change, "busy": unsure,
            "failed": bool(failed) and not unsure,
        }  # fmt: skip
    return found
