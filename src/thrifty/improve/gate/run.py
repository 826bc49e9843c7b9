"""Run the gate: measure a candidate beside the version that serves and the untouched base, judge
it, and keep the verdict with the model.

Answers come from the engine that serves the models, greedily; predictions and answers that were
measured before are used again, so that a gate that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.verdicts import GATE
from thrifty.data.built import open_set
from thrifty.db import Database
from thrifty.engines.machine import Machine, detect_machine
from thrifty.errors import EvaluationError
from thrifty.evaluate.answers import (
    AnswersRequest,
    ask_model,
)
from thrifty.evaluate.gate_record import write_record
from thrifty.evaluate.judges import open_judge
from thrifty.evaluate.questions import digest_questions
from thrifty.evaluate.suite import (
    DataFile,
    EvaluationSuite,
    describe_arithmetic,
    measure_quality,
)
from thrifty.home import Home
from thrifty.improve.gate.items import PREFERRED, Item, grade
from thrifty.improve.gate.judge import ALPHA, Slice, compare_items, compare_text, decide
from thrifty.improve.gate.material import Material, Models, OnNote, find_material, find_models
from thrifty.improve.gate.preferred import grade_preferred, name_judge, prefer_answers
from thrifty.improve.gate.request import GateRequest
from thrifty.improve.gate.retrieval import FOUND, find_nearest
from thrifty.improve.gate.trusted import LEAST, judge_trusted
from thrifty.own_replica import make_server
from thrifty.speed_benchmark import measure_speed
from thrifty.types import OnProgress, ignore_progress
from thrifty.version import __version__

SPEED_MARGIN = 0.2
"""A version may be this much slower and larger: measurements on a shared machine spread."""
MOST_BUSY = 0.3
"""If more of the machine was busy with other things, speeds say nothing."""


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
class _Work:
    """A gate that was asked for, and what it works with."""

    store: Store
    home: Home
    machine: Machine
    request: GateRequest
    models: Models
    on_progress: OnProgress
    on_note: OnNote


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
    models = find_models(store, request)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        on_note(text)

    material = find_material(store, home, request, models, on_progress, note)
    work = _Work(store, home, machine, request, models, on_progress, note)
    if models.are_encoders:
        slices = _judge_searches(work, material)
    else:
        slices = _judge_answers(work, material.items, database)
    slices += _judge_text(work, material.domains)
    slices += _judge_trusted(work)
    if not slices:
        which = " that the model was not trained on" if material.leaked else ""
        raise EvaluationError(
            f"there is nothing to judge on; name questions or text{which} with --data"
        )
    slices = decide(slices, request.margin)
    speed = _judge_speed(work) if request.speed else {}
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
        "sets": material.sets, "trusted": request.trusted,
        "judge": None if request.judge is None else name_judge(request.judge), "questions_sha256": digest_questions([one.question for one in material.items]),
        "left_out": len(material.leaked), "margin": request.margin, "alpha": ALPHA,
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


def _judge_answers(work: _Work, items: Sequence[Item], database: Database | None) -> list[Slice]:
    store, home, models, judge = work.store, work.home, work.models, work.request.judge
    if not items and judge is not None:
        raise EvaluationError(
            "a judge compares answers, and nothing is asked; name questions (--data)"
        )
    if not items:
        return []
    asked = AnswersRequest(
        models.against[0], [item.question for item in items], make_server(store, home, work.machine)
    )

    def ask(model: tuple[NamedVersion, Artifact]) -> list[str]:
        return ask_model(store, home.evaluations, *model, asked, work.on_progress)

    against, candidate = ask(models.against), ask(models.candidate)
    base = None if models.base is None else grade(items, ask(models.base))
    new, old = grade(items, candidate), grade(items, against)
    if judge is not None:
        outcomes = prefer_answers(
            lambda: open_judge(judge, database), judge, [item.question.text for item in items],
            candidate, against, home.evaluations, work.on_progress, work.on_note,
        )  # fmt: skip
        new[PREFERRED], old[PREFERRED] = grade_preferred(outcomes)
    return compare_items(items, (new, candidate), (old, against), base, work.request.margin)


def _judge_searches(work: _Work, material: Material) -> list[Slice]:
    models, searches = work.models, material.searches
    numbered = enumerate(item for one in searches for item in one.items)
    items = {number: item for number, item in numbered if number not in material.leaked}

    def search(model: tuple[NamedVersion, Artifact]) -> tuple[dict[str, list[bool]], list[str]]:
        nearest = find_nearest(
            work.store, work.home.evaluations, model[0], searches, work.on_progress
        )
        grades = [nearest[number] == item.question.answers[0] for number, item in items.items()]
        return {FOUND: grades}, [nearest[number] for number in items]

    if not items:
        return []
    base = None if models.base is None else search(models.base)[0]
    new, old = search(models.candidate), search(models.against)
    return compare_items(list(items.values()), new, old, base, work.request.margin)


def _judge_text(work: _Work, domains: Sequence[DataFile]) -> list[Slice]:
    models, request = work.models, work.request
    suite = EvaluationSuite(models.against[0], tuple(domains), tokens=request.tokens)

    def measure(model: tuple[NamedVersion, Artifact]) -> dict[str, dict[str, Any]]:
        found: Sequence[Measurement] = measure_quality(
            work.store, work.home.evaluations, *model, suite, work.on_progress
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


def _judge_trusted(work: _Work) -> list[Slice]:
    request, models = work.request, work.models
    if request.trusted is None:
        return []
    built = open_set(work.home.datasets, request.trusted)
    found = judge_trusted(
        work.store, built, models.candidate[0], models.against[0], request.margin, work.on_progress
    )
    if found is None:
        work.on_note(
            f"{built.label} has fewer than {LEAST} judgements of trusted users: it does not judge"
        )
        return []
    return [found]


def _judge_speed(work: _Work) -> dict[str, Any]:
    """Speed, memory and size of both on the engine that serves them. Not a test: a bound."""
    new, old = (
        measure_speed(work.store, work.home, *model, work.machine, work.on_progress).values
        for model in (work.models.candidate, work.models.against)
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
