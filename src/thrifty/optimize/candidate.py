"""Candidates: how a model could be made smaller and served, as plain data with a stable id.

They are generated from what the engine declares about itself and from the machine, in an order that
never changes: the engine's default form first, then those that take seconds to make, and within a
form the engine's defaults first.
What cannot run here, by traits, processor or memory, is set aside with the reason and never tried.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from thrifty.artifacts import Artifact
from thrifty.engines.base import Engine, TunableOption, find_scheme_fault
from thrifty.engines.machine import Machine
from thrifty.own_replica import make_spec

KEEP = (0.9, 0.8)
"""Shares of the parameters that pruned candidates keep."""
DISTILL_TOKENS = (50_000, 200_000, 800_000, 3_200_000)
"""Tokens that a pruned candidate may learn on. The first is the short distillation that it is
judged on; it tells whether, and which of, the longer ones are worth their time."""
LEARNS = frozenset({"w8a8", "w7a8", "int4"})
"""Forms that are chosen by measurement, which takes minutes; the others round in seconds."""
PRUNED_SCHEMES = ("int8",)
"""Forms of pruned candidates: what 8 bits cost beside a pruning is not worth a second distillation."""


@dataclass(frozen=True)
class Recipe:
    """What is done to the weights."""

    scheme: str
    """The form of the weights, by the name that specs use."""
    keep: float = 1.0
    """The share of the parameters that pruning leaves."""
    distill_tokens: int = 0
    """Tokens of distillation after pruning."""

    @property
    def pruned(self) -> bool:
        """Whether parts are taken away."""
        return self.keep < 1

    @property
    def shape(self) -> Recipe:
        """The recipe without its distillation, on which no speed depends."""
        return replace(self, distill_tokens=0)

    def as_compress(self) -> dict[str, Any]:
        """The section `compress` that makes it."""
        found: dict[str, Any] = {"quantize": self.scheme}
        if self.pruned:
            found["prune"] = self.keep
        if self.distill_tokens:
            found["distill"] = self.distill_tokens
        return found

    def __str__(self) -> str:
        parts = [f"pruned to {self.keep:.0%}"] if self.pruned else []
        if self.distill_tokens:
            parts.append(f"distilled on {self.distill_tokens:,} tokens")
        return ", ".join([*parts, "16-bit" if self.scheme == "none" else self.scheme])


@dataclass(frozen=True)
class Settings:
    """How the engine serves it. Threads follow from the replicas, which share the cores evenly."""

    replicas: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    """The engine's options that differ from its defaults, by name."""

    def as_options(self) -> dict[str, Any]:
        """The options as a mapping."""
        return dict(self.options)

    @property
    def deviations(self) -> int:
        """In how many ways they differ from the defaults."""
        return len(self.options) + (self.replicas != 1)

    def __str__(self) -> str:
        parts = [f"{self.replicas} replicas"] if self.replicas > 1 else []
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self.options)])


