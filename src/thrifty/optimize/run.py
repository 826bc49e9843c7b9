"""`thrifty optimize`: from a checkpoint, a bound and a budget to the model and settings to serve.

It finds what the search needs, runs it over the home's journal, registers the winner with its
verdict, and says how to serve it. One search at a time runs in a home: a second one would disturb
its timings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import yaml

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.disk import link_file, try_lock_file
from thrifty.artifacts.sources import fetch_model
from thrifty.bench.summary import parse_objective
from thrifty.compress.mix import choose_text, find_mix
from thrifty.compress.overlap import check_apart
from thrifty.control.machine_price import MachinePrice, find_price_here
from thrifty.engines.machine import Machine
from thrifty.engines.registry import choose_engine
from thrifty.errors import BenchError, CompressionError
from thrifty.evaluate.answers import DEFAULT_SHORT, find_questions, is_chat_model
from thrifty.evaluate.gate import (
    LEAST_RIGHT,
    MAX_DROP,
    check_max_drop,
    describe_few_right,
    judge,
    record_verdict,
)
from thrifty.evaluate.questions import TWENTY
from thrifty.evaluate.suite import find_domains, name_default_domains
from thrifty.home import Home, make_private_folder
from thrifty.optimize.candidate import Candidate, Candidates, generate_candidates
from thrifty.optimize.lab import MachineLab, Workbench
from thrifty.optimize.load import Load, parse_load
from thrifty.optimize.search import Search
from thrifty.optimize.standing import Goal, Outcome, Standing
from thrifty.optimize.steps import Journal, Session, Step
from thrifty.train.process import PACKAGES
from thrifty.types import Family, Format, OnProgress, ignore_progress
from thrifty.units import format_duration
from thrifty.version import __version__

RELATIVE_PRICE = 1.0
"""Of an hour, where nobody says what the machine costs."""
MOST_QUESTIONS = 1000
"""Questions with known answers that are asked at most."""


@dataclass(frozen=True)
class OptimizeRequest:
    """What is sought, and within which time."""

    model: str
    max_drop: float = MAX_DROP
    slo: str = ""
    load: str = "8"
    budget_s: float = 3600.0
    out: str | None = None
    price_per_hour: float | None = None
    """What the machine costs. Default: what `spec` says, or what was applied in the home says;
    else costs are relative to a machine for 1.0 an hour."""
    spec: Path | None = None
    """A spec whose price of the machine counts."""
    domains: Sequence[str] = ()
    text: Sequence[str] = ()
    """What is learned from. Default: as for a distillation."""
    questions: str | None = None
    load_s: int = 20
    """How long streams are kept up at the end; a trace has its own duration."""
    again: bool = False
    """Forget what was measured before of all that this search may run."""

    def as_command(self) -> str:
        """The command that repeats it."""
        parts = ["thrifty", "optimize", self.model, "--max-drop", f"{self.max_drop:g}"]
        parts += ["--slo", self.slo] if self.slo else []
        parts += ["--load", self.load, "--budget", f"{self.budget_s / 60:g}m"]
        parts += ["--out", self.out] if self.out else []
        if self.price_per_hour is not None:
            parts += ["--price-per-hour", f"{self.price_per_hour:g}"]
        parts += ["--spec", str(self.spec)] if self.spec is not None else []
        for name in self.domains:
            parts += ["--domain", name]
        for name in self.text:
            parts += ["--text", name]
        parts += ["--questions", self.questions] if self.questions else []
        return shlex.join(parts)


@dataclass(frozen=True)
class Optimized:
    """What came of a search."""

    request: OptimizeRequest
    reference: NamedVersion
    engine: str
    machine: Machine
    load: Load
    domains: Sequence[str]
    questions: int
    outcome: Outcome
    price: MachinePrice
    registered: NamedVersion | None = None
    snippet: str = ""
    """The spec that serves the winner."""
    notes: list[str] = field(default_factory=list)

    @property
    def relative(self) -> bool:
        """Whether costs are relative, because no price is known."""
        return not self.price.per_hour

    def as_dict(self) -> dict[str, Any]:
        """The output of `--json`."""
        winner, nearest = self.outcome.winner, self.outcome.nearest
        return {
            "model": self.reference.label, "max_drop": self.request.max_drop,
            "slo": self.request.slo or None, "load": str(self.load),
            "winner": None if winner is None else {
                **winner.as_dict(),
                "registered": self.registered.label if self.registered else None,
                "spec": self.snippet,
            },
            "nearest": None if nearest is None else nearest.as_dict(),
            "candidates": [one.as_dict() for one in self.outcome.standings],
            "price_per_hour": self.price.per_hour or RELATIVE_PRICE, "relative": self.relative,
            "price_basis": self.price.basis,
            "budget_s": self.request.budget_s, "spent_s": self.outcome.spent_s,
            "command": self.request.as_command(), "notes": self.notes,
            "machine": {
                "id": self.machine.id, "processor": self.machine.processor,
                "cores": self.machine.core_count, "engine": self.engine, "thrifty": __version__,
            },
        }  # fmt: skip


def optimize(
    request: OptimizeRequest,
    *,
    store: Store,
    home: Home,
    machine: Machine,
    on_rung: Callable[[str, int, float], None] = lambda rung, left, left_s: None,
    on_step: Callable[[Step, float], None] = lambda step, left_s: None,
    on_progress: OnProgress = ignore_progress,
    find_candidates: Callable[[Candidates], Candidates] = lambda found: found,
) -> Optimized:
    """Search for the cheapest way to serve a decoder's checkpoint within a bound. Blocks.

    `on_rung` is told of each rung with the candidates and seconds left, `on_step` of each step.
    `find_candidates` may narrow or extend what is tried. Raises `ThriftyError`.
    """
    check_max_drop(request.max_drop)
    load = parse_load(request.load)
    price = find_price_here(home, stated=request.price_per_hour, spec=request.spec)
    with _only_search(home):
        bench, notes = make_bench(request, load, store, home, on_progress)
        lab = MachineLab(bench, store, home, machine, on_progress)
        may_train = all(find_spec(name) is not None for name in PACKAGES)
        if not may_train:
            notes.append("pruned forms were not tried: pip install 'thrifty[compress]'")
        candidates = find_candidates(
            generate_candidates(
                bench.engine, bench.source[1], machine, load.streams, may_train=may_train
            )
        )
        if not candidates.feasible:
            raise BenchError(f"nothing can be served here: {candidates.infeasible[0][1]}")
        goal = Goal(
            request.max_drop, price.per_hour or RELATIVE_PRICE,
            questions=_count_questions(len(bench.questions)), load_s=load.duration_s or request.load_s,
        )  # fmt: skip
        name = _name_search(request, bench, machine)
        journal = Journal(home.optimizations / "journal.jsonl")
        session = Session(lab, journal, name, request.budget_s, on_step=on_step)
        search = Search(candidates, goal, session, on_rung)
        if request.again:
            session.forget(search.list_steps())
        _require_budget(search, session, request)
        outcome = search.run()
        notes += _note_few_right(outcome)
        optimized = Optimized(
            request, bench.source[0], f"{bench.engine.kind} {bench.engine.traits.find_version()}",
            machine, load, [one.name for one in bench.domains], len(bench.questions), outcome,
            price, notes=notes,
        )  # fmt: skip
        if outcome.winner is None:
            return optimized
        version = _register(optimized, lab, store)
        snippet = make_snippet(version, bench.engine.kind, outcome.winner.candidate)
        return replace(optimized, registered=version, snippet=snippet)


@contextlib.contextmanager
def _only_search(home: Home) -> Iterator[None]:
    make_private_folder(home.optimizations)
    with try_lock_file(home.optimizations / "lock") as free:
        if not free:
            raise BenchError(
                f"another search runs in {home.root}, and two would disturb each other's timings; "
                "wait for it, or use another THRIFTY_HOME"
            )
        yield


def make_bench(
    request: OptimizeRequest, load: Load, store: Store, home: Home, on_progress: OnProgress
) -> tuple[Workbench, list[str]]:
    """The model, the data and the engine; after checking that nothing is learned from what judges."""
    objective = parse_objective(request.slo) if request.slo else None
    version, artifact = fetch_model(store, request.model, on_progress=on_progress)
    _check_model(version, artifact)
    make_private_folder(home.data)
    named_text = request.text or choose_text(store, artifact)
    text = find_mix(named_text, home.data, store, on_progress)
    named = request.domains or name_default_domains(store, artifact)
    domains = find_domains(named, home.data, store, on_progress)
    notes: list[str] = []
    judged = [domain.path for domain in domains]
    questions = []
    if is_chat_model(store, artifact):
        questions = find_questions(request.questions, home.data, store, MOST_QUESTIONS, on_progress)
    else:
        notes.append("the model has no chat template, so its answers were not judged")
    asked = [(request.questions or "the questions", one) for one in questions]
    text = check_apart(text, judged, home, store, notes.append, on_progress, asked)
    engine = choose_engine("auto", artifact)
    bench = Workbench(
        (version, artifact), engine, text, domains, questions, load, objective, request.slo
    )
    return bench, notes


def _note_few_right(outcome: Outcome) -> list[str]:
    """That no answers were judged, where the reference has too few right."""
    asked = [one.measured["reference_right"] for one in outcome.standings
             if "reference_right" in one.measured]  # fmt: skip
    few = max(asked, default=LEAST_RIGHT) < LEAST_RIGHT
    return [describe_few_right(max(asked))] if few else []


def _count_questions(there: int) -> tuple[int, ...]:
    """At first as many as an evaluation asks."""
    first = min(there, DEFAULT_SHORT + len(TWENTY))
    return tuple(sorted({first, there} - {0}))


def _check_model(version: NamedVersion, artifact: Artifact) -> None:
    if artifact.description.family is not Family.DECODER:
        raise CompressionError(
            f"{version.label} is an encoder; the search is for models that generate text "
            "(thrifty quantize makes encoders smaller)"
        )
    if artifact.description.format is Format.OPENVINO:
        raise CompressionError(
            f"{version.label} is already prepared for an engine; name the checkpoint that it was "
            "made from"
        )


def _name_search(request: OptimizeRequest, bench: Workbench, machine: Machine) -> str:
    """Equal for the same search, whatever its budget and the machine's price, so that it goes on
    with a larger budget. A price makes all candidates dearer alike.
    """
    facts = [
        bench.source[1].id, request.max_drop, request.slo, bench.load.streams, bench.load.sha256,
        [[one.name, one.sha256] for one in bench.domains], bench.text.sha256,
         len(bench.questions), machine.id,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _require_budget(search: Search, session: Session, request: OptimizeRequest) -> None:
    if session.spent_s > 1:
        return  # It goes on, and ends with what it knows.
    least_s = search.least_s()
    if least_s > request.budget_s:
        raise BenchError(
            f"a budget of {format_duration(request.budget_s)} is too short for one candidate; "
            f"about {format_duration(least_s)} would be enough (--budget {least_s / 60 + 1:.0f}m)"
        )


def _register(found: Optimized, lab: MachineLab, store: Store) -> NamedVersion:
    """The winner under a name of its own, with its lineage, what found it and its verdict."""
    winner = found.outcome.winner
    assert winner is not None
    made, artifact = lab.find_model(winner.candidate)
    recipe = {
        **made.lineage.recipe,
        "search": {
            "command": found.request.as_command(), "candidate": winner.candidate.id,
            "compress": winner.candidate.recipe.as_compress(),
            "engine": winner.candidate.settings.as_options(),
            "replicas": winner.candidate.settings.replicas, "load": str(found.load),
            "machine": found.machine.id,
        },
    }  # fmt: skip
    lineage = msgspec.structs.replace(
        made.lineage, recipe=recipe,
        figures={**made.lineage.figures, "search": _make_figures(found, winner)},
    )  # fmt: skip
    name = found.request.out or f"{found.reference.name}-optimized"
    with store.stage(f"optimize {name} {artifact.id}") as folder:
        target = folder / "model"
        for entry in artifact.files:
            place = target / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            link_file(store.folder_of(artifact.id) / entry.path, place)
        version, artifact = store.add(target, name, lineage)
    measured = winner.measured
    ratios = {name: one["perplexity_ratio"] for name, one in measured["domains"].items()}
    answers = measured if "reference_right" in measured else None
    verdict = judge(ratios, answers, found.request.max_drop)
    record_verdict(store, version, artifact, found.reference, verdict)
    return version


def _make_figures(found: Optimized, winner: Standing) -> dict[str, Any]:
    known = winner.as_dict()
    kept = ("drops", "cost_per_million_tokens", "tokens_per_s_within_objective", "memory_bytes")
    price = {"price_per_hour": found.price.per_hour or RELATIVE_PRICE, "relative": found.relative}
    return {name: known[name] for name in kept} | price


def make_snippet(version: NamedVersion, engine: str, candidate: Candidate) -> str:
    """The `thrifty.yaml` that serves a candidate with its settings."""
    spec: dict[str, Any] = {"model": version.label, "name": version.name}
    if candidate.settings.options:
        spec["engine"] = {"kind": engine, **candidate.settings.as_options()}
    if candidate.settings.replicas > 1:
        spec["replicas"] = candidate.settings.replicas
    return yaml.safe_dump(spec, sort_keys=False)
