"""Which engine, and which form of the weights, `auto` takes for a model: by what was measured here.

A candidate is one way to serve the model: an engine, a form of the weights, and what is set beside
them. `list_candidates` finds those that this machine can run; `speed_benchmark` measures them and
records what each did, and `decide` picks one. What was decided is kept with the model, under
everything that it depends on (`describe_choice`), and found again by `find_choice`. Nothing is measured here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from thrifty.artifacts import Artifact, Store
from thrifty.artifacts.measurements import find_measurement
from thrifty.engines.base import MEMORY_PATHS, Engine
from thrifty.engines.machine import Machine
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.engines.scheme_choice import make_machine_conditions
from thrifty.spec import Spec
from thrifty.spec.expected_load import LoadSpec
from thrifty.spec.models import EngineSpec
from thrifty.types import Format

SPECULATION = "speculation"
"""The option of engines that guess tokens ahead."""
CHOICE = "choice"
"""The kind of measurement that holds what was decided."""
TIE = 0.02
"""Speeds that differ by less than this share are equal: the lower rank then wins."""


@dataclass(frozen=True)
class Candidate:
    """One way to serve a model."""

    engine: str
    scheme: str
    """The form of the weights; `auto` for a model that is prepared already."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options of the engine that `auto` decides, by name."""

    def __str__(self) -> str:
        form = {"none": "as it is", "auto": "as it is"}.get(self.scheme, self.scheme)
        way = dict(self.options).get(SPECULATION, "none")
        return f"{self.engine} {form}" + (f" with {way}" if way != "none" else "")

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {"engine": self.engine, "scheme": self.scheme, "options": dict(self.options)}

    def put_into(self, spec: Spec) -> Spec:
        """`spec` with what the candidate decides."""
        options = {**spec.engine.options, **dict(self.options)}
        if dict(self.options).get(SPECULATION, "draft") != "draft":
            options.pop("draft_model", None)
        if not find_engine(self.engine).traits.speculation:
            # Where it is left to `auto`, an engine without it serves all the same.
            options = {k: v for k, v in options.items() if (k, v) != (SPECULATION, "auto")}
        quantize = spec.compress.quantize.model_copy(update={"scheme": self.scheme})
        return spec.model_copy(
            update={
                "engine": EngineSpec.model_validate(
                    {"kind": self.engine, "image": spec.engine.image, **options}
                ),
                "compress": spec.compress.model_copy(update={"quantize": quantize}),
            }
        )


@dataclass(frozen=True)
class Candidates:
    """What could serve a model here, the lowest rank first, and what cannot, with the reason."""

    able: tuple[Candidate, ...]
    unable: tuple[tuple[Candidate, str], ...] = ()


@dataclass(frozen=True)
class Choice:
    """What `auto` takes, and why."""

    candidate: Candidate
    reason: str
    measured: tuple[Mapping[str, Any], ...] = ()
    """What each candidate did, as `as_row` gives it."""

    def to_builtins(self) -> dict[str, Any]:
        """As JSON shows it."""
        rows = [dict(row) for row in self.measured]
        return {**self.candidate.as_dict(), "reason": self.reason, "candidates": rows}


@dataclass(frozen=True)
class Tried:
    """What a candidate did in the benchmark."""

    candidate: Candidate
    rounds: tuple[Mapping[str, float], ...] = ()
    """Tokens per second by the number of streams, one for each round."""
    failed: str | None = None
    """Why it could not be measured."""
    tokens_per_step: float = 0.0
    """With speculation: how many tokens a step gave an answer."""
    spent_s: float = 0.0
    """How long it was measured."""
    begun: int = 0
    """Rounds that were begun, also those that a kill ended."""

    @property
    def speeds(self) -> dict[str, float]:
        """The median over the rounds, by the number of streams."""
        loads = self.rounds[0] if self.rounds else {}
        return {load: median(one[load] for one in self.rounds) for load in loads}

    @property
    def speed(self) -> float:
        """The geometric mean of the speeds over the loads; 0 where it failed or was not measured."""
        if self.failed is not None or not self.rounds:
            return 0.0
        found = [max(one, 1e-9) for one in self.speeds.values()]
        return math.exp(sum(map(math.log, found)) / len(found))

    def describe(self) -> str:
        """Such as `96 / 160 tokens/s at 1 / 8 streams`."""
        if self.failed is not None:
            return f"failed: {self.failed}"
        if not self.rounds:
            return "not measured: the time was over"
        speeds = " / ".join(f"{one:.0f}" for one in self.speeds.values())
        return f"{speeds} tokens/s at {' / '.join(self.speeds)} streams"

    def as_row(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            **self.candidate.as_dict(), "tokens_per_s": self.speeds, "rounds": len(self.rounds),
            "failed": self.failed, "says": self.describe(),
        }  # fmt: skip