@dataclass(frozen=True)
class Candidate:
    """A recipe, and the settings of the engine to serve its result with."""

    recipe: Recipe
    settings: Settings = field(default_factory=Settings)
    judged_options: tuple[str, ...] = ()
    """The names of the options that change answers."""

    @property
    def id(self) -> str:
        """The same for the same recipe and settings, in every run."""
        text = json.dumps([asdict(self.recipe), asdict(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def form(self) -> Candidate:
        """What its answers depend on: the recipe, and the options that change answers."""
        kept = tuple(one for one in self.settings.options if one[0] in self.judged_options)
        return replace(self, settings=Settings(1, kept))

    @property
    def timed(self) -> Candidate:
        """What its speed depends on: everything but the distillation."""
        return replace(self, recipe=self.recipe.shape)

    def __str__(self) -> str:
        settings = str(self.settings)
        return f"{self.recipe}; {settings}" if settings else str(self.recipe)

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "id": self.id, "recipe": asdict(self.recipe), "replicas": self.settings.replicas,
            "options": self.settings.as_options(), "says": str(self),
        }  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """What can be tried here, and what cannot with the reason."""

    feasible: tuple[Candidate, ...]
    infeasible: tuple[tuple[Candidate, str], ...] = ()


def generate_candidates(
    engine: Engine,
    artifact: Artifact,
    machine: Machine,
    streams: int | None,
    *,
    may_train: bool = True,
) -> Candidates:
    """Every candidate for a decoder's checkpoint, in a fixed order.

    `streams` is how many requests the load has open at once; None where that is not known. Without
    `may_train` nothing is pruned, because pruned models must be distilled.
    """
    feasible, infeasible = [], []
    faults: dict[tuple[Recipe, int], str | None] = {}
    settings = list(generate_settings(engine.traits.tunable, machine, streams))
    judged = tuple(n for n, one in engine.traits.tunable.items() if one.changes_answers)
    features = engine.find_features(machine)
    for recipe in generate_recipes(engine, machine, may_train=may_train):
        scheme_fault = find_scheme_fault(engine.traits.schemes, recipe.scheme, features)
        for one in settings:
            key = (recipe, one.replicas)
            if key not in faults:
                faults[key] = scheme_fault or _find_fault(engine, artifact, machine, recipe, one)
            candidate, fault = Candidate(recipe, one, judged), faults[key]
            if fault is None:
                feasible.append(candidate)
            elif not one.options:
                # One entry says it for all options.
                infeasible.append((candidate, fault))
    return Candidates(tuple(feasible), tuple(infeasible))


def generate_recipes(engine: Engine, machine: Machine, *, may_train: bool) -> Iterator[Recipe]:
    """The recipes that the engine's schemes allow, those that are made quickly first."""
    schemes = engine.traits.schemes
    # What only takes the place of a scheme that runs here is no candidate of its own.
    features, first = engine.find_features(machine), engine.find_default_scheme(machine).scheme
    stand_ins = {one.fallback for one in schemes.values() if one.runs_on(features)}
    names = [name for name in schemes if name not in stand_ins]
    for name in sorted(names, key=lambda name: (name != first, name in LEARNS)):
        yield Recipe(name)
    if may_train:
        for scheme, keep in itertools.product(PRUNED_SCHEMES, KEEP):
            if scheme in names:
                yield from (Recipe(scheme, keep, tokens) for tokens in DISTILL_TOKENS)


def generate_settings(
    tunable: Mapping[str, TunableOption], machine: Machine, streams: int | None
) -> Iterator[Settings]:
    """The settings of an engine with such options, those nearest to its defaults first."""
    found = []
    for replicas in _list_replicas(machine.core_count, streams):
        choices = [
            [(name, value) for value in _list_values(option, replicas, streams)]
            for name, option in sorted(tunable.items())
        ]
        for chosen in itertools.product(*choices):
            differing = tuple(one for one in chosen if one[1] != tunable[one[0]].values[0])
            found.append(Settings(replicas, differing))
    yield from sorted(found, key=lambda one: one.deviations)


def _list_replicas(cores: int, streams: int | None) -> Sequence[int]:
    """One replica on all cores, or one on each half, quarter and so on, down to a core."""
    found, count = [1], 2
    while count <= cores and (streams is None or count <= streams):
        found.append(count)
        count *= 2
    return found


def _list_values(option: TunableOption, replicas: int, streams: int | None) -> Sequence[Any]:
    """The values that can make a difference under this load."""
    if not option.bounds_requests or streams is None:
        return option.values
    each = -(-streams // replicas)
    return [option.values[0], *(value for value in option.values[1:] if value < each)]


def _find_fault(
    engine: Engine, artifact: Artifact, machine: Machine, recipe: Recipe, settings: Settings
) -> str | None:
    """Why so many replicas of such a model cannot run here, by the engine's own check."""
    parameters = round(artifact.description.parameters * recipe.keep)
    smaller = msgspec.structs.replace(
        artifact, description=msgspec.structs.replace(artifact.description, parameters=parameters)
    )
    spec = make_spec(engine, recipe.scheme, {}, settings.replicas)
    problems = engine.check(spec, smaller, machine)
    return "; ".join(problem.message for problem in problems) or None