def list_candidates(spec: Spec, artifact: Artifact, machine: Machine) -> Candidates:
    """What `auto` chooses from for this spec and model: where it says `engine: auto`, the engines
    that serve such models, and where it says `compress: auto`, their forms of the weights.
    """
    named = spec.engine.kind
    engines = [find_engine(kind) for kind in (engine_kinds() if named == "auto" else [named])]
    ranked = sorted(
        (one for one in engines if named != "auto" or one.traits.auto_rank is not None),
        key=lambda one: (one.traits.auto_rank or 0, one.kind),
    )
    able, unable = [], []
    for engine in ranked:
        for candidate in _list_ways(engine, spec, artifact):
            fault = _find_fault(engine, candidate, spec, artifact, machine)
            if fault is None:
                able.append(candidate)
            else:
                unable.append((candidate, fault))
    return Candidates(tuple(able), tuple(unable))


def _list_ways(engine: Engine, spec: Spec, artifact: Artifact) -> Iterator[Candidate]:
    """The candidates of an engine, those without speculation first."""
    ways: list[tuple[tuple[str, Any], ...]] = [()]
    if spec.engine.options.get(SPECULATION) == "auto" and engine.traits.speculation:
        named = {"none", *engine.traits.speculation} - {"auto"}
        if spec.engine.options.get("draft_model") is None:
            named.discard("draft")
        ways = [
            ((SPECULATION, way),) for way in sorted(named, key=lambda way: (way != "none", way))
        ]
    for scheme in _list_schemes(engine, spec, artifact):
        yield from (Candidate(engine.kind, scheme, way) for way in ways)


def _list_schemes(engine: Engine, spec: Spec, artifact: Artifact) -> Sequence[str]:
    wanted: str = spec.compress.quantize.scheme
    if wanted != "auto" or artifact.description.format is Format.OPENVINO:
        return [wanted]
    return [*engine.traits.auto_schemes, *engine.traits.lossy_schemes] or ["none"]


def _find_fault(
    engine: Engine, candidate: Candidate, spec: Spec, artifact: Artifact, machine: Machine
) -> str | None:
    """Why it cannot serve the model here. Memory that is short now is no such reason: it says
    nothing of later.
    """
    traits, description = engine.traits, artifact.description
    if spec.engine.kind == "auto" and traits.find_absence is not None:
        absence = traits.find_absence()
        if absence is not None:
            return absence
    if description.format not in traits.formats or description.family not in traits.families:
        return f"it does not load {description.family} models in {description.format.value}"
    if candidate.scheme not in ("auto", "none", *traits.schemes):
        return f"it makes no {candidate.scheme} weights"
    problems = engine.check(candidate.put_into(spec), artifact, machine)
    return next((one.message for one in problems if one.path not in MEMORY_PATHS), None)


def list_installs(candidates: Iterable[Candidate]) -> list[str]:
    """What has to be installed before these candidates can be measured, in words."""
    engines = [find_engine(kind) for kind in dict.fromkeys(one.engine for one in candidates)]
    asked = [one.traits.find_install for one in engines if one.traits.find_install is not None]
    return [text for find_install in asked if (text := find_install()) is not None]


def describe_choice(
    spec: Spec, machine: Machine, candidates: Iterable[Candidate]
) -> dict[str, Any]:
    """What a choice depends on beside the model: machine, load, candidates with the versions of
    their engines, and the engine's options.
    """
    able = list(candidates)
    engines = [find_engine(kind) for kind in sorted({one.engine for one in able})]
    return {
        "load": describe_load(spec.load),
        "candidates": [one.as_dict() for one in able],
        "engines": [make_machine_conditions(one, machine) for one in engines],
        "accept": spec.compress.accept,
        "options": json.loads(json.dumps(spec.engine.options, default=str)),
    }


def describe_load(load: LoadSpec) -> dict[str, Any]:
    """The load as conditions of measurements hold it."""
    return {
        "streams": list(load.levels),
        "prompt_tokens": load.prompt_tokens,
        "output_tokens": load.output_tokens,
        "copying": load.copying,
    }


def digest_choice(conditions: Mapping[str, Any]) -> str:
    """Names what was measured together, so that what was measured apart is never compared."""
    text = json.dumps(conditions, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def find_choice(spec: Spec, store: Store, artifact: Artifact, machine: Machine) -> Choice | None:
    """What was decided for this model, load and machine; None if nothing was."""
    candidates = list_candidates(spec, artifact, machine)
    if not candidates.able:
        return None
    conditions = describe_choice(spec, machine, candidates.able)
    found = find_measurement(store.read_measurements(artifact.id), CHOICE, conditions)
    return None if found is None else read_choice(found.values)


@dataclass(frozen=True)
class KeptChoice:
    """A choice that was made on this machine, for a model and a load."""

    model: str
    load: Mapping[str, Any]
    """As `describe_load` gives it."""
    choice: Choice
    measured: str
    """The time, as ISO 8601."""

    def to_builtins(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "model": self.model, "load": dict(self.load), "measured": self.measured,
            **self.choice.to_builtins(),
        }  # fmt: skip


def list_choices(store: Store, machine: Machine) -> list[KeptChoice]:
    """Every choice that is kept of this machine, with the versions of engines that are here."""
    found = []
    for version in store.versions():
        for one in store.read_measurements(version.artifact):
            if one.kind == CHOICE and _holds(one.conditions["engines"], machine):
                load, choice = one.conditions["load"], read_choice(one.values)
                found.append(KeptChoice(version.label, load, choice, one.measured))
    return found


def _holds(engines: Sequence[Mapping[str, Any]], machine: Machine) -> bool:
    """Whether these conditions of engines are those of this machine now."""
    known = engine_kinds()
    return all(
        (kind := one["engine"].partition(" ")[0]) in known
        and one == make_machine_conditions(find_engine(kind), machine)
        for one in engines
    )


def read_choice(values: Mapping[str, Any]) -> Choice:
    """What the values of a recorded choice hold."""
    candidate = Candidate(values["engine"], values["scheme"], tuple(values["options"].items()))
    return Choice(candidate, values["reason"], tuple(values["candidates"]))


def decide(tried: Sequence[Tried], spec: Spec) -> Choice | None:
    """The fastest of what was `tried`, in order of rank; None where nothing was measured.

    Speeds within `TIE` of the best are equal, and the first of those is taken. A form that costs much
    quality is taken only where the spec accepts that.
    """
    most = max((len(one.rounds) for one in tried if one.speed), default=0)
    barred = [one for one in tried if one.speed and is_barred(one.candidate, spec)]
    allowed = [one for one in tried if one.speed and one not in barred]
    # What was beaten early was measured in fewer rounds, beside other noise.
    allowed = [one for one in allowed if len(one.rounds) == most] or allowed
    if not allowed:
        return None
    best = max(one.speed for one in allowed)
    taken = next(one for one in allowed if one.speed >= (1 - TIE) * best)
    says = [f"measured here: {taken.describe()}"]
    says += [f"{one.candidate} {one.describe()}" for one in tried if one is not taken]
    faster = [one for one in barred if one.speed > best]
    if faster:
        says.append(
            f"{faster[0].candidate} is faster and can cost much quality, so it is taken only by name "
            "or with 'accept: true' below 'compress'"
        )
    candidate = _bound_speculation(taken, tried, spec)
    return Choice(candidate, "; ".join(says), tuple(one.as_row() for one in tried))


def _bound_speculation(taken: Tried, tried: Sequence[Tried], spec: Spec) -> Candidate:
    """The candidate that was taken; where it guesses tokens ahead, with the bounds beyond which that
    does not pay, as far as they were measured.
    """
    mine = taken.candidate
    if dict(mine.options).get(SPECULATION, "none") == "none":
        return mine
    without = replace(mine, options=((SPECULATION, "none"),))
    plain = next((one for one in tried if one.candidate == without and one.speed), None)
    known = find_engine(mine.engine).options.model_fields
    if plain is None or not taken.tokens_per_step or "speculation_least" not in known:
        return mine
    # So many tokens a step take as long with guesses as without.
    least = max(1.0, taken.tokens_per_step * plain.speed / taken.speed)
    bounds = {"speculation_least": round(least, 2), "speculation_streams": max(spec.load.levels)}
    own = {k: v for k, v in bounds.items() if k not in spec.engine.options}
    return replace(mine, options=(*mine.options, *own.items()))


def is_barred(candidate: Candidate, spec: Spec) -> bool:
    """Whether `auto` must not take it, because it was not asked for and can cost much quality."""
    chosen_here = spec.compress.quantize.scheme == "auto" and not spec.compress.accept
    return chosen_here and candidate.scheme in find_engine(candidate.engine).traits.lossy_schemes
